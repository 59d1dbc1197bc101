"""Add a version to a model repository, whole or not at all; `python -m export` calls it.

Its folders are filled under temporary names and put in place before `export.switch` lets it serve.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import contract
from console.options import make_config
from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    ONNX_FILE,
    ORT_FILE,
    PROFILE_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    REQUIRE_SIGNATURE,
    SERVING_FILE,
    THRESHOLDS_FILE,
    TOKENIZER_FILE,
    BadInput,
)
from core import build
from core.binding import onnxruntime_library
from core.build import LIBRARY
from export.manifest import BESIDE, SERVED, Artifact, fingerprint, validated
from export.model_config import MODELS, Tuning
from export.profile import Profile
from export.repository import Snapshot, numbered
from export.serving import ServedVersion, serving_path
from export.signing import check_signature, load_private_key, required_key
from export.switch import (
    announce,
    prune,
    sign,
    state_of,
    undone_on_failure,
    write_configs,
    writing,
)
from storage.files import json_text, put_folder, sha256_of, staging, write_atomically
from storage.revision import source_commit
from train.operating.document import Thresholds

_CORES = os.cpu_count() or 1
_FAST_COMMENTS_PER_S, _FAST_WINDOW_MS = 10_000, 2.0
"""From this rate of one core on, the HTTP front end costs more than the encoder
(bench.serving.road)."""


@dataclass(frozen=True)
class Sources:
    """Files that become a version; see `publish`."""

    onnx: Path
    ragged: Path
    served: Path
    tokenizer: Path
    thresholds: Thresholds | None = None
    profile: Profile | None = None


Fill = Callable[[Snapshot | None, int, Mapping[str, Path]], dict[str, Any]]
"""Puts the files of a version in its staged folders, by model; given what is published, and its
number. Returns what its artifact.json says."""


def publish(
    repository: Path,
    *,
    onnx_path: Path,
    ragged_path: Path,
    tokenizer_path: Path,
    artifact: dict[str, Any],
    served_path: Path | None = None,
    instances: int | None = None,
    cache_bytes: int = contract.DEFAULT_CACHE_BYTES,
    keep_versions: int = 3,
    sign_key: Path | None = None,
    thresholds: Thresholds | None = None,
    profile: Profile | None = None,
) -> int:
    """Add one version, make it the one that serves and return its number.

    Args:
        repository: folder, made when it is missing.
        onnx_path: graph with the tensors of the contract, one file.
        ragged_path: the same graph with the ragged interface.
        tokenizer_path: JSON of `train.data.tokenizer.Tokenizer`.
        artifact: what the version is, as `export.manifest.Artifact` says. The version number,
            the commit of this source, and the size and sha256 of every file are added to it.
        served_path: graph of the public model, if another than these two's form for the device.
        instances: sessions of each server; of each GPU when `device` is "cuda". Left out:
            what `make tune` found in this repository, else by `default_tuning`.
        cache_bytes: memory of a server for the logits of repeated comments, 0 for none.
        keep_versions: versions that stay: the new one, the one that served before it, the newest.
        sign_key: file of the private key that signs it, see `export.signing`.
        thresholds: where it decides, and what else is known of it; left out: at
            contract.DECISION_THRESHOLD.
        profile: how it scored its validation split; the version number is put in.

    Raises BadInput when it cannot; what served before then serves on.
    """
    graph = served_path or _by_device(artifact["device"], onnx_path, ragged_path)
    sources = Sources(onnx_path, ragged_path, graph, tokenizer_path, thresholds, profile)

    def fill(found: Snapshot | None, version: int, staged: Mapping[str, Path]) -> dict[str, Any]:
        known = found.versions if found else []
        return _fill(repository, known, sources, staged, {**artifact, "version": version})

    return add_version(
        repository,
        fill,
        instances=instances,
        cache_bytes=cache_bytes,
        keep_versions=keep_versions,
        sign_key=sign_key,
    )


def add_version(
    repository: Path,
    fill: Fill,
    *,
    instances: int | None,
    cache_bytes: int,
    keep_versions: int,
    sign_key: Path | None,
) -> int:
    """Add the version that `fill` makes, as `publish` says; returns its number."""
    _require_key(sign_key)
    with writing(repository) as found, contextlib.ExitStack() as stack:
        known = found.versions if found else []
        version = _next_version(repository, found)
        # Inside the model's own folder, where Triton skips names that are not numbers.
        staged = {model: stack.enter_context(staging(repository / model)) for model in MODELS}
        document = fill(found, version, staged)
        if sign_key:
            sign(staged[PUBLIC_MODEL], staged[PUBLIC_MODEL], sign_key)
        if key := required_key(None):
            check_signature(staged[PUBLIC_MODEL], key)
        before = found.state if found else None
        tuned = before.tuned if before else None
        tuning = _tuning(tuned or default_tuning(document["device"], document), instances)
        sha256 = sha256_of(staged[PUBLIC_MODEL] / ARTIFACT_FILE)
        served = ServedVersion(version, sha256, tuning, cache_bytes)
        state = state_of(before, served, tuned, document)
        with undone_on_failure(repository, version):
            announce(repository, found, state)
            for model in MODELS:
                put_folder(staged[model], repository / model / str(version))
            write_configs(repository, served, document)
        with contextlib.suppress(OSError):  # it is published; the next one removes the rest
            prune(repository, [*known, version], state, keep_versions)
    return version


def _by_device(device: str, onnx_path: Path, ragged_path: Path) -> Path:
    """On a CPU the ragged form: no padding is made for a batch of mixed lengths.

    For a GPU the dense one: its shapes are known before the run.
    """
    return onnx_path if device == "cuda" else ragged_path


def _next_version(repository: Path, found: Snapshot | None) -> int:
    """A number that no version had; says when the list is lost, and which ones cannot serve."""
    if found is None and os.path.lexists(listing := serving_path(repository)):
        print(
            f"{listing} is damaged: a new list of versions begins; restore it from a backup to "
            "serve an earlier version again",
            file=sys.stderr,
        )
    there = {number for model in MODELS for number in numbered(repository / model)}
    listed = {served.version for served in found.serving.published} if found else set()
    if lost := sorted(there - listed):
        print(
            f"{repository} has versions {lost} that its {SERVING_FILE} does not list: they cannot "
            "be verified and never serve again; delete their folders when no server reads them",
            file=sys.stderr,
        )
    return 1 + max(there | listed, default=0)


def _tuning(tuning: Tuning, instances: int | None) -> Tuning:
    if instances is None:
        return tuning
    return make_config(Tuning, {**asdict(tuning), "instances": instances})


def _fill(
    repository: Path,
    known: list[int],
    sources: Sources,
    staged: Mapping[str, Path],
    artifact: dict[str, Any],
) -> dict[str, Any]:
    """Put every file of a version in its staged folder; returns what artifact.json says."""
    public, encoder, ragged = (staged[m] for m in (PUBLIC_MODEL, ENCODER_MODEL, RAGGED_MODEL))
    copy(sources.onnx, encoder / ONNX_FILE)
    copy(sources.ragged, ragged / ONNX_FILE)
    own = {sources.onnx: encoder, sources.ragged: ragged}.get(sources.served)
    if own:
        link_or_copy(own / ONNX_FILE, public / ONNX_FILE)
    else:
        copy(sources.served, public / ONNX_FILE)
    copy(sources.tokenizer, public / TOKENIZER_FILE)
    copy(build.library(), public / LIBRARY)
    if sources.thresholds:
        write_atomically(public / THRESHOLDS_FILE, sources.thresholds.to_text())
        decided = {PUBLIC_MODEL: sources.thresholds.decision.threshold}
        artifact = {**artifact, "thresholds": {**artifact.get("thresholds", {}), **decided}}
    _put_runtime(repository, known, public / ORT_FILE)
    if sources.profile:
        profile = replace(sources.profile, version=artifact["version"])
        write_atomically(public / PROFILE_FILE, json_text(asdict(profile)))
    commit = source_commit()
    document = {
        **artifact,
        **({"commit": commit} if commit else {}),
        "files": files_of(public),
        "encoder": fingerprint(encoder / ONNX_FILE),
        "ragged": fingerprint(ragged / ONNX_FILE),
        "core": build.described(),
    }
    write_manifest(public, document)
    return document


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file of a version that the manifest lists."""
    names = (*SERVED, *(name for name in BESIDE if (folder / name).is_file()))
    return {name: fingerprint(folder / name) for name in names}


