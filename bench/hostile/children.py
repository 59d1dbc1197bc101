"""Processes that a bench starts and that end with it, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from contract import ToxicityError

SPAWN = multiprocessing.get_context("spawn")
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Signals:
    """What a child and its parent tell each other."""

    reports: Any
    """Queue of what children found, when they are done."""
    progress: Any
    """Shared number of what it did so far."""
    ready: Any
    """Set by the child when it could begin."""
    go: Any
    """Set by the parent when it is to begin."""
    finish: Any
    """Set by the parent when it is to end."""

    def wait_to_begin(self) -> None:
        """Tell that this child could begin, and wait until it shall."""
        self.ready.set()
        self.go.wait()


def begin(nice: int = 0) -> None:
    """Make this process a child that ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to hear
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(nice)


class Children:
    """The processes of one run; none of them outlives the block."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._reports = SPAWN.Queue()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def start(self, target: Callable[[Any, Signals], None], plan: Any) -> Signals:
        """Start one, which calls `begin` first and does nothing before `go`."""
        events = (SPAWN.Event() for _ in range(3))
        signals = Signals(self._reports, SPAWN.Value("Q", 0), *events)
        process = SPAWN.Process(target=target, args=(plan, signals))
        process.start()
        self._processes.append(process)
        return signals

    def collect(self, of: Sequence[Signals], total: int = 0, words: str = "") -> list[Any]:
        """Reports of these, with a bar for those who wait; of one report each at a time.

        Raises ToxicityError when a process fails before.
        """
        found: list[Any] = []
        with tqdm(total=total, desc=words, unit="request", disable=None if total else True) as bar:
            while len(found) < len(of):
                with contextlib.suppress(queue.Empty):
                    found.append(self._reports.get(timeout=0.2))
                bar.update(min(total, sum(one.progress.value for one in of)) - bar.n)
                self.refuse_failed()
        return found

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that they do; raises as `collect` does."""
        while not condition():
            self.refuse_failed()
            time.sleep(0.05)

    def join(self) -> None:
        """Wait for the end of all; raises as `collect` does."""
        for process in self._processes:
            process.join()
        self.refuse_failed()

    def wait_until_ready(self, of: Sequence[Signals]) -> None:
        """Wait until all of these could begin; raises as `collect` does."""
        self.wait_until(lambda: all(one.ready.is_set() for one in of))

    def refuse_failed(self) -> None:
        """Raise ToxicityError when one of them failed."""
        for process in self._processes:
            if process.exitcode:
                raise ToxicityError(
                    f"a process of this bench ended with status {process.exitcode}, expected 0; "
                    "what it said is above"
                )
