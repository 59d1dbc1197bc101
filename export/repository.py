"""A Triton model repository of published versions: what is in it, which one serves, is it whole.

    model_repository/
        toxicity/serving.json            which version serves, how, and each version's sha256
        toxicity/config.pbtxt            text in, score out; the core as Triton's backend
        toxicity/tuning.json             after `make tune`: the measurements behind its choice
        toxicity/<N>/                    one version, never changed once it is there: the graph, the
                                         tokenizer, the core and ONNX Runtime as the gates ran them
        toxicity_encoder/config.pbtxt    ids in, logit out; onnxruntime backend of a stock image
        toxicity_encoder/<N>/model.onnx  the same bytes
        toxicity_encoder_ragged/...      likewise, the graph with the interface of ragged batching

`verify` covers all that is loaded: serving.json has the sha256 of artifact.json, that has those of
the version's files, and every config.pbtxt is what is rendered from both. `export.publish` writes,
`python -m export.versions` lists, publishes and rolls back. Nothing here needs the lock.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    ONNX_FILE,
    ORT_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    BadInput,
)
from export.manifest import REMEDY, check_files, is_folder, names_in, read_regular
from export.manifest import read_artifact as _read_artifact
from export.serving import ServedVersion, Serving, ServingState, parse_serving, serving_path
from export.signing import check_signature, required_key
from export.tuning import CONFIG_FILE, MODELS, Tuning

if TYPE_CHECKING:
    from export.scorer import Scorer

_MEND = "run `make publish` to write it again"
_LOOKS = 20
"""Readings of several files until no writer came between them."""


# --- What is there -----------------------------------------------------------------------
def versions(repository: Path) -> list[int]:
    """Published versions, all of them whole, oldest first.

    Raises BadInput for a damaged serving.json and for a repository that is older than it.
    """
    found = snapshot(repository)
    return found.versions if found else []


def current(repository: Path) -> int:
    """The version that serves. Raises BadInput when none does."""
    return _state(repository, _required(repository)).served.version


def version_folder(repository: Path, version: int | None = None) -> Path:
    """Folder of a version of the public model, the one that serves by default. Raises BadInput."""
    return repository / PUBLIC_MODEL / str(_served(repository, version).version)


def read_artifact(repository: Path, version: int | None = None) -> dict[str, Any]:
    """artifact.json of a version, the one that serves by default. Raises BadInput if altered."""
    return _artifact(repository, _served(repository, version))


def serving_config(repository: Path, version: int | None = None) -> str:
    """Text of the public model's config.pbtxt that serves a version, by default the current one.

    Rendered from checked values, whatever config.pbtxt says. Raises BadInput.
    """
    served = _served(repository, version)
    return _rendered(served, _artifact(repository, served))[PUBLIC_MODEL]


def served_files(repository: Path, version: int | None = None) -> dict[str, str]:
    """Hex sha256 of each file that a server loads from the version's folder, by its name.

    artifact.json is among them. Raises BadInput if that was altered; the others are not read.
    """
    served = _served(repository, version)
    files = {name: said["sha256"] for name, said in _artifact(repository, served)["files"].items()}
    return {ARTIFACT_FILE: served.artifact_sha256, **files}


def served_version(repository: Path, version: int | None = None) -> ServedVersion:
    """How a version, the current one by default, is served or was last. Raises BadInput."""
    return _served(repository, version)


def served_tuning(repository: Path) -> Tuning:
    """How the current version is served. Raises BadInput when none is."""
    return _state(repository, _required(repository)).served.tuning


def read_tuning(repository: Path) -> Tuning | None:
    """What `make tune` chose last, if it did. Raises BadInput when nothing serves."""
    return _state(repository, _required(repository)).tuned


# --- Whether it is whole -----------------------------------------------------------------
def verify(
    repository: Path, version: int | None = None, public_key: Path | None = None
) -> dict[str, Any]:
    """`read_artifact`, once all that a server loads is what was published.

    Args:
        repository: the folder that `make export` fills.
        version: the current one by default; of that one config.pbtxt is checked, too.
        public_key: file of the key that the version must be signed for; left out, the one that
            the environment variable contract.REQUIRE_SIGNATURE names, if it does.

    Raises BadInput that names the first file which is missing, altered or too many.
    """
    artifact = verify_files(repository, version)
    if key := required_key(public_key):
        check_signature(version_folder(repository, artifact["version"]), key)
    return artifact


def verify_files(repository: Path, version: int | None = None) -> dict[str, Any]:
    """`verify` without a look at the signature."""
    for _ in range(_LOOKS):
        found = _required(repository)
        try:
            return _verified(repository, found, version)
        except BadInput:
            now = _required(repository)
            if (now.serving, now.config) == (found.serving, found.config):
                raise  # else a writer came between
    return _verified(repository, _required(repository), version)


def _verified(repository: Path, found: Snapshot, version: int | None) -> dict[str, Any]:
    served = _served_of(repository, found, version)
    artifact = _artifact(repository, served)
    if served.version == (found.state or found.serving.now).served.version:
        _check_configs(repository, found, artifact)
    number = str(served.version)
    for model, graph in ((ENCODER_MODEL, "encoder"), (RAGGED_MODEL, "ragged")):
        check_files(_model_folder(repository, model) / number, {ONNX_FILE: artifact[graph]})
    folder = _model_folder(repository, PUBLIC_MODEL) / number
    check_files(folder, artifact["files"], ARTIFACT_FILE, SIGNATURE_FILE)
    return artifact


def load_scorer(
    repository: Path, version: int | None = None, public_key: Path | None = None
) -> Scorer:
    """Scorer of a verified version, for offline use: the served code on the served files."""
    from export.scorer import LongText, Scorer  # ONNX Runtime: not for a look at what serves
    from train.data.tokenizer import Tokenizer

    artifact = verify(repository, version, public_key)
    folder = version_folder(repository, artifact["version"])
    tokenizer = Tokenizer.from_json((folder / TOKENIZER_FILE).read_text("utf-8"))
    return Scorer(
        folder / ONNX_FILE,
        tokenizer,
        artifact["device"],
        long_text=LongText.of_artifact(artifact),
        ort_library=folder / ORT_FILE,
    )


def _check_configs(repository: Path, found: Snapshot, artifact: dict[str, Any]) -> None:
    """Each config.pbtxt is rendered from the state that counts.

    After a kill between two of them a stock model's is that of the state which was to come.
    """
    state, coming = _state(repository, found), found.serving.now.served
    allowed = [_rendered(state.served, artifact)]
    if state.served != coming and coming.version in found.versions:
        allowed.append(_rendered(coming, _artifact(repository, coming)))
    for model in MODELS:
        path = repository / model / CONFIG_FILE
        said = read_regular(path, _MEND).decode("utf-8", "replace")
        texts = [text[model] for text in (allowed if model != PUBLIC_MODEL else allowed[:1])]
        if said not in texts:
            from export.model_config import difference

            raise BadInput(f"{path} {difference(said, texts[0])}; {_MEND}")


# --- serving.json ------------------------------------------------------------------------
@dataclass(frozen=True)
class Snapshot:
    """serving.json and the public model's config.pbtxt as they were at one moment."""

    serving: Serving
    config: bytes | None
    versions: list[int]

    @property
    def state(self) -> ServingState | None:
        """The state that counts; None when config.pbtxt is of neither."""
        return self.serving.counting(self.config)


