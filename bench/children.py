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
from typing import Any

from tqdm import tqdm

from contract import ToxicityError

SPAWN = multiprocessing.get_context("spawn")
_PR_SET_PDEATHSIG = 1  # prctl(2)


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
        self.reports = SPAWN.Queue()
        """What they report when they are done."""

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def start(self, target: Callable[..., None], *arguments: Any) -> Any:
        """Start one; `target` calls `begin` first."""
        process = SPAWN.Process(target=target, args=arguments)
        process.start()
        self._processes.append(process)
        return process

    def collect(self, count: int, progress: Sequence[Any], total: int, words: str) -> list[Any]:
        """So many reports, with a bar for those who wait.

        Raises ToxicityError when a process fails before.
        """
        found: list[Any] = []
        with tqdm(total=total, desc=words, unit="request", disable=not total) as bar:
            while len(found) < count:
                with contextlib.suppress(queue.Empty):
                    found.append(self.reports.get(timeout=0.2))
                bar.update(min(total, sum(one.value for one in progress)) - bar.n)
                self.refuse_failed()
        return found

    def join(self) -> None:
        """Wait for the end of all; raises as `collect` does."""
        for process in self._processes:
            process.join()
        self.refuse_failed()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for them to come so far; raises as `collect` does."""
        while not condition():
            self.refuse_failed()
            time.sleep(0.05)

    def refuse_failed(self) -> None:
        """Raise ToxicityError when one of them failed."""
        for process in self._processes:
            if process.exitcode:
                raise ToxicityError(
                    f"a process of this bench ended with status {process.exitcode}, expected 0; "
                    "what it said is above"
                )
