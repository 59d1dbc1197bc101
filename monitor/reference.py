"""What live traffic is compared with: the profile of its version, or the first traffic it had."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contract import ARTIFACT_FILE, DECISION_THRESHOLD, PROFILE_FILE, PUBLIC_MODEL
from export.manifest import stated_threshold
from export.profile import Profile, read_profile
from export.repository import read_artifact
from monitor import series


@dataclass(frozen=True)
class Decides:
    """From where a version flags a comment, and who says so."""

    threshold: float = DECISION_THRESHOLD
    source: str = "default"
    """"profile" or "manifest" of the version, or "default" where neither states it."""

    def words(self) -> str:
        """For people."""
        who = f"its {self.source} says so"
        if self.source == "default":
            who = "the default, for no profile and no manifest of it states one"
        return f"flags from {self.threshold:g} on ({who})"


@dataclass(frozen=True)
class Reference:
    """Counts of comments, none of their text."""

    source: str
    """In words: "profile", or "first traffic"."""
    comments: float
    score_bins: np.ndarray | None = None
    token_bins: np.ndarray | None = None
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Quantity -> how many, of how many."""
    threshold: float | None = None
    calibration_error: float | None = None
    groups: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    """(set, group) -> negatives, false_positives, positives, false_negatives."""


def read_reference(repository: Path, version: str) -> Reference | None:
    """The profile of a published version; None when it has none or is not there.

    Raises BadInput for a profile that cannot be read.
    """
    if not version.isdecimal():
        return None
    folder = repository / PUBLIC_MODEL / version
    there = [PROFILE_FILE] if (folder / PROFILE_FILE).is_file() else []
    profile = read_profile(folder, there)
    return _reference(profile) if profile and profile.comments else None


def _reference(profile: Profile) -> Reference:
    bins = [one for one in profile.calibration if one.mean_score is not None]
    labelled = sum(one.comments for one in bins)
    gaps = sum(abs((one.mean_score or 0.0) * one.comments - one.positives) for one in bins)
    names = ("negatives", "false_positives", "positives", "false_negatives")
    shares: dict[str, tuple[float, float]] = {
        "unknown_words": (profile.unknown_words, profile.words),
        "respelled_words": (profile.respelled_words, profile.words),
        "comments_cut": (profile.comments_cut, profile.comments),
    }
    if profile.flagged is not None:
        shares["flagged"] = (profile.flagged, profile.comments)
    return Reference(
        source="profile",
        comments=profile.comments,
        score_bins=np.array(profile.score_bins, np.float64),
        token_bins=np.array(profile.token_bins, np.float64),
        shares=shares,
        threshold=profile.threshold,
        calibration_error=gaps / labelled if labelled else None,
        groups={
            (one.set, one.group): {name: getattr(one, name) for name in names}
            for one in profile.groups
        },
    )


def of_traffic(counts: series.Counts) -> Reference:
    """The same of what a server counted."""
    scores, tokens = (series.histogram(counts, name) for name in (series.SCORE, series.TOKENS))
    return Reference(
        source="first traffic",
        comments=comments_of(counts),
        score_bins=scores[1] if scores else None,
        token_bins=tokens[1] if tokens else None,
        shares=shares_of(counts),
    )


def comments_of(counts: series.Counts) -> float:
    """Comments that were scored."""
    return series.total(counts, series.COMMENTS) or 0.0


def shares_of(counts: series.Counts) -> dict[str, tuple[float, float]]:
    """Quantity -> how many, of how many; what nobody counts is left out."""
    comments = comments_of(counts)
    decided = series.by_label(counts, series.DECISIONS, "decision")
    found = {
        "unknown_words": (series.total(counts, series.UNKNOWN), series.total(counts, series.WORDS)),
        "respelled_words": (
            series.total(counts, series.RESPELLED),
            series.total(counts, series.WORDS),
        ),
        "comments_cut": (series.total(counts, series.CUT), comments),
        "flagged": (decided.get("flagged"), sum(decided.values())),
    }
    return {
        name: (some, all_of)
        for name, (some, all_of) in found.items()
        if some is not None and all_of
    }


def decides(repository: Path, version: str, profile: Reference | None) -> Decides:
    """What a score must reach to be flagged by a version, of which `profile` may be known.

    Raises BadInput for a manifest that cannot be read.
    """
    if profile is not None and profile.threshold is not None:
        return Decides(profile.threshold, "profile")
    manifest = repository / PUBLIC_MODEL / version / ARTIFACT_FILE
    if version.isdecimal() and manifest.is_file():
        stated = stated_threshold(read_artifact(repository, int(version)))
        if stated is not None:
            return Decides(stated, "manifest")
    return Decides()
