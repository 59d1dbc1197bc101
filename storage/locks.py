"""One writer a folder: a lock that says who holds it and that ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from contract import BadInput

LOCK_FILE = ".lock"
SHARED_WAIT_S = 12 * 3600.0
"""Longest wait for what another training computes and this one can use."""
_POLL_S = 0.05
_SHOWN = 200
"""Longest command that is kept for a refusal, in characters."""


@contextlib.contextmanager
def locked(
    file: Path, what: str, remedy: str, wait_s: float = 0, *, remove: bool = False
) -> Iterator[None]:
    """Hold the lock of `what`, which is the file `file` and stays there, empty when nobody has it.

    With `remove` it is gone at the end, for a folder that is the user's. Waits `wait_s` seconds at
    most. Raises BadInput that names the process which holds it, its command and since when, and
    ends with `remedy`; OSError where the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _acquired(file, what, remedy, wait_s) as lock:
        command = " ".join(shlex.join(sys.orig_argv).split())
        shown = command if len(command) <= _SHOWN else f"{command[:_SHOWN]}..."
        holder = {"pid": os.getpid(), "command": shown, "since": _now()}
        with contextlib.suppress(OSError):  # on a full disk the lock holds, unnamed
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), json.dumps(holder).encode())
        try:
            yield
        finally:
            if remove:
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                lock.truncate(0)
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing it is not enough if a child was forked


def _acquired(file: Path, what: str, remedy: str, wait_s: float) -> IO[str]:
    while True:
        lock = file.open("a+", encoding="utf-8")
        try:
            _acquire(lock, what, remedy, wait_s)
            # Whoever had it may have removed it meanwhile: then it locks nothing.
            if file.exists() and file.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def _acquire(lock: IO[str], what: str, remedy: str, wait_s: float) -> None:
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if time.monotonic() >= deadline:
            raise BadInput(
                f"{what} is in use by {_holder(lock)}, expected one writer at a time; {remedy}"
            )
        if not told:
            print(f"waiting for {what}, in use by {_holder(lock)}", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL_S)


def _holder(lock: IO[str]) -> str:
    """Words for who holds it; who has just got it may not have said so yet."""
    for _ in range(10):
        lock.seek(0)
        try:
            said = json.loads(lock.read())
            return f"process {said['pid']} (`{said['command']}`) since {said['since']}"
        except (ValueError, LookupError, TypeError):
            time.sleep(_POLL_S / 5)
    return "another process"


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
