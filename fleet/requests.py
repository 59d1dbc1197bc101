"""The requests of a simulated run: when they come, how long they are, what became of them.

Arrivals are Poisson; lengths in tokens lognormal, by the median and mean of the measured comments,
cut at the artifact's `max_len`; a comment is known to the cache with one probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Lengths = Callable[[np.random.Generator, int], np.ndarray]
"""So many lengths in tokens, float64 [n]."""
_CONNECTIONS = 1 << 16
ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"


@dataclass(slots=True)
class SimulatedRequest:
    """One comment's way."""

    due_s: float
    tokens: float
    """0 where the cache knows the comment."""
    connection: int
    """It says which of a program's threads has the request."""
    queued_s: float = 0.0
    done: Any = None
    """The event that its replica, or that one's death, triggers with its outcome."""


@dataclass
class Outcomes:
    """What became of every request of a run."""

    answered_at_s: list[float] = field(default_factory=list)
    """Intended sends of those that were answered."""
    latencies_s: list[float] = field(default_factory=list)
    """Of the same, from the intended send."""
    refused_at_s: list[float] = field(default_factory=list)
    failed_at_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    """From the queue of a replica until the call begins, of those that were taken on."""
    sent: int = 0
    last_s: float = 0.0
    """When the last one was over."""
    retried: int = 0
    batches: int = 0
    comments: int = 0
    most_in_flight: int = 0
    """Of one machine."""

    def record(self, request: SimulatedRequest, outcome: str, now_s: float) -> None:
        """One request is over."""
        self.last_s = now_s
        if outcome == ANSWERED:
            self.answered_at_s.append(request.due_s)
            self.latencies_s.append(now_s - request.due_s)
        elif outcome == REFUSED:
            self.refused_at_s.append(request.due_s)
        else:
            self.failed_at_s.append(request.due_s)


def lognormal(median: float, mean: float, max_len: int) -> Lengths:
    """Lengths whose median and mean, before the cut at `max_len`, are these.

    mean = median x exp(sigma^2 / 2) (Johnson, Kotz & Balakrishnan, "Continuous Univariate
    Distributions" 1, 1994, chapter 14).
    """
    sigma = math.sqrt(2 * math.log(max(1.0, mean / median)))

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        return np.minimum(median * np.exp(sigma * rng.standard_normal(count)), max_len)

    return draw


def schedule(
    rate: float, seconds: float, lengths: Lengths, hits: float, rng: np.random.Generator
) -> list[SimulatedRequest]:
    """Requests of an open loop of `rate` a second, in order; `hits` of them known to the cache."""
    count = rng.poisson(rate * seconds)
    due = np.sort(rng.random(count) * seconds)  # a Poisson process, given its number of events
    tokens = np.where(rng.random(count) < hits, 0.0, lengths(rng, count))
    connections = rng.integers(_CONNECTIONS, size=count)
    columns = due.tolist(), tokens.tolist(), connections.tolist()
    return [SimulatedRequest(*row) for row in zip(*columns, strict=True)]
