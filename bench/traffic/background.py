"""A thread that looks at something again and again while a bench does something else."""

from __future__ import annotations

import threading
from typing import Self


class Background:
    """Calls `look` at an interval until `stop`, or the end of a `with` block."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def look(self) -> None:
        """One look; in the thread."""
        raise NotImplementedError

    def stop(self) -> None:
        """Wait for the look that is on, and look no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.look()
