"""Flags of `toxicity plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import BadInput

_LOAD: dict[str, Any] = {"group": "load"}
_FLEET: dict[str, Any] = {"group": "fleet"}
_SIMULATION: dict[str, Any] = {"group": "simulation"}
_TRAINING: dict[str, Any] = {"group": "training"}
_RESULT: dict[str, Any] = {"group": "result"}


@dataclass(frozen=True)
class PlanConfig:
    """What is planned for; a figure that no result file holds is a flag without a default."""

    rps: float | None = Field(
        None, gt=0, le=1e9, description="requests a second, of one comment", json_schema_extra=_LOAD
    )
    p99_ms: float = Field(
        50, gt=0, description="objective: p99 at most this", json_schema_extra=_LOAD
    )
    repeats: float = Field(
        0, ge=0, le=1, description="share of comments that a cache knows", json_schema_extra=_LOAD
    )
    request_bytes: float | None = Field(
        None, gt=0, description="bytes a request, with its headers", json_schema_extra=_LOAD
    )
    response_bytes: float | None = Field(
        None, gt=0, description="bytes an answer, with its headers", json_schema_extra=_LOAD
    )
    precision: str = Field(
        "int8", description="of the artifact that was measured", json_schema_extra=_FLEET
    )
    zones: int = Field(
        3, ge=1, le=100, description="of which one may be lost", json_schema_extra=_FLEET
    )
    cores_per_machine: int = Field(
        16, ge=1, le=1024, description="of one machine", json_schema_extra=_FLEET
    )
    machine_memory_gib: float | None = Field(
        None, gt=0, description="memory of one machine", json_schema_extra=_FLEET
    )
    machine_gbits: float | None = Field(
        None, gt=0, description="Gbit/s of one machine's network", json_schema_extra=_FLEET
    )
    price_per_core_hour: float | None = Field(
        None, gt=0, description="in whatever currency", json_schema_extra=_FLEET
    )
    simulate: bool = Field(
        False,
        description="simulate one machine of each zone: failures, a rollout, a lost zone",
        json_schema_extra=_SIMULATION,
    )
    simulate_s: float = Field(
        3, ge=1, le=600, description="seconds that are simulated", json_schema_extra=_SIMULATION
    )
    detect_s: float = Field(
        1,
        ge=0,
        le=60,
        description="until traffic leaves a dead machine (assumed; measure yours)",
        json_schema_extra=_SIMULATION,
    )
    seed: int = Field(0, ge=0, description="of the simulation", json_schema_extra=_SIMULATION)
    train_rows: int | None = Field(
        None, ge=1, description="comments to train on", json_schema_extra=_TRAINING
    )
    train_run: Path = Field(
        Path("runs/model"),
        description="finished training whose speed is projected",
        json_schema_extra=_TRAINING,
    )
    train_epochs: int | None = Field(
        None, ge=1, description="passes; left out: as that training's", json_schema_extra=_TRAINING
    )
    train_tokens: float | None = Field(
        None,
        gt=0,
        description="mean tokens a comment; left out: as that training's comments",
        json_schema_extra=_TRAINING,
    )
    train_cores: int | None = Field(
        None, ge=1, description="cores that training had, for its cost", json_schema_extra=_TRAINING
    )
    results: Path = Field(
        Path("bench/results"),
        description="folder with road/road.json, of the machine to plan with",
        json_schema_extra=_RESULT,
    )
    json: bool = Field(
        False, description="print one JSON document in place of tables", json_schema_extra=_RESULT
    )
    plot: Path | None = Field(None, description="PNG to write", json_schema_extra=_RESULT)

    def __post_init__(self) -> None:
        if self.rps is None and self.train_rows is None:
            raise BadInput(
                "neither a load nor a training is given, expected one; give --rps or --train-rows"
            )
        if self.simulate and self.rps is None:
            raise BadInput("--simulate has no load, expected one; give --rps")
        if self.plot and self.rps is None:
            raise BadInput("--plot has no load to draw, expected one; give --rps")
