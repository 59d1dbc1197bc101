"""Curated sets: comments in named groups that a fair model treats alike, and pairs of them.

A set is a CSV with the columns `text` and `label` (under any name that training knows, or that a
flag names), `group`, and, where two comments differ in the identity alone, `pair_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from contract import DECISION_THRESHOLD, BadInput
from quality.metrics import Values, bootstrap, share
from train.data.load import Comments, load_comments
from train.data.tables import column_names
from train.operating.intervals import Share, ratio
from train.validation import probability_of

GROUP, PAIR = "group", "pair_id"
_SUFFIXES = (".csv", ".csv.gz")


def load_curated(paths: Sequence[str], **columns: Any) -> dict[str, Comments]:
    """Curated sets by file name without its suffix.

    Of a folder, its CSV files that have a column `group`. `columns`: text_column, label_column and
    label_map, as `load_comments` takes them. Raises BadInput for a file without a column `group`,
    or a folder without such a file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = [f for f in sorted(path.iterdir()) if f.name.endswith(_SUFFIXES)]
            found = [f for f in found if GROUP in column_names(f)]
            if not found:
                raise BadInput(
                    f"{path} holds no .csv or .csv.gz file with a column '{GROUP}', expected "
                    "curated sets; give another folder with --curated"
                )
        files += found
    sets = {}
    for file in files:
        comments = load_comments(
            str(file),
            both_classes=False,
            extra_columns=(GROUP, PAIR),
            flags="--curated-",
            **columns,
        )
        if GROUP not in comments.extra:
            raise BadInput(
                f"{file} has no column '{GROUP}', expected text, label and {GROUP}; add it, or "
                "give the file with --data"
            )
        sets[file.name.split(".")[0]] = comments
    return sets


def group_rates(comments: Comments, decided: np.ndarray) -> dict[str, dict[str, Any]]:
    """False-positive and false-negative rates of bool [n] decisions: of all, then of each group.

    Each with its Wilson interval. Of two groups also `fpr_ratio`: the higher false-positive rate
    over the lower one, with the interval of Koopman for independent groups; its value is None where
    the lower rate is 0. A rate of no comments is left out, and a ratio of two zeros.
    """
    groups = comments.extra[GROUP]
    names = list(dict.fromkeys(groups))
    toxic, every = comments.labels > 0.5, np.ones(len(decided), bool)
    found: dict[str, dict[str, Any]] = {}
    for suffix, chosen in [("", every), *((f".{name}", groups == name) for name in names)]:
        for rate, wrong, of in (("fpr", decided, ~toxic), ("fnr", ~decided, toxic)):
            total = int((of & chosen).sum())
            if total:
                found[f"{rate}{suffix}"] = share(int((wrong & of & chosen).sum()), total)
    rates = [found[f"fpr.{name}"] for name in names if f"fpr.{name}" in found]
    if len(names) == len(rates) == 2:
        low, high = sorted(rates, key=lambda rate: float(rate["value"]))
        estimate = ratio(Share(high["count"], high["of"]), Share(low["count"], low["of"]))
        if estimate.low is not None:
            found["fpr_ratio"] = asdict(estimate)
    return found


def pair_shifts(comments: Comments, logits: np.ndarray, *, resamples: int, seed: int) -> Values:
    """How far the probability moves within a pair; nothing for a set without pairs.

    The shift of a pair is its second comment's probability minus its first one's, in the order of
    the file. `flipped` is the share of pairs with two decisions. Pairs are resampled, not comments.
    """
    if PAIR not in comments.extra:
        return {}
    order = np.argsort(comments.extra[PAIR], kind="stable")
    _, first, size = np.unique(comments.extra[PAIR][order], return_index=True, return_counts=True)
    first = first[size == 2]  # half of a pair may have been dropped
    probability = probability_of(logits)[order]
    before, after = probability[first], probability[first + 1]
    shift = after - before
    decided = [p >= DECISION_THRESHOLD for p in (before, after)]
    quantities = {
        "pair_shift": shift,
        "pair_shift_absolute": np.abs(shift),
        "pair_flipped": decided[0] != decided[1],
    }

    def means(weights: np.ndarray) -> Values:
        total = weights.sum(axis=1)
        return {name: weights @ value / total for name, value in quantities.items()}

    return bootstrap(means, len(first), resamples=resamples, seed=seed)
