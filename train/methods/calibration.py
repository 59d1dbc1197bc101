"""Calibration: a slope and an offset that make the logistic function of a logit a probability.

A loss with pos_weight w learns the odds times w, and a few epochs are over-confident besides. So
at the end of a training the logit is mapped to `slope * logit + offset`, fitted by maximum
likelihood on the validation split (Platt 1999, "Probabilistic Outputs for Support Vector
Machines"). A temperature (Guo et al. 2017) is the slope alone; it cannot undo pos_weight. On few
comments either can do harm, so `choose` judges them on folds that they were not fitted on.

The map is folded into the head, which is the last Linear layer. So the checkpoint, every graph
made from it, a student and a server give calibrated probabilities, and nothing downstream knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from torch import nn

from train.encoders import Encoder
from train.validation import expected_calibration_error, probability_of


@dataclass(frozen=True)
class Platt:
    """`slope * logit + offset` is the log odds of toxic."""

    slope: float
    offset: float = 0.0

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, float64 of the same shape."""
        return self.slope * logits.astype(np.float64) + self.offset

    def undone(self, calibrated: np.ndarray) -> np.ndarray:
        """The logits before, float64 of the same shape."""
        return (calibrated.astype(np.float64) - self.offset) / self.slope


def fit_platt(labels: np.ndarray, logits: np.ndarray) -> Platt:
    """Slope and offset of the least log loss; `labels` [n] are 0 or 1, `logits` [n].

    The targets are Platt's, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keep the slope finite
    where the logits separate the classes. The identity where the slope would not be positive: the
    logits then say nothing, and their order must stay.
    """
    fitted = _fit(labels, logits, with_offset=True)
    return fitted if fitted.slope > 0 else Platt(1.0)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> Platt:
    """The slope alone, 1 / temperature; otherwise as `fit_platt`."""
    fitted = _fit(labels, logits, with_offset=False)
    return fitted if fitted.slope > 0 else Platt(1.0)


FITS: dict[str, Callable[[np.ndarray, np.ndarray], Platt]] = {
    "none": lambda _labels, _logits: Platt(1.0),
    "temperature": fit_temperature,
    "platt": fit_platt,
}
"""By name, from the simplest on."""
ISOTONIC = "isotonic"
_FOLDS = 5


@dataclass(frozen=True)
class Chosen:
    """The map that is folded in, and why."""

    name: str
    fit: Platt
    """Fitted on all of the labels."""
    held_out: dict[str, dict[str, float]]
    """By name: `log_loss` in nats on comments that it was not fitted on, and `standard_error`, of
    its difference from the least one. Empty where there are too few comments."""


AS_TRAINED = Chosen("none", Platt(1.0), {})
"""Nothing is changed."""


def choose(labels: np.ndarray, logits: np.ndarray, seed: int = 0) -> Chosen:
    """The simplest of FITS whose held-out log loss is within a standard error of the least.

    By cross-validation on five folds; the errors are of the paired differences. An isotonic map is
    measured beside them, as what could be had at most, and never chosen: it gives many comments the
    same score, so their order would be lost. Without two comments of each class nothing is changed.
    `labels` [n] are 0 or 1, `logits` [n].
    """
    classes = np.asarray(labels) > 0.5
    folds = min(_FOLDS, int(classes.sum()), int((~classes).sum()))
    if folds < 2:
        return AS_TRAINED
    losses = {name: np.empty(len(labels)) for name in (*FITS, ISOTONIC)}
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fitted_on, held in parts.split(logits, classes):
        for name, fit in FITS.items():
            mapped = fit(labels[fitted_on], logits[fitted_on])(logits[held])
            losses[name][held] = _losses(classes[held], probability_of(mapped))
        isotonic = IsotonicRegression(out_of_bounds="clip").fit(
            logits[fitted_on], classes[fitted_on]
        )
        losses[ISOTONIC][held] = _losses(classes[held], isotonic.predict(logits[held]))
    best = min(FITS, key=lambda name: float(losses[name].mean()))
    held_out = {}
    for name, loss in losses.items():
        error = float(np.std(loss - losses[best], ddof=1)) / len(loss) ** 0.5
        held_out[name] = {"log_loss": float(loss.mean()), "standard_error": error}
    chosen = next(
        name
        for name in FITS
        if held_out[name]["log_loss"] - held_out[best]["log_loss"]
        <= held_out[name]["standard_error"]
    )
    return Chosen(chosen, FITS[chosen](labels, logits), held_out)


def _losses(toxic: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Log loss in nats of each comment; no probability is quite 0 or 1."""
    own = np.where(toxic, probability, 1.0 - probability)
    return -np.log(np.clip(own, 1e-6, 1.0))


def fold_in(model: Encoder, calibration: Platt) -> None:
    """Change the head so that `model` gives the calibrated logits."""
    fold_in_row(model.head, 0, calibration)


def fold_in_row(head: nn.Linear, row: int, calibration: Platt) -> None:
    """Change one output of a head so that it gives the calibrated logits."""
    with torch.no_grad():
        head.weight[row].mul_(calibration.slope)
        head.bias[row].mul_(calibration.slope).add_(calibration.offset)


def comparison(labels: np.ndarray, logits: np.ndarray) -> dict[str, dict[str, float]]:
    """Log loss and ECE of 0/1 `labels` [n] with `logits` [n] before, by temperature, by Platt."""
    maps = {
        "before": Platt(1.0),
        "temperature": fit_temperature(labels, logits),
        "platt": fit_platt(labels, logits),
    }
    return {name: {**asdict(fit), **quality(labels, fit(logits))} for name, fit in maps.items()}


def summary(compared: dict[str, dict[str, float]], chosen: Chosen) -> str:
    """One line for people; takes what `comparison` and `choose` give."""
    before, temperature, platt = (
        f"{compared[name]['ece']:.4f}" for name in ("before", "temperature", "platt")
    )
    losses = ", ".join(f"{name} {of['log_loss']:.4f}" for name, of in chosen.held_out.items())
    return (
        f"calibration: validation ECE {before}, by temperature {temperature}, by slope "
        f"{compared['platt']['slope']:.3f} and offset {compared['platt']['offset']:+.3f} {platt}; "
        f"log loss on held-out folds: {losses or 'too few comments'}; chosen: {chosen.name}"
    )


def quality(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Log loss in nats and expected calibration error of 0/1 `labels` [n] with `logits` [n]."""
    probability = probability_of(logits)
    ece = expected_calibration_error(labels, probability, np.ones((1, len(labels))))
    return {
        "log_loss": float(log_loss(labels, probability, labels=[0, 1])),
        "ece": float(ece[0]),
    }


def _fit(labels: np.ndarray, logits: np.ndarray, *, with_offset: bool) -> Platt:
    positives, x = float(labels.sum()), logits.astype(np.float64)
    negatives = len(labels) - positives
    target = np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = max(float(x.std()), 1e-12)  # so that one step size fits both parameters

    def loss(parameters: np.ndarray) -> tuple[float, Any]:
        z = parameters[0] / spread * x + (parameters[1] if with_offset else 0.0)
        error = probability_of(z) - target
        value = np.mean(np.logaddexp(0.0, z) - target * z)
        return float(value), np.array([np.mean(error * x) / spread, with_offset * np.mean(error)])

    slope, offset = minimize(loss, [spread, 0.0], jac=True, method="BFGS").x
    return Platt(float(slope) / spread, float(offset) if with_offset else 0.0)
