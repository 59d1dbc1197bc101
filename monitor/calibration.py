"""Whether a score still is the share of toxic comments, by labels that came later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from train.operating.intervals import Share
from train.validation import RELIABILITY_BINS, expected_calibration_error, reliability_bin

_DRAWS, _SEED = 2000, 0


@dataclass(frozen=True)
class Calibration:
    """Of one version's labelled comments."""

    error: float
    """Expected calibration error, as `quality` has it."""
    by_chance: float
    """What a perfectly calibrated model would show on as many, on the mean."""
    p_value: float
    """How often such a model shows as much (Bröcker and Smith 2007, consistency resampling)."""
    bins: list[dict[str, float]]
    """Reliability: comments, mean score and share of toxic ones of each bin that has some."""
    precision: dict[str, Any]
    """Of the flagged ones that were labelled, with its Wilson interval."""
    labels: int
    toxic: int


def calibration_of(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Calibration:
    """`labels` 0 or 1 and `scores`, both [n] with n > 0."""
    labels, scores = labels.astype(np.float64), scores.astype(np.float64)
    n = len(labels)
    error = float(expected_calibration_error(labels, scores, np.ones((1, n)))[0])
    place = reliability_bin(scores)
    size = np.bincount(place, minlength=RELIABILITY_BINS)
    summed = np.bincount(place, weights=scores, minlength=RELIABILITY_BINS)
    toxic = np.bincount(place, weights=labels, minlength=RELIABILITY_BINS)
    filled = size > 0
    mean = summed[filled] / size[filled]
    rng = np.random.default_rng(_SEED)
    drawn = rng.binomial(size[filled], mean.clip(0, 1), size=(_DRAWS, int(filled.sum())))
    errors = np.abs(drawn - summed[filled]).sum(axis=1) / n
    flagged = scores >= threshold
    return Calibration(
        error=error,
        by_chance=float(errors.mean()),
        p_value=float((1 + (errors >= error).sum()) / (1 + _DRAWS)),
        bins=[
            {"comments": int(c), "score": float(s), "toxic": float(t / c)}
            for c, s, t in zip(size[filled], mean, toxic[filled], strict=True)
        ],
        precision=Share(int(labels[flagged].sum()), int(flagged.sum())).to_json(),
        labels=n,
        toxic=int(labels.sum()),
    )
