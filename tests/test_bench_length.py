"""Benches of long comments: the small run, what overtakes, and gains that are counted by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from bench.model import length
from bench.model.length import Cost, LengthBenchConfig, overtakes
from bench.report.plot import plot_lengths
from contract import BadInput
from experiments import long_text
from experiments.long_text import LongTextBenchConfig
from export.gates.parity import reference_logits
from export.scorer import CUT
from train.artifacts import load_checkpoint
from train.data.load import load_comments


def _cost(tokens: int, softmax: float, linear: float) -> Cost:
    us = {f"softmax_{p}": softmax for p in ("fp32", "int8")}
    us |= {f"linear_{p}": linear for p in ("fp32", "int8")}
    return Cost(tokens, 1, us, {}, {})


def test_linear_overtakes_where_it_stays_cheaper() -> None:
    costs = [_cost(64, 9, 8), _cost(128, 19, 20), _cost(256, 41, 40), _cost(1024, 400, 160)]
    assert overtakes(costs, "int8") == 256
    assert overtakes(costs[:2], "fp32") is None
    judged = length.bars(costs)
    assert judged["linear_int8_cost_of_a_token_growth"]["value"] == 1.0
    assert judged["linear_fp32_gain_over_softmax"]["value"] == 2.5
    assert all(bar["holds"] for bar in judged.values())
    costs[-1] = _cost(1024, 399, 201)
    assert not any(bar["holds"] for bar in length.bars(costs).values())


def test_the_bench_of_lengths_runs_and_checks_every_logit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(length, "_VOCABULARY", 50)
    monkeypatch.setattr(length, "_WINDOW", 16)
    monkeypatch.setattr(length, "_STRIDE", 8)
    document = length.bench(LengthBenchConfig(lengths=(8, 16, 40), rounds=1, out=tmp_path))
    assert [cost["tokens"] for cost in document["costs"]] == [8, 16, 40]
    assert all(us > 0 for cost in document["costs"] for us in cost["us"].values())
    assert all(cost["logit_gap"]["linear_fp32"] < 1e-5 for cost in document["costs"])
    plot_lengths(document, tmp_path / "length.png")
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")


def test_windows_find_what_the_cut_drops(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long comments that are toxic at their end only: cut is blind there, max is not."""
    monkeypatch.setattr(long_text, "_RESAMPLES", 100)
    texts = load_comments("synthetic:3000").texts
    checkpoint = load_checkpoint(trained_run)
    logits = reference_logits(checkpoint.model, texts, checkpoint.tokenizer, CUT)
    by_logit = [texts[row] for row in np.argsort(logits)]
    # Surely kind to the model, and surely toxic: what it thinks of a seam is not the point.
    bodies = [" ".join(by_logit[at : at + 8]) for at in range(0, 320, 8)]
    rows = [(body, 0) for body in bodies[:20]]
    rows += [(f"{body} {' '.join(by_logit[-3:])}", 1) for body in bodies[20:]]
    path = tmp_path / "long.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "toxic"), *rows, ("short and kind", 0)])
    config = LongTextBenchConfig(data=str(path), checkpoint=trained_run)
    document = long_text.bench(config)
    assert document["long_comments"] == document["comments"] - 1
    results = document["results"]
    assert results["cut"]["gain_on_long"] == {"auroc": 0.0, "low": 0.0, "high": 0.0}
    assert results["max"]["gain_on_long"]["low"] > 0.05
    assert results["max"]["windows_of_long_comments"] >= 2 * document["long_comments"]
    assert results["cut"]["windows_of_long_comments"] == document["long_comments"]


def test_a_file_without_long_comments_is_refused_in_one_line(
    trained_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "short.csv"
    path.write_text("text,toxic\nyou are kind,0\nyou are an idiot,1\n", "utf-8")
    with pytest.raises(BadInput, match=r"has 0 comments beyond max_len, 64, expected some of each"):
        long_text.bench(LongTextBenchConfig(data=str(path), checkpoint=trained_run))