def write_manifest(folder: Path, document: dict[str, Any]) -> None:
    """Write artifact.json. Raises BadInput for a document that it may not be."""
    text = json_text(document)
    validated(Artifact, text.encode(), folder / ARTIFACT_FILE)
    write_atomically(folder / ARTIFACT_FILE, text)


def default_tuning(device: str, artifact: Mapping[str, Any]) -> Tuning:
    """What serves until `make tune` has measured.

    An encoder that scores more comments on one core than the front end takes requests on the
    others needs no second session; a short wait then makes full batches of single comments. A
    slower one gets a session a core, and batches form by themselves.
    """
    if device == "cuda":
        return Tuning(1)
    if artifact.get("comments_per_s", 0) >= _FAST_COMMENTS_PER_S:
        return Tuning(1, window_ms=_FAST_WINDOW_MS)
    return Tuning(_CORES)


# --- Files -------------------------------------------------------------------------------
def copy(source: Path, target: Path) -> None:
    """Copy a file; whoever runs a server can read it."""
    shutil.copyfile(source, target)
    target.chmod(0o644)  # whatever the umask: a server's user reads it


def link_or_copy(source: Path, target: Path) -> None:
    """A second name of a file, where the filesystem has such."""
    try:
        target.hardlink_to(source)
    except OSError:  # a filesystem without hard links
        copy(source, target)


def _put_runtime(repository: Path, known: list[int], target: Path) -> None:
    """ONNX Runtime's library beside the model: 35 MB that versions share where they can."""
    source = onnxruntime_library()
    sha256 = sha256_of(source)
    for version in reversed(known):
        shared = repository / PUBLIC_MODEL / str(version) / ORT_FILE
        if shared.is_file() and not shared.is_symlink() and sha256_of(shared) == sha256:
            return link_or_copy(shared, target)
    return copy(source, target)


def _require_key(sign_key: Path | None) -> None:
    """Raise BadInput for a key that cannot sign, and for none where signatures are required."""
    if sign_key:
        load_private_key(sign_key)
    elif key := required_key(None):
        raise BadInput(
            f"{REQUIRE_SIGNATURE} is {key} and no key signs the version, expected one; give its "
            "file with --sign-key"
        )
