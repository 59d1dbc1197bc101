"""Curated sets: comments in named groups that a fair model treats alike, and pairs of them.

Their files are `train.data.curated`'s.
"""

from __future__ import annotations

import numpy as np

from contract import DECISION_THRESHOLD
from quality.metrics import Values, bootstrap, error_rates
from train.data.curated import GROUP, PAIR, load_curated
from train.data.load import Comments
from train.validation import probability_of

__all__ = ["GROUP", "PAIR", "group_rates", "load_curated", "pair_shifts"]


def group_rates(comments: Comments, decided: np.ndarray, *, resamples: int, seed: int) -> Values:
    """False-positive and false-negative rates of bool [n] decisions: of all, then of each group.

    Of two groups also `fpr_ratio`: the higher false-positive rate over the lower one.
    """
    groups = comments.extra[GROUP]
    names = list(dict.fromkeys(groups))

    def rates(weights: np.ndarray) -> Values:
        values = error_rates(comments.labels, decided, weights)
        for name in names:
            chosen = groups == name
            of_group = error_rates(comments.labels[chosen], decided[chosen], weights[:, chosen])
            values |= {f"{rate}.{name}": value for rate, value in of_group.items()}
        if len(names) == 2:
            a, b = (values[f"fpr.{name}"] for name in names)
            with np.errstate(divide="ignore", invalid="ignore"):
                values["fpr_ratio"] = np.maximum(a, b) / np.minimum(a, b)
        return values

    values = bootstrap(rates, len(decided), resamples=resamples, seed=seed)
    return {name: rate for name, rate in values.items() if np.isfinite(rate).any()}


def pair_shifts(comments: Comments, logits: np.ndarray, *, resamples: int, seed: int) -> Values:
    """How far the probability moves within a pair; nothing for a set without pairs.

    The shift of a pair is its second comment's probability minus its first one's, in the order of
    the file. `flipped` is the share of pairs with two decisions. Pairs are resampled, not comments.
    """
    if PAIR not in comments.extra:
        return {}
    order = np.argsort(comments.extra[PAIR], kind="stable")
    _, first, size = np.unique(comments.extra[PAIR][order], return_index=True, return_counts=True)
    first = first[size == 2]  # half of a pair may have been dropped
    probability = probability_of(logits)[order]
    before, after = probability[first], probability[first + 1]
    shift = after - before
    decided = [p >= DECISION_THRESHOLD for p in (before, after)]
    quantities = {
        "pair_shift": shift,
        "pair_shift_absolute": np.abs(shift),
        "pair_flipped": decided[0] != decided[1],
    }

    def means(weights: np.ndarray) -> Values:
        total = weights.sum(axis=1)
        return {name: weights @ value / total for name, value in quantities.items()}

    return bootstrap(means, len(first), resamples=resamples, seed=seed)
