"""Flags of `toxicity monitor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import HOST
from monitor.sample import MOST

_SERVER: dict[str, Any] = {"group": "what is watched"}
_TRUTH: dict[str, Any] = {"group": "what it is compared with"}
_RULES: dict[str, Any] = {"group": "when it is an alarm"}
_RESULT: dict[str, Any] = {"group": "results"}

MONITOR_PORT = 8003
"""Where the monitor's own metrics are."""


@dataclass(frozen=True)
class MonitorConfig:
    """Flags of `python -m monitor`."""

    run_dir: Path = Field(
        Path("runs/serve"),
        description="run folder of `make serve`, whose servers are watched",
        json_schema_extra=_SERVER,
    )
    url: str | None = Field(
        None,
        description="HOST:PORT that scores, for curated comments and labels; that of --run-dir",
        json_schema_extra=_SERVER,
    )
    metrics_url: tuple[str, ...] = Field(
        (),
        description="addresses of the servers' metrics, in place of those of --run-dir",
        json_schema_extra={**_SERVER, "example": "http://127.0.0.1:8002/replica-1/metrics"},
    )
    repository: Path | None = Field(
        None,
        description="repository that serves; that of --run-dir, else model_repository",
        json_schema_extra=_SERVER,
    )
    every_s: float = Field(
        60, gt=0, description="seconds between two readings", json_schema_extra=_SERVER
    )
    windows_s: tuple[float, ...] = Field(
        (3600, 86400), description="seconds that are judged together", json_schema_extra=_SERVER
    )
    reference: Literal["profile", "traffic"] = Field(
        "profile",
        description="drift from the version's profile, or from the first traffic it had",
        json_schema_extra=_TRUTH,
    )
    reference_comments: int = Field(
        10_000, ge=1, description="comments of that first traffic", json_schema_extra=_TRUTH
    )
    curated: tuple[str, ...] = Field(
        (),
        description="curated sets (CSV with text, label, group) sent through the server",
        json_schema_extra=_TRUTH,
    )
    curated_every_s: float = Field(
        3600, gt=0, description="seconds between two sendings", json_schema_extra=_TRUTH
    )
    curated_rate: float = Field(
        100, gt=0, description="most comments a second that are sent", json_schema_extra=_TRUTH
    )
    labels: Path | None = Field(
        None,
        description="file, or folder of .csv and .jsonl files, that labels are appended to",
        json_schema_extra=_TRUTH,
    )
    labels_days: float = Field(
        30, gt=0, description="days for which a label counts", json_schema_extra=_TRUTH
    )
    sample: int = Field(
        0,
        ge=0,
        le=MOST,
        description="comments of --labels to keep of each version, redacted; none by default",
        json_schema_extra=_TRUTH,
    )
    least_comments: int = Field(
        500, ge=1, description="fewer comments in a window are not judged", json_schema_extra=_RULES
    )
    least_labels: int = Field(
        200, ge=1, description="fewer labelled comments are not judged", json_schema_extra=_RULES
    )
    p_value: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="a difference that chance makes more often is none",
        json_schema_extra=_RULES,
    )
    psi: float = Field(
        0.1, gt=0, description="population stability index from which on", json_schema_extra=_RULES
    )
    share_ratio: float = Field(
        1.5,
        gt=1,
        description="ratio of shares (unknown words, cut comments) from which on, up or down",
        json_schema_extra=_RULES,
    )
    calibration_excess: float = Field(
        0.05,
        gt=0,
        description="calibration error beyond the profile's from which on",
        json_schema_extra=_RULES,
    )
    group_excess: float = Field(
        0.05,
        gt=0,
        description="error rate of a group beyond its reference from which on",
        json_schema_extra=_RULES,
    )
    p99_ms: float = Field(
        50, gt=0, description="objective of the 99th percentile", json_schema_extra=_RULES
    )
    refused_share: float = Field(
        0.01, gt=0, lt=1, description="share of refused requests", json_schema_extra=_RULES
    )
    out: Path = Field(
        Path("runs/monitor"),
        description="state, monitor.json and monitor.html",
        json_schema_extra=_RESULT,
    )
    port: int = Field(
        MONITOR_PORT,
        ge=0,
        le=65535,
        description="port of the monitor's own metrics; 0 for none",
        json_schema_extra=_RESULT,
    )
    address: str = Field(HOST, description="address of that port", json_schema_extra=_RESULT)
    once: bool = Field(
        False,
        description="one reading; exit 0 when all is well, 1 on an alarm, 2 on an error",
        json_schema_extra=_RESULT,
    )
