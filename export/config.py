"""Every choice of an export, in one frozen dataclass; recorded in its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import DEFAULT_CACHE_BYTES


@dataclass(frozen=True)
class ExportConfig:
    """Flags of `python -m export`."""

    checkpoint: Path = Field(Path("runs/model"), description="folder that `make train` wrote")
    repository: Path = Field(Path("model_repository"), description="Triton repository to fill")
    out: Path = Field(Path("runs/export"), description="folder of the ONNX files and the report")
    precision: Literal["int8", "fp32"] = Field("int8", description="which graph is published")
    data: str | None = Field(
        None, description="where the training comments are now, if they moved since"
    )
    calibration_comments: int = Field(
        512, ge=1, description="training comments that fix the INT8 activation ranges"
    )
    instances: int = Field(
        os.cpu_count() or 1, ge=1, description="copies of the model that Triton runs side by side"
    )
    cache_bytes: int = Field(
        DEFAULT_CACHE_BYTES,
        ge=0,
        description="memory of each copy for the scores of repeated comments; 0 turns it off",
    )
    torchscript: bool = Field(False, description="also write and check model.torchscript.pt")
    seed: int = Field(0, ge=0, description="seed of the calibration and parity samples")
