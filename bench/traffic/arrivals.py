"""When an open loop sends, which comment, and whether the generator kept up; no I/O.

Used by `bench/load.py` inside Locust, and by both generators to judge a finished run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

Arrivals = Literal["poisson", "constant"]
HOT_COMMENTS = 100
"""Comments that repeat, by rank: the r-th is sent with a probability in proportion to 1 / r."""
_SPLICED = 3
MAX_LAG_MS = 5.0
"""Largest p99 of actual minus intended send time: a tenth of the objective of 50 ms, so that the
generator's own delay, which counts into each latency, cannot decide whether it is met."""
MAX_BUSY = 0.9
"""Largest CPU share of the busiest generator process: beyond it queues form inside of it."""


def send_times(
    rate: float, arrivals: Arrivals, rng: np.random.Generator, began: float
) -> Iterator[float]:
    """Intended send times in seconds, after `began`, of one source of `rate` a second.

    Sources of Poisson arrivals add up to Poisson arrivals; constant ones start out of phase.
    """
    if arrivals == "constant":
        first = began + rng.random() / rate
        yield from (first + n / rate for n in itertools.count())
    at = began
    while True:
        at += rng.exponential(1 / rate)
        yield at


def rows(
    pool: int, source: int, sources: int, repeat_share: float, rng: np.random.Generator
) -> Iterator[int]:
    """Numbers for `comment` that one of `sources` sends, of a pool of that many comments.

    `repeat_share` of them are of the HOT_COMMENTS first rows; the others never repeat, in one
    source or in two.
    """
    hot = hot_rows(pool, repeat_share)
    weights = 1 / np.arange(1, hot + 1)
    limits = np.cumsum(weights) / max(1.0, float(weights.sum()))
    fresh = itertools.count(source, sources)
    while True:
        if hot and rng.random() < repeat_share:
            yield min(hot - 1, int(np.searchsorted(limits, rng.random() * limits[-1])))
        else:
            yield hot + next(fresh)


def hot_rows(pool: int, repeat_share: float) -> int:
    """How many comments repeat."""
    return min(HOT_COMMENTS, pool // 2) if repeat_share else 0


def comment(texts: Sequence[str], hot: int, number: int, first_pass: int = 0) -> str:
    """Text of a number of `rows`; in a second pass with the first words of another in front.

    Otherwise the server's cache would know every comment of that pass. Long ones lose as many
    words at their end. `first_pass` counts passes of earlier runs on the same server.
    """
    if number < hot:
        return texts[number]
    passes, row = divmod(number - hot, len(texts) - hot)
    passes += first_pass
    if passes % len(texts) == 0:
        return texts[hot + row]
    first, kept = spliced(texts[(row + passes) % len(texts)])[0], spliced(texts[hot + row])[1]
    return f"{first} {kept}" if first and kept else first or kept


def spliced(text: str) -> tuple[str, str]:
    """First words of a text, which are put before another; and what it keeps of its own."""
    words = text.split()
    kept = words[:-_SPLICED] if len(words) > 2 * _SPLICED else words
    return " ".join(words[:_SPLICED]), " ".join(kept)


def self_check(lags_ms: np.ndarray, busy: float, missed: int, full: int) -> dict[str, Any]:
    """What the generator says of itself; `invalid` holds why the run counts for nothing.

    `lags_ms` float64 [sends]; `missed`: sends that were due and did not happen before the end;
    `full`: sends given up because too many requests were in flight.
    """
    lag_ms = float(np.percentile(lags_ms, 99)) if len(lags_ms) else 0.0
    reasons = []
    if lag_ms > MAX_LAG_MS:
        reasons.append(f"schedule lag p99 {lag_ms:.1f} ms > {MAX_LAG_MS:g} ms")
    if busy > MAX_BUSY:
        reasons.append(f"generator busy {busy:.0%} > {MAX_BUSY:.0%}")
    if full:
        reasons.append(f"{full} sends given up: generator full")
    # One may be due in the instant of the end.
    if missed > max(1, 0.001 * len(lags_ms)):
        reasons.append(f"{missed} due sends missed")
    return {
        "lag_p99_ms": round(lag_ms, 3),
        "late": int((lags_ms > MAX_LAG_MS).sum()),
        "missed": missed,
        "full": full,
        "busy": round(busy, 3),
        "invalid": reasons,
    }
