"""The simulation of fleet/ beside the real server: `toxicity bench simulation`.

    python -m bench.serving.simulation --repository model_repository --replicas 2

Serves the published version by replicas behind haproxy, on the machine's cores, as `toxicity serve
--replicas 2` does. Calibrates: how often each idle core is taken away (a probe that spins), the
bytes of a request by haproxy's own counters, the time of a call and the CPU time of a request from
closed loops, and from open loops in turns with those that are compared (Poisson): each beside what
the simulation says of the same rate, p50, p99 and answers a second. The machine must be quiet:
other work is in the measured latencies, and the simulation knows of it only what the probe saw
before. Prints a table and writes `simulation.json`, which `toxicity plan` reads.
"""

from __future__ import annotations

import os
import statistics
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_most,
    begin,
    document,
    report,
)
from bench.serving.servers import artifact_of, serving
from bench.serving.stalls import probe
from bench.serving.visits import Loader, loader
from bench.traffic.comments import AUTO, COMMENTS_HELP, Pool, load_pool
from bench.traffic.counters import server_counters
from bench.traffic.one_run import Result
from console.options import run
from console.tables import aligned
from contract import HOST
from export.repository import served_tuning, verify
from export.tuning import Tuning
from fleet.machine import Shape
from fleet.measured import Stalls
from fleet.requests import lognormal
from fleet.service_times import OutsideTimes, ServiceTimes, fit, fit_outside
from fleet.simulation import Setting, Simulated, simulate
from serve import haproxy
from serve.triton import Server

_WITHIN = 0.15
"""Largest share by which p50, p99 and the rate may differ."""
_BESIDE = 0.8
"""Of a compared open loop's rate, that of the one before it, which CPU times are of."""
_WARM_UP_S, _SKIP_S = 2, 1


@pydantic_dataclasses.dataclass(frozen=True)
class SimulationConfig(ResultOptions):
    """Flags of `python -m bench.serving.simulation`."""

    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=SERVER
    )
    replicas: int = Field(2, ge=1, description="servers behind haproxy", json_schema_extra=SERVER)
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    connections: tuple[int, ...] = Field(
        (4, 16, 64, 256), description="of the closed loops", json_schema_extra=LOAD
    )
    shares: tuple[float, ...] = Field(
        (0.2, 0.3, 0.45),
        min_length=1,
        description="of the closed loop's rate, for the open loops that are compared",
        json_schema_extra=LOAD,
    )
    seconds: int = Field(10, ge=2, description="length of one run", json_schema_extra=RUNS)
    probe_s: float = Field(
        5, gt=0, description="length of the probe of the cores", json_schema_extra=RUNS
    )
    seed: int = Field(0, ge=0, description="of the simulation", json_schema_extra=RUNS)


@dataclass(frozen=True)
class CallCosts:
    """What the simulation is told of this machine."""

    stalls: Stalls
    service: ServiceTimes
    outside: OutsideTimes
    generator_s: float
    request_bytes: float
    response_bytes: float


def main() -> None:
    config = begin(SimulationConfig, "bench.serving.simulation", "Simulated beside real.")
    haproxy.executable()
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    tuning = served_tuning(config.repository)
    with serving(
        lambda _: config.repository, through_door=True, settings={"replicas": config.replicas}
    ) as served:
        server = served.server
        artifact = artifact_of(server)
        load = loader(
            "behind haproxy",
            server,
            server_counters,
            seconds=config.seconds,
            comments=config.comments,
        )
        found, compared = measure(config, server, load)
    max_len = int(artifact["max_len"])
    pairs = [(one, simulated(config, tuning, pool, found, one, max_len)) for one in compared]
    shown = document(
        "simulation",
        config,
        tuning=asdict(tuning),
        comments=pool.to_json(),
        artifact=artifact,
        stalls=asdict(found.stalls),
        service_times=asdict(found.service),
        outside_times=asdict(found.outside),
        cpu_us={"generator": 1e6 * found.generator_s},
        bytes={"request": found.request_bytes, "response": found.response_bytes},
        runs=[{"measured": asdict(real), "simulated": twin.to_json()} for real, twin in pairs],
        bars=bars(pairs),
    )
    report(config, shown, table(pairs))


