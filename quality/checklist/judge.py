"""Score the suite with models and say how many of each capability's sentences they get right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quality.checklist.suite import HARMLESS, TOXIC, Capability, load_suite
from quality.decisions import DEFAULT, StatedThreshold
from quality.models import Model
from train.operating.intervals import Share

_MARGIN = 0.25
"""Logits that a score may move where it must not rise, or not fall."""
_SHOWN = 3
MEAN_BAR, LOWEST_BAR = 0.8, 0.5


def right(kind: str, logits: np.ndarray, threshold: float) -> np.ndarray:
    """Which cases are right.

    Args:
        kind: TOXIC, HARMLESS, or one of KINDS.
        logits: float [cases, 1], or [cases, 2] for pairs.
        threshold: logit from which a comment is flagged.

    Returns:
        bool [cases].
    """
    flagged = logits >= threshold
    if kind in (TOXIC, HARMLESS):
        return np.asarray(flagged[:, 0] == (kind == TOXIC))
    if kind == "invariance":
        return np.asarray(flagged[:, 0] == flagged[:, 1])
    rise = logits[:, 1] - logits[:, 0]
    return np.asarray(
        {
            "higher": rise > 0,
            "lower": rise < 0,
            "not-higher": rise <= _MARGIN,
            "not-lower": rise >= -_MARGIN,
        }[kind]
    )


def checked(models: Sequence[Model]) -> dict[str, Any]:
    """Every capability's share of right cases by model, as JSON, decided at its own threshold.

    Where that is not DEFAULT, `passed_at_default` is the share of right cases at DEFAULT.
    `passed` has a 95 % interval by Wilson's formula; `wrong` has some sentences, the worst first.
    They are the suite's own: nobody's comments.
    """
    suite = load_suite()
    texts = list(dict.fromkeys(text for one in suite for case in one.cases for text in case))
    place = {text: number for number, text in enumerate(texts)}
    found: dict[str, Any] = {
        "thresholds": {model.name: model.decides.threshold for model in models},
        "sentences": len(texts),
        "capabilities": {
            one.name: {"says": one.says, "kind": one.kind, "cases": len(one.cases), "models": {}}
            for one in suite
        },
        "mean": {},
    }
    for model in models:
        logits = np.asarray(model.logits(texts), np.float64)
        for one in suite:
            own = logits[[[place[text] for text in case] for case in one.cases]]
            of_model = _of_model(one, own, model.decides)
            found["capabilities"][one.name]["models"][model.name] = of_model
        shares = [c["models"][model.name]["passed"] for c in found["capabilities"].values()]
        found["mean"][model.name] = round(float(np.mean(shares)), 4)
    return found


def _of_model(one: Capability, logits: np.ndarray, stated: StatedThreshold) -> dict[str, Any]:
    threshold = stated.logit
    holds = right(one.kind, logits, threshold)
    passed = Share(int(holds.sum()), len(holds)).to_json()
    worst = np.argsort(-np.abs(logits[:, -1] - threshold), kind="stable")
    wrong = [list(one.cases[row]) for row in worst if not holds[row]][:_SHOWN]
    found = {
        "passed": round(passed["value"], 4),
        "low": round(passed["low"], 4),
        "high": round(passed["high"], 4),
        "wrong": wrong,
    }
    usual = StatedThreshold()
    if stated.threshold != usual.threshold:
        at_default = right(one.kind, logits, usual.logit)
        found["passed_at_default"] = round(float(at_default.mean()), 4)
    return found


def bars(found: Mapping[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """What the model must reach on average, and in each capability."""
    shares = {name: one["models"][model]["passed"] for name, one in found["capabilities"].items()}
    mean, lowest = found["mean"][model], min(shares.values())
    return {
        "checklist_mean": {"value": mean, "bar": MEAN_BAR, "holds": mean >= MEAN_BAR},
        "checklist_lowest": {"value": lowest, "bar": LOWEST_BAR, "holds": lowest >= LOWEST_BAR},
    }


def rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a capability for the screen and the pages: per cent of its cases that are right.

    A model that decides elsewhere than DEFAULT has a second column, at that.
    """
    table, beside = [], f"{{}} at {DEFAULT}".format
    at_default: dict[str, list[float]] = {}
    for name, one in found["capabilities"].items():
        row = {"capability": name, "wanted": one["kind"], "cases": str(one["cases"])}
        for model, own in one["models"].items():
            row[model] = f"{100 * own['passed']:.0f}"
            if "passed_at_default" in own:
                row[beside(model)] = f"{100 * own['passed_at_default']:.0f}"
                at_default.setdefault(model, []).append(own["passed_at_default"])
        table.append(row)
    means = {model: f"{100 * share:.1f}" for model, share in found["mean"].items()}
    means |= {beside(m): f"{100 * float(np.mean(x)):.1f}" for m, x in at_default.items()}
    last = {"capability": "mean", "wanted": "", "cases": ""}
    return [*table, {name: {**last, **means}[name] for name in table[0]}]


def sentences_wrong(found: Mapping[str, Any], model: str) -> list[dict[str, str]]:
    """Examples of what the model gets wrong, the worst of each capability first."""
    return [
        {"capability": name, "wanted": one["kind"], "sentence": " / ".join(case)}
        for name, one in found["capabilities"].items()
        for case in one["models"][model]["wrong"]
    ]
