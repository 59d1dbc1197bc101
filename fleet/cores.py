"""The cores of a simulated machine: first come, first served, with two orders of importance.

What `simpy.PriorityResource` does, with no event for a core that is free and none for giving it
back: a run of 100,000 requests takes half the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]
SLICE_S = 0.001
"""Work gives its core back after so long, as the system's scheduler would have it do."""


class Cores:
    """So many of them."""

    def __init__(self, env: simpy.Environment, count: int) -> None:
        self._env, self._free = env, count
        self._first: deque[simpy.Event] = deque()
        self._usual: deque[simpy.Event] = deque()
        self.busy_s = 0.0
        """Seconds of work done, of all cores."""

    def work(self, seconds: float, *, first: bool = False) -> Steps:
        """Take so much time of a core, in slices; `first` goes before what is not."""
        while seconds > 1e-12:
            now = seconds if seconds < SLICE_S else SLICE_S
            yield from self._hold(now, self._first if first else self._usual)
            self.busy_s += now
            seconds -= now

    def stall(self, gaps_s: Sequence[float], pauses_s: Sequence[float]) -> Steps:
        """Be without a core now and then: after each gap for the pause of its place.

        As a machine is whose hypervisor, or another program, takes a core away.
        """
        for gap, pause in zip(gaps_s, pauses_s, strict=True):
            yield self._env.timeout(gap)
            yield from self._hold(pause, self._first)

    def _hold(self, seconds: float, line: deque[simpy.Event]) -> Steps:
        if self._free:
            self._free -= 1
        else:
            turn = self._env.event()
            line.append(turn)
            yield turn
        yield self._env.timeout(seconds)
        if self._first:
            self._first.popleft().succeed()
        elif self._usual:
            self._usual.popleft().succeed()
        else:
            self._free += 1
