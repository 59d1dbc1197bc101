"""Bring a published version from an object store into a model repository, whole or not at all.

    toxicity fetch s3://bucket/prefix --repository model_repository --require-signature release.pub

The store has the files of a repository as `make export` fills it, under the same names. What is
trusted is little: artifact.json by the signature, where a key is given, and every other file by the
size and sha256 that it says. The configurations are rendered here. So a damaged, half copied or
foreign version is refused by the name of its first bad file, and what was there stays.

A file comes under the name of its sha256 in `.fetching/` of the repository, where a command that
was stopped leaves it and the next one goes on. Once all are there, the version gets its place as a
new one of `make export` does (export.publish), and serves from the next start on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    ONNX_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    SERVING_FILE,
    SIGNATURE_FILE,
    BadInput,
)
from export.manifest import MAX_DOCUMENT_BYTES, Artifact, check_files, check_gates, validated
from export.object_store import ObjectStore, StoreBroken
from export.repository import Snapshot, verify
from export.serving import ServedVersion, ServingState, parse_serving
from export.signing import check_signature, required_key
from export.switch import (
    announce,
    prune,
    serve_version,
    state_of,
    undone_on_failure,
    write_configs,
    writing,
)
from export.tuning import CONFIG_FILE, MODELS
from storage.files import put_folder, remove, sha256_of, staging, write_atomically

PARTS = ".fetching"
"""Folder in the repository of what has come of files."""
_REMEDY = "copy the repository to the store again"
_TRIES = 3
"""Of a file whose connection ends, each from where the one before stopped."""
_SIGNATURE_BYTES = 4096


@dataclass(frozen=True)
class FetchConfig:
    """Flags of `toxicity fetch`."""

    source: str = Field(description="where the filled repository lies, as s3://bucket/prefix")
    repository: Path = Field(
        Path("model_repository"), description="repository that gets the version"
    )
    version: int | None = Field(
        None, ge=1, description="version to bring; left out: the one that serves in the source"
    )
    require_signature: Path | None = Field(
        None, description="public key; only a version signed for it is taken"
    )
    keep_versions: int = Field(3, ge=1, description="versions that stay in the repository")


@dataclass(frozen=True)
class Offer:
    """What the store says of a version, its manifest already checked."""

    state: ServingState
    """Of the store, that serves this version."""
    manifest: bytes
    signature: bytes | None
    artifact: dict[str, Any]

    @property
    def served(self) -> ServedVersion:
        return self.state.served

    @property
    def files(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Size and sha256 of each file but the manifest, by model and name."""
        return {
            RAGGED_MODEL: {ONNX_FILE: self.artifact["ragged"]},
            ENCODER_MODEL: {ONNX_FILE: self.artifact["encoder"]},
            PUBLIC_MODEL: dict(self.artifact["files"]),
        }


def main() -> None:
    config = parse_config(
        FetchConfig,
        None,
        prog="toxicity fetch",
        description="Bring a published version from an object store.",
        positional="source",
    )
    version, came_bytes = fetch(config)
    print(
        f"version {version} of {config.source} serves in {config.repository} from the next start "
        f"on ({came_bytes / 1e6:.1f} MB came); `make serve` loads it into a running server"
    )


def fetch(config: FetchConfig) -> tuple[int, int]:
    """Bring the version; returns its number and how many bytes of files came.

    Raises BadInput, GateFailed for a version without passed gates; the repository is then as it
    was, but for what has come of files.
    """
    store, key = ObjectStore.of(config.source), required_key(config.require_signature)
    with writing(config.repository) as found:
        parts = config.repository / PARTS
        parts.mkdir(exist_ok=True)
        offer = _offer(store, config.version, key, config.repository)
        version = offer.served.version
        if not _there(config.repository, found, offer):
            came = _bring_all(store, offer, parts)
            _put(config.repository, found, offer, parts, config.keep_versions)
            remove(parts)
            return version, came
        remove(parts)
        if offer.signature is not None:  # it may be signed since it came
            folder = config.repository / PUBLIC_MODEL / str(version)
            write_atomically(folder / SIGNATURE_FILE, offer.signature)
    serve_version(config.repository, version, public_key=key)
    return version, 0


# --- What the store has ------------------------------------------------------------------
def _offer(store: ObjectStore, version: int | None, key: Path | None, repository: Path) -> Offer:
    state = _state(store, version)
    served = state.served
    folder = f"{PUBLIC_MODEL}/{served.version}"
    manifest = store.read(f"{folder}/{ARTIFACT_FILE}", MAX_DOCUMENT_BYTES)
    where = store.address(f"{folder}/{ARTIFACT_FILE}")
    if (found := hashlib.sha256(manifest).hexdigest()) != served.artifact_sha256:
        raise BadInput(
            f"{where} is damaged: its sha256 is {found[:12]}..., expected "
            f"{served.artifact_sha256[:12]}...; {_REMEDY}"
        )
    artifact = validated(Artifact, manifest, Path(where), _REMEDY)
    if artifact.version != served.version:
        raise BadInput(
            f"{where} is of version {artifact.version}, expected {served.version}; {_REMEDY}"
        )
    signed = f"{folder}/{SIGNATURE_FILE}"
    signature = store.read(signed, _SIGNATURE_BYTES) if store.exists(signed) else None
    offer = Offer(state, manifest, signature, json.loads(manifest))
    check_gates(offer.artifact, Path(where))
    if key:  # before anything that it names is fetched
        with staging(repository / PARTS) as folder_of_both:
            _write_manifest(folder_of_both, offer)
            try:
                check_signature(folder_of_both, key)
            except BadInput as error:
                words = str(error).replace(str(folder_of_both), store.address(folder))
                raise BadInput(words) from error
    return offer


