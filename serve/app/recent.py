"""The last answers of the application: how long they took, and the scores in them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

_MOST_ANSWERS, _MOST_COMMENTS, _AGE_S = 8192, 20_000, 60.0
BINS = 20
"""Of the histogram of scores, from 0 to 1."""


class Recent:
    """What `BatchingScorer` has just seen; to add costs next to nothing, to sum up some ms."""

    def __init__(self) -> None:
        self._answers: deque[tuple[float, float, Sequence[float]]] = deque(maxlen=_MOST_ANSWERS)

    def add(self, since_s: float, now_s: float, probability: Sequence[float]) -> None:
        """An answer: when it was asked for and when it came, by one monotonic clock."""
        self._answers.append((since_s, now_s, probability))

    def document(self) -> dict[str, Any]:
        """Requests, p50 and p99 in ms, and a histogram of scores, of the last minute or less."""
        now_s = time.monotonic()
        waits: list[float] = []
        bins, comments = [0] * BINS, 0
        for since_s, at_s, probability in reversed(self._answers):
            if now_s - at_s > _AGE_S or comments >= _MOST_COMMENTS:
                break
            waits.append(at_s - since_s)
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
