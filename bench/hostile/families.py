"""The families of hostile requests and how often each is drawn, for `bench.hostile.attack`."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.hostile import bodies, connections, http
from bench.hostile.draws import Draw, Make
from bench.hostile.exchange import Exchange


@dataclass(frozen=True)
class Family:
    """Requests of one kind."""

    make: Make
    weight: float
    """Of exchanges among those of its pace."""
    slow: bool = False
    """They take seconds each, so they have connections of their own."""


FAMILIES = {
    "paths": Family(http.paths, 26),
    "headers": Family(http.headers, 9),
    "origins": Family(http.origins, 10),
    "framing": Family(http.framing, 5),
    "sizes": Family(http.sizes, 2),
    "encodings": Family(http.encodings, 7),
    "nesting": Family(bodies.nesting, 4),
    "quadratic": Family(bodies.quadratic, 4),
    "tensors": Family(bodies.tensors, 8),
    "texts": Family(bodies.texts, 4),
    "most": Family(bodies.most, 0.01),
    "binary": Family(bodies.binary, 6),
    "generate": Family(bodies.generate, 5),
    "mutations": Family(bodies.mutations, 8),
    "disconnects": Family(connections.disconnects, 5),
    "pipelined": Family(connections.pipelined, 4),
    "http2": Family(connections.http2, 1),
    "slow": Family(connections.slow, 1, slow=True),
}
HYPOTHESIS, GRPC = "json (hypothesis)", "grpc"
"""Names of the two that have programs of their own."""


def draw_all(
    seed: int, port: int, texts: Sequence[str], *, slow: bool = False
) -> Iterator[Exchange]:
    """Exchanges without end, the same for the same seed."""
    draw = Draw(random.Random(seed), port, texts)
    chosen = [family for family in FAMILIES.values() if family.slow == slow]
    limits = list(itertools.accumulate(family.weight for family in chosen))
    while True:
        at = bisect.bisect(limits, draw.rng.random() * limits[-1])
        yield chosen[min(at, len(chosen) - 1)].make(draw)
