"""False alarms and time to detect of the monitor's rules, beside river's detectors.

    python -m bench.monitor.run
    python -m bench.monitor.run --comments comments.csv.gz     # scored by the version that serves

Windows of comments are drawn from one population: healthy ones, whose alarms are false, then for
each kind and strength of drift several streams that are healthy at first. Every detector sees the
same windows. Time to detect is in windows after the drift began; a stream that has an alarm before
is counted as a false one. Pure computation on scores, no server.

Prints a table; writes `monitor.json`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from bench.monitor.detectors import Detector, detectors
from bench.monitor.streams import DRIFTS, Population, generated, scored, windows
from bench.report.operation_tables import until_alarm
from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    artifact_named,
    at_least,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from console.options import run
from contract import BadInput
from export.repository import current

_MOST_COMMENTS = 20_000
_SOON = 2
"""Windows within which the strongest drift is to be found."""
_STRENGTHS = ("weak", "middle", "strong")


@dataclass(frozen=True)
class MonitorBenchConfig(ResultOptions):
    """Flags of `python -m bench.monitor.run`."""

    comments: Path | None = Field(
        None,
        description="comments to score and draw from; generated scores without",
        json_schema_extra=LOAD,
    )
    repository: Path = Field(
        Path("model_repository"),
        description="repository whose version scores them",
        json_schema_extra=SERVER,
    )
    detectors: tuple[str, ...] = Field(
        (),
        description="some of monitor, ADWIN, KSWIN, PageHinkley; all that are installed",
        json_schema_extra=RUNS,
    )
    windows: int = Field(200, ge=1, description="healthy windows", json_schema_extra=RUNS)
    window_comments: int = Field(
        1000, ge=1, description="comments of a window", json_schema_extra=RUNS
    )
    reference_comments: int = Field(
        10_000, ge=1, description="comments of the reference", json_schema_extra=RUNS
    )
    streams: int = Field(5, ge=1, description="streams a kind and strength", json_schema_extra=RUNS)
    before: int = Field(3, ge=0, description="healthy windows of each", json_schema_extra=RUNS)
    after: int = Field(10, ge=1, description="drifted windows of each", json_schema_extra=RUNS)
    seed: int = Field(0, description="of everything that is drawn", json_schema_extra=RUNS)
    processes: int = Field(
        len(os.sched_getaffinity(0)),
        ge=1,
        description="that share the streams; the result is the same",
        json_schema_extra=RUNS,
    )


def main() -> None:
    config = begin(MonitorBenchConfig, "bench.monitor.run", "What the monitor finds, and when.")
    found = bench(config)
    report(config, found, table(found))


def bench(config: MonitorBenchConfig) -> dict[str, Any]:
    """Try all of it; the JSON document. Raises BadInput for comments that cannot be scored."""
    began = time.monotonic()
    if config.comments:
        population = scored(config.comments, config.repository, _MOST_COMMENTS, config.seed)
        artifact = artifact_named(config.repository, current(config.repository))
    else:
        population, artifact = generated(config.seed), None
    cases = [(kind, level) for kind in DRIFTS for level in range(len(_STRENGTHS))]
    streams = [(*case, number) for case in cases for number in range(config.streams)]
    with ProcessPoolExecutor(config.processes) as pool:
        healthy_ones = pool.submit(_false_alarms, config, population)
        found = pool.map(_stream, repeat(config), repeat(population), streams)
        took = dict(zip(streams, tqdm(found, "streams", len(streams), disable=None), strict=True))
        healthy = healthy_ones.result()
    drifted = [
        _detected(*case, [took[(*case, number)] for number in range(config.streams)])
        for case in cases
    ]
    return document(
        "monitor",
        config,
        artifact=artifact,
        population={
            "comments": len(population),
            "flagged": float(np.mean(population.score >= 0.5)),
        },
        false_alarms=healthy,
        drift=drifted,
        bars=bars(config, healthy, drifted),
        seconds=round(time.monotonic() - began),
    )


def _chosen(config: MonitorBenchConfig) -> Mapping[str, Callable[[Population], Detector]]:
    """The monitor's rules and what else was asked for. Raises BadInput for what is not there."""
    known = detectors(config.seed)
    if unknown := sorted(set(config.detectors) - known.keys()):
        raise BadInput(
            f"--detectors has {unknown[0]}, expected some of {', '.join(known)}; name one of "
            "them, or `pip install river`"
        )
    wanted = {"monitor", *(config.detectors or known)}
    return {name: make for name, make in known.items() if name in wanted}


