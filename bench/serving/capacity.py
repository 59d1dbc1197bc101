"""Search the highest rate at which each rung meets the objective: `make capacity`.

    python -m bench.serving.capacity --p99-ms 50 --seconds 10 --steps 4

Each rung is served from a repository of its own, made in a temporary folder, by a server of its
own; the generator of `bench/generator/` loads it in an open loop. Locust loads one rung, too, with
one connection, as a check that both see the same server. Prints a table and a projection; writes
`capacity.json` and `capacity.png`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.plot import plot_capacity
from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_least,
    begin,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from bench.serving.servers import serving
from bench.traffic import open_loop, with_locust
from bench.traffic.arrivals import MAX_BUSY
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.counters import CountersOf, parts_of, server_counters
from bench.traffic.one_run import LoadConfig, Result
from console.options import make_config, run
from contract import ENCODER_MODEL, ONNX_FILE, RAGGED_MODEL, TOKENIZER_FILE
from export.model_config import Tuning
from export.publish import publish
from export.repository import verify, version_folder
from export.switch import tune
from serve import haproxy, triton

TARGET_RPS, TARGET_LOAD = 10_000, 0.65
_CLOSED_USERS = 64
"""Connections of the closed loop whose rate starts the search: enough for full batches."""
_STEP = 1.25
"""Factor between two rates until one misses."""
_BUSY = 0.9
"""Share of the machine's CPU from which the part that uses most of it is said to bind."""


_CORES = os.cpu_count() or 1
_ONE, _ALL = Tuning(1), Tuning(_CORES)


@dataclass(frozen=True)
class Rung:
    """One way to serve the same weights."""

    name: str
    graph: Literal["published", "traced", "student"] = "published"
    """"traced" is the plain FP32 graph, padded to the batch; "student" is of `--student`."""
    batching: bool = True
    tuning: Tuning = _ONE
    repeats: float = 0
    """Share of comments that come again, for the cache to know."""
    replicas: int | None = None
    """Servers behind haproxy, each with so many instances."""


_PLAIN, _OURS = "traced FP32, dynamic batching", "published, an instance a core"
RUNGS = (
    Rung("traced FP32, no batching", "traced", batching=False, tuning=_ALL),
    Rung(_PLAIN, "traced", tuning=_ALL),
    Rung("published, one instance"),
    Rung(_OURS, tuning=_ALL),
    Rung("published, a replica a core", replicas=_CORES),
    Rung("published, 20 % repeats", tuning=_ALL, repeats=0.2),
    Rung("published, 50 % repeats", tuning=_ALL, repeats=0.5),
    Rung("student, an instance a core", "student", tuning=_ALL),
    Rung("student, 50 % repeats", "student", tuning=_ALL, repeats=0.5),
)


@pydantic_dataclasses.dataclass(frozen=True)
class CapacityConfig(ResultOptions):
    """Flags of `python -m bench.serving.capacity`."""

    p99_ms: float = Field(
        50, gt=0, description="objective: p99 at most this, and no error", json_schema_extra=RUNS
    )
    seconds: int = Field(10, ge=3, description="length of one run", json_schema_extra=RUNS)
    skip_s: float = Field(
        2, ge=0, description="first seconds of a run not in latencies", json_schema_extra=RUNS
    )
    steps: int = Field(
        5, ge=1, description="runs of the bisection of one rung", json_schema_extra=RUNS
    )
    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=SERVER
    )
    traced: Path = Field(
        Path("runs/export/traced.onnx"),
        description="traced graph of the same export",
        json_schema_extra=SERVER,
    )
    student: Path | None = Field(
        None, description="published repository of a student", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)


