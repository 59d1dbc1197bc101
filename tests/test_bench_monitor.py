"""The bench of the monitor's rules: drifts are what they say, and a small run holds its bars."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Exported

from bench.monitor import healthy
from bench.monitor import run as bench_run
from bench.monitor.detectors import detectors
from bench.monitor.run import MonitorBenchConfig, bars, table
from bench.monitor.streams import DRIFTS, counts_of, generated, windows
from contract import BadInput
from monitor import series
from monitor.judge import CHECKS
from serve import haproxy

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


# --- The healthy hour ----------------------------------------------------------------------
def test_what_calls_in_a_healthy_hour_is_a_missed_bar() -> None:
    found: dict[str, Any] = {
        "alerts_s": {"A": {"pending": 15.0, "firing": 0.0}, "B": {"pending": 0.0, "firing": 0.0}},
        "checks": {"score_drift": "silent", "latency": "silent"},
        "monitor_errors": [],
    }
    assert all(bar["holds"] for bar in healthy.bars(found, {"scored": 9}).values())
    found["alerts_s"]["B"]["firing"] = 15.0
    found["checks"] = {"score_drift": "alarm", "latency": "not judged"}
    found["monitor_errors"] = ["labels were not read"]
    assert not any(bar["holds"] for bar in healthy.bars(found, {"failed": 1}).values())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_a_healthy_minute_from_load_to_document(
    exported_of: Callable[[str], Exported],
    trained_run: Path,
) -> None:
    """Too short for what is counted over an hour, but all that it would say is there."""
    exported, _ = exported_of("fp32")
    config = healthy.HealthyConfig(
        repository=exported.repository, training=trained_run, minutes=0.5, rate=20
    )
    document = healthy.measure(config)
    assert document["requests"]["scored"] > 300 and document["requests"]["mistake refused"] > 0
    assert document["bars"]["requests_failed"]["holds"]
    assert set(document["checks"]) == set(CHECKS) and document["checks"]["server_down"] == "silent"
    assert document["most_refused_in_5m"] == 0
    assert document["alerts_s"]["ToxicityReplicaDown"] == {"pending": 0.0, "firing": 0.0}
    assert "ToxicityScoreDrift" in healthy.table(document)
