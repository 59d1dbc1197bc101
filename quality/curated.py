"""Curated sets: comments in named groups that a fair model treats alike, and pairs of them.

Their files are `train.data.curated`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from quality.metrics import Values, bootstrap
from train.data.curated import GROUP, PAIR, load_curated
from train.data.load import Comments
from train.operating.intervals import Share, ratio
from train.validation import probability_of

__all__ = ["GROUP", "PAIR", "group_rates", "load_curated", "pair_shifts"]


def group_rates(comments: Comments, decided: np.ndarray) -> dict[str, dict[str, Any]]:
    """False-positive and false-negative rates of bool [n] decisions: of all, then of each group.

    Each with its Wilson interval. Of two groups also `fpr_ratio`: the higher false-positive rate
    over the lower one, with the interval of Koopman for independent groups; its value is None where
    the lower rate is 0. A rate of no comments is left out, and a ratio of two zeros.
    """
    groups = comments.extra[GROUP]
    names = list(dict.fromkeys(groups))
    toxic, every = comments.labels > 0.5, np.ones(len(decided), bool)
    found: dict[str, dict[str, Any]] = {}
    for suffix, chosen in [("", every), *((f".{name}", groups == name) for name in names)]:
        for rate, wrong, of in (("fpr", decided, ~toxic), ("fnr", ~decided, toxic)):
            total = int((of & chosen).sum())
            if total:
                found[f"{rate}{suffix}"] = Share(int((wrong & of & chosen).sum()), total).to_json()
    rates = [found[f"fpr.{name}"] for name in names if f"fpr.{name}" in found]
    if len(names) == len(rates) == 2:
        low, high = sorted(rates, key=lambda rate: float(rate["value"]))
        estimate = ratio(Share(high["count"], high["of"]), Share(low["count"], low["of"]))
        if estimate.low is not None:
            found["fpr_ratio"] = asdict(estimate)
    return found


def pair_shifts(
    comments: Comments,
    logits: np.ndarray,
    thresholds: Mapping[str, float],
    *,
    resamples: int,
    seed: int,
) -> Values:
    """How far the probability moves within a pair; nothing for a set without pairs.

    The shift of a pair is its second comment's probability minus its first one's, in the order of
    the file. `pair_flipped` is the share of pairs with two decisions, at each of `thresholds`,
    which are logits by name. Pairs are resampled, not comments.
    """
    if PAIR not in comments.extra:
        return {}
    order = np.argsort(comments.extra[PAIR], kind="stable")
    _, first, size = np.unique(comments.extra[PAIR][order], return_index=True, return_counts=True)
    first = first[size == 2]  # half of a pair may have been dropped
    probability = probability_of(logits)[order]
    before, after = probability[first], probability[first + 1]
    shift = after - before
    ordered = logits[order]
    quantities = {
        "pair_shift": shift,
        "pair_shift_absolute": np.abs(shift),
    }
    for rule, threshold in thresholds.items():
        flipped = (ordered[first] >= threshold) != (ordered[first + 1] >= threshold)
        quantities[f"pair_flipped at {rule}"] = flipped

    def means(weights: np.ndarray) -> Values:
        total = weights.sum(axis=1)
        return {name: weights @ value / total for name, value in quantities.items()}

    return bootstrap(means, len(first), resamples=resamples, seed=seed)