def main() -> None:
    config = begin(CapacityConfig, "bench.serving.capacity", "Capacity by rung.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    rows = []
    for rung in RUNGS:
        if why := _cannot_run(config, rung):
            print(f"{rung.name}: skipped, {why}", flush=True)
            continue
        with served(config, rung) as server:
            rows.append(search(config, rung, server))
            if rung.name == _OURS:
                rows[-1]["both_generators"] = agreement(config, server)
    found = document(
        "capacity",
        config,
        objective={"p99_ms": config.p99_ms, "errors": 0},
        comments=pool.to_json(),
        rungs=rows,
        bars=bars(rows),
    )
    plot_capacity(rows, config.out / "capacity.png")
    report(config, found, table(rows), also=("capacity.png",))


def _cannot_run(config: CapacityConfig, rung: Rung) -> str:
    """Why a rung is left out; empty when it is not."""
    if rung.graph == "traced" and not config.traced.is_file():
        return f"no {config.traced}; run `make export`"
    if rung.graph == "student" and config.student is None:
        return "no student; give --student"
    if rung.replicas and not haproxy.found():
        return "haproxy is not installed; `apt-get install haproxy`"
    return ""


# --- One rung ----------------------------------------------------------------------------
@contextlib.contextmanager
def served(config: CapacityConfig, rung: Rung) -> Iterator[triton.Server]:
    """A server of `rung`, stopped at the end."""

    def make(folder: Path) -> Path:
        make_repository(config, rung, folder / "model_repository")
        return folder / "model_repository"

    replicas = {"replicas": rung.replicas} if rung.replicas else {}
    with serving(make, through_door=bool(rung.replicas), settings=replicas) as found:
        yield found.server


def make_repository(config: CapacityConfig, rung: Rung, repository: Path) -> None:
    """Publish what serves again into `repository`, as `rung` wants it served."""
    source = config.repository
    if rung.graph == "student":
        assert config.student is not None
        source = config.student
    folder = version_folder(source)
    traced = config.traced if rung.graph == "traced" else None
    publish(
        repository,
        onnx_path=traced or source / ENCODER_MODEL / folder.name / ONNX_FILE,
        ragged_path=source / RAGGED_MODEL / folder.name / ONNX_FILE,
        served_path=traced,
        tokenizer_path=folder / TOKENIZER_FILE,
        artifact=verify(source),
    )
    tune(repository, replace(rung.tuning, batching=rung.batching), {})


def search(
    config: CapacityConfig,
    rung: Rung,
    server: triton.Server,
    counters_of: CountersOf = server_counters,
) -> dict[str, Any]:
    """Highest rate of an open loop that meets the objective; one row of the table.

    Starts from what a closed loop reached, which is the warm-up too: up in steps of _STEP until a
    run misses, then by bisection.
    """
    settings = _settings(config, users=_CLOSED_USERS, repeat_share=rung.repeats)
    closed = open_loop.load(settings, "http", server, counters_of)
    print(f"{rung.name}: closed loop {closed.rate_rps:.0f} requests/s", flush=True)
    low, high, rate = 0.0, math.inf, closed.rate_rps / _STEP
    best: Result | None = None
    failed: Result | None = None
    runs = []
    for _ in range(config.steps):
        result = open_loop.load(replace(settings, rate=rate), "http", server, counters_of)
        good = meets(result, config.p99_ms)
        runs.append({"rate": round(rate, 1), "meets": good, **asdict(result)})
        verdict = "meets" if good else "misses"
        invalid = "; ".join(result.check["invalid"])
        print(
            f"  {rate:.0f}/s: p99 {result.latency_ms['p99']:.1f} ms, {result.failures} failed, "
            f"{verdict} {invalid}",
            flush=True,
        )
        if good:
            low, best = rate, result
        else:
            high, failed = rate, result
        rate = low * _STEP if math.isinf(high) else (low + high) / 2
    shown = best or failed
    assert shown is not None  # steps >= 1
    cpu_us = sum(shown.cpu_us.values()) - shown.cpu_us["generator"]
    return {
        "rung": asdict(rung),
        "capacity_rps": round(low, 1),
        "closed_loop_rps": closed.rate_rps,
        "result": asdict(shown),
        "binds": binds(shown, failed, low),
        "cores_for_10k": round(TARGET_RPS * cpu_us / 1e6 / TARGET_LOAD, 1),
        "runs": runs,
    }


def agreement(config: CapacityConfig, server: triton.Server) -> dict[str, Any]:
    """The same closed loop of one connection by Locust and by the generator, each its p50 in ms.

    With one request in flight neither waits for the other's CPU time, so both see one server.
    """
    settings = _settings(config, users=1)
    found = {}
    for name, measure in (("locust", with_locust.load), ("generator", open_loop.load)):
        result = measure(settings, "http", server)
        found[name] = {
            "p50_ms": result.latency_ms["p50"],
            "rate_rps": result.rate_rps,
            "generator_us": result.cpu_us["generator"],
        }
        print(f"  {name}, one connection: {found[name]}", flush=True)
    return found


def _settings(config: CapacityConfig, **changed: Any) -> LoadConfig:
    """One run of a rung."""
    settings = {
        "seconds": config.seconds,
        "skip_s": config.skip_s,
        "comments": config.comments,
        "out": config.out,
        "processes": 1,
    }
    return make_config(LoadConfig, {**settings, **changed})


def meets(result: Result, p99_ms: float) -> bool:
    """Whether a run meets the objective; an invalid one does not."""
    return (
        result.failures == 0 and result.latency_ms["p99"] <= p99_ms and not result.check["invalid"]
    )


def binds(result: Result, failed: Result | None, rate: float) -> str:
    """What stops a rung: the generator when it had no CPU time to spare in the run that missed.

    Otherwise the part with most CPU a request; with "waits" when the machine was not busy, so
    that it is the instances' number or the length of a batch that stops it, not the cores.
    """
    if failed is not None and failed.generator_busy > MAX_BUSY:
        return "generator"
    part = max(result.cpu_us, key=result.cpu_us.__getitem__)
    share = sum(result.cpu_us.values()) * rate / 1e6 / (os.cpu_count() or 1)
    name = part.replace("_", " ")
    waits = "" if share > _BUSY else "waits; "
    late = "; generator late" if failed is not None and failed.check["invalid"] else ""
    return f"{name} ({waits}cores {share:.0%} busy{late})"


# --- Telling -----------------------------------------------------------------------------
def bars(rows: list[dict[str, Any]]) -> Bars:
    """Every rung meets the objective at some rate, and ours at five times the plain graph's."""
    rates = {row["rung"]["name"]: row["capacity_rps"] for row in rows}
    held = {"rungs_with_capacity": exactly(sum(r > 0 for r in rates.values()) / len(rates), 1)}
    if rates.get(_PLAIN):
        held["published_over_traced"] = at_least(rates[_OURS] / rates[_PLAIN], 5, 2)
    return held


def table(rows: list[dict[str, Any]]) -> str:
    """One line a rung: at its capacity, or at the lowest rate tried when none met the objective."""
    parts = parts_of(rows)
    head = ["rung", "req/s", "p50 ms", "p95", "p99", "p99.9", "batch", "queue ms", "compute"]
    lines = [[*head, "hits", "CPU us:", *parts, "cores for 10k", "binds"]]
    for row in rows:
        r = row["result"]
        values = [r["latency_ms"][name] for name in ("p50", "p95", "p99", "p99.9")]
        values += [r["mean_batch"], r["queue_ms"], r["compute_ms"]]
        lines.append(
            [row["rung"]["name"], f"{row['capacity_rps']:.0f}"]
            + [f"{value:.1f}" for value in values]
            + [f"{r['cache_hit_share']:.0%}", ""]
            + [f"{r['cpu_us'].get(part, 0):.0f}" for part in parts]
            + [f"{row['cores_for_10k']:.1f}", row["binds"]]
        )
    note = (
        f"cores for {TARGET_RPS:,} requests/s at {TARGET_LOAD:.0%} load: CPU a request without "
        "the generator's, projected from this machine, not measured"
    )
    return f"{aligned(lines)}\n{note}"


if __name__ == "__main__":
    run(main)
