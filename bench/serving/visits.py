"""What benches that visit servers in turns share: one run, the search of an open loop, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.serving.capacity import meets
from bench.traffic import open_loop
from bench.traffic.counters import CountersOf
from bench.traffic.one_run import LoadConfig, Result
from console.options import make_config
from serve.triton import Server

Loader = Callable[..., Result]
"""Flags of LoadConfig that differ in, one run out."""


def loader(
    name: str,
    server: Server,
    counters_of: CountersOf,
    form: open_loop.RequestForm | None = None,
    **settings: Any,
) -> Loader:
    """A function that makes one run of load on `server`, told in a line under `name`.

    `settings` are flags of LoadConfig of every run.
    """

    def load(**changed: Any) -> Result:
        config = make_config(LoadConfig, {"processes": 1, **settings, **changed})
        result = open_loop.load(config, "http", server, counters_of, form)
        kind = f"open loop {changed['rate']:.0f}/s" if changed.get("rate") else "closed loop"
        print(
            f"{name}: {kind}, {changed.get('users', '-')} connections: {result.rate_rps:.0f}/s, "
            f"p99 {result.latency_ms['p99']:.1f} ms, {sum(result.cpu_us.values()):.0f} us of CPU a "
            f"request, {result.failures} failed {'; '.join(result.check['invalid'])}",
            flush=True,
        )
        return result

    return load


def open_loops(
    load: Loader, closed_rps: float, shares: Sequence[float], p99_ms: float
) -> list[Result]:
    """Open loops at shares of a closed loop's rate, until one is valid and meets the objective."""
    found: list[Result] = []
    for share in shares:
        found.append(load(rate=share * closed_rps, skip_s=1))
        if meets(found[-1], p99_ms):
            break
    return found


def best(closed: Mapping[int, Result], p99_ms: float) -> Result:
    """The closed loop with the highest rate that meets the objective, or with the highest."""
    results = sorted(closed.values(), key=lambda result: -result.rate_rps)
    return next((r for r in results if r.latency_ms["p99"] <= p99_ms), results[0])


def ratio(
    wanted: Callable[..., dict[str, Any]], rounds: Iterable[tuple[float, float]], bar: float
) -> dict[str, Any]:
    """A bar for the median over the rounds of ours over the rival's, with the spread.

    A round in which the rival has no figure, such as an open loop that failed, says nothing; where
    all are so, it was not measured.
    """
    found = [ours / rival for ours, rival in rounds if rival]
    if not found:
        return wanted(None, round(bar, 3))
    spread = [round(f(found), 4) for f in (min, max)]
    return {**wanted(statistics.median(found), round(bar, 3)), "spread": spread}
