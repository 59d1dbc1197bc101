"""Whether a canary is promoted: bounds on what the comparison found, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.operating.intervals import Share


@dataclass(frozen=True)
class Bounds:
    """What must hold; None where nothing is asked."""

    most_flips: float | None = None
    p99_ms: float | None = None
    most_shift: float | None = None
    most_failures: float = 0.01
    least_comments: int = 1


@dataclass(frozen=True)
class Verdict:
    """Of one look."""

    decided: bool
    promote: bool
    lines: list[str]
    failed: list[str]


def refused(reason: str) -> Verdict:
    """A verdict against it, whatever the scores say."""
    return Verdict(True, False, [f"fails  {reason}"], [reason])


def judged(found: dict[str, Any], bounds: Bounds, *, over: bool) -> Verdict:
    """What the bounds say of a comparison's document; `over` when the time is.

    Nothing is promoted before the time is over. A share of flips above its bound at the lower end
    of the 95 % interval decides at once: more comments would not mend it.
    """
    comments = int(found.get("comments", 0))
    checks: list[tuple[bool, bool, str]] = [  # holds, hopeless, words
        (
            comments >= bounds.least_comments,
            False,
            f"{comments} comments compared, at least {bounds.least_comments}",
        )
    ]
    failures = int(found.get("dropped", {}).get("failed", 0))
    asked = int(found.get("requests", 0)) + failures
    share = failures / asked if asked else 0.0
    words = f"{failures} of {asked} requests failed, at most {bounds.most_failures:.2%}"
    checks.append((share <= bounds.most_failures, False, words))
    if bounds.most_flips is not None:
        flips = found.get("flips", {})
        found_share = Share(sum(flips.values()), comments).estimate()
        low, high = found_share.low or 0.0, 1.0 if found_share.high is None else found_share.high
        words = f"flips {low:.4g} to {high:.4g} of comments (95 %), at most {bounds.most_flips:g}"
        enough = comments >= bounds.least_comments
        checks.append((high <= bounds.most_flips, enough and low > bounds.most_flips, words))
    if bounds.p99_ms is not None:
        p99 = found.get("canary", {}).get("p99_ms")
        words = f"p99 {_shown(p99)} ms, at most {bounds.p99_ms:g}"
        checks.append((p99 is not None and p99 <= bounds.p99_ms, False, words))
    if bounds.most_shift is not None:
        shift = found.get("mean_shift")
        words = f"mean score shifted by {_shown(shift)}, at most {bounds.most_shift:g}"
        checks.append((shift is not None and abs(shift) <= bounds.most_shift, False, words))
    hopeless = any(bad for _, bad, _ in checks)
    failed = [words for holds, _, words in checks if not holds]
    lines = [f"{'holds' if holds else 'fails'}  {words}" for holds, _, words in checks]
    return Verdict(over or hopeless, over and not failed and not hopeless, lines, failed)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