# --- Measuring ---------------------------------------------------------------------------
def measure(
    config: SimulationConfig, server: Server, load: Loader
) -> tuple[CallCosts, list[Result]]:
    """The open loops that are compared, and what others in turns with them say of the machine.

    In turns, because its speed drifts by more than the simulation may be off.
    """
    stalls = probe(config.probe_s)
    print(f"a core is taken away {stalls.a_second:.1f} times a second", flush=True)
    load(users=64, seconds=_WARM_UP_S)
    before = _bytes(server)
    closed = {users: load(users=users) for users in config.connections}
    best = max(result.rate_rps for result in closed.values())
    opened, compared = [], []
    for share in config.shares:
        opened.append(load(rate=_BESIDE * share * best, skip_s=_SKIP_S))
        compared.append(load(rate=share * best, skip_s=_SKIP_S))
    opened.append(load(rate=_BESIDE * config.shares[0] * best, skip_s=_SKIP_S))
    taken = [now - then for now, then in zip(_bytes(server), before, strict=True)]
    results = [*closed.values(), *opened]
    requests = sum(result.requests for result in (*results, *compared))
    costs = CallCosts(
        stalls=stalls,
        service=fit([asdict(result) for result in results]),
        outside=fit_outside([asdict(result) for result in opened]),
        generator_s=statistics.median(result.cpu_us["generator"] for result in opened) / 1e6,
        request_bytes=round(taken[0] / requests, 1),
        response_bytes=round(taken[1] / requests, 1),
    )
    return costs, compared


def _bytes(server: Server) -> tuple[float, float]:
    """Bytes in and out of haproxy's door for HTTP since its start."""
    url = f"http://{HOST}:{server.metrics_port}{server.metrics_path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = {
        family.name: sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("proxy") == "http"
    }
    return found["haproxy_frontend_bytes_in"], found["haproxy_frontend_bytes_out"]


# --- Comparing ---------------------------------------------------------------------------
def simulated(
    config: SimulationConfig,
    tuning: Tuning,
    pool: Pool,
    found: CallCosts,
    measured: Result,
    max_len: int,
) -> Simulated:
    """The same rate, comments and repeats, on a machine like this one.

    The share that the cache knew is taken from the measured run: it is a property of what was sent.
    """
    shape = Shape(
        cores=len(os.sched_getaffinity(0)),
        replicas=config.replicas,
        instances=tuning.instances,
        window_s=tuning.window_ms / 1e3,
        service=found.service,
        in_s=found.outside.request_s / 2,
        out_s=found.outside.request_s / 2,
        call_s=found.outside.call_s,
        door_share=found.outside.door_share,
        generator_s=found.generator_s,
    )
    return simulate(
        Setting(
            shape=shape,
            rate=measured.requests / config.seconds,
            seconds=config.seconds,
            lengths=lognormal(pool.lengths.median, pool.lengths.mean, max_len),
            hits=measured.cache_hit_share,
            seed=config.seed,
            stalls=found.stalls,
            skip_s=_SKIP_S,
        )
    )


def differences(real: Result, twin: Simulated) -> dict[str, float]:
    """By how much of the measured value each simulated one is off."""
    pairs = {
        "p50": (real.latency_ms["p50"], twin.percentiles_ms.get("p50", 0.0)),
        "p99": (real.latency_ms["p99"], twin.percentiles_ms.get("p99", 0.0)),
        "rate": (real.rate_rps, twin.rate_rps),
    }
    return {name: abs(b / a - 1) if a else 1.0 for name, (a, b) in pairs.items()}


def bars(pairs: Sequence[tuple[Result, Simulated]]) -> Bars:
    """Median difference over the rates, and that the measured runs count."""
    every = [differences(*pair) for pair in pairs]
    found = {
        f"{name}_difference": at_most(statistics.median(one[name] for one in every), _WITHIN)
        for name in ("p50", "p99", "rate")
    }
    invalid = sum(bool(real.check["invalid"]) for real, _ in pairs)
    return {**found, "invalid_runs": at_most(invalid, 0)}


def table(pairs: Sequence[tuple[Result, Simulated]]) -> str:
    """Two lines a rate."""
    rows = [["", "req/s", "p50 ms", "p99", "p99.9", "batch", "refused", "schedule"]]
    for real, twin in pairs:
        told: dict[str, Any] = twin.to_json()
        for name, rate, latency, batch, refused, schedule in (
            (
                *("measured", real.rate_rps, real.latency_ms, real.mean_batch, real.refused),
                "INVALID" if real.check["invalid"] else "kept up",
            ),
            (
                *("simulated", twin.rate_rps, twin.percentiles_ms, told["mean_batch"]),
                *(told["refused"], ""),
            ),
        ):
            rows.append(
                [
                    *(name, f"{rate:.0f}"),
                    *(f"{latency[at]:.2f}" for at in ("p50", "p99", "p99.9")),
                    *(f"{batch:.1f}", f"{refused}", schedule),
                ]
            )
    return aligned(rows)


if __name__ == "__main__":
    run(main)
