"""One run of a load generator: what it is told, and what it measured.

`bench.traffic.with_locust` and `bench.traffic.open_loop` both take a LoadConfig and give a Result,
so that a bench can use either.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.result import LOAD, RUNS, ResultOptions
from bench.traffic.arrivals import Arrivals
from bench.traffic.comments import AUTO, COMMENTS_HELP
from bench.traffic.counters import cpu_us
from serve.client import Protocol

PERCENTILES = (50, 90, 95, 99, 99.9)


@pydantic_dataclasses.dataclass(frozen=True)
class LoadConfig(ResultOptions):
    """Flags of one run."""

    users: int = Field(
        16, ge=1, description="users who send one comment at a time", json_schema_extra=LOAD
    )
    seconds: int = Field(
        20, ge=1, description="length of the load, for each protocol", json_schema_extra=RUNS
    )
    processes: int = Field(
        max(1, (os.cpu_count() or 1) // 4),
        ge=1,
        description="Locust processes, of one core each",
        json_schema_extra=LOAD,
    )
    rate: float = Field(
        0,
        ge=0,
        description="open loop of so many requests/s; 0: closed loop",
        json_schema_extra=LOAD,
    )
    arrivals: Arrivals = Field("poisson", description="of the open loop", json_schema_extra=LOAD)
    repeat_share: float = Field(
        0, ge=0, lt=1, description="share of repeated comments", json_schema_extra=LOAD
    )
    batch: int = Field(1, ge=1, description="comments a request", json_schema_extra=LOAD)
    payload: Literal["json", "binary"] = Field(
        "json", description="form of HTTP tensors", json_schema_extra=LOAD
    )
    skip_s: float = Field(
        0,
        ge=0,
        description="first seconds of the load not in latencies",
        json_schema_extra=RUNS,
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)


@dataclass(frozen=True)
class Result:
    """One protocol's run. Times are per request unless they say otherwise."""

    protocol: Protocol
    requests: int
    failures: int
    rate_rps: float
    latency_ms: dict[str, float]
    """Of answered requests at the client, exact: mean, max and PERCENTILES by name."""
    errors: dict[str, int]
    """Failed requests by their reason."""
    server_requests: int
    """Scored by the server in that time, by its own count."""
    refused: int
    mean_batch: float
    queue_ms: float
    """Mean wait in Triton until the model took the request."""
    compute_ms: float
    """Mean time to score a batch; every request of it waits that long."""
    tokens: float
    """Mean tokens a comment as the encoder saw it: [CLS] counted, cut at max_len."""
    cache_hit_share: float
    """Of comments: their logit was known to the server."""
    cpu_us: dict[str, float]
    """CPU time by who spent it, see `bench.traffic.counters.cpu_us`."""
    check: dict[str, Any]
    """`bench.self_check`; without a schedule (closed loop) only `busy` says something."""
    comments_per_s: float
    failed_p50_ms: float | None
    """Median time to the answer of a failed request, such as a refusal."""
    last_send: float
    """Unix time in seconds of the last send."""
    generator_busy: float
    """CPU seconds a second of the busiest Locust process; near 1 it binds, not the server."""


def result_of(
    protocol: Protocol,
    *,
    latencies_ms: np.ndarray,
    answered: int,
    check: dict[str, Any],
    batch: int,
    failed_ms: np.ndarray,
    last_send: float,
    errors: Counter[str],
    used: dict[str, float],
    seconds: float,
    busiest: float,
) -> Result:
    """What any generator measured, as a Result.

    `latencies_ms` float64 [answers that count], `failed_ms` float64 [failures]; `answered` in
    `seconds`; `used`: differences between two `Totals` and `generator_cpu_s`; `busiest`: CPU
    seconds a second of the generator's busiest process.
    """
    sent = answered + errors.total()
    batches = max(1, used["batches"])
    percentiles = {f"p{p:g}": float(np.percentile(latencies_ms, p)) for p in PERCENTILES}
    latency_ms = {"mean": float(latencies_ms.mean()), **percentiles, "max": latencies_ms.max()}
    return Result(
        protocol=protocol,
        requests=sent,
        failures=errors.total(),
        rate_rps=round(answered / seconds, 1),
        latency_ms={name: round(float(value), 3) for name, value in latency_ms.items()},
        errors=dict(errors.most_common()),
        server_requests=int(used["requests"]),
        refused=int(used["requests_refused"]),
        mean_batch=round(used["comments"] / batches, 3),
        queue_ms=round(used["queue_us"] / max(1, used["triton_requests"]) / 1e3, 3),
        compute_ms=round(used["compute_us"] / batches / 1e3, 3),
        tokens=round(used["tokens"] / max(1, used["comments"]), 1),
        cache_hit_share=round(used["cache_hits"] / max(1, used["comments"]), 3),
        cpu_us=cpu_us(used, sent),
        check=check,
        failed_p50_ms=round(float(np.median(failed_ms)), 3) if len(failed_ms) else None,
        last_send=last_send,
        comments_per_s=round(answered * batch / seconds, 1),
        generator_busy=round(busiest, 3),
    )
