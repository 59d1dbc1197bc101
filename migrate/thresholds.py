"""Thresholds that carry a decision over, from old scores to new ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quality.metrics import threshold_for_precision
from train.operating.curve import shortest_between
from train.operating.intervals import Share

CURVE = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Old thresholds of the curve."""


@dataclass(frozen=True)
class Point:
    """A way to decide, and what it does to the comments of a log."""

    name: str
    threshold: float | None
    """None where no threshold does it."""
    decided: np.ndarray | None
    """bool [n]."""


def keeping_alarms(old_flagged: int, new: np.ndarray) -> float | None:
    """The threshold by which the share of flagged comments is nearest to the old one.

    Equal scores are decided together, so the count may differ by what is tied; of two as near, the
    one that flags fewer. None where it would flag all or none.
    """
    scores, counts = np.unique(-new, return_counts=True)
    flagged = np.cumsum(counts)  # by the threshold -scores[i]
    best = int(np.argmin(np.abs(flagged - old_flagged)))
    if not old_flagged or best + 1 == len(scores):
        return None
    return shortest_between(float(-scores[best + 1]), float(-scores[best]))


def keeping_precision(labels: np.ndarray, new: np.ndarray, precision: float) -> float | None:
    """The lowest threshold with at least that precision; None when none has it."""
    found = threshold_for_precision(labels, new, precision)
    return None if found is None else _between_scores(new, found)


def keeping_recall(labels: np.ndarray, new: np.ndarray, recall: float) -> float | None:
    """The highest threshold with at least that recall; None when all would have to be flagged."""
    toxic = np.sort(new[labels > 0])[::-1]
    wanted = math.ceil(recall * len(toxic) - 1e-9)
    return _between_scores(new, float(toxic[wanted - 1])) if wanted else None


def _between_scores(new: np.ndarray, lowest: float) -> float:
    """The shortest threshold that flags `lowest` and what is above, and nothing below."""
    below = new[new < lowest]
    return shortest_between(float(below.max()) if len(below) else 0.0, lowest)


def curve(old: np.ndarray, new: np.ndarray, thresholds: tuple[float, ...]) -> list[dict[str, Any]]:
    """For each old threshold that flags some and not all, the new one that keeps the alarm rate."""
    found = []
    for threshold in sorted(set(thresholds)):
        flagged = int((old >= threshold).sum())
        kept = keeping_alarms(flagged, new) if 0 < flagged < len(old) else None
        if kept is not None:
            found.append(
                {
                    "old_threshold": threshold,
                    "new_threshold": kept,
                    "old_flagged": flagged,
                    "new_flagged": int((new >= kept).sum()),
                }
            )
    return found


def effect(point: Point, labels: np.ndarray) -> dict[str, Any]:
    """What a decision flags, and where there are labels (NaN for none) how right it is; JSON."""
    if point.decided is None:
        return {"name": point.name, "threshold": None}
    decided, known = point.decided, ~np.isnan(labels)
    found = {
        "name": point.name,
        "threshold": point.threshold,
        "flagged": Share(int(decided.sum()), len(decided)).to_json(),
    }
    if known.any():
        toxic = labels == 1
        hits = int((decided & toxic).sum())
        found["precision"] = Share(hits, int((decided & known).sum())).to_json()
        found["recall"] = Share(hits, int(toxic.sum())).to_json()
    return found
