"""artifact.json, the manifest of a version: what it may say, and whether its files are as it says.

A file is read without following a link and only if it is a regular one, so that what was checked
is what lies in the version's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from contract import (
    ARTIFACT_FILE,
    ATTRIBUTE_NAME,
    DECISION_THRESHOLD,
    MAX_ATTRIBUTES,
    MAX_LEN,
    MAX_WINDOWS,
    ONNX_FILE,
    ORT_FILE,
    PROFILE_FILE,
    PUBLIC_MODEL,
    THRESHOLDS_FILE,
    TOKENIZER_FILE,
    BadInput,
    GateFailed,
)
from core.build import LIBRARY
from export.tuning import LAZILY, LongTextRule

REMEDY = "run `make export` to publish a new version"
SERVED = (LIBRARY, ONNX_FILE, ORT_FILE, TOKENIZER_FILE)
"""Files of a version that a server loads, beside the manifest."""
BESIDE = (PROFILE_FILE, THRESHOLDS_FILE)
"""Files that a version may have, and that the manifest covers then."""
MAX_DOCUMENT_BYTES = 1 << 20
"""Longest artifact.json or serving.json that is read."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(ge=1)]
AttributeName = Annotated[str, Field(pattern=ATTRIBUTE_NAME)]
Length = Annotated[int, Field(ge=1, le=MAX_LEN)]
Document = TypeVar("Document")


@dataclass(frozen=True, config=LAZILY)
class Fingerprint:
    """What a file was when it was published."""

    sha256: Sha256
    bytes: Positive


@dataclass(frozen=True, config=LAZILY)
class LongTextValues:
    """`export.scorer.LongText` as it is written."""

    rule: LongTextRule
    stride: Length
    windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)]


