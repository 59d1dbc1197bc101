"""Choose instances, window and largest batch by measurement: `make tune`.

    python -m bench.serving.tune --repository model_repository

One setting after the other, the others held: the capacity at the objective, as in
`bench.serving.capacity`, for each of its values. A value replaces the one that stands only when it
is better by more than --margin, which is this machine's noise. What won goes into the repository's
configuration (toxicity/serving.json, and the measurements in toxicity/tuning.json); later exports
keep it. Prints a table and writes `tune.json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.report.result import RUNS, Bars, begin, document, exactly, report
from bench.serving.capacity import CapacityConfig, Rung, search, served, table
from bench.traffic.comments import load_pool
from console.options import run
from contract import MAX_BATCH_SIZE, MAX_INSTANCES, MAX_WINDOW_MS
from export.model_config import Tuning
from export.repository import served_tuning, verify
from export.switch import tune

_CORES = os.cpu_count() or 1
TRY: dict[str, Any] = {"group": "what is tried"}


@dataclass(frozen=True)
class TuneConfig(CapacityConfig):
    """Flags of `python -m bench.serving.tune`."""

    steps: int = Field(
        4, ge=1, description="runs of the search of one setting", json_schema_extra=RUNS
    )
    instances: tuple[Annotated[int, Field(ge=1, le=MAX_INSTANCES)], ...] = Field(
        tuple(sorted({1, _CORES, _CORES + 1})), description="sessions to try", json_schema_extra=TRY
    )
    window_ms: tuple[Annotated[float, Field(ge=0, le=MAX_WINDOW_MS)], ...] = Field(
        (0, 2, 8), description="waits for others of a batch to try", json_schema_extra=TRY
    )
    max_batch: tuple[Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)], ...] = Field(
        (16, MAX_BATCH_SIZE), description="largest batches to try", json_schema_extra=TRY
    )
    margin: float = Field(
        0.05,
        ge=0,
        description="gain from which on a value replaces another",
        json_schema_extra=RUNS,
    )


def main() -> None:
    config = begin(TuneConfig, "bench.serving.tune", "Tune the served model.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    standing = served_tuning(config.repository)
    best, rows = choose(config, standing, lambda tuning: _measure(config, tuning))
    found = document(
        "tune",
        config,
        objective={"p99_ms": config.p99_ms, "errors": 0},
        comments=pool.to_json(),
        chosen=asdict(best),
        rows=rows,
        bars=bars(rows),
    )
    tune(config.repository, best, found)
    chosen = f"chosen: {_words(best)}; it is in {config.repository} and serves after "
    report(config, found, f"{table(rows)}\n{chosen}`make stop serve`")


def _measure(config: TuneConfig, tuning: Tuning) -> dict[str, Any]:
    rung = Rung(_words(tuning), tuning=tuning)
    with served(config, rung) as server:
        return search(config, rung, server)


def choose(
    config: TuneConfig, standing: Tuning, measure: Callable[[Tuning], dict[str, Any]]
) -> tuple[Tuning, list[dict[str, Any]]]:
    """The best tuning, and what `measure` gave for each that was tried, `standing` first."""
    best, rows = standing, [measure(standing)]
    to_beat = rows[0]["capacity_rps"]
    for name in ("instances", "window_ms", "max_batch"):
        standing = best
        for value in getattr(config, name):
            if value == getattr(standing, name):
                continue
            candidate = replace(standing, **{name: value})
            rows.append(measure(candidate))
            if rows[-1]["capacity_rps"] > (1 + config.margin) * to_beat:
                best, to_beat = candidate, rows[-1]["capacity_rps"]
    return best, rows


def _words(tuning: Tuning) -> str:
    return f"{tuning.instances} x, {tuning.window_ms:g} ms, batch {tuning.max_batch}"


def bars(rows: list[dict[str, Any]]) -> Bars:
    """Every tuning that was tried meets the objective at some rate."""
    share = sum(row["capacity_rps"] > 0 for row in rows) / len(rows)
    return {"tunings_with_capacity": exactly(share, 1)}


if __name__ == "__main__":
    run(main)
