"""Count the reference profile of a version: its own scores of its validation split.

`python -m export` calls it with the very form that it publishes; the form of the result is
`export.profile.Profile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from contract import SCORE_BINS, TOKEN_BOUNDS
from export.profile import FORMAT, CalibrationBin, GroupErrors, Profile
from export.scorer import Scorer, probability
from train.data.curated import GROUP
from train.data.load import Comments

SCORE_BOUNDS = tuple((i + 1) / SCORE_BINS for i in range(SCORE_BINS))
"""Upper bounds of the bins of scores."""


def counts_upto(values: np.ndarray, bounds: Sequence[float]) -> tuple[int, ...]:
    """How many of [n] values lie above the bound before up to each bound, then beyond the last.

    As the buckets of Prometheus, whose bounds belong to them.
    """
    place = np.searchsorted(np.asarray(bounds, float), np.asarray(values, float), side="left")
    return tuple(np.bincount(place, minlength=len(bounds) + 1).tolist())


def profile_of(
    scorer: Scorer,
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    threshold: float,
    curated: Mapping[str, Comments],
) -> Profile:
    """The profile of the validation comments `texts` with 0/1 [n] `labels`, as of version 1.

    `curated` has sets with groups by name. Without a comment every count is 0.
    """
    found = scorer.score(texts)
    score = probability(found.logit).astype(np.float64)
    decided = score >= threshold
    return Profile(
        format=FORMAT,
        version=1,
        comments=len(texts),
        score_bins=counts_upto(score, SCORE_BOUNDS)[:SCORE_BINS],
        token_bins=counts_upto(found.lengths, TOKEN_BOUNDS),
        words=found.words,
        unknown_words=found.unknown_words,
        respelled_words=found.respelled_words,
        comments_cut=found.cut,
        threshold=threshold,
        flagged=int(decided.sum()),
        calibration=tuple(_calibration(score, labels)),
        groups=tuple(
            errors
            for name, comments in curated.items()
            for errors in _groups(scorer, name, comments, threshold)
        ),
    )


def _calibration(score: np.ndarray, labels: np.ndarray) -> list[CalibrationBin]:
    place = np.searchsorted(np.asarray(SCORE_BOUNDS), score, side="left")
    bins = []
    for i, high in enumerate(SCORE_BOUNDS):
        inside = place == i
        comments = int(inside.sum())
        bins.append(
            CalibrationBin(
                low=i / SCORE_BINS,
                high=high,
                comments=comments,
                mean_score=float(score[inside].mean()) if comments else None,
                positives=int(labels[inside].sum()),
            )
        )
    return bins


def _groups(scorer: Scorer, name: str, comments: Comments, threshold: float) -> list[GroupErrors]:
    decided = probability(scorer.score(comments.texts).logit).astype(np.float64) >= threshold
    toxic, groups = np.asarray(comments.labels) == 1, comments.extra[GROUP]
    found = []
    for group in dict.fromkeys(groups):
        inside = groups == group
        found.append(
            GroupErrors(
                set=name,
                group=str(group),
                negatives=int((inside & ~toxic).sum()),
                false_positives=int((inside & ~toxic & decided).sum()),
                positives=int((inside & toxic).sum()),
                false_negatives=int((inside & toxic & ~decided).sum()),
            )
        )
    return found
