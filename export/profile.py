"""profile.json of a version: how it scored its validation split, for a monitor to compare with.

`export.reference` counts it, `python -m export` publishes it beside the graph, covered by the
manifest. Counts alone: no comment's text. The bounds of its bins are those of the histograms that
the server itself counts (`contract`).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from contract import PROFILE_FILE, SCORE_BINS, TOKEN_BOUNDS
from export.manifest import read_regular, validated
from export.tuning import LAZILY

FORMAT: Final = 1
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=LAZILY)
class CalibrationBin:
    """Comments whose score is above `low` up to `high`, as in the bins of `score_bins`."""

    low: Share
    high: Share
    comments: Count
    mean_score: Share | None
    """None where there is no comment."""
    positives: Count
    """Of them, those labelled toxic."""


@dataclass(frozen=True, config=LAZILY)
class GroupErrors:
    """What was decided wrongly of one group of a curated set, at the profile's threshold."""

    set: str
    group: str
    negatives: Count
    false_positives: Count
    positives: Count
    false_negatives: Count


@dataclass(frozen=True, config=LAZILY)
class Profile:
    """The form of profile.json."""

    format: Literal[1]
    version: Annotated[int, Field(ge=1)]
    comments: Count
    """Comments of the validation split; 0 where there was none, and every other count then too."""
    score_bins: tuple[Count, ...]
    """SCORE_BINS counts: bin i has the scores above i / SCORE_BINS up to (i + 1) / SCORE_BINS, the
    first one also 0, as the buckets of `toxicity_score`."""
    token_bins: tuple[Count, ...]
    """Counts for TOKEN_BOUNDS, each the comments above the bound before it up to it, then those
    beyond the last."""
    words: Count
    """Words as `toxicity_words_total` counts them."""
    unknown_words: Count
    respelled_words: Count
    comments_cut: Count
    threshold: Share
    flagged: Count | None
    """Comments whose score is at least `threshold`; None where that was not counted."""
    calibration: tuple[CalibrationBin, ...] = ()
    groups: tuple[GroupErrors, ...] = ()

    @model_validator(mode="after")
    def _counts_agree(self) -> Profile:
        for name, bins in (("score_bins", SCORE_BINS), ("token_bins", len(TOKEN_BOUNDS) + 1)):
            found = getattr(self, name)
            if len(found) != bins or sum(found) != self.comments:
                raise ValueError(
                    f"{name} has {len(found)} bins of {sum(found)} comments, expected {bins} of "
                    f"{self.comments}"
                )
        return self


def at_another_threshold(profile: Profile, version: int, threshold: float) -> Profile:
    """`profile` of a version with the same scores that decides elsewhere.

    What was decided at the old threshold is left out: counts in bins do not say it of the new one.
    """
    if threshold == profile.threshold:
        return replace(profile, version=version)
    return replace(profile, version=version, threshold=threshold, flagged=None, groups=())


def read_profile(folder: Path, files: Container[str]) -> Profile | None:
    """The profile of the version in `folder`, whose manifest lists `files`.

    None for a version that was published without one. Raises BadInput for one that is no profile.
    """
    if PROFILE_FILE not in files:
        return None
    path = folder / PROFILE_FILE
    return validated(Profile, read_regular(path), path)