def _state(store: ObjectStore, version: int | None) -> ServingState:
    """The state of the store that counts, or the same with another version of its list."""
    name = f"{PUBLIC_MODEL}/{SERVING_FILE}"
    path = Path(store.address(name))
    serving = parse_serving(store.read(name, MAX_DOCUMENT_BYTES), path)
    config = f"{PUBLIC_MODEL}/{CONFIG_FILE}"
    state = serving.counting(store.read(config, MAX_DOCUMENT_BYTES))
    if state is None:
        raise BadInput(
            f"{store.address(config)} is not of {SERVING_FILE} beside it, expected the one that "
            f"was written with it; {_REMEDY}"
        )
    if version is None or version == state.served.version:
        return state
    for served in serving.published:
        if served.version == version:
            return ServingState(served, state.config_sha256, state.tuned, (version,))
    there = [served.version for served in serving.published]
    raise BadInput(f"--version is {version}, expected one of {there} in {store.address('')}")


# --- What comes --------------------------------------------------------------------------
def _bring_all(store: ObjectStore, offer: Offer, parts: Path) -> int:
    """Every file of the version, in `parts` under its sha256; returns the bytes that came."""
    came = 0
    for model, files in offer.files.items():
        for name, said in files.items():
            came += _bring(store, f"{model}/{offer.served.version}/{name}", said, parts)
    return came


def _bring(store: ObjectStore, name: str, said: Mapping[str, Any], parts: Path) -> int:
    part, before = parts / said["sha256"], 0
    if part.exists() and (before := part.stat().st_size) > said["bytes"]:
        part.unlink()
        before = 0
    for tried in range(1, _TRIES + 1):
        try:
            _append(store, name, part, said["bytes"])
            break
        except StoreBroken:
            if tried == _TRIES:
                raise
    size = part.stat().st_size
    if size < said["bytes"] or sha256_of(part) != said["sha256"]:
        part.unlink()
        raise BadInput(
            f"{store.address(name)} is damaged: it is not the file of {said['bytes']} bytes and "
            f"sha256 {said['sha256'][:12]}... that was published, expected that; {_REMEDY}"
        )
    return size - before


def _append(store: ObjectStore, name: str, part: Path, most_bytes: int) -> None:
    with part.open("ab") as file:
        if file.tell() == most_bytes:
            return
        for chunk in store.chunks(name, file.tell()):
            if file.tell() + len(chunk) > most_bytes:  # no more is kept than was announced
                file.truncate(0)
                return
            file.write(chunk)


# --- What is put in place ----------------------------------------------------------------
def _there(repository: Path, found: Snapshot | None, offer: Offer) -> bool:
    """Whether the version is there already. Raises BadInput if its number is another one's."""
    wanted = offer.served
    for known in found.serving.published if found else ():
        if known.version != wanted.version or known.version not in (
            found.versions if found else ()
        ):
            continue
        if known.artifact_sha256 != wanted.artifact_sha256:
            raise BadInput(
                f"version {wanted.version} of {repository} is another one than the source's, "
                "expected the same; give another folder with --repository"
            )
        verify(repository, wanted.version)
        return True
    return False


def _put(
    repository: Path, found: Snapshot | None, offer: Offer, parts: Path, keep_versions: int
) -> None:
    before, version = found.state if found else None, offer.served.version
    state = state_of(before, offer.served, offer.state.tuned, offer.artifact)
    with contextlib.ExitStack() as stack:
        staged = {model: stack.enter_context(staging(repository / model)) for model in MODELS}
        for model, files in offer.files.items():
            for name, said in files.items():
                _link_or_copy(parts / said["sha256"], staged[model] / name)
        _write_manifest(staged[PUBLIC_MODEL], offer)
        for model, files in offer.files.items():
            check_files(staged[model], files, ARTIFACT_FILE, SIGNATURE_FILE)
        with undone_on_failure(repository, version):
            announce(repository, found, state)
            for model in MODELS:
                put_folder(staged[model], repository / model / str(version))
            write_configs(repository, offer.served, offer.artifact)
        with contextlib.suppress(OSError):  # it is in place; the next one removes the rest
            known = found.versions if found else []
            prune(repository, [*known, version], state, keep_versions)


def _write_manifest(folder: Path, offer: Offer) -> None:
    write_atomically(folder / ARTIFACT_FILE, offer.manifest)
    if offer.signature is not None:
        write_atomically(folder / SIGNATURE_FILE, offer.signature)


def _link_or_copy(source: Path, target: Path) -> None:
    source.chmod(0o644)  # whatever the umask: a server's user reads it
    try:
        target.hardlink_to(source)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)
        target.chmod(0o644)


if __name__ == "__main__":
    run(main)
