"""A short soak of a real door; and that its verdict goes red when it must."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyModel

from bench.hostile import honest
from bench.hostile.incidents import Incident, copy_of, publish_shifted, schedule
from bench.hostile.soak import SoakMeasured, bars
from bench.hostile.tally import FamilyTally
from bench.hostile.watch import growth
from bench.traffic.comments import SYNTHETIC, load_pool
from contract import BadInput
from export.repository import current, load_scorer
from serve import haproxy

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def repository(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("soak") / "repository"
    tiny_model.publish(path)
    return path


@pytest.mark.slow
def test_a_short_soak_holds_every_bar(repository: Path, tmp_path: Path) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    command = [sys.executable, "-m", "bench.hostile.soak", "--repository", str(repository)]
    command += ["--out", str(tmp_path), "--comments", SYNTHETIC, "--minutes", "0.6", "--rate", "40"]
    command += "--publishes 1 --kills 1 --rollbacks 0 --balancer-ends 0 --check --json".split()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert document == json.loads((tmp_path / "soak.json").read_text("utf-8"))
    assert all(bar["holds"] for bar in document["bars"].values())
    assert {one["kind"] for one in document["incidents"]} == {"publish", "kill"}
    for protocol in ("http", "grpc"):
        fared = document["honest"][protocol]
        assert fared["requests"] == fared["scored"] + fared["refused"] > 100
        assert set(fared["comments_by_version"]) == {"1", "2"}
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert current(repository) == 1  # it worked on a copy


def test_published_versions_differ(repository: Path, tmp_path: Path) -> None:
    copy = copy_of(repository, tmp_path)
    assert publish_shifted(copy, 0.5) == 2
    assert publish_shifted(copy, 0.5) == 3
    logits = {v: float(load_scorer(copy, v).score(["you are kind"]).logit[0]) for v in (1, 2, 3)}
    assert logits[2] - logits[1] == pytest.approx(0.5, abs=1e-5)
    assert logits[3] - logits[2] == pytest.approx(0.5, abs=1e-5)


def test_incidents_are_in_their_time_and_the_same_for_a_seed() -> None:
    counts: Any = {"publish": 2, "rollback": 2, "kill": 3, "balancer": 1}
    due = schedule(counts, 100, seed=1)
    assert due == schedule(counts, 100, seed=1) != schedule(counts, 100, seed=2)
    times = [at for at, _ in due]
    assert times == sorted(times) and times[0] >= 10 and times[-1] <= 200 / 3
    kinds = [kind for _, kind in due]
    assert kinds.index("publish") < kinds.index("rollback")


# --- The verdict ---------------------------------------------------------------------------
def record(**changed: Any) -> honest.Record:
    good = honest.Record(
        due_s=np.array([1.0, 2.0]),
        latency_ms=np.array([3.0, 4.0]),
        ending=np.array([honest.OK, honest.OK], np.uint8),
        retried=0,
        number=np.array([500, 501]),
        logit=np.zeros(2, np.float32),
        probability=np.full(2, 0.5, np.float32),
        version=np.array([1, 1]),
        answered_s=np.array([1.0, 2.0]),
    )
    return dataclasses.replace(good, **changed)


GOOD = SoakMeasured(
    records={"http": record()},
    wrong={"http": (0, "")},
    published=[1, 2],
    incidents=[Incident("kill", 5.0, 6.0, "process 1")],
    deaths_not_caused={"replica-1": 0, "haproxy": 0},
    memory=[(float(at), 100 if at < 5 else 60) for at in range(40)],
    began_s=0.0,
    ended_s=40.0,
    hostile={},
)
RED: dict[str, dict[str, Any]] = {
    "requests_lost": {"records": {"http": record(ending=np.array([honest.OK, honest.LOST]))}},
    "wrong_scores": {"wrong": {"http": (1, "")}},
    "versions_not_published": {"records": {"http": record(version=np.array([1, 3]))}},
    "deaths_not_caused": {"deaths_not_caused": {"replica-1": 1}},
    "hostile_wrong": {"hostile": {"paths": FamilyTally(wrong=1)}},
    "memory_growth": {"memory": [(float(at), 100 + at // 3) for at in range(40)]},
    "memory_level": {"memory": [(float(at), 100 if at < 9 else 130) for at in range(40)]},
}


def test_a_good_soak_holds_every_bar() -> None:
    judged = bars(GOOD)
    assert set(judged) == set(RED)
    assert all(bar["holds"] for bar in judged.values()), judged


@pytest.mark.parametrize("name", RED)
def test_a_bar_is_missed(name: str) -> None:
    judged = bars(dataclasses.replace(GOOD, **RED[name]))
    assert [bar for bar, verdict in judged.items() if not verdict["holds"]] == [name]


def test_honest_scores_are_compared_with_their_version(repository: Path) -> None:
    scorers = {1: load_scorer(repository, 1)}
    texts = load_pool(SYNTHETIC).texts
    scored = scorers[1].score([texts[7], texts[8]]).logit
    p = 1 / (1 + np.exp(-scored))
    right = record(number=np.array([7, 8]), logit=scored, probability=p)
    assert honest.verify(right, texts, scorers, 1e-5) == (0, "")
    for change in (
        {"logit": scored + np.array([0, 1e-3], np.float32)},
        {"probability": p + np.array([0, 1e-3], np.float32)},
        {"version": np.array([1, 2])},
        {"number": np.array([7, 9])},
    ):
        count, words = honest.verify(dataclasses.replace(right, **change), texts, scorers, 1e-5)
        assert count == 1 and "expected" in words


def test_memory_that_grows_is_seen() -> None:
    flat = [(float(at), 100 + at % 2) for at in range(100)]
    assert growth(flat) == pytest.approx(1, abs=0.02)
    assert growth([(at, int(value + at)) for at, value in flat]) > 1.5
    with pytest.raises(BadInput, match="longer"):
        growth(flat[:9])
