"""Change which version of a repository serves, and how: another one, the one before, a tuning.

`python -m export.versions` calls `serve_version` and `rollback`, `make tune` calls `tune`. Every
change holds the repository's lock, mends first what a kill left, and either counts with one rename
or not at all (see `export.serving`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    SIGNATURE_FILE,
    BadInput,
)
from export.manifest import check_gates, read_artifact
from export.model_config import CONFIG_FILE, MODELS, Tuning, render
from export.repository import (
    Snapshot,
    numbered,
    snapshot,
    verify,
    verify_files,
    version_folder,
)
from export.serving import ServedVersion, Serving, ServingState, serving_path
from export.signing import load_private_key
from storage.files import (
    clear_unfinished,
    fsync_folder,
    json_text,
    remove,
    staging,
    write_atomically,
)
from storage.locks import LOCK_FILE, locked
from storage.system_errors import refusing_disk_errors

TUNING_FILE = "tuning.json"
LOCK_WAIT_S = 10.0
"""Longest wait for another command that changes the same repository."""


# --- What serves -------------------------------------------------------------------------
def serve_version(
    repository: Path,
    version: int | None = None,
    *,
    sign_key: Path | None = None,
    public_key: Path | None = None,
) -> int:
    """Make a published version the one that serves, the newest by default; returns its number.

    `sign_key` signs it first. Raises BadInput for one that `verify` refuses, GateFailed for one
    that does not carry passed gates; what serves then stays.
    """
    with writing(repository) as found:
        there = _required(repository, found)
        wanted = version or max(there.versions, default=0)
        if sign_key:
            verify_files(repository, wanted)
            folder = version_folder(repository, wanted)
            sign(folder, folder.parent, sign_key)
        _serve(repository, there, wanted, public_key)
    return wanted


def rollback(repository: Path, *, public_key: Path | None = None) -> int:
    """Let the version serve that did before the current one; returns its number.

    The next one goes further back. Raises as `serve_version` does, BadInput when there is none.
    """
    with writing(repository) as found:
        there = _required(repository, found)
        state = there.state or there.serving.now
        earlier = [v for v in state.history[:-1] if v in there.versions]
        if not earlier:
            raise BadInput(
                f"version {state.served.version} of {repository} is the first that served, "
                f"expected one before it; name another of {there.versions} with `make publish "
                "VERSION=N`"
            )
        history = state.history[: state.history.index(earlier[-1]) + 1]
        _serve(repository, there, earlier[-1], public_key, history)
    return earlier[-1]


def _serve(
    repository: Path,
    found: Snapshot,
    version: int,
    public_key: Path | None,
    history: tuple[int, ...] | None = None,
) -> None:
    artifact = verify(repository, version, public_key)
    check_gates(artifact, repository / PUBLIC_MODEL / str(version) / ARTIFACT_FILE)
    before = found.state or found.serving.now
    served = next(s for s in found.serving.published if s.version == version)
    served = replace(served, tuning=before.tuned or served.tuning)
    state = state_of(before, served, before.tuned, artifact)
    with undone_on_failure(repository):
        announce(repository, found, replace(state, history=history or state.history))
        write_configs(repository, served, artifact)


def tune(
    repository: Path,
    tuning: Tuning,
    evidence: dict[str, Any],
    *,
    cache_bytes: int | None = None,
) -> None:
    """Serve as `tuning` says from the next start on, and publish so in future.

    `evidence`, JSON, is kept beside the configuration; nothing reads it. `cache_bytes` is the size
    of the cache if that is to change, too. Raises BadInput when no version serves.
    """
    with writing(repository) as found:
        before = _required(repository, found).state
        artifact = verify(repository)
        assert found is not None and before is not None  # else verify raised
        served = replace(before.served, tuning=tuning)
        if cache_bytes is not None:
            served = replace(served, cache_bytes=cache_bytes)
        state = state_of(before, served, tuning, artifact)
        with undone_on_failure(repository):
            document = {"tuning": asdict(tuning), "evidence": evidence}
            write_atomically(repository / PUBLIC_MODEL / TUNING_FILE, json_text(document))
            announce(repository, found, state)
            write_configs(repository, served, artifact)


def sign(folder: Path, beside: Path, sign_key: Path) -> None:
    """Sign the version in `folder`; the file gets its place whole, from a folder in `beside`."""
    signature = load_private_key(sign_key).sign((folder / ARTIFACT_FILE).read_bytes())
    with staging(beside) as staged:
        write_atomically(staged / SIGNATURE_FILE, signature)
        (staged / SIGNATURE_FILE).replace(folder / SIGNATURE_FILE)
    fsync_folder(folder)


def _required(repository: Path, found: Snapshot | None) -> Snapshot:
    if found is None:
        verify(repository)  # which says what is wrong
        raise AssertionError(repository)
    return found


# --- Steps of a change -------------------------------------------------------------------
@contextlib.contextmanager
def writing(repository: Path) -> Iterator[Snapshot | None]:
    """Hold the repository's lock and mend what a kill left; gives what is published then."""
    remedy = "free some space or allow writing there, or give another folder with --repository"
    with refusing_disk_errors(repository, remedy):
        repository.mkdir(parents=True, exist_ok=True)
        what, wait = f"--repository {repository}", "wait for it to end"
        with locked(repository / LOCK_FILE, what, wait, LOCK_WAIT_S):
            _clear_leftovers(repository)
            yield _mended(repository)


