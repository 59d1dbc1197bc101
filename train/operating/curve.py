"""The operating curve: at each threshold that is worth having, how many comments it flags.

From the recall and the false-positive rate of a threshold follow its alarms and its precision at
any share of toxic comments, as long as toxic and harmless comments are each like those that were
counted: prior shift, P(text | label) unchanged (Saerens et al. 2002, "Adjusting the Outputs of a
Classifier to New a Priori Probabilities").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from contract import DECISION_THRESHOLD
from train.operating.intervals import Share

MOST_POINTS = 1000
"""Thresholds of a curve that is written."""


@dataclass(frozen=True)
class Curve:
    """Thresholds from the highest on, with what each flags of the labelled comments."""

    threshold: np.ndarray
    """float64 [K], falling: a comment is flagged whose probability is at least this."""
    true_positives: np.ndarray
    """int64 [K], toxic comments that are flagged."""
    false_positives: np.ndarray
    """int64 [K], harmless ones."""
    toxic: int
    harmless: int

    @property
    def prevalence(self) -> float:
        """Share of toxic comments among those that were counted."""
        return self.toxic / (self.toxic + self.harmless)

    def flagged_share(self, prevalence: float) -> np.ndarray:
        """float64 [K], share of all comments that each threshold flags at that prevalence."""
        recall, fpr = self.true_positives / self.toxic, self.false_positives / self.harmless
        return prevalence * recall + (1 - prevalence) * fpr

    def precision(self, prevalence: float) -> np.ndarray:
        """float64 [K], NaN where a threshold flags nothing."""
        flagged = self.flagged_share(prevalence)
        hits = prevalence * self.true_positives / self.toxic
        found = np.divide(hits, flagged, out=np.full(len(hits), np.nan), where=flagged > 0)
        return np.minimum(found, 1.0)  # else rounding may exceed it

    def thinned(self, most: int = MOST_POINTS) -> Curve:
        """At most about so many points: dense where few are flagged, as precision moves there."""
        if len(self.threshold) <= most:
            return self
        flagged = self.true_positives + self.false_positives
        steps = np.geomspace(1, len(flagged), most) - 1
        kept = np.unique(np.append(steps.astype(np.int64), len(flagged) - 1))
        default = np.flatnonzero(self.threshold == DECISION_THRESHOLD)
        kept = np.union1d(kept, default)
        return Curve(
            self.threshold[kept],
            self.true_positives[kept],
            self.false_positives[kept],
            self.toxic,
            self.harmless,
        )


def curve_of(labels: np.ndarray, probability: np.ndarray) -> Curve:
    """The curve of 0/1 `labels` [n] and `probability` [n]; both classes must be there.

    A threshold between two scores is the decimal of the fewest digits. One just below a harmless
    comment is left out: that above it has the same recall and fewer alarms. DECISION_THRESHOLD is
    always there, whether it flags a comment or not.
    """
    toxic = labels > 0.5
    values, group = np.unique(-probability.astype(np.float64), return_inverse=True)
    hits = np.bincount(group, weights=toxic)
    false = np.cumsum(np.bincount(group, weights=~toxic))
    scores, tp, below = -values, np.cumsum(hits), np.append(-values[1:], 0.0)
    kept = np.flatnonzero(hits > 0)
    found = [
        (shortest_between(float(below[k]), float(scores[k])), int(tp[k]), int(false[k]))
        for k in kept
    ]
    if all(threshold != DECISION_THRESHOLD for threshold, _, _ in found):
        flagged = probability >= DECISION_THRESHOLD
        counts = int((flagged & toxic).sum()), int((flagged & ~toxic).sum())
        found.append((DECISION_THRESHOLD, *counts))
    found.sort(key=lambda point: -point[0])
    thresholds, true, wrong = zip(*found, strict=True)
    return Curve(
        np.array(thresholds),
        np.array(true, np.int64),
        np.array(wrong, np.int64),
        int(toxic.sum()),
        int((~toxic).sum()),
    )


def counts_at(
    labels: np.ndarray, probability: np.ndarray, threshold: float | np.ndarray
) -> tuple[Share, Share]:
    """Recall and false-positive rate of a threshold, or of one for each comment, as counts."""
    toxic, flagged = labels > 0.5, probability >= threshold
    return (
        Share(int((flagged & toxic).sum()), int(toxic.sum())),
        Share(int((flagged & ~toxic).sum()), int((~toxic).sum())),
    )


def shortest_between(low: float, high: float) -> float:
    """The decimal of the fewest digits between two scores, `high` where there is none.

    So a threshold that a person copies by hand decides as the exact one does, and a site that acts
    on scores above it as one that acts from it on.
    """
    for digits in range(1, 18):
        unit = 10.0**digits
        found = round(math.floor(low * unit) / unit + 1 / unit, digits)
        if low < found < high:
            return found
    return high
