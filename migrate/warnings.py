"""What a reader of the report must not overlook, each a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrate.agreement import ALARMS, OLD
from migrate.kinds import OTHER_SCRIPTS

LOW_CORRELATION = 0.5
FEW_FLAGGED = 30
FAR_OFF = 0.05
"""Of the old alarms, that the new threshold may miss by."""
MANY_OTHERS = 0.05
"""Share of comments in other scripts than Latin."""


def warnings_of(document: Mapping[str, Any]) -> list[str]:
    """Of the document of a comparison, the weightiest first."""
    found = []
    spearman, auroc = document["correlation"]["spearman"]["value"], document["auroc"]
    if auroc and (auroc["difference"]["high"] or 0) < 0:
        found.append(
            f"the new scores rank your labels worse than the old ones (AUROC "
            f"{auroc['new']['value']:.4f}, not {auroc['old']['value']:.4f}); train on your labels "
            "before you switch, or on the old scores with --distill"
        )
    if spearman is None or spearman < LOW_CORRELATION:
        shown = "none" if spearman is None else f"{spearman:.2f}"
        found.append(
            f"old and new scores hardly rank alike (Spearman's correlation is {shown}): check the "
            "columns, and whether the published model was trained on comments like these"
        )
    points = {point["name"]: point for point in document["points"]}
    flagged, kept = points[OLD]["flagged"]["count"], points[ALARMS]
    if flagged < FEW_FLAGGED:
        found.append(
            f"the old scores flag only {flagged} of these comments, so that chance moves the new "
            "threshold far; give a longer log"
        )
    if kept["threshold"] and abs(kept["flagged"]["count"] - flagged) > FAR_OFF * flagged:
        found.append(
            f"many new scores are equal: {kept['flagged']['count']:,} comments are flagged in "
            f"place of {flagged:,}"
        )
    others = sum(
        kind["comments"]["value"] for kind in document["kinds"] if kind["kind"] in OTHER_SCRIPTS
    )
    if others > MANY_OTHERS:
        found.append(
            f"{others:.0%} of the comments are in another script than Latin; see how they fare "
            "under the kinds, and whether the published model was trained on such"
        )
    return found
