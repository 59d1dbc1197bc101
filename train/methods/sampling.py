"""What part of an epoch each source of comments gives.

    python -m train --sources sources.yaml       # its `share`, where a source has one

An epoch has as many examples as there are training comments. A source without a share of its own
has a part of what the others leave, in proportion to its size to the power of TEMPER: the largest
does not drown the others, and the smallest is not repeated too often. With 0.7 that is how
multilingual BERT drew its languages (Devlin et al. 2018, the model's own notes).

A source that gives more examples than it has comments is read whole as often as fits, and the rest
drawn anew each epoch; one that gives fewer is drawn from without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEMPER = 0.7
_STREAM = 0x50DA
"""So that the draw is not that of the batches."""


def shares_of(sizes: Sequence[int], wanted: Sequence[float | None]) -> np.ndarray:
    """float64 [k], sum 1: part of an epoch by source; `wanted` sums to at most 1.

    `sizes` are training comments; a source that has none of them gives nothing.
    """
    size = np.array(sizes, np.float64)
    given = np.array([share or 0.0 for share in wanted]) * (size > 0)
    free = np.array([share is None for share in wanted]) & (size > 0)
    tempered = np.where(free, size**TEMPER, 0.0)
    if free.any():
        given = given + (1.0 - given.sum()) * tempered / tempered.sum()
    return given / given.sum()


@dataclass(frozen=True)
class Sampling:
    """How an epoch is drawn from several sources."""

    rows: tuple[np.ndarray, ...]
    """int64 [n] by source: its training rows."""
    counts: tuple[int, ...]
    """Examples of an epoch by source."""
    always: np.ndarray
    """int64 [m]: rows of no source, which each epoch has once."""
    seed: int

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """int64 [sum of counts + m]: rows of the epoch's examples; by (seed, epoch) alone."""
        chosen = []
        for number, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True)):
            if not count:
                continue
            whole, rest = divmod(count, len(rows))
            rng = np.random.default_rng([self.seed, epoch, number, _STREAM])
            chosen += [np.tile(rows, whole), np.sort(rng.choice(rows, rest, replace=False))]
        return np.concatenate([*chosen, self.always])

    def rate(self, rows: int) -> np.ndarray:
        """float64 [rows]: how often an epoch has each row on average; 0 for those not drawn."""
        rates = np.zeros(rows)
        for own, count in zip(self.rows, self.counts, strict=True):
            rates[own] = count / max(1, len(own))
        return rates


def plan(
    training: np.ndarray,
    origin: np.ndarray,
    wanted: Sequence[float | None],
    seed: int,
    always: np.ndarray,
) -> Sampling:
    """How epochs are drawn from the rows `training` int64 [n], `origin` int64 of every row.

    `wanted` as of `shares_of`; `always` as of `Sampling`.
    """
    of_row = origin[training]
    rows = tuple(training[of_row == number] for number in range(len(wanted)))
    exact = shares_of([len(own) for own in rows], wanted) * len(training)
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")[: len(training) - counts.sum()]
    counts[largest] += 1
    return Sampling(rows, tuple(counts.tolist()), always, seed)
