"""What the cache of repeated comments costs and saves: `make bench-cache`.

    python -m bench.serving.cache --repository model_repository

Serves the newest published version twice, side by side, with its cache and
without, and loads the two in turns. Clients in this process send one comment a request in a closed
loop; a set share of them repeats one of a few hot comments (Zipf), every other comment is new to
the server. A cost is the CPU time of the server's process a request, the clients' not included.
Read ratios within one run. Prints a table and writes `cache.json`.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.result import (
    LOAD,
    RUNS,
    Bars,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from bench.serving.paired import (
    PairedMeasurement,
    PairedOptions,
    closed_loop,
    cpu_ratio,
    in_turns,
    medians,
)
from bench.serving.servers import artifact_of, serving
from bench.traffic.comments import load_pool
from console.options import run
from export.repository import served_tuning, verify
from export.switch import tune
from serve import triton

_HOT = 100
"""Comments that are repeated, the n-th with a weight of 1 / n."""
_MISS_COST = 1.03
"""Most that the look-up may add to the CPU time of a request that repeats nothing."""


@pydantic_dataclasses.dataclass(frozen=True)
class CacheBenchConfig(PairedOptions):
    """Flags of `python -m bench.serving.cache`."""

    repeats_percent: tuple[int, ...] = Field(
        (0, 20, 50), description="shares of repeats", json_schema_extra=LOAD
    )
    rounds: int = Field(5, ge=1, description="turns of every measurement", json_schema_extra=RUNS)


def main() -> None:
    """Measure, write and print."""
    config = begin(CacheBenchConfig, "bench.serving.cache", "Measure the cache.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    stream = _Stream(pool.texts)
    with _serving(config, cached=True) as with_cache, _serving(config, cached=False) as without:
        artifact = artifact_of(with_cache)
        servers = {True: with_cache, False: without}
        for server in servers.values():
            closed_loop(config, server, lambda: stream.next(50))  # fills the cache, warms up

        taken = in_turns(
            config.rounds,
            config.repeats_percent,
            lambda percent, on: closed_loop(config, servers[on], lambda: stream.next(percent)),
        )
    results = [
        {"repeats_percent": percent, "cache": cached, **medians(rows)}
        for (percent, cached), rows in sorted(taken.items())
    ]
    found = document(
        "cache",
        config,
        closed_loop=True,
        comments=pool.to_json(),
        artifact=artifact,
        results=results,
        bars=bars(taken),
    )
    report(config, found, table(results))


class _Stream:
    """Comments in the order in which they are sent, for threads."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = itertools.cycle(texts)
        self._words = sorted({word for text in texts[:500] for word in text.split()})
        self._rng = np.random.default_rng(0)
        self._hot = [self._new() for _ in range(_HOT)]
        weights = 1 / np.arange(1, _HOT + 1)
        self._weights = weights / weights.sum()
        self._lock = threading.Lock()

    def next(self, repeats_percent: int) -> bytes:
        with self._lock:
            if 100 * self._rng.random() < repeats_percent:
                text = self._hot[self._rng.choice(_HOT, p=self._weights)]
            else:
                text = self._new()
        return text.encode("utf-8", "replace")

    def _new(self) -> str:
        """A comment of the pool with other first words, so that no look-up finds it."""
        # By number: `choice` would make an array of all words each time, and be what is measured.
        fresh = [self._words[place] for place in self._rng.integers(len(self._words), size=4)]
        return " ".join([*fresh, *next(self._texts).split()[4:]])


@contextmanager
def _serving(config: CacheBenchConfig, *, cached: bool) -> Iterator[triton.Server]:
    """A server of a copy of the repository, with its cache or with a size of 0."""

    def make(folder: Path) -> Path:
        repository = folder / "repository"
        shutil.copytree(config.repository, repository)
        if not cached:
            tune(repository, served_tuning(repository), {}, cache_bytes=0)
        return repository

    with serving(make) as found:
        yield found.server


def bars(taken: dict[tuple[int, bool], list[PairedMeasurement]]) -> Bars:
    """CPU time of a request with the cache over that without, the median of the turns.

    At most _MISS_COST where nothing is repeated; elsewhere a comment that was found may cost half
    of one that was not.
    """
    found = {}
    for percent in sorted({percent for percent, _ in taken}):
        on, off = taken[percent, True], taken[percent, False]
        ratio = cpu_ratio(on, off)
        hit_share = statistics.median(row.hit_share for row in on)
        bar = _MISS_COST if percent == 0 else round(1 - hit_share / 2, 3)
        found[f"cpu_at_{percent}_percent"] = at_most(ratio, bar)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """One line a share of repeats, with the cache and without it."""
    lines = [["repeats", "cache", "found", "requests/s", "server CPU us", "p50 ms", "p99 ms"]]
    lines += [
        [
            f"{row['repeats_percent']} %",
            "on" if row["cache"] else "off",
            f"{100 * row['hit_share']:.0f} %",
            f"{row['rate_rps']:.0f}",
            *(f"{row[name]:.1f}" for name in ("cpu_us", "p50_ms", "p99_ms")),
        ]
        for row in results
    ]
    return aligned(lines)


if __name__ == "__main__":
    run(main)
