"""Curated sets through the live server: error rates of each group, as it decides now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import fisher_exact

from quality.curated import GROUP, load_curated
from train.data.load import Comments
from train.operating.intervals import Share

MOST_COMMENTS = 2000
"""Of a set; a larger one is drawn from, as much of every group as it has."""
_SEED = 0
RATES = {"fpr": ("false_positives", "negatives"), "fnr": ("false_negatives", "positives")}


@dataclass(frozen=True)
class CuratedSet:
    """What of a set is sent."""

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray
    """Bool [n], toxic."""
    groups: tuple[str, ...]


def read_sets(paths: Sequence[str]) -> list[CuratedSet]:
    """Sets of these files and folders. Raises BadInput as `load_curated` does."""
    return [_drawn(name, comments) for name, comments in load_curated(paths).items()]


def _drawn(name: str, comments: Comments) -> CuratedSet:
    rows = np.arange(len(comments.texts))
    if len(rows) > MOST_COMMENTS:
        rows = np.sort(np.random.default_rng(_SEED).choice(rows, MOST_COMMENTS, replace=False))
    labels = np.asarray(comments.labels)[rows] > 0
    groups = tuple(str(comments.extra[GROUP][row]) for row in rows)
    return CuratedSet(name, tuple(comments.texts[row] for row in rows), labels, groups)


def errors_of(
    sets: Sequence[CuratedSet],
    send: Callable[[Sequence[str]], Iterable[tuple[float, str]]],
    threshold_of: Callable[[str], float],
) -> list[dict[str, Any]]:
    """Decide all comments by the live server; counts by version, set and group.

    `send` gives score and version of each text, `threshold_of` what a version flags from.
    Raises what `send` raises.
    """
    cells: dict[tuple[str, str, str], dict[str, int]] = {}
    names = [name for pair in RATES.values() for name in pair]
    for one in sets:
        answers = zip(send(one.texts), one.labels.tolist(), one.groups, strict=True)
        for (score, version), toxic, group in answers:
            counts = cells.setdefault((version, one.name, group), dict.fromkeys(names, 0))
            flagged = score >= threshold_of(version)
            wrong, all_of = RATES["fnr" if toxic else "fpr"]
            counts[all_of] += 1
            counts[wrong] += flagged != toxic
    return [
        {"version": version, "set": name, "group": group, **counts}
        for (version, name, group), counts in cells.items()
    ]


def compared(errors: dict[str, Any], reference: dict[str, int] | None) -> list[dict[str, Any]]:
    """Both rates of a group with their Wilson intervals, beside those of its reference.

    `p_value` is of Fisher's exact test; None without a reference.
    """
    rows = []
    for rate, (wrong, all_of) in RATES.items():
        if not errors[all_of]:
            continue
        row: dict[str, Any] = {"rate": rate, **Share(errors[wrong], errors[all_of]).to_json()}
        row |= {"reference": None, "p_value": None}
        if reference and reference[all_of]:
            table = [[one[wrong], one[all_of] - one[wrong]] for one in (errors, reference)]
            row["reference"] = reference[wrong] / reference[all_of]
            row["p_value"] = float(fisher_exact(table, alternative="greater").pvalue)
        rows.append(row)
    return rows