@dataclass(frozen=True, config=LAZILY)
class Artifact:
    """What artifact.json must say; more may stand there, which nothing reads."""

    version: Positive
    precision: Literal["fp32", "fp16", "int8"]
    device: Literal["cpu", "cuda"]
    max_len: Length
    files: dict[str, Fingerprint]
    encoder: Fingerprint
    ragged: Fingerprint
    long_text: LongTextValues = LongTextValues("cut", 1, 1)
    comments_per_s: Annotated[float, Field(ge=0)] = 0.0
    attention_widths: tuple[int, ...] = ()
    qat: bool = False
    tolerances: dict[str, float] = Field(default_factory=dict)
    measured: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    core: dict[str, Any] = Field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    cascade: dict[str, Any] | None = None
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Probability from which a comment is flagged, by output."""
    rethresholded: Positive | None = None
    """The version whose files these are but for the thresholds, if it is of one."""
    attributes: Annotated[tuple[AttributeName, ...], Field(max_length=MAX_ATTRIBUTES)] = ()
    checkpoint_sha256: Sha256 | None = None
    created: str | None = None
    commit: str | None = None

    @model_validator(mode="after")
    def _lists_what_is_served(self) -> Artifact:
        for name in sorted((set(SERVED) ^ self.files.keys()) - set(BESIDE)):
            raise ValueError(f"files {'has' if name in self.files else 'is without'} {name}")
        if self.long_text.windows > 1 and self.long_text.stride >= self.max_len:
            raise ValueError(f"long_text.stride is not below max_len, {self.max_len}")
        return self


def validated(kind: type[Document], data: bytes, path: Path, remedy: str = REMEDY) -> Document:
    """The JSON in `data` as `kind`. Raises BadInput that names `path` and the first bad value."""
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        name = ".".join(map(str, first["loc"]))
        got = repr(first["input"])
        got = got if len(got) <= 60 else f"{got[:60]}..."
        if reason.startswith("Input should be "):
            reason = f"{name} is {got}, expected {reason.removeprefix('Input should be ')}"
        elif name:
            reason = f"{name}: {reason}"
        raise BadInput(f"{path} is not valid: {' '.join(reason.split())}; {remedy}") from error


def read_artifact(folder: Path, sha256: str) -> dict[str, Any]:
    """artifact.json of the version in `folder`, whose file has this `sha256` if it is unchanged."""
    path = folder / ARTIFACT_FILE
    data = read_regular(path)
    _require_sha256(path, hashlib.sha256(data).hexdigest(), sha256)
    artifact = validated(Artifact, data, path)
    if str(artifact.version) != folder.name:
        raise BadInput(f"{path} is of version {artifact.version}, expected {folder.name}; {REMEDY}")
    document: dict[str, Any] = json.loads(data)
    return document


def check_files(folder: Path, expected: Mapping[str, Mapping[str, Any]], *others: str) -> None:
    """Raise BadInput unless `folder` holds just `expected`, unchanged, and maybe `others`.

    `expected` has the size and sha256 of each file by its name.
    """
    if not is_folder(folder):
        raise BadInput(f"{folder} is no folder, expected one of a published version; {REMEDY}")
    for name in names_in(folder):
        if name in others:
            fingerprint(folder / name)
        elif name not in expected:
            raise BadInput(
                f"{folder / name} is not of the published version, expected only what is listed "
                f"in {ARTIFACT_FILE}; delete it"
            )
    for name, said in expected.items():
        found = fingerprint(folder / name)
        _require_sha256(folder / name, found["sha256"], said["sha256"])
        if found["bytes"] != said["bytes"]:
            raise BadInput(
                f"{folder / name} is damaged: it has {found['bytes']} bytes, expected "
                f"{said['bytes']}; {REMEDY}"
            )


def stated_threshold(artifact: Mapping[str, Any]) -> float | None:
    """Probability from which a version says that it flags a comment; None for an older one."""
    found = artifact.get("thresholds", {}).get(PUBLIC_MODEL)
    return None if found is None else float(found)


def decision_threshold(artifact: Mapping[str, Any]) -> float:
    """Probability from which a version flags a comment; DECISION_THRESHOLD for an older one."""
    stated = stated_threshold(artifact)
    return DECISION_THRESHOLD if stated is None else stated


def check_gates(artifact: Mapping[str, Any], path: Path) -> None:
    """Raise GateFailed unless the version carries gates and passed every one."""
    bounds, values = artifact.get("tolerances", {}), artifact.get("measured", {})
    if not bounds or bounds.keys() != values.keys():
        raise GateFailed(f"{path} carries no gates, expected those that it passed; {REMEDY}")
    for gate, bound in bounds.items():
        if not values[gate] <= bound:
            raise GateFailed(
                f"gate {gate} of {path} is {values[gate]:.3g}, expected at most {bound:.3g}; "
                f"{REMEDY}"
            )


# --- Files -------------------------------------------------------------------------------
def is_folder(path: Path) -> bool:
    """Whether a folder lies there itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def names_in(folder: Path) -> list[str]:
    """Names of all that lies in a folder, in order. Raises BadInput when it cannot be read."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error.strerror}); {REMEDY}") from error


def read_regular(path: Path, remedy: str = REMEDY) -> bytes:
    """Bytes of a small file. Raises BadInput for a link, and for all that is no regular file."""
    with _opened(path, remedy) as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadInput(f"{path} is longer than {MAX_DOCUMENT_BYTES} bytes, expected less; {remedy}")
    return data


def fingerprint(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Size and hex sha256 of a file. Raises BadInput as `read_regular` does."""
    with _opened(path, remedy) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": os.fstat(file.fileno()).st_size}


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[BufferedReader]:
    try:
        # A pipe would wait for its writer, and a link may lead anywhere.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise BadInput(f"{path} is no regular file, expected one; {remedy}")
        with os.fdopen(handle, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing from the published version; {remedy}") from error
    except OSError as error:
        what = "is a link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise BadInput(f"{path} {what}, expected a regular file; {remedy}") from error


def _require_sha256(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise BadInput(
            f"{path} is damaged: its sha256 is {found[:12]}..., expected {expected[:12]}...; "
            f"{REMEDY}"
        )
