"""How alike old and new scores are: correlation, decisions, ranking of the labels.

Intervals are 95 %, by bootstrap over the comments (`quality.metrics.bootstrap`); differences are
paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from migrate.collect import Collected
from migrate.config import MigrateConfig
from migrate.thresholds import (
    CURVE,
    Point,
    curve,
    effect,
    keeping_alarms,
    keeping_precision,
    keeping_recall,
)
from quality.metrics import Values, auroc, bootstrap, interval
from train.operating.intervals import Share

OLD, SAME, ALARMS = "old scores", "new scores, the old threshold", "new scores, alarm rate kept"
PRECISION, RECALL = "new scores, precision kept", "new scores, recall kept"
Statistic = Callable[[np.ndarray], Values]
"""Of weights float64 [R, n], as `quality.metrics` has them."""


def points_of(found: Collected, threshold: float) -> list[Point]:
    """The old decision, the new one at the same number, and at each threshold that keeps a rate.

    Precision and recall are kept on the labelled comments, where both classes are among them.
    """
    old, new = found.old, found.new
    decided = old >= threshold
    kept: dict[str, float | None] = {ALARMS: keeping_alarms(int(decided.sum()), new)}
    if found.has_classes:
        known = found.labelled
        labels, flagged = found.labels[known], decided[known]
        hits = int(flagged @ labels)
        if hits:
            kept[PRECISION] = keeping_precision(labels, new[known], hits / int(flagged.sum()))
            kept[RECALL] = keeping_recall(labels, new[known], hits / int(labels.sum()))
    points = [Point(OLD, threshold, decided), Point(SAME, threshold, new >= threshold)]
    for name, at in kept.items():
        points.append(Point(name, at, None if at is None else new >= at))
    return points


def on_the_other_half(found: Collected, config: MigrateConfig) -> list[dict[str, Any]]:
    """Thresholds chosen on a random half of the comments, and what they flag of the other; JSON.

    How well they keep what they are to keep. Empty where the old threshold parts no half.
    """
    order = np.random.default_rng(config.seed).permutation(len(found.old))
    one, other = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    half = replace(
        found,
        **{name: getattr(found, name)[one] for name in ("rows", "old", "new", "labels", "kinds")},
    )
    if len(np.unique(half.old >= config.threshold)) < 2:
        return []
    effects = []
    for point in points_of(half, config.threshold):
        scores = found.old if point.name == OLD else found.new
        decided = None if point.threshold is None else scores[other] >= point.threshold
        effects.append(effect(Point(point.name, point.threshold, decided), found.labels[other]))
    return effects


def agreement(found: Collected, points: list[Point], config: MigrateConfig) -> dict[str, Any]:
    """Everything but the kinds; JSON."""
    by_name = {point.name: point for point in points}
    old, kept = by_name[OLD], by_name[ALARMS]
    compared = [name for name in (SAME, ALARMS) if by_name[name].decided is not None]
    statistics = {"correlation": _correlation(found)}
    statistics |= {name: _kappa(old, by_name[name]) for name in compared}
    if kept.decided is not None:
        statistics["alarm_threshold"] = _alarm_threshold(found, old)
    if found.has_classes:
        statistics["auroc"] = _auroc(found)
    shown = _intervals(statistics, len(found.old), config)
    return {
        "correlation": shown["correlation"],
        "decisions": {name: {**_counts(old, by_name[name]), **shown[name]} for name in compared},
        "alarm_threshold": _around(kept.threshold, shown.get("alarm_threshold")),
        "points": [effect(point, found.labels) for point in points],
        "other_half": on_the_other_half(found, config),
        "curve": curve(found.old, found.new, (*CURVE, config.threshold)),
        "auroc": shown.get("auroc"),
    }


def _intervals(
    statistics: dict[str, Statistic], count: int, config: MigrateConfig
) -> dict[str, dict[str, Any]]:
    """All of them over the same resamples: drawing these takes most of the time."""

    def statistic(weights: np.ndarray) -> Values:
        return {
            f"{name}/{key}": value
            for name, of in statistics.items()
            for key, value in of(weights).items()
        }

    values = bootstrap(statistic, count, resamples=config.resamples, seed=config.seed)
    shown: dict[str, dict[str, Any]] = {name: {} for name in statistics}
    for path, value in values.items():
        name, _, key = path.partition("/")
        shown[name][key] = interval(value)
    return shown


def _correlation(found: Collected) -> Statistic:
    """Pearson's, Spearman's (the ranks of all comments in each resample), and the mean distance."""
    pairs = {"pearson": (found.old, found.new)}
    pairs["spearman"] = (rankdata(found.old), rankdata(found.new))
    columns = [np.abs(found.old - found.new)]
    for old, new in pairs.values():
        x, y = old - old.mean(), new - new.mean()
        columns += [x, y, x * x, y * y, x * y]
    table = np.stack(columns, axis=1)

    def statistic(weights: np.ndarray) -> Values:
        means = (weights @ table / weights.sum(axis=1, keepdims=True)).T
        values = {"mean_absolute_difference": means[0]}
        for place, name in enumerate(pairs):
            x, y, xx, yy, xy = means[1 + 5 * place : 6 + 5 * place]
            with np.errstate(divide="ignore", invalid="ignore"):
                spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
                values[name] = np.where(spread > 1e-15, (xy - x * y) / spread, np.nan)
        return values

    return statistic


def _counts(one: Point, other: Point) -> dict[str, Any]:
    assert one.decided is not None and other.decided is not None
    a, b = one.decided, other.decided
    return {
        "same": Share(int((a == b).sum()), len(a)).to_json(),
        "only_old": int((a & ~b).sum()),
        "only_new": int((b & ~a).sum()),
    }


def _kappa(one: Point, other: Point) -> Statistic:
    """Cohen's kappa (1960): agreement of two decisions beyond chance."""
    assert one.decided is not None and other.decided is not None
    a, b = one.decided.astype(np.float64), other.decided.astype(np.float64)
    table = np.stack([a, b, (a == b).astype(np.float64)], axis=1)

    def statistic(weights: np.ndarray) -> Values:
        a_share, b_share, same = (weights @ table / weights.sum(axis=1, keepdims=True)).T
        chance = a_share * b_share + (1 - a_share) * (1 - b_share)
        kappa = np.full(len(same), np.nan)
        np.divide(same - chance, 1 - chance, out=kappa, where=chance < 1)
        return {"kappa": kappa}

    return statistic


