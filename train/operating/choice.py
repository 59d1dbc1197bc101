"""Which threshold serves a purpose, and what it then does to comments that it was not chosen on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedKFold

from contract import DECISION_THRESHOLD, BadInput
from train.operating.curve import Curve, counts_at, curve_of
from train.operating.intervals import Estimate, Share, mixed, precision_at

PREVALENCES = (0.5, 0.1, 0.01, 0.001)
"""Shares of toxic comments that thresholds are stated for."""
PRECISIONS = (0.5, 0.8, 0.9, 0.95)
ALARMS_PER_1000 = (1.0, 5.0, 10.0, 50.0)
LEAST_FLAGGED = 5
"""A threshold that flags fewer of the labelled comments is not taken for one that serves a purpose:
the highest score alone, of a toxic comment, has a precision of 1."""
NOT_REACHABLE, TOO_FEW = "not reachable", "too few comments to tell"
_FOLDS = 5
GoalKind = Literal["precision", "alarms"]
Chooser = Callable[[Curve], float | None]
"""Gives a curve's threshold for a purpose, None where it has none."""


@dataclass(frozen=True)
class Goal:
    """What a threshold is wanted for."""

    kind: GoalKind
    target: float
    """The least precision, from 0 to 1, or the most alarms a 1,000 comments."""
    prevalence: float
    """Share of toxic comments among those that come, above 0 and below 1."""

    def words(self) -> str:
        share = f"where {100 * self.prevalence:.3g} % are toxic"
        if self.kind == "precision":
            return f"precision {self.target:g} {share}"
        return f"at most {self.target:g} alarms per 1,000 comments {share}"

    def threshold(self, curve: Curve) -> float | None:
        """The lowest one of `curve` that reaches it, so with the highest recall; None if none does.

        Whatever flags fewer than LEAST_FLAGGED comments reaches nothing.
        """
        enough = curve.true_positives + curve.false_positives >= LEAST_FLAGGED
        if self.kind == "precision":
            with np.errstate(invalid="ignore"):
                reached = curve.precision(self.prevalence) >= self.target
        else:
            reached = 1000 * curve.flagged_share(self.prevalence) <= self.target
        found = np.flatnonzero(enough & reached)
        return float(curve.threshold[found[-1]]) if len(found) else None


_TARGETS: dict[GoalKind, tuple[float, ...]] = {
    "precision": PRECISIONS,
    "alarms": ALARMS_PER_1000,
}
GOALS = tuple(
    Goal(kind, target, prevalence)
    for prevalence in PREVALENCES
    for kind, targets in _TARGETS.items()
    for target in targets
)
"""Those that are always looked for."""


def best_f1(curve: Curve) -> float | None:
    """The threshold of the highest F1 on the comments of the curve, with as many toxic ones."""
    wanted = curve.true_positives + curve.false_positives + curve.toxic
    return float(curve.threshold[int(np.argmax(2 * curve.true_positives / wanted))])


# --- What it does ------------------------------------------------------------------------
@dataclass(frozen=True)
class Effect:
    """What a threshold does where so large a share of the comments is toxic."""

    prevalence: float
    alarms_per_1000: Estimate
    precision: Estimate
    recall: Estimate


@dataclass(frozen=True)
class Judged:
    """A threshold and its counts on comments that it was not chosen on."""

    threshold: float
    recall: Share
    false_positive_rate: Share

    def lacks(self, goal: Goal) -> str:
        """Why the goal is not reached: NOT_REACHABLE, TOO_FEW, or empty where it is.

        Not reachable if the comments that it was judged on refute it: the target is beyond the
        interval. Too few where they flag next to none, where the interval goes down to half of the
        wanted precision, or where twice the alarms come.
        """
        effect, target = self.effect(goal.prevalence), goal.target
        alarms, precision = effect.alarms_per_1000, effect.precision
        if self.recall.count + self.false_positive_rate.count < LEAST_FLAGGED:
            return TOO_FEW
        assert alarms.value is not None and alarms.low is not None  # neither share is of none
        assert precision.low is not None and precision.high is not None  # some are flagged
        if goal.kind == "alarms":
            return NOT_REACHABLE if alarms.low > target else TOO_FEW * (alarms.value > 2 * target)
        return NOT_REACHABLE if precision.high < target else TOO_FEW * (precision.low < target / 2)

    def effect(self, prevalence: float) -> Effect:
        """By prior shift."""
        flagged = mixed(prevalence, self.recall, self.false_positive_rate)
        alarms = (
            None if x is None else 1000 * x for x in (flagged.value, flagged.low, flagged.high)
        )
        return Effect(
            prevalence,
            Estimate(*alarms),
            precision_at(prevalence, self.recall, self.false_positive_rate),
            self.recall.estimate(),
        )


