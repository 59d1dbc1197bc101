"""The peers answer as the served model does, so that one generator measures all of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

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
