"""Clients that ask again and again while a test does something to their server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

_BESIDE_S = 0.4
"""Of load before and after what the test does."""


@dataclass
class Load:
    """What the clients of `loading` got."""

    answers: list[Any] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    """Why a request was sent again."""
    lost: list[str] = field(default_factory=list)
    """Why a request had no answer."""


@contextlib.contextmanager
def loading(*clients: Callable[[Load, threading.Event], None]) -> Iterator[Load]:
    """Run each client in a thread of its own until the end of the block, when its event is set."""
    load, done = Load(), threading.Event()
    with ThreadPoolExecutor(len(clients)) as pool:
        running = [pool.submit(client, load, done) for client in clients]
        try:
            time.sleep(_BESIDE_S)
            yield load
            time.sleep(_BESIDE_S)
        finally:
            done.set()
        for one in running:
            one.result()
