"""thresholds.json of a run and of a published version: its form, and how people see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from contract import BadInput
from storage.files import json_text
from train.operating.choice import (
    ALARMS_PER_1000,
    GOALS,
    NOT_REACHABLE,
    PRECISIONS,
    PREVALENCES,
    Effect,
    Goal,
    GoalKind,
    Judged,
    Labelled,
    Wish,
    default_threshold,
)
from train.operating.curve import Curve
from train.operating.intervals import Share

ASSUMPTION = (
    "prior shift: P(text | label) is the same where the threshold is used, so recall and "
    "false-positive rate are, whatever the share of toxic comments"
)
_CONFIG = ConfigDict(defer_build=True)
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=_CONFIG)
class Counted:
    """What was counted."""

    source: str
    """Such as "validation split"."""
    scores: str
    """What scored them."""
    toxic: _Positive
    harmless: _Positive
    highest: _Share
    """Highest probability of any."""
    folds: _Count
    """Thresholds were judged on so many folds that they were not chosen on; 0: on the very
    comments that they were chosen on."""


@dataclass(frozen=True, config=_CONFIG)
class Points:
    """The operating curve, one value a threshold, from the highest on."""

    threshold: tuple[float, ...]
    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]


@dataclass(frozen=True, config=_CONFIG)
class Decision:
    """The threshold that a version decides by."""

    threshold: _Share
    rule: str
    """How it was chosen."""
    at: tuple[Effect, ...]
    """What it does, by share of toxic comments; the first is that of the counted comments."""


@dataclass(frozen=True, config=_CONFIG)
class ForGoal:
    """A threshold for a goal, or why there is none."""

    goal: GoalKind
    target: float
    prevalence: float
    threshold: float | None
    effect: Effect | None
    why: str
    """Empty where there is one."""


@dataclass(frozen=True, config=_CONFIG)
class SiteCalibration:
    """What makes a site's own probability of a served logit: slope times it, plus offset.

    The served probability stays the graph's. ECE and log loss in nats, before and after, are of
    folds that the map was not fitted on.
    """

    slope: float
    offset: float
    ece: tuple[float, float]
    log_loss: tuple[float, float]


@dataclass(frozen=True, config=_CONFIG)
class Thresholds:
    """The file."""

    counted: Counted
    decision: Decision
    goals: tuple[ForGoal, ...]
    curve: Points
    calibration: SiteCalibration | None = None
    assumption: str = ASSUMPTION
    format: Literal[1] = 1

    def to_text(self) -> str:
        """As it is written."""
        return json_text(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def as_curve(self) -> Curve:
        """For thresholds at another share of toxic comments."""
        points = self.curve
        return Curve(
            np.array(points.threshold, np.float64),
            np.array(points.true_positives, np.int64),
            np.array(points.false_positives, np.int64),
            self.counted.toxic,
            self.counted.harmless,
        )


def thresholds_of(
    labelled: Labelled,
    *,
    source: str,
    scores: str,
    wish: Wish | None = None,
    calibration: SiteCalibration | None = None,
) -> Thresholds:
    """All that is written of labelled scores. Raises BadInput for a wish out of reach."""
    wish, curve = wish or Wish(), labelled.curve
    rule, decided = default_threshold(labelled, wish)
    own = curve.prevalence if wish.prevalence is None else wish.prevalence
    found = []
    for goal in GOALS:
        found.append(_for_goal(goal, *labelled.reached(goal)))
    thin = curve.thinned()
    points = Points(
        tuple(thin.threshold.tolist()),
        tuple(thin.true_positives.tolist()),
        tuple(thin.false_positives.tolist()),
    )
    counted = Counted(
        source,
        scores,
        curve.toxic,
        curve.harmless,
        float(np.max(labelled.probability)),
        len(labelled.folds),
    )
    effects = tuple(decided.effect(p) for p in dict.fromkeys((own, *PREVALENCES)))
    decision = Decision(decided.threshold, rule, effects)
    return Thresholds(counted, decision, tuple(found), points, calibration)


def _for_goal(goal: Goal, judged: Judged | None, why: str) -> ForGoal:
    effect = judged.effect(goal.prevalence) if judged else None
    threshold = judged.threshold if judged else None
    return ForGoal(goal.kind, goal.target, goal.prevalence, threshold, effect, why)


# --- From the curve alone ----------------------------------------------------------------
def goals_at(found: Thresholds, prevalence: float) -> tuple[ForGoal, ...]:
    """The usual goals at any share of toxic comments, judged on the comments of the curve."""
    precisions = [Goal("precision", target, prevalence) for target in PRECISIONS]
    alarms = [Goal("alarms", target, prevalence) for target in ALARMS_PER_1000]
    return tuple(_from_curve(found.as_curve(), goal) for goal in (*precisions, *alarms))


def decided_by(found: Thresholds, precision: float, prevalence: float | None) -> Thresholds:
    """The same with another threshold that decides, from the curve alone.

    `prevalence` left out is that of the counted comments. Raises BadInput for what is not reached.
    """
    curve = found.as_curve()
    goal = Goal("precision", precision, curve.prevalence if prevalence is None else prevalence)
    chosen = _from_curve(curve, goal)
    if chosen.threshold is None:
        raise BadInput(
            f"--threshold-precision is {precision:g}, {chosen.why} where "
            f"{100 * goal.prevalence:.3g} % are toxic, expected less; `toxicity thresholds "
            f"--prevalence {goal.prevalence:g}` shows what is reachable"
        )
    judged = _judged(curve, chosen.threshold)
    effects = tuple(judged.effect(p) for p in dict.fromkeys((goal.prevalence, *PREVALENCES)))
    decision = Decision(chosen.threshold, f"{goal.words()}, from the curve", effects)
    return dataclasses.replace(found, decision=decision)


def _from_curve(curve: Curve, goal: Goal) -> ForGoal:
    threshold = goal.threshold(curve)
    if threshold is None:
        return _for_goal(goal, None, NOT_REACHABLE)
    judged = _judged(curve, threshold)
    why = judged.lacks(goal)
    return _for_goal(goal, None if why else judged, why)


def _judged(curve: Curve, threshold: float) -> Judged:
    at = int(np.flatnonzero(curve.threshold == threshold)[0])
    hits, false = int(curve.true_positives[at]), int(curve.false_positives[at])
    return Judged(threshold, Share(hits, curve.toxic), Share(false, curve.harmless))


# --- The file ----------------------------------------------------------------------------
def read_thresholds(path: Path, remedy: str) -> Thresholds:
    """The file's values. Raises BadInput that names the first bad one and ends with `remedy`."""
    try:
        data = path.read_bytes()
        return TypeAdapter(Thresholds).validate_json(data)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "it"
        raise BadInput(f"{path} is not valid: {name}: {first['msg']}; {remedy}") from error
