"""serving.json: which version of a repository serves and how, and what the published ones are.

The three config.pbtxt are rendered from it. A change writes serving.json first and the public
model's config.pbtxt last; with that file the change counts. Until then the state before it does,
whose config.pbtxt still is in place: serving.json has both states. It ends with the sha256 of all
that it says, what no config.pbtxt shows included: where a rollback goes, how it will serve there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from contract import MAX_CACHE_BYTES, PUBLIC_MODEL, SERVING_FILE, BadInput
from export.manifest import REMEDY, Positive, Sha256, validated
from export.tuning import LAZILY, Tuning
from storage.files import json_text

_SUM = "sha256"
"""Last key of the file, of the document without it."""
_HISTORY = 100
"""Most versions that are remembered to have served."""


@dataclass(frozen=True, config=LAZILY)
class ServedVersion:
    """A published version, and how it serves or did last."""

    version: Positive
    artifact_sha256: Sha256
    tuning: Tuning
    cache_bytes: Annotated[int, Field(ge=0, le=MAX_CACHE_BYTES)]


@dataclass(frozen=True, config=LAZILY)
class ServingState:
    """What serves, by the public model's config.pbtxt of this sha256."""

    served: ServedVersion
    config_sha256: Sha256
    tuned: Tuning | None
    """What `make tune` found, which later versions keep."""
    history: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=_HISTORY)]
    """Versions that served, this one last; a rollback goes back along it."""

    def following(self, version: int) -> tuple[int, ...]:
        """History when `version` serves next."""
        return (*(v for v in self.history if v != version), version)[-_HISTORY:]

    @model_validator(mode="after")
    def _history_ends_here(self) -> ServingState:
        if self.history[-1] != self.served.version:
            raise ValueError(f"history does not end with version {self.served.version}")
        return self


@dataclass(frozen=True, config=LAZILY)
class Serving:
    """The file."""

    now: ServingState
    before: ServingState | None
    published: tuple[ServedVersion, ...]
    """Oldest first; those whose folder is gone are published no more."""
    format: Literal[1, 2] = 2
    """Of 1 the file has no sha256; the next change writes 2."""

    @model_validator(mode="after")
    def _publishes_what_serves(self) -> Serving:
        numbers = [served.version for served in self.published]
        if numbers != sorted(set(numbers)):
            raise ValueError("published is not in order, each version once")
        for state in filter(None, (self.now, self.before)):
            if state.served.artifact_sha256 not in {
                served.artifact_sha256
                for served in self.published
                if served.version == state.served.version
            }:
                raise ValueError(f"published is without version {state.served.version}")
        return self

    def counting(self, config: bytes | None) -> ServingState | None:
        """The state whose config.pbtxt is these bytes, if it is one's."""
        found = None if config is None else hashlib.sha256(config).hexdigest()
        for state in (self.now, self.before):
            if state is not None and state.config_sha256 == found:
                return state
        return None

    def to_text(self) -> str:
        return _summed(dataclasses.asdict(self))


def serving_path(repository: Path) -> Path:
    return repository / PUBLIC_MODEL / SERVING_FILE


def parse_serving(data: bytes, path: Path) -> Serving:
    """Raises BadInput for a file that no command of this project wrote, byte for byte."""
    serving = validated(Serving, data, path)
    document = json.loads(data)
    summed = document.pop(_SUM, None) is not None
    if summed != (serving.format > 1) or (summed and _summed(document).encode() != data):
        raise BadInput(
            f"{path} is damaged: its {_SUM} is not that of what it says, expected the file as it "
            f"was written; restore it from a backup, or {REMEDY}"
        )
    return serving


def _summed(document: dict[str, Any]) -> str:
    digest = hashlib.sha256(json_text(document).encode()).hexdigest()
    return json_text({**document, _SUM: digest})
