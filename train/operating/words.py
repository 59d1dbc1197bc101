"""What people are told of thresholds: a few lines, and a table."""

from __future__ import annotations

from collections.abc import Sequence

from contract import DECISION_THRESHOLD
from train.operating.choice import Effect, reaches
from train.operating.document import ForGoal, Thresholds
from train.operating.intervals import Estimate

FEW = 50
"""Of fewer comments of a class it is said that they are few."""


def summary(found: Thresholds) -> list[str]:
    """What was counted, and what decides: a few lines."""
    counted, decision = found.counted, found.decision
    of = f"{counted.toxic + counted.harmless:,} comments, {counted.toxic:,} of them toxic"
    how = (
        f"judged on {counted.folds} folds that it was not chosen on"
        if counted.folds
        else "judged on the very comments that it was chosen on, for they are too few"
    )
    lines = [f"thresholds from {counted.source}: {of}; scores of {counted.scores}; each {how}"]
    if not reaches(found.as_curve(), DECISION_THRESHOLD):
        lines.append(
            f"no score of it reaches {DECISION_THRESHOLD:g}: the highest is {counted.highest:.4g}"
        )
    if min(counted.toxic, counted.harmless) < FEW:
        lines.append(
            f"few comments: {counted.toxic:,} toxic and {counted.harmless:,} harmless ones; read "
            "the intervals, not the values, and label more"
        )
    lines.append(f"decides from {decision.threshold:g} on ({decision.rule})")
    own = found.calibration
    if own and (own.slope, own.offset) == (1.0, 0.0):
        lines.append("the scores do not rise with these labels: no calibration fits them")
    elif own:
        lines.append(
            f"calibration of these comments: slope {own.slope:.3f}, offset {own.offset:+.3f}; on "
            f"folds that it was not fitted on ECE {own.ece[0]:.4f} before, {own.ece[1]:.4f} after"
        )
    return lines


def told(found: Thresholds) -> list[str]:
    """What a training or an export says: all of it where no score reaches DECISION_THRESHOLD."""
    lines = summary(found)
    if not reaches(found.as_curve(), DECISION_THRESHOLD):
        return [*lines, *table(found).splitlines()]
    return lines


def table(found: Thresholds, more: Sequence[ForGoal] = ()) -> str:
    """The decision and every goal by share of toxic comments, for a terminal."""
    cells = rows(found, more)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[2] = max(len(row[2]) for row in cells if row[3])  # words may run into empty cells
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join([*lines, f"({found.assumption}; intervals are 95 %)"])


def rows(found: Thresholds, more: Sequence[ForGoal] = ()) -> list[Sequence[str]]:
    """Cells of the table, its head first."""
    decided = found.decision
    return [
        _HEAD,
        *(_row("decides", decided.threshold, effect) for effect in decided.at),
        *(_goal_row(one) for one in (*more, *found.goals)),
    ]


def _goal_row(one: ForGoal) -> Sequence[str]:
    name = f"precision {one.target:g}"
    if one.goal == "alarms":
        name = f"alarms {one.target:g} of 1,000"
    if one.effect is None or one.threshold is None:
        return (percent(one.prevalence), name, one.why, "", "", "")
    return _row(name, one.threshold, one.effect)


_HEAD = ("toxic", "for", "threshold", "alarms per 1,000", "precision", "recall")


def _row(name: str, threshold: float, effect: Effect) -> Sequence[str]:
    return (
        percent(effect.prevalence),
        name,
        f"{threshold:g}",
        shown(effect.alarms_per_1000, 1),
        shown(effect.precision, 3),
        shown(effect.recall, 3),
    )


def percent(share: float) -> str:
    """Such as "0.1 %"."""
    return f"{100 * share:.3g} %"


def shown(found: Estimate, digits: int) -> str:
    """A value with its interval."""
    if found.value is None:
        return "-"
    low, high = ("-" if x is None else f"{x:.{digits}f}" for x in (found.low, found.high))
    return f"{found.value:.{digits}f} [{low}, {high}]"
