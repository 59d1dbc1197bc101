"""95 % intervals of shares, of what two shares give, of a few runs; each holds its own estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_Z = 1.959963984540054
"""Of a standard normal variable, 2.5 % lie above it."""
_FURTHEST = 60.0
"""Bounds of the natural logarithm of a ratio that is looked for."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None for what is not defined, and for an infinite bound."""

    value: float | None
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> Estimate:
    """Of a few independent runs, with Student's interval; unbounded for a single one."""
    from scipy.stats import ttest_1samp  # slow to import: not for who only reads counts

    value = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(value, None, None)
    if min(values) == max(values):
        return Estimate(value, value, value)
    found = ttest_1samp(values, 0.0).confidence_interval()
    return Estimate(value, float(found.low), float(found.high))


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """NaN of none."""
        return self.count / self.of if self.of else math.nan

    def estimate(self) -> Estimate:
        """With the interval of Wilson (1927), "Probable Inference"; undefined of none."""
        if not self.of:
            return Estimate(None, None, None)
        from scipy.stats import binomtest  # slow to import: not for who only reads counts

        span = binomtest(self.count, self.of).proportion_ci(0.95, method="wilson")
        # Rounding must not put the value beside its own interval.
        low, high = float(span.low), float(span.high)
        return Estimate(self.value, min(low, self.value), max(high, self.value))

    def to_json(self) -> dict[str, Any]:
        """`count`, `of`, `value`, `low`, `high`; the last three None of none."""
        return {**asdict(self), **asdict(self.estimate())}


def ratio(top: Share, bottom: Share) -> Estimate:
    """`top` over `bottom`, two independent shares, with its score interval.

    Koopman 1984, "Confidence Intervals for the Ratio of Two Binomial Proportions", (2.4): the
    ratios that a chi-squared test of the two counts does not reject. The point estimate is never
    rejected, and counts of 0 need no correction: of none at the bottom the ratio is infinite, shown
    as None, and its lower bound finite. Undefined where both counts are 0 or a share is of none.
    """
    if not (top.of and bottom.of) or not (top.count or bottom.count):
        return Estimate(None, None, None)
    from scipy.optimize import brentq

    found = top.value / bottom.value if bottom.count else math.inf

    def rejected(log_ratio: float) -> float:
        return _score(top, bottom, math.exp(log_ratio)) - _Z**2

    middle = min(max(math.log(found), -_FURTHEST), _FURTHEST) if found else -_FURTHEST
    low, high = 0.0, math.inf
    if top.count and rejected(-_FURTHEST) > 0:
        low = math.exp(brentq(rejected, -_FURTHEST, middle))
    if bottom.count and rejected(_FURTHEST) > 0:
        high = math.exp(brentq(rejected, middle, _FURTHEST))
    low, high = min(low, found), max(high, found)
    return Estimate(*(x if math.isfinite(x) else None for x in (found, low, high)))


def _score(top: Share, bottom: Share, ratio: float) -> float:
    """Chi-squared of the two counts if the one share were `ratio` times the other.

    With `top`'s most likely share under that, written so that no digits cancel.
    """
    count, both = top.count + bottom.count, top.of + bottom.of
    linear = ratio * (top.of + bottom.count) + top.count + bottom.of
    root = math.sqrt(max(0.0, linear**2 - 4 * ratio * both * count))
    share = min(1.0, 2 * ratio * count / (linear + root))
    return _surprise(top, share) + _surprise(bottom, min(1.0, share / ratio))


def _surprise(found: Share, share: float) -> float:
    """Chi-squared of a count where that share was to be expected."""
    missed = found.count - found.of * share
    if abs(missed) <= 1e-12 * found.of:
        return 0.0
    spread = found.of * share * (1 - share)
    return missed**2 / spread if spread > 0 else math.inf


def mixed(prevalence: float, toxic: Share, harmless: Share) -> Estimate:
    """`prevalence` times one independent share plus the rest times the other.

    With the interval that Wilson's of the two give: Zou and Donner 2008, "Construction of
    Confidence Limits about Effect Measures", (MOVER). Undefined where a share is of none.
    """
    parts = [(prevalence, toxic.estimate()), (1 - prevalence, harmless.estimate())]
    value = below = above = 0.0
    for weight, part in parts:
        if part.value is None or part.low is None or part.high is None:
            return Estimate(None, None, None)
        value += weight * part.value
        below += (weight * (part.value - part.low)) ** 2
        above += (weight * (part.high - part.value)) ** 2
    return Estimate(value, max(0.0, value - math.sqrt(below)), min(1.0, value + math.sqrt(above)))


def precision_at(prevalence: float, recall: Share, false_positive_rate: Share) -> Estimate:
    """Share of the flagged that is toxic where so large a share of all is.

    By Bayes' theorem from the two rates, of which only the ratio matters; the interval is that of
    the ratio. Undefined where nothing was flagged.
    """
    odds = (1 - prevalence) / prevalence
    found = ratio(false_positive_rate, recall)
    if found.value is None and found.low is None:
        return Estimate(None, None, None)
    bounds = (math.inf if x is None else x for x in (found.value, found.high, found.low))
    return Estimate(*(1 / (1 + odds * x) for x in bounds))
