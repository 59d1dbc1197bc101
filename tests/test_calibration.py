"""Calibration: the fit finds the map that distorted the logits, and the checkpoint carries it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from train.artifacts import METRICS_FILE, load_checkpoint
from train.data.batches import TokenizedOnTheFly
from train.data.split import comments_of_run
from train.methods import calibration
from train.methods.calibration import Platt, fit_platt, fit_temperature, quality
from train.validation import logits_of, probability_of


def drawn(n: int, slope: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of known probability, and logits from which `slope` and `offset` lead back to it."""
    rng = np.random.default_rng(0)
    truth = rng.normal(-1.5, 2.0, n)
    labels = (rng.random(n) < probability_of(truth)).astype(np.float32)
    return labels, ((truth - offset) / slope).astype(np.float32)


def test_fit_undoes_a_distortion() -> None:
    labels, logits = drawn(50_000, 0.65, -1.05)
    platt = fit_platt(labels, logits)
    assert platt.slope == pytest.approx(0.65, abs=0.02)
    assert platt.offset == pytest.approx(-1.05, abs=0.04)
    before, temperature, after = (
        quality(labels, fit(logits)) for fit in (Platt(1.0), fit_temperature(labels, logits), platt)
    )
    assert after["log_loss"] < temperature["log_loss"] < before["log_loss"]
    assert after["ece"] < 0.01 < temperature["ece"]


def test_fit_is_the_least_log_loss() -> None:
    labels, logits = drawn(5_000, 2.0, 0.5)
    best = fit_platt(labels, logits)
    loss = quality(labels, best(logits))["log_loss"]
    for slope, offset in ((0.02, 0.0), (-0.02, 0.0), (0.0, 0.03), (0.0, -0.03)):
        other = Platt(best.slope + slope, best.offset + offset)
        assert quality(labels, other(logits))["log_loss"] > loss


def test_separable_logits_get_a_finite_slope_and_bad_ones_keep_their_order() -> None:
    labels = np.repeat(np.float32([0, 1]), 50)
    logits = np.linspace(-1, 1, 100, dtype=np.float32)
    assert 1 < fit_platt(labels, logits).slope < 1000
    assert fit_platt(labels, -logits) == fit_temperature(labels, -logits) == Platt(1.0)
    assert fit_platt(labels, np.zeros(100, np.float32)).slope > 0


def test_what_helps_is_chosen() -> None:
    labels, logits = drawn(5_000, 0.65, -1.05)
    found = calibration.choose(labels, logits)
    assert found.name == "platt"
    assert found.fit == fit_platt(labels, logits)
    held_out = {name: of["log_loss"] for name, of in found.held_out.items()}
    assert held_out["platt"] < held_out["temperature"] < held_out["none"]
    assert held_out["isotonic"] == pytest.approx(held_out["platt"], abs=0.02)
    labels, logits = drawn(5_000, 2.0, 0.0)
    assert calibration.choose(labels, logits).name == "temperature"


def test_few_comments_that_are_right_are_mostly_left_alone() -> None:
    """A fit on so few does harm on the next ones: what was folded in always, and what is now."""
    fresh = drawn(20_000, 1.0, 0.0)
    names, harm, harm_always = [], [], []
    for seed in range(30):
        rows = np.random.default_rng(seed).choice(20_000, 60, replace=False)
        labels, logits = fresh[0][rows], fresh[1][rows]
        chosen = calibration.choose(labels, logits)
        names.append(chosen.name)
        for found, fit in ((harm, chosen.fit), (harm_always, fit_platt(labels, logits))):
            found.append(quality(fresh[0], fit(fresh[1]))["log_loss"])
    unharmed = quality(*fresh)["log_loss"]
    assert names.count("none") >= 20
    assert np.mean(harm) - unharmed < 0.5 * (np.mean(harm_always) - unharmed)


def test_one_class_says_nothing_about_calibration() -> None:
    logits = np.linspace(-1, 1, 10, dtype=np.float32)
    chosen = calibration.choose(np.zeros(10, np.float32), logits)
    assert (chosen.name, chosen.fit, chosen.held_out) == ("none", Platt(1.0), {})


def test_a_finished_run_is_calibrated(trained_run: Path) -> None:
    """The saved weights give the calibrated logits, and undoing the map gives back pos_weight's."""
    checkpoint = load_checkpoint(trained_run)
    comments, split = comments_of_run(trained_run)
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    logits = logits_of(checkpoint.model, ids, split.validation)
    labels = comments.labels[split.validation]
    platt = Platt(**checkpoint.config["calibration"])
    compared = json.loads((trained_run / METRICS_FILE).read_text())["calibration"]
    assert quality(labels, logits) == pytest.approx(
        {name: compared["platt"][name] for name in ("log_loss", "ece")}, abs=1e-4
    )
    # Trained with pos_weight, the raw probabilities are too high on the whole; these are not.
    raw = probability_of(platt.undone(logits))
    assert raw.mean() > labels.mean()
    assert probability_of(logits).mean() == pytest.approx(labels.mean(), abs=0.01)
    assert compared["platt"]["log_loss"] < compared["temperature"]["log_loss"]
    again = fit_platt(labels, logits)
    assert again.slope == pytest.approx(1, abs=0.01)
    assert again.offset == pytest.approx(0, abs=0.01)


def test_folding_is_the_map(trained_run: Path) -> None:
    checkpoint = load_checkpoint(trained_run)
    comments, split = comments_of_run(trained_run)
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    rows = split.test[:50]
    before, platt = logits_of(checkpoint.model, ids, rows), Platt(0.5, -1.0)
    calibration.fold_in(checkpoint.model, platt)
    np.testing.assert_allclose(logits_of(checkpoint.model, ids, rows), platt(before), atol=1e-5)