def numbered(folder: Path) -> list[int]:
    """Folders of versions in a model's folder, oldest first, whoever made them."""
    names = names_in(folder) if is_folder(folder) else []
    numbers = [int(name) for name in names if name.isdecimal() and str(int(name)) == name]
    return sorted(number for number in numbers if is_folder(folder / str(number)))


def snapshot(repository: Path) -> Snapshot | None:
    path, config = serving_path(repository), repository / PUBLIC_MODEL / CONFIG_FILE
    folder = _model_folder(repository, PUBLIC_MODEL)
    if not os.path.lexists(path):
        if old := numbered(folder):
            raise BadInput(
                f"{path} is missing and version {old[-1]} is there, expected both since versions "
                "are verified by it; restore it from a backup, or run `make export` again"
            )
        return None
    data = read_regular(path)
    for _ in range(_LOOKS):
        said = None
        with contextlib.suppress(BadInput):  # who needs it says what is wrong with it
            said = read_regular(config)
        before, data = data, read_regular(path)
        if data == before:
            break
    serving, present = parse_serving(data, path), set(numbered(folder))
    published = [s.version for s in serving.published if s.version in present]
    return Snapshot(serving, said, published)


def _required(repository: Path) -> Snapshot:
    found = snapshot(repository)
    if found is None:
        raise BadInput(
            f"{repository} holds no published model, expected one; run `make train export`"
        )
    return found


def _state(repository: Path, found: Snapshot) -> ServingState:
    if found.state is not None:
        return found.state
    path, served = repository / PUBLIC_MODEL / CONFIG_FILE, found.serving.now.served
    config = found.config or read_regular(path, _MEND)
    expected = _rendered(served, _artifact(repository, served))[PUBLIC_MODEL]
    from export.model_config import difference

    words = difference(config.decode("utf-8", "replace"), expected)
    raise BadInput(f"{path} {words}; {_MEND}")


def _served(repository: Path, version: int | None) -> ServedVersion:
    return _served_of(repository, _required(repository), version)


def _served_of(repository: Path, found: Snapshot, version: int | None) -> ServedVersion:
    if version is None:
        return _state(repository, found).served
    state = found.state or found.serving.now
    if version == state.served.version:
        return state.served
    for served in found.serving.published:
        if served.version == version and version in found.versions:
            return served
    raise BadInput(
        f"version is {version}, expected one of {found.versions} in {repository}; {REMEDY}"
    )


def _artifact(repository: Path, served: ServedVersion) -> dict[str, Any]:
    folder = repository / PUBLIC_MODEL / str(served.version)
    return _read_artifact(folder, served.artifact_sha256)


def _rendered(served: ServedVersion, artifact: dict[str, Any]) -> dict[str, str]:
    from export.model_config import render  # Triton's client and gRPC

    return render(served.version, served.tuning, served.cache_bytes, artifact)


def _model_folder(repository: Path, model: str) -> Path:
    folder = repository / model
    if os.path.lexists(folder) and not is_folder(folder):
        raise BadInput(f"{folder} is no folder, expected one; delete it and {REMEDY}")
    return folder
