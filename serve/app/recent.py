"""The last calls of the application to the servers: how long they took, and what they scored."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

_MOST_CALLS, _MOST_COMMENTS, _AGE_S = 4096, 20_000, 60.0
BINS = 20
"""Of the histogram of scores, from 0 to 1."""


class Recent:
    """What `Scorer` has just seen; to add costs next to nothing, to sum up a few milliseconds."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, Sequence[float], Sequence[float]]] = deque(
            maxlen=_MOST_CALLS
        )

    def add(self, since_s: Sequence[float], probability: Sequence[float], now_s: float) -> None:
        """An answered call: when each of its requests came, by the clock of `now_s`."""
        self._calls.append((now_s, since_s, probability))

    def document(self) -> dict[str, Any]:
        """Requests, p50 and p99 in ms, and a histogram of scores, of the last minute or less."""
        now_s = time.monotonic()
        waits: list[float] = []
        bins, comments = [0] * BINS, 0
        for at_s, since_s, probability in reversed(self._calls):
            if now_s - at_s > _AGE_S or comments >= _MOST_COMMENTS:
                break
            waits += [at_s - since for since in since_s]
            comments += len(probability)
            for value in probability:
                bins[min(BINS - 1, int(value * BINS))] += 1
        waits.sort()
        return {
            "requests": len(waits),
            "p50_ms": _percentile_ms(waits, 0.5),
            "p99_ms": _percentile_ms(waits, 0.99),
            "scores": bins,
        }


def _percentile_ms(ordered_s: Sequence[float], share: float) -> float | None:
    if not ordered_s:
        return None
    return round(1000 * ordered_s[min(len(ordered_s) - 1, int(share * len(ordered_s)))], 3)
