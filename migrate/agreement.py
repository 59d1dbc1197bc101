"""How alike old and new scores are: correlation, decisions, ranking of the labels.

Intervals are 95 %, by bootstrap over the comments (`quality.metrics.bootstrap`); differences are
paired.
"""

from __future__ import annotations

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
    share,
)
from quality.metrics import Values, auroc, bootstrap, interval

OLD, SAME, ALARMS = "old scores", "new scores, the old threshold", "new scores, alarm rate kept"
PRECISION, RECALL = "new scores, precision kept", "new scores, recall kept"


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


def agreement(found: Collected, points: list[Point], config: MigrateConfig) -> dict[str, Any]:
    """Everything but the kinds; JSON."""
    by_name = {point.name: point for point in points}
    return {
        "correlation": _correlation(found, config),
        "decisions": {
            name: _decisions(by_name[OLD], by_name[name], config)
            for name in (SAME, ALARMS)
            if by_name[name].decided is not None
        },
        "alarm_threshold": _alarm_threshold(found, by_name[ALARMS], config),
        "points": [effect(point, found.labels) for point in points],
        "curve": curve(found.old, found.new, (*CURVE, config.threshold)),
        "auroc": _auroc(found, config) if found.has_classes else None,
    }


def _shown(values: Values) -> dict[str, Any]:
    return {name: interval(value) for name, value in values.items()}


def _correlation(found: Collected, config: MigrateConfig) -> dict[str, Any]:
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

    drawn = {"resamples": config.resamples, "seed": config.seed}
    return _shown(bootstrap(statistic, len(found.old), **drawn))


def _decisions(one: Point, other: Point, config: MigrateConfig) -> dict[str, Any]:
    """Share of the same decisions, and Cohen's kappa (1960): agreement beyond chance."""
    assert one.decided is not None and other.decided is not None
    a, b = one.decided.astype(np.float64), other.decided.astype(np.float64)
    table = np.stack([a, b, (a == b).astype(np.float64)], axis=1)

    def statistic(weights: np.ndarray) -> Values:
        a_share, b_share, same = (weights @ table / weights.sum(axis=1, keepdims=True)).T
        chance = a_share * b_share + (1 - a_share) * (1 - b_share)
        kappa = np.full(len(same), np.nan)
        np.divide(same - chance, 1 - chance, out=kappa, where=chance < 1)
        return {"kappa": kappa}

    drawn = {"resamples": config.resamples, "seed": config.seed}
    return {
        "same": share(int((a == b).sum()), len(a)),
        **_shown(bootstrap(statistic, len(a), **drawn)),
        "only_old": int((a > b).sum()),
        "only_new": int((b > a).sum()),
    }


def _alarm_threshold(
    found: Collected, kept: Point, config: MigrateConfig
) -> dict[str, float | None]:
    """How far chance moves the threshold that keeps the alarm rate."""
    if kept.threshold is None:
        return {"value": None, "low": None, "high": None}
    order = np.argsort(-found.new, kind="stable")
    flagged = (found.old >= config.threshold).astype(np.float64)

    def statistic(weights: np.ndarray) -> Values:
        wanted = weights @ flagged
        reached = np.cumsum(weights[:, order], axis=1) >= np.maximum(wanted, 1)[:, None]
        return {"threshold": found.new[order][np.argmax(reached, axis=1)]}

    drawn = {"resamples": config.resamples, "seed": config.seed}
    shown = interval(bootstrap(statistic, len(found.new), **drawn)["threshold"])
    # Between two scores, where the interval's ends are scores.
    ends = {"low": min, "high": max}
    return {
        "value": kept.threshold,
        **{name: end(shown[name] or 0.0, kept.threshold) for name, end in ends.items()},
    }


def _auroc(found: Collected, config: MigrateConfig) -> dict[str, Any]:
    known = found.labelled
    labels, old, new = found.labels[known], found.old[known], found.new[known]

    def statistic(weights: np.ndarray) -> Values:
        values = {"old": auroc(labels, old, weights), "new": auroc(labels, new, weights)}
        return {**values, "difference": values["new"] - values["old"]}

    drawn = {"resamples": config.resamples, "seed": config.seed}
    return _shown(bootstrap(statistic, len(labels), **drawn))
