"""The cores of a simulated machine, and the threads that share them as Linux has them do.

A thread that wakes goes to the core where it was if that is idle, else to another idle one, else it
waits in line for the core where it was, where those go first that had least of it. An idle core
takes nothing from another's line: Linux looks for work when a core goes idle only if such idleness
lasts (`sched_balance_newidle` in kernel/sched/fair.c), and between thousands of wake-ups a second
it does not.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]
SLICE_S = 0.001
"""After so long a thread lets those go first that had less, as the system's scheduler does."""


class Cores:
    """So many of them, each of which may be taken away for a while.

    A core that is away looks idle, or at work, as it did before: what is there, or comes there,
    waits until it is back.
    """

    def __init__(self, env: simpy.Environment, count: int) -> None:
        self.env, self.count = env, count
        self._idle = deque(range(count))
        self._lines: list[list[tuple[float, int, simpy.Event]]] = [[] for _ in range(count)]
        """Heaps by what the threads had."""
        self._least_s = [0.0] * count
        """What the thread that came last to each core had by then."""
        self._back_s = [0.0] * count
        """When the last pause of each core ends."""
        self._away_s = [0.0] * count
        """Seconds of all pauses of each that have begun."""
        self._threads = self._taken = self._turns = 0
        self.busy_s = 0.0
        """Seconds of work done, of all cores."""

    def thread(self) -> Thread:
        """A new one; they begin on one core after the other."""
        self._threads += 1
        return Thread(self, self._threads % self.count)

    def take(self, seconds: float) -> Steps:
        """Work that goes before any other, at once: of an idle core, or of the next one's."""
        self._taken += 1
        core = self._idle[0] if self._idle else self._taken % self.count
        self._pause(core, seconds)
        self.busy_s += seconds
        yield self.env.timeout(seconds)

    def stall(self, core: int, gaps_s: Sequence[float], pauses_s: Sequence[float]) -> Steps:
        """Take `core` away now and then: after each gap for the pause of its place."""
        for gap, pause in zip(gaps_s, pauses_s, strict=True):
            yield self.env.timeout(gap)
            self._pause(core, pause)

    def _pause(self, core: int, seconds: float) -> None:
        self._back_s[core] = max(self._back_s[core], self.env.now) + seconds
        self._away_s[core] += seconds

    def acquire(self, thread: Thread) -> Steps:
        """A core for a thread that wakes."""
        last = thread.core
        # However long it slept, it is at most a slice ahead of the others.
        thread.had_s = max(thread.had_s, self._least_s[last] - SLICE_S)
        if last in self._idle:
            self._idle.remove(last)
        elif self._idle:
            thread.core = self._idle.popleft()
            thread.had_s += self._least_s[thread.core] - self._least_s[last]
        else:
            yield self._in_line(thread)
        self._least_s[thread.core] = max(self._least_s[thread.core], thread.had_s)

    def share(self, thread: Thread) -> Steps:
        """Let those in the line of its core go first that had less; it stays in that line."""
        line = self._lines[thread.core]
        if line and line[0][0] < thread.had_s:
            turn = self._in_line(thread)
            heapq.heappop(line)[2].succeed()
            yield turn

    def release(self, core: int) -> None:
        """Give it to the next in its line."""
        if self._lines[core]:
            heapq.heappop(self._lines[core])[2].succeed()
        else:
            self._idle.append(core)

    def _in_line(self, thread: Thread) -> simpy.Event:
        turn = self.env.event()
        self._turns += 1
        heapq.heappush(self._lines[thread.core], (thread.had_s, self._turns, turn))
        return turn

    def spend(self, core: int, seconds: float) -> Steps:
        """Time of work on a core that was acquired, and of the pauses that it has meanwhile."""
        self.busy_s += seconds
        away_s = self._away_s[core]
        seconds += max(0.0, self._back_s[core] - self.env.now)
        while seconds > 1e-12:
            yield self.env.timeout(seconds)
            seconds, away_s = self._away_s[core] - away_s, self._away_s[core]


class Thread:
    """Does one piece of work after the other, and keeps its core while there is more."""

    def __init__(self, cores: Cores, core: int) -> None:
        self.core, self.had_s = core, 0.0
        """Where it is, or was; and seconds of work by which it stands in line."""
        self._cores = cores
        self._pieces: deque[tuple[float, simpy.Event]] = deque()
        self._awake = False

    def work(self, seconds: float) -> Steps:
        """Have it done, after what was asked for before."""
        if seconds <= 0:
            return
        done = self._cores.env.event()
        self._pieces.append((seconds, done))
        if not self._awake:
            self._awake = True
            self._cores.env.process(self._run())
        yield done

    def _run(self) -> Steps:
        cores = self._cores
        yield from cores.acquire(self)
        while self._pieces:
            left = SLICE_S
            while self._pieces and left > 1e-12:
                seconds, done = self._pieces.popleft()
                now = min(seconds, left)
                yield from cores.spend(self.core, now)
                self.had_s += now
                left -= now
                if seconds - now > 1e-12:
                    self._pieces.appendleft((seconds - now, done))
                else:
                    done.succeed()
            if self._pieces:
                yield from cores.share(self)
        cores.release(self.core)
        self._awake = False
