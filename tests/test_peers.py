"""The peers answer as the served model does, so that one generator measures all of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.serving import road
from bench.serving.peer_scorer import TorchScorer
from bench.serving.peers import ask, bars, peer
from contract import FP32_LOGIT_ATOL

TEXTS = ["you are kind", "", "what a pathetic idiot you are, go away"]


def test_torch_scorer_is_the_checkpoint(trained_run: Path) -> None:
    scorer = TorchScorer(trained_run)
    together = scorer.score(TEXTS)
    alone = [float(scorer.score([text])[0]) for text in TEXTS]
    assert together.tolist() == pytest.approx(alone, abs=FP32_LOGIT_ATOL)


@pytest.mark.parametrize("framework", ["fastapi", "litserve"])
def test_peer_answers_over_http(trained_run: Path, tmp_path: Path, framework: str) -> None:
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed; `make bench-peers` installs it")
    with peer(tmp_path, trained_run, framework) as server:
        logits = ask(server.http_port, TEXTS)
    expected = TorchScorer(trained_run).score(TEXTS)
    assert logits == pytest.approx(expected.tolist(), abs=FP32_LOGIT_ATOL)


def test_bar_turns_red() -> None:
    rows = [{"capacity_rps": rate} for rate in (0.0, 100.0, 401.0)]
    assert bars(rows)["ours_over_best_peer"]["holds"]
    rows[1]["capacity_rps"] = 101.0
    assert not bars(rows)["ours_over_best_peer"]["holds"]
    assert not bars([{"capacity_rps": rate} for rate in (0.0, 0.0, 401.0)])


# --- The Python backend, a peer of bench.serving.road --------------------------------------
def test_a_python_backend_that_crashes_here_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(road, "_stub", lambda: Path(__file__))
    monkeypatch.setattr(road, "np", SimpleNamespace(__version__="2.4.6"))
    assert road.lacking("python").endswith("crashes under NumPy 2, here is 2.4.6")
    assert not road.lacking("native")
    monkeypatch.setattr(road, "np", SimpleNamespace(__version__="1.26.4"))
    assert not road.lacking("python")
    monkeypatch.setattr(road, "_stub", lambda: tmp_path / "nowhere")
    assert "no Python backend for Python 3." in road.lacking("python")


def test_bars_are_of_the_servers_that_ran() -> None:
    ran: Any = SimpleNamespace(
        rate_rps=90.0,
        latency_ms={"p99": 5.0},
        cpu_us={"server": 40.0, "generator": 10.0},
        check={"invalid": []},
        failures=0,
    )
    visit = road.Visit(1.0, 100.0, closed={64: ran}, repeats=ran, hits=ran, open=[ran])
    visits = {"noop": [visit], "native": [visit], "door": [visit], "python": [visit]}
    found = road.bars(visits, 50)
    assert {name for name in found if "python" in name} == {
        *("native_over_python", "memory_over_python", "start_over_python"),
    }
    fewer = road.bars({**visits, "door": [], "python": []}, 50)
    assert fewer == {n: b for n, b in found.items() if "python" not in n and "door" not in n}
