"""Whether two sets of counts differ: by how much, and whether chance alone would make it so.

An alarm needs both, and enough comments: the size of a difference (population stability index, or
ratio of two shares) says that it matters, the test (Pearson's chi-squared of homogeneity, Fisher's
exact one for shares) that it is no chance. The index of two samples of one population is not 0 but
about (K - 1) (1/n + 1/m) for K bins (Yurdakul 2018, "Statistical properties of the population
stability index"); that much is taken off, so that a small window does not look like drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2_contingency, fisher_exact

_LEAST_EXPECTED = 5.0
"""Bins where fewer comments are expected are put together (Cochran 1954)."""
_HALF = 0.5


@dataclass(frozen=True)
class Difference:
    """Of a window from its reference."""

    size: float
    """Population stability index less what chance gives, or ratio of the shares."""
    p_value: float
    comments: float
    """Of the window."""


def of_bins(reference: np.ndarray, window: np.ndarray) -> Difference:
    """Of two histograms [K] over the same bins; no difference when one is empty."""
    n, m = float(reference.sum()), float(window.sum())
    if not n or not m:
        return Difference(0.0, 1.0, m)
    pairs = _merged(np.stack([reference, window]).astype(np.float64))
    bins = pairs.shape[1]
    if bins < 2:
        return Difference(0.0, 1.0, m)
    smooth = pairs + _HALF
    p, q = smooth / smooth.sum(axis=1, keepdims=True)
    index = float(((q - p) * np.log(q / p)).sum())
    by_chance = (bins - 1) * (1 / n + 1 / m)
    p_value = float(chi2_contingency(pairs, correction=False).pvalue)
    return Difference(max(0.0, index - by_chance), p_value, m)


def _merged(pairs: np.ndarray) -> np.ndarray:
    """Neighbouring bins [2, K] put together until each expects enough comments in both rows."""
    smaller = pairs.sum(axis=1).min() / pairs.sum()
    kept: list[np.ndarray] = []
    part = np.zeros(2)
    for column in pairs.T:
        part = part + column
        if part.sum() * smaller >= _LEAST_EXPECTED:
            kept.append(part)
            part = np.zeros(2)
    if part.any():
        if kept:
            kept[-1] = kept[-1] + part
        else:
            kept.append(part)
    return np.stack(kept, axis=1)


def of_shares(
    reference: tuple[float, float],
    window: tuple[float, float],
    comments: float,
    reference_comments: float,
) -> Difference:
    """Ratio of two shares, each "how many, of how many", and Fisher's exact test.

    Words of one comment go together, so a test over words would find any difference. It counts
    every comment as one word: careful rather than sharp. A half is added to each count, so that
    no share is 0.
    """
    if not reference[1] or not window[1]:
        return Difference(1.0, 1.0, comments)
    shares = [(some + _HALF) / (all_of + 1) for some, all_of in (reference, window)]
    table = []
    for (some, all_of), most in ((reference, reference_comments), (window, comments)):
        size = min(all_of, most)
        hits = round(some / all_of * size)
        table.append([hits, max(0, round(size) - hits)])
    return Difference(shares[1] / shares[0], float(fisher_exact(table).pvalue), comments)
