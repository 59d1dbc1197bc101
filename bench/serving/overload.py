"""Load the running server at three times its capacity for a minute: `make overload`.

    python -m bench.serving.overload --batch 16 --seconds 60

The capacity is what a closed loop of the same requests has just before, unless `--capacity` states
it. Requests hold several comments: generator and server share the machine, and of single comments
no generator here sends three times what the server scores. Prints a table and the bars, and writes
`overload.json`.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_least,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from bench.serving.servers import artifact_of, find_server
from bench.traffic import open_loop
from bench.traffic.background import Background
from bench.traffic.comments import AUTO, COMMENTS_HELP
from bench.traffic.counters import memory_bytes
from bench.traffic.one_run import LoadConfig, Result
from console.options import make_config, run
from contract import HOST, ToxicityError
from serve.client import score_comments
from serve.triton import Server

_FACTOR = 3
_PROBE_S, _GOOD_S = 0.05, 0.05
"""Time between two probes, and the longest answer of one that counts as recovered."""
_MEMORY_S = 1.0
"""Time between two looks at the memory."""
_CLOSED = {"users": 16, "seconds": 10, "skip_s": 2}
_CONNECTIONS = 1000
"""Of the open loop: fewer would hold back what is due while answers are awaited."""


@dataclass(frozen=True)
class OverloadConfig(ResultOptions):
    """Flags of `python -m bench.serving.overload`."""

    capacity: Annotated[float | None, BeforeValidator(lambda given: given or None)] = Field(
        None,
        gt=0,
        description="requests/s of the server; left out: of a closed loop just before",
        json_schema_extra=LOAD,
    )
    seconds: int = Field(60, ge=3, description="length of the overload", json_schema_extra=RUNS)
    batch: int = Field(16, ge=1, description="comments a request", json_schema_extra=LOAD)
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    run_dir: Path = Field(
        Path("runs/serve"), description="run folder of the server to load", json_schema_extra=SERVER
    )


def main() -> None:
    config = begin(OverloadConfig, "bench.serving.overload", "Overload the server.")
    server = find_server(config.run_dir)
    closed = None
    capacity = config.capacity or (closed := _run(config, server, _CLOSED)).rate_rps
    overload = {"rate": _FACTOR * capacity, "seconds": config.seconds}
    with RecoveryWatch(server) as watch:
        result = _run(config, server, overload)
        time.sleep(3)  # longer than the bar of the recovery
    found = document(
        "overload",
        config,
        artifact=artifact_of(server),
        capacity=capacity,
        closed=asdict(closed) if closed else None,
        result=asdict(result),
        memory_bytes=[found for _, found in watch.memory],
        bars=bars(config, capacity, result, watch),
    )
    report(config, found, table(capacity, result))


def _run(config: OverloadConfig, server: Server, settings: dict[str, Any]) -> Result:
    own = {name: getattr(config, name) for name in ("batch", "comments", "out")}
    load_config = make_config(LoadConfig, {**own, **settings})
    return open_loop.load(load_config, "http", server, connections=_CONNECTIONS)


def table(capacity: float, result: Result) -> str:
    """What was sent, and what became of it."""
    rows = [
        ["capacity", "sent", "answered", "refused", "median of a refusal"],
        [
            f"{capacity:.0f}/s",
            f"{_FACTOR * capacity:.0f}/s",
            f"{result.rate_rps:.0f}/s",
            f"{result.failures / max(1, result.requests):.0%}",
            f"{result.failed_p50_ms or 0:.1f} ms",
        ],
    ]
    return aligned(rows)


class RecoveryWatch(Background):
    """Memory of the server (see `memory_bytes`), and probes of one comment."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.memory: list[tuple[float, float]] = []
        """Unix time and bytes."""
        self.good: list[tuple[float, bool]] = []
        """Unix time of the answer, and whether it came within _GOOD_S."""
        self._measured = 0.0
        super().__init__(_PROBE_S)

    def look(self) -> None:
        if time.monotonic() - self._measured >= _MEMORY_S:
            self._measured = time.monotonic()
            self.memory.append((time.time(), memory_bytes(self._server)))
        began = time.monotonic()
        try:
            score_comments(["a kind answer"], url=f"{HOST}:{self._server.http_port}")
            good = time.monotonic() - began <= _GOOD_S
        except ToxicityError:
            good = False
        self.good.append((time.time(), good))

    def recovery_s(self, last_send: float) -> float:
        """Seconds from `last_send` to the first good probe; infinite without one."""
        return min(
            (at - last_send for at, good in self.good if good and at > last_send), default=1e9
        )

    def memory_growth(self, last_send: float, seconds: float) -> float:
        """Largest memory of the load's last tenth over that of its second tenth."""

        def largest(begin: float, end: float) -> float:
            begin, end = (last_send - (1 - share) * seconds for share in (begin, end))
            return max((found for at, found in self.memory if begin <= at <= end), default=0.0)

        before = largest(0.1, 0.2)
        return largest(0.9, 1) / before if before else math.inf


def bars(config: OverloadConfig, capacity: float, result: Result, watch: RecoveryWatch) -> Bars:
    """The bars of overload; the rate counts answers that were no refusal."""
    return {
        "goodput_over_capacity": at_least(result.rate_rps / capacity, 0.9),
        "refusal_median_ms": at_most(result.failed_p50_ms or 0.0, 20),
        "memory_growth": at_most(watch.memory_growth(result.last_send, config.seconds), 1.05),
        "recovery_s": at_most(watch.recovery_s(result.last_send), 2),
        "generator_faults": at_most(len(result.check["invalid"]), 0),
    }


if __name__ == "__main__":
    run(main)
