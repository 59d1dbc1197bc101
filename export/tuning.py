"""How a published model is served: its tuning and the names of its configurations.

Light to import: a look at what serves needs no Triton client and no ONNX Runtime.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from contract import (
    ENCODER_MODEL,
    MAX_BATCH_SIZE,
    MAX_INSTANCES,
    MAX_WINDOW_MS,
    PUBLIC_MODEL,
    RAGGED_MODEL,
)

LAZILY = ConfigDict(defer_build=True)
"""Of a dataclass: its checks are built with the first value, not at import."""
CONFIG_FILE = "config.pbtxt"
MODELS = (RAGGED_MODEL, ENCODER_MODEL, PUBLIC_MODEL)
"""In the order in which they are written: with the last one a change counts."""
LongTextRule = Literal["cut", "max", "mean"]
"""What a comment beyond the encoder's length scores, see `export.scorer.LongText`."""


@dataclass(frozen=True, config=LAZILY)
class Tuning:
    """How the public model is served, as `make tune` measured it best on the machine."""

    instances: Annotated[int, Field(ge=1, le=MAX_INSTANCES)]
    window_ms: Annotated[float, Field(ge=0, le=MAX_WINDOW_MS)] = 0.0
    """Longest wait of a request for batch-mates."""
    max_batch: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] = MAX_BATCH_SIZE
    """Most comments that the graph runs together."""
    batching: bool = True
    """False: each comment alone, a rung of `bench.serving.capacity`."""
