"""What a person sees of a running training, and how they stop it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0
"""Progress without a terminal: one plain line this often."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a stop after the step; the second one is at once."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Hear the signals from now on."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, _frame: Any) -> None:
        self.requested = True
        signal.signal(signum, signal.SIG_DFL)


class Printer:
    """Lines and progress of rank 0: a bar on a terminal, a plain line now and then otherwise."""

    def __init__(self, rank: int) -> None:
        self._on = rank == 0

    def __call__(self, line: str) -> None:
        if self._on:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def progress_bar(self, total: int, initial: int) -> Callable[[int, str], None]:
        """Takes the steps that are done, of `total`, and what to say beside them."""
        if self._on and sys.stderr.isatty():
            bar = tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True)

            def advance(step: int, text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(step - bar.n)
                if step == total:
                    bar.close()

            return advance
        last = time.monotonic()

        def line(step: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self(f"step {step:,} of {total:,}  {text}")

        return line