@dataclass(frozen=True)
class Labelled:
    """Labelled scores, and the folds that thresholds are judged on."""

    labels: np.ndarray
    """0 or 1, [n]."""
    probability: np.ndarray
    """float64 [n]."""
    folds: list[tuple[np.ndarray, np.ndarray]]
    """Rows to choose on and rows to judge on; empty where there are too few comments."""
    curves: list[Curve]
    """Of the rows of each fold that are chosen on."""
    curve: Curve
    """Of all."""

    @classmethod
    def of(
        cls, labels: np.ndarray, probability: np.ndarray, groups: Sequence[str], seed: int = 0
    ) -> Labelled:
        """Comments of one group (the same text) are never on both sides of a fold.

        Raises BadInput unless there is a comment of each class.
        """
        toxic = np.asarray(labels) > 0.5
        if not toxic.any() or toxic.all():
            raise BadInput(
                f"{int(toxic.sum())} of {len(toxic)} labelled comments are toxic, expected some of "
                "each class; give more comments"
            )
        numbers: dict[str, int] = {}
        group = np.array([numbers.setdefault(name, len(numbers)) for name in groups])
        folds = []
        of_group = np.bincount(group, weights=toxic) > 0
        count = min(_FOLDS, int(of_group.sum()), int((~of_group).sum()))
        if count > 1:
            splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
            for _, held in splitter.split(of_group, of_group):
                of_held = np.isin(group, held)
                folds.append((np.flatnonzero(~of_held), np.flatnonzero(of_held)))
        if any(len(np.unique(toxic[rows])) < 2 for rows, _ in folds):
            folds = []
        curves = [curve_of(labels[rows], probability[rows]) for rows, _ in folds]
        return cls(labels, probability, folds, curves, curve_of(labels, probability))

    def judged(self, choose: Chooser) -> Judged | None:
        """The threshold chosen on all comments; its counts by thresholds chosen without them.

        Each fold's comments are flagged by the threshold that `choose` finds on the other folds,
        and by none where it finds none. Without folds on the comments that it was chosen on.
        """
        threshold = choose(self.curve)
        if threshold is None:
            return None
        by_row = np.full(len(self.labels), threshold)
        for (_, held), curve in zip(self.folds, self.curves, strict=True):
            found = choose(curve)
            by_row[held] = np.inf if found is None else found
        return Judged(threshold, *counts_at(self.labels, self.probability, by_row))

    def reached(self, goal: Goal) -> tuple[Judged | None, str]:
        """A threshold that reaches the goal, or None and why there is none."""
        found = self.judged(goal.threshold)
        lacks = found.lacks(goal) if found else NOT_REACHABLE
        return (None, lacks) if lacks else (found, "")


# --- The one that decides ----------------------------------------------------------------
@dataclass(frozen=True)
class Wish:
    """What the default threshold is wanted for; nothing for the rule of `default_threshold`."""

    precision: float | None = None
    prevalence: float | None = None
    """None for that of the labelled comments."""


def default_threshold(labelled: Labelled, wish: Wish) -> tuple[str, Judged]:
    """The one threshold that a version decides by, and how it was chosen, in words.

    That of the wish. Else DECISION_THRESHOLD, from where a calibrated score says more likely toxic
    than not. Where no score reaches it, what has half of its alarms right; where nothing has, what
    has the highest F1. Raises BadInput for a wish that is not reached.
    """
    curve = labelled.curve
    prevalence = wish.prevalence if wish.prevalence is not None else curve.prevalence
    if wish.precision is not None:
        goal = Goal("precision", wish.precision, prevalence)
        found, why = labelled.reached(goal)
        if found is None:
            raise BadInput(
                f"--threshold-precision is {wish.precision:g}, {why} where "
                f"{100 * prevalence:.3g} % are toxic, expected {_reachable(labelled, prevalence)}; "
                "set a lower precision or a higher --prevalence, or label more comments"
            )
        return goal.words(), found
    if reaches(curve, DECISION_THRESHOLD):
        words, choose = f"the default, a calibrated probability of {DECISION_THRESHOLD:g}", _default
        return words, _certain(labelled.judged(choose))
    unreached = f"as no score reaches {DECISION_THRESHOLD:g}"
    half = Goal("precision", 0.5, curve.prevalence)
    found, _ = labelled.reached(half)
    if found:
        return f"{half.words()}, {unreached}", found
    return f"the highest F1, {unreached}", _certain(labelled.judged(best_f1))


def reaches(curve: Curve, threshold: float) -> bool:
    """Whether a comment's score is at least `threshold`, one of the curve's."""
    at = int(np.flatnonzero(curve.threshold == threshold)[0])
    return bool(curve.true_positives[at] + curve.false_positives[at])


def _default(_: Curve) -> float:
    return DECISION_THRESHOLD


def _certain(found: Judged | None) -> Judged:
    assert found is not None  # these choosers always find one
    return found


def _reachable(labelled: Labelled, prevalence: float) -> str:
    """In words, to a twentieth."""
    for step in range(19, 0, -1):
        if labelled.reached(Goal("precision", step / 20, prevalence))[0]:
            return f"at most about {step / 20:g}"
    return "more comments, for none is shown to be"