def _mended(repository: Path) -> Snapshot | None:
    """What is published, once serving.json and every config.pbtxt agree again.

    Where they do not, the state that counts stays; where none does, the last one that can serve.
    None for a repository without a serving.json, and for one that cannot be read.
    """
    try:
        found = snapshot(repository)
    except BadInput:
        return None
    if found is None:
        return None
    serving, state = found.serving, found.state
    if state is None:
        states = [s for s in (serving.now, serving.before) if s is not None]
        state = next((s for s in states if s.served.version in found.versions), serving.now)
    served = state.served
    try:
        folder = repository / PUBLIC_MODEL / str(served.version)
        artifact = read_artifact(folder, served.artifact_sha256)
    except BadInput:
        return found  # it cannot serve, and the next change says what does
    right = replace(state, config_sha256=_config_sha256(served, artifact))
    if right != serving.now or found.state != serving.now:
        announce(repository, found, right)
    write_configs(repository, served, artifact)
    return snapshot(repository)


def announce(repository: Path, found: Snapshot | None, state: ServingState) -> None:
    """Write serving.json for what comes; what is counts until its config.pbtxt is replaced."""
    before, listed = None, {}
    if found is not None:
        before = found.state
        listed = {s.version: s for s in found.serving.published if s.version in found.versions}
    if before is not None:
        listed.setdefault(before.served.version, before.served)
    listed[state.served.version] = state.served
    published = tuple(listed[number] for number in sorted(listed))
    _write_if_changed(serving_path(repository), Serving(state, before, published).to_text())


def state_of(
    before: ServingState | None,
    served: ServedVersion,
    tuned: Tuning | None,
    artifact: Mapping[str, Any],
) -> ServingState:
    history = before.following(served.version) if before else (served.version,)
    return ServingState(served, _config_sha256(served, artifact), tuned, history)


def _config_sha256(served: ServedVersion, artifact: Mapping[str, Any]) -> str:
    text = render(served.version, served.tuning, served.cache_bytes, artifact)[PUBLIC_MODEL]
    return hashlib.sha256(text.encode()).hexdigest()


def write_configs(repository: Path, served: ServedVersion, artifact: Mapping[str, Any]) -> None:
    """With the last one, the public model's, the change counts."""
    texts = render(served.version, served.tuning, served.cache_bytes, artifact)
    for model in MODELS:
        _write_if_changed(repository / model / CONFIG_FILE, texts[model])


def _write_if_changed(path: Path, text: str) -> None:
    data = text.encode()
    if path.is_dir() and not path.is_symlink():
        remove(path)  # no file can be renamed to it
    if not path.is_file() or path.is_symlink() or path.read_bytes() != data:
        write_atomically(path, data)


@contextlib.contextmanager
def undone_on_failure(repository: Path, version: int | None = None) -> Iterator[None]:
    """When the block fails put back what it changed, and remove the folders of `version`."""
    public = repository / PUBLIC_MODEL
    paths = [repository / model / CONFIG_FILE for model in reversed(MODELS)]
    paths += [serving_path(repository), public / TUNING_FILE]
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path, data in before.items():  # config.pbtxt first: what it says counts
                now = path.read_bytes() if path.is_file() else None
                if data is None and now is not None:
                    path.unlink()
                elif data is not None and data != now:
                    write_atomically(path, data)
            if version is not None:
                _remove_version(repository, version)
        raise


def prune(repository: Path, versions: list[int], state: ServingState, keep: int) -> None:
    """Remove all but `keep` versions: the one that serves, the one before it, the newest stay."""
    first = [number for number in reversed(state.history[-2:]) if number in versions]
    newest = sorted(set(versions) - set(first), reverse=True)
    for old in sorted([*first, *newest][max(1, keep) :]):
        _remove_version(repository, old)


def _remove_version(repository: Path, version: int) -> None:
    """The public model's folder first: with it the version is gone."""
    for model in reversed(MODELS):
        folder = repository / model / str(version)
        if folder.exists():
            remove(folder)


def _clear_leftovers(repository: Path) -> None:
    """Drop what a killed command left: temporary names, and encoders without a public model."""
    clear_unfinished(repository)
    for model in MODELS:
        clear_unfinished(repository / model)
    for model in (ENCODER_MODEL, RAGGED_MODEL):
        for number in numbered(repository / model):
            if not (repository / PUBLIC_MODEL / str(number)).exists():
                remove(repository / model / str(number))
