"""Where old and new decide differently, by kind of comment, at the thresholds of one alarm rate."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from migrate.collect import Collected
from migrate.kinds import CUT, KINDS, NONE
from migrate.thresholds import Point
from train.operating.intervals import Share

FEW = 30
"""Comments of a kind below which its row says little."""


def by_kind(found: Collected, old: Point, new: Point) -> list[dict[str, Any]]:
    """A row a kind that some comment is of, the one with most disagreement first; JSON.

    `rank_shift` is the mean change of a comment's place among all, from -1 to 1: above 0 the new
    scores rank the kind higher. The precisions are of the comments that one side alone flags.
    """
    assert old.decided is not None and new.decided is not None
    places = rankdata(found.new) - rankdata(found.old)
    kinds = {kind: (found.kinds >> bit & 1).astype(bool) for bit, kind in enumerate(KINDS)}
    kinds[NONE] = found.kinds == 0
    rows = []
    for kind, chosen in kinds.items():
        count = int(chosen.sum())
        if not count or (kind == CUT and not found.knows_cuts):
            continue
        only_old, only_new = (
            chosen & old.decided & ~new.decided,
            chosen & new.decided & ~old.decided,
        )
        rows.append(
            {
                "kind": kind,
                "comments": Share(count, len(chosen)).to_json(),
                "disagree": Share(int(only_old.sum() + only_new.sum()), count).to_json(),
                "only_old": int(only_old.sum()),
                "only_new": int(only_new.sum()),
                "old_flagged": int((chosen & old.decided).sum()),
                "new_flagged": int((chosen & new.decided).sum()),
                "rank_shift": float(places[chosen].mean() / len(chosen)),
                **_precisions(found, only_old, only_new),
                "few": count < FEW,
            }
        )
    return sorted(rows, key=lambda row: (row["few"], -row["disagree"]["value"]))


def _precisions(found: Collected, only_old: np.ndarray, only_new: np.ndarray) -> dict[str, Any]:
    if not found.labelled.any():
        return {}
    toxic, known = found.labels == 1, found.labelled
    return {
        f"precision_{name}": Share(
            int((toxic & chosen).sum()), int((known & chosen).sum())
        ).to_json()
        for name, chosen in (("only_old", only_old), ("only_new", only_new))
    }


def most_disputed(found: Collected, count: int) -> np.ndarray:
    """int64 [count] or fewer: places of the comments whose ranks differ most."""
    places = np.abs(rankdata(found.new) - rankdata(found.old))
    return np.argsort(-places, kind="stable")[:count]
