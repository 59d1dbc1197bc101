"""Flags of the build of the core."""

from __future__ import annotations

import platform
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class BuildConfig:
    """Flags of `python -m core.build`."""

    target: str = Field(platform.machine(), description="architecture: x86_64 or aarch64")
    sanitize: str = Field(
        "",
        description="sanitizers, with the machine's own compiler",
        json_schema_extra={"example": "address,undefined"},
    )
    out: Path | None = Field(None, description="folder of the result; left out: core/lib")
