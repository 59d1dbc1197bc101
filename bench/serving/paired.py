"""Two servers of one artifact side by side, loaded in turns: what a difference between them costs.

Clients in this process send one comment a request in a closed loop. A cost is the CPU time of the
server's process a request, the clients' not included. Read ratios within one run.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.result import LOAD, RUNS, SERVER, ResultOptions
from bench.traffic.comments import AUTO, COMMENTS_HELP
from bench.traffic.counters import server_counters, settled
from contract import HOST
from serve import triton
from serve.client import Protocol, connect, infer

Case = TypeVar("Case")


@pydantic_dataclasses.dataclass(frozen=True)
class PairedOptions(ResultOptions):
    """Flags that such benches share."""

    repository: Path = Field(
        Path("model_repository"), description="filled model repository", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    protocol: Protocol = Field("http", description="http or grpc", json_schema_extra=LOAD)
    clients: int = Field(16, ge=1, description="requests in flight", json_schema_extra=LOAD)
    seconds: float = Field(3, gt=0, description="length of one measurement", json_schema_extra=RUNS)


@dataclass(frozen=True)
class PairedMeasurement:
    """One closed loop of some seconds."""

    rate_rps: float
    cpu_us: float
    """CPU time a request of tritonserver."""
    p50_ms: float
    p99_ms: float
    hit_share: float = 0.0
    """Comments that the server found in its cache."""


def in_turns(
    rounds: int, cases: Sequence[Case], measure: Callable[[Case, bool], PairedMeasurement]
) -> dict[tuple[Case, bool], list[PairedMeasurement]]:
    """Measure each case with and without the difference, `rounds` times: on, off, then off, on.

    So neither is always the first, and a machine that slows down meanwhile slows both.
    """
    taken: dict[tuple[Case, bool], list[PairedMeasurement]] = {}
    for turn, case in itertools.product(range(rounds), cases):
        for on in (False, True) if turn % 2 else (True, False):
            taken.setdefault((case, on), []).append(measure(case, on))
    return taken


def closed_loop(
    options: PairedOptions, server: triton.Server, text: Callable[[], bytes]
) -> PairedMeasurement:
    """Send what `text` gives, from any thread, for `options.seconds`."""
    url = f"{HOST}:{server.http_port if options.protocol == 'http' else server.grpc_port}"
    before, began = settled(server_counters, server), time.monotonic()
    ends = began + options.seconds

    def ask() -> list[float]:
        latencies = []
        with connect(options.protocol, url) as client:
            while (sent := time.monotonic()) < ends:
                infer(client, options.protocol, [text()])
                latencies.append(time.monotonic() - sent)
        return latencies

    with ThreadPoolExecutor(options.clients) as pool:
        asking = [pool.submit(ask) for _ in range(options.clients)]
        latencies_ms = 1e3 * np.concatenate([future.result() for future in asking])
    wall_s, after = time.monotonic() - began, settled(server_counters, server)
    used = {name: after[name] - before[name] for name in after}
    return PairedMeasurement(
        rate_rps=round(len(latencies_ms) / wall_s, 1),
        cpu_us=round(1e6 * used["server_cpu_s"] / len(latencies_ms), 2),
        p50_ms=round(float(np.percentile(latencies_ms, 50)), 2),
        p99_ms=round(float(np.percentile(latencies_ms, 99)), 2),
        hit_share=round(used["cache_hits"] / used["comments"], 3),
    )


def medians(rows: Sequence[PairedMeasurement]) -> dict[str, float]:
    """Of each value over the turns."""
    names = asdict(rows[0])
    return {name: statistics.median(asdict(row)[name] for row in rows) for name in names}


def cpu_ratio(on: Sequence[PairedMeasurement], off: Sequence[PairedMeasurement]) -> float:
    """CPU time of a request with the difference over that without, the median of the turns."""
    return statistics.median(a.cpu_us / b.cpu_us for a, b in zip(on, off, strict=True))
