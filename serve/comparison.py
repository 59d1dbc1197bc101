"""Two versions on the same comments: how far their scores and decisions are from each other.

`serve.mirror` fills it, `serve.canary` judges by it. Counts and sums only: no comment is kept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["stable", "canary"]
ROLES: tuple[Role, Role] = ("stable", "canary")
BINS = 20
"""Of the same width from 0 to 1."""
_LATENCIES = 20_000
_EMPTY = 1e-4
"""Share that stands for that of an empty bin, whose logarithm there is none of."""


def psi(expected: Sequence[int], found: Sequence[int]) -> float | None:
    """Population stability index of two histograms of the same bins; None where one is empty.

    sum((f - e) * ln(f / e)) over the bins' shares, as Siddiqi, Credit Risk Scorecards (2006), has
    it: below 0.1 it is usually called no change, above 0.25 a large one.
    """
    if not sum(expected) or not sum(found):
        return None
    total = 0.0
    for one, other in zip(expected, found, strict=True):
        e, f = max(_EMPTY, one / sum(expected)), max(_EMPTY, other / sum(found))
        total += (f - e) * math.log(f / e)
    return total


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them does not exceed."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass
class VersionSeen:
    """One of the two versions."""

    numbers: set[str] = field(default_factory=set)
    bins: list[int] = field(default_factory=lambda: [0] * BINS)
    total: float = 0.0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    """Of its last requests."""

    def document(self, comments: int) -> dict[str, Any]:
        p50, p99 = (percentile(self.seconds, share) for share in (0.5, 0.99))
        return {
            "versions": sorted(self.numbers, key=int),
            "mean_score": self.total / comments if comments else None,
            "requests": len(self.seconds),
            "p50_ms": None if p50 is None else 1000 * p50,
            "p99_ms": None if p99 is None else 1000 * p99,
        }


@dataclass
class PairComparison:
    """Pairs of scores of the same comment since the mirror started."""

    requests: int = 0
    comments: int = 0
    to_flagged: int = 0
    """Comments that the canary flags and the stable version does not, each at its threshold."""
    to_passed: int = 0
    largest: float = 0.0
    absolute: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    """Requests that are not compared, by reason."""
    seen: dict[Role, VersionSeen] = field(
        default_factory=lambda: {role: VersionSeen() for role in ROLES}
    )

    def add(
        self,
        scores: dict[Role, Sequence[float]],
        thresholds: dict[Role, float],
        versions: dict[Role, str],
        seconds: dict[Role, float],
    ) -> None:
        """A request that both answered: probabilities of its comments, in their order."""
        self.requests += 1
        for role in ROLES:
            one = self.seen[role]
            one.numbers.add(versions[role])
            one.seconds.append(seconds[role])
            one.total += sum(scores[role])
            for value in scores[role]:
                one.bins[min(BINS - 1, max(0, int(value * BINS)))] += 1
        for stable, canary in zip(scores["stable"], scores["canary"], strict=True):
            flagged = stable >= thresholds["stable"], canary >= thresholds["canary"]
            self.comments += 1
            self.to_flagged += flagged == (False, True)
            self.to_passed += flagged == (True, False)
            self.absolute += abs(canary - stable)
            self.largest = max(self.largest, abs(canary - stable))

    def drop(self, reason: str, count: int = 1) -> None:
        """Requests that cannot be compared."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def document(self) -> dict[str, Any]:
        """All of it as JSON; scores are probabilities, times milliseconds."""
        stable, canary = (self.seen[role] for role in ROLES)
        flips = self.to_flagged + self.to_passed
        n = self.comments
        return {
            "requests": self.requests,
            "comments": n,
            "flips": {"to_flagged": self.to_flagged, "to_passed": self.to_passed},
            "flip_share": flips / n if n else None,
            "mean_shift": (canary.total - stable.total) / n if n else None,
            "mean_absolute_shift": self.absolute / n if n else None,
            "largest_shift": self.largest,
            "psi": psi(stable.bins, canary.bins),
            **{role: self.seen[role].document(n) for role in ROLES},
            "dropped": dict(self.dropped),
        }
