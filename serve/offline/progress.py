"""How far the scoring of a file is: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

from serve.offline.rows import Source

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(source: Source) -> Iterator[Callable[[int, int, int], None]]:
    """A bar on a terminal, a plain line now and then otherwise; both on stderr."""
    began = last = time.monotonic()
    rows = read = new = 0
    on_terminal = sys.stderr.isatty()
    bar = tqdm.tqdm(
        total=source.total,
        unit=source.unit,
        unit_scale=True,
        dynamic_ncols=True,
        disable=not on_terminal,
    )

    def advance(span: int, more: int, more_new: int) -> None:
        nonlocal last, rows, read, new
        rows, read, new, now = rows + more, read + span, new + more_new, time.monotonic()
        text = f"{rows:,} rows, {new / max(1e-9, now - began):,.0f}/s"
        bar.set_postfix_str(text, refresh=False)
        bar.update(span)
        if not on_terminal and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            share = f"  {100 * read / source.total:.0f} %" if source.total else ""
            print(f"{text}{share}", file=sys.stderr, flush=True)

    with bar:
        yield advance
