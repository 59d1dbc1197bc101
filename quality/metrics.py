"""Metrics of logits against labels, and how far chance moves them: bootstrap over the comments.

Every metric takes `weights` float64 [R, n], how often each of the n comments counts in each of
R resamples, and gives float64 [R] a metric; a row of ones is the plain metric. So 1,000 resamples
are a few matrix products and sorted sums, and tests hold the plain row against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from contract import LABEL_THRESHOLD
from train.validation import expected_calibration_error, probability_of

Values = dict[str, np.ndarray]
"""Metric -> float64 [1 + R]: over the comments as they are, then over each resample."""

BIAS_IDENTITIES = (
    "male",
    "female",
    "homosexual_gay_or_lesbian",
    "christian",
    "jewish",
    "muslim",
    "black",
    "white",
    "psychiatric_or_mental_illness",
)
"""Identities of the combined bias metric: those of the competition's own final evaluation
(Jigsaw Unintended Bias in Toxicity Classification, 2019)."""
_POWER = -5.0
_CHUNK_ELEMENTS = 2_000_000


def bootstrap(
    statistic: Callable[[np.ndarray], Values], n: int, *, resamples: int, seed: int
) -> Values:
    """`statistic` of weights over all `n` comments, then over `resamples` drawn with replacement.

    The same (n, resamples, seed) draws the same comments, so the difference of two models' values
    is a paired one.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // n)
    parts = [statistic(np.ones((1, n)))]
    for first in range(0, resamples, chunk):
        size = min(chunk, resamples - first)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(statistic(counts.astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: np.ndarray) -> dict[str, float | None]:
    """The value and the 95 % percentile interval; None where it is not defined.

    A statistic that resampling moves one way, such as ECE, may lie beyond its own percentiles: the
    interval then reaches up to the value.
    """
    low, high = np.nan, np.nan
    if np.isfinite(values[1:]).any():
        # A ratio may be infinite: between two such values there is nothing to interpolate.
        low, high = np.nanpercentile(values[1:], [2.5, 97.5], method="nearest")
        low, high = np.fmin(low, values[0]), np.fmax(high, values[0])
    shown = {"value": values[0], "low": low, "high": high}
    return {name: float(x) if np.isfinite(x) else None for name, x in shown.items()}


# --- Metrics -----------------------------------------------------------------------------
def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties as half; NaN for a resample of one class."""
    tp, fp = _curve(labels, scores, weights)
    area = ((tp[:, 1:] + tp[:, :-1]) / 2 * np.diff(fp, axis=1)).sum(axis=1)
    return _ratio(area, tp[:, -1] * fp[:, -1], np.nan)


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of precision times the step in recall (scikit-learn's definition)."""
    tp, fp = _curve(labels, scores, weights)
    precision = _ratio(tp[:, 1:], tp[:, 1:] + fp[:, 1:], 0.0)
    return _ratio((np.diff(tp, axis=1) * precision).sum(axis=1), tp[:, -1], np.nan)


def classification(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> Values:
    """What no threshold is needed for: ranking and calibration."""
    return {
        "auroc": auroc(labels, logits, weights),
        "average_precision": average_precision(labels, logits, weights),
        "ece": expected_calibration_error(labels, probability_of(logits), weights),
    }


def at_threshold(labels: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> Values:
    """Alarms and the usual rates of bool [n] decisions; NaN where one is undefined."""
    tp, fp, fn, tn = _confusion(labels, decided, weights)
    return {
        "alarms_per_1000": 1000 * (tp + fp) / (tp + fp + fn + tn),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, np.nan),
        "precision": _ratio(tp, tp + fp, np.nan),
        "recall": _ratio(tp, tp + fn, np.nan),
        "fpr": _ratio(fp, fp + tn, np.nan),
    }


# --- Identities --------------------------------------------------------------------------
def mentions(identities: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bool [n] by identity: at least half of those asked saw it mentioned.

    A comment about which nobody was asked counts as without it, as in the competition's own
    code, so that its published figures compare.
    """
    return {name: np.nan_to_num(share) >= LABEL_THRESHOLD for name, share in identities.items()}


def bias(
    labels: np.ndarray, logits: np.ndarray, mentioned: dict[str, np.ndarray], weights: np.ndarray
) -> Values:
    """Subgroup, BPSN and BNSP AUC of each identity, and Jigsaw's combined bias metric.

    Borkan et al. 2019, "Nuanced Metrics for Measuring Unintended Bias", sections 3.1 and 3.2:
    a low BPSN AUC (background positive, subgroup negative) says that harmless comments with the
    identity score like toxic ones without it. The combined metric is 0.25 * AUROC + 0.25 * the
    power mean (p = -5) over BIAS_IDENTITIES of each of the three. Identities for which one of the
    three is not defined are left out.
    """
    toxic = labels.astype(bool)
    values: Values = {}
    defined = []
    for name, subgroup in mentioned.items():
        of_identity = {}
        for kind, chosen in (
            ("subgroup_auc", subgroup),
            ("bpsn_auc", subgroup ^ toxic),
            ("bnsp_auc", subgroup == toxic),
        ):
            if len(np.unique(labels[chosen])) == 2:
                of_identity[f"{kind}.{name}"] = auroc(
                    labels[chosen], logits[chosen], weights[:, chosen]
                )
        if len(of_identity) == 3:
            defined.append(name)
            values |= of_identity
    combined = [name for name in BIAS_IDENTITIES if name in defined]
    if combined:
        means = [
            power_mean(np.stack([values[f"{kind}.{name}"] for name in combined]))
            for kind in ("subgroup_auc", "bpsn_auc", "bnsp_auc")
        ]
        values["bias_metric"] = 0.25 * auroc(labels, logits, weights) + 0.25 * sum(means)
    return values


def power_mean(auc_IR: np.ndarray) -> np.ndarray:
    """Mean with p = -5 over the first axis, the identities: the worst ones weigh most."""
    with np.errstate(divide="ignore"):
        return np.mean(auc_IR**_POWER, axis=0) ** (1 / _POWER)


# --- Thresholds --------------------------------------------------------------------------
def threshold_for_precision(labels: np.ndarray, logits: np.ndarray, target: float) -> float | None:
    """Lowest logit from which on precision is at least `target`; None when none reaches it."""
    precision, _, thresholds = precision_recall_curve(labels, logits)
    enough = np.flatnonzero(precision[:-1] >= target)
    return float(thresholds[enough[0]]) if len(enough) else None


def threshold_for_fpr(labels: np.ndarray, logits: np.ndarray, target: float) -> float | None:
    """Lowest logit with a false-positive rate of at most `target`; None when only +inf has it."""
    fpr, _, thresholds = roc_curve(labels, logits, drop_intermediate=False)
    last = np.flatnonzero(fpr <= target)[-1]
    return float(thresholds[last]) if np.isfinite(thresholds[last]) else None


# --- Sums --------------------------------------------------------------------------------
def _curve(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Any:
    """(true, false) positives [R, K + 1] from no comment to all, equal scores in one step."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    sorted_weights = weights[:, order]
    counts = []
    for kind in (labels[order], 1 - labels[order]):
        total = np.cumsum(sorted_weights * kind, axis=1)[:, last_of_tie]
        counts.append(np.pad(total, [(0, 0), (1, 0)]))
    return counts


def _confusion(labels: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> Any:
    """True positives, false positives, false negatives, true negatives, each [R]."""
    toxic = labels.astype(bool)
    cells = [decided & toxic, decided & ~toxic, ~decided & toxic, ~decided & ~toxic]
    return (weights @ np.stack(cells, axis=1).astype(np.float64)).T


def _ratio(numerator: np.ndarray, denominator: np.ndarray, undefined: float) -> np.ndarray:
    filled = np.full(numerator.shape, undefined)
    return np.divide(numerator, denominator, out=filled, where=denominator != 0)