def _alarm_threshold(found: Collected, old: Point) -> Statistic:
    """How far chance moves the threshold that keeps the alarm rate."""
    assert old.decided is not None
    order = np.argsort(-found.new, kind="stable")
    flagged = old.decided.astype(np.float64)

    def statistic(weights: np.ndarray) -> Values:
        wanted = weights @ flagged
        reached = np.cumsum(weights[:, order], axis=1) >= np.maximum(wanted, 1)[:, None]
        return {"threshold": found.new[order][np.argmax(reached, axis=1)]}

    return statistic


def _around(threshold: float | None, shown: dict[str, Any] | None) -> dict[str, float | None]:
    """The threshold within its interval: it is between two scores, the interval's ends are some."""
    if threshold is None or shown is None:
        return {"value": None, "low": None, "high": None}
    ends = shown["threshold"]
    low, high = min(ends["low"], threshold), max(ends["high"], threshold)
    return {"value": threshold, "low": low, "high": high}


def _auroc(found: Collected) -> Statistic:
    known = found.labelled
    labels, old, new = found.labels[known], found.old[known], found.new[known]

    def statistic(weights: np.ndarray) -> Values:
        own = weights if known.all() else weights[:, known]
        values = {"old": auroc(labels, old, own), "new": auroc(labels, new, own)}
        return {**values, "difference": values["new"] - values["old"]}

    return statistic
