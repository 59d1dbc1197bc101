"""The bench of the monitor's rules: drifts are what they say, and a small run holds its bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.monitor import run as bench_run
from bench.monitor.detectors import detectors
from bench.monitor.run import MonitorBenchConfig, bars, table
from bench.monitor.streams import DRIFTS, counts_of, generated, windows
from contract import BadInput
from monitor import series

RNG = np.random.default_rng(0)


def test_counts_are_those_of_the_comments() -> None:
    population = generated(0)
    counts = counts_of(population)
    bounds, bins = series.histogram(counts, series.SCORE)  # type: ignore[misc]
    assert bins.sum() == len(population) == counts[series.COMMENTS] and len(bounds) == 21
    assert bins[:10].sum() == (population.score <= 0.5).sum()
    tokens = series.histogram(counts, series.TOKENS)
    assert tokens is not None and tokens[1][0] == (population.tokens <= 8).sum()
    assert series.total(counts, series.UNKNOWN) == population.unknown.sum()


@pytest.mark.parametrize("kind", DRIFTS)
def test_each_drift_moves_what_it_says(kind: str) -> None:
    population = generated(1)
    drift, (_, _, strong) = DRIFTS[kind]
    rng = np.random.default_rng(0)
    healthy = windows(population, 4000, np.random.default_rng(0))
    drifted = windows(population, 4000, rng, drift, strong)
    assert len(drifted) == 4000 and (drifted.unknown <= drifted.words).all()
    assert ((drifted.score >= 0) & (drifted.score <= 1)).all()
    moved = {
        "more toxic comments": (drifted.score >= 0.5).mean() / (healthy.score >= 0.5).mean() - 3,
        "higher logits": np.mean(drifted.score - healthy.score),
        "longer comments": drifted.words.mean() / healthy.words.mean() - 1.8,
        "more unknown words": drifted.unknown.sum() / healthy.unknown.sum() - 3,
        "one comment again and again": np.unique(drifted.score, return_counts=True)[1].max() - 999,
    }
    assert moved[kind] > 0


def test_a_small_run_finds_strong_drift_and_no_false_alarm(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--detectors has X, expected some of monitor"):
        bench_run.bench(MonitorBenchConfig(detectors=("X",), out=tmp_path))
    config = MonitorBenchConfig(
        detectors=("monitor",),
        windows=40,
        window_comments=600,
        streams=1,
        before=1,
        after=2,
        out=tmp_path,
    )
    found = bench_run.bench(config)
    assert found["false_alarms"] == {"monitor": 0}
    assert len(found["drift"]) == 15 and found["artifact"] is None
    assert all(bar["holds"] for bar in found["bars"].values()), found["bars"]
    assert "one comment again and again" in table(found)
    for row in found["drift"]:
        row["windows_until_alarm"] = {"monitor": [None]}
    missed = bars(config, {"monitor": 40}, found["drift"])
    assert not any(bar["holds"] for bar in missed.values())
    assert "(1 of 1 not)" in table(found)


def test_rivers_detectors_see_the_same_comments() -> None:
    pytest.importorskip("river")
    population = generated(2)
    make = detectors(0)["ADWIN"]
    detector = make(windows(population, 2000, RNG))
    assert not detector.alarm(windows(population, 500, RNG))
    drift, (_, _, strong) = DRIFTS["longer comments"]
    assert any(detector.alarm(windows(population, 500, RNG, drift, strong)) for _ in range(4))