def _reference(config: MonitorBenchConfig, population: Population, rng: np.random.Generator) -> Any:
    return windows(population, config.reference_comments, rng)


def _false_alarms(config: MonitorBenchConfig, population: Population) -> dict[str, int]:
    """Detector -> healthy windows with an alarm."""
    rng = np.random.default_rng([config.seed, 1])
    reference = _reference(config, population, rng)
    made = {name: make(reference) for name, make in _chosen(config).items()}
    found = dict.fromkeys(made, 0)
    for _ in range(config.windows):
        window = windows(population, config.window_comments, rng)
        for name, detector in made.items():
            found[name] += detector.alarm(window)
    return found


Stream = tuple[dict[str, int], dict[str, int | None]]
"""Of one stream, by detector: alarms before the drift, and windows until the first one after."""


def _stream(
    config: MonitorBenchConfig, population: Population, which: tuple[str, int, int]
) -> Stream:
    """The stream of a kind of drift, a strength and a number."""
    kind, level, number = which
    drift, strengths = DRIFTS[kind]
    rng = np.random.default_rng([config.seed, 2, list(DRIFTS).index(kind), level, number])
    reference = _reference(config, population, rng)
    made = {name: make(reference) for name, make in _chosen(config).items()}
    early = dict.fromkeys(made, 0)
    for _ in range(config.before):
        window = windows(population, config.window_comments, rng)
        for name, detector in made.items():
            early[name] += detector.alarm(window)
    drifted = [
        windows(population, config.window_comments, rng, drift, strengths[level])
        for _ in range(config.after)
    ]
    return early, {name: _first_alarm(detector, drifted) for name, detector in made.items()}


def _detected(kind: str, level: int, streams: Sequence[Stream]) -> dict[str, Any]:
    """Streams of one kind and strength: windows until each detector's alarm, None for none."""
    names = [*streams[0][0]]
    return {
        "kind": kind,
        "strength": _STRENGTHS[level],
        "amount": DRIFTS[kind][1][level],
        "windows_until_alarm": {name: [after[name] for _, after in streams] for name in names},
        "false_alarms_before": {name: sum(early[name] for early, _ in streams) for name in names},
    }


def _first_alarm(detector: Detector, drifted: list[Population]) -> int | None:
    """Windows of the drift until the alarm, the first one is 1."""
    for number, window in enumerate(drifted, 1):
        if detector.alarm(window):
            return number
    return None


def bars(
    config: MonitorBenchConfig, healthy: dict[str, int], drifted: list[dict[str, Any]]
) -> Bars:
    """At most one false alarm in 200 windows; every strong drift found within two windows."""
    found: Bars = {
        "false_alarms_in_200_windows": at_most(200 * healthy["monitor"] / config.windows, 1)
    }
    for row in drifted:
        if row["strength"] == _STRENGTHS[-1]:
            times = row["windows_until_alarm"]["monitor"]
            soon = sum(one is not None and one <= _SOON for one in times) / len(times)
            found[f"strong, {row['kind']}: share found in {_SOON} windows"] = at_least(soon, 1)
    return found


def table(found: dict[str, Any]) -> str:
    """False alarms, then windows until the alarm: the median, and how many streams had none."""
    names = list(found["false_alarms"])
    windows_ = found["config"]["windows"]
    lines = [["", "", *names]]
    lines.append(["false alarms", f"of {windows_}", *map(str, found["false_alarms"].values())])
    for row in found["drift"]:
        cells = [until_alarm(row["windows_until_alarm"][name]) for name in names]
        lines.append([row["kind"], f"{row['strength']} ({row['amount']:g})", *cells])
    return aligned(lines, left=2)


if __name__ == "__main__":
    run(main)
