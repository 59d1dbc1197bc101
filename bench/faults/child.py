"""Run a piece of work in a forked child and hurt it: killed, stopped or without space, somewhere.

A step is a change of the file system below the trial's folder, as Python's audit events tell it:
opening for writing, making, linking, renaming, removing. A child can be ended at its n-th step, and
from its n-th step on the disk can be full. The parent runs nothing that starts threads, so that a
fork is safe. `bench.faults.run` uses it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from contract import ToxicityError

_FORK = multiprocessing.get_context("fork")
_PLACES = {"os.mkdir": 0, "os.link": 1, "os.rename": 1, "os.remove": 0, "os.rmdir": 0}
"""Argument of an audit event that says where it happens."""
_RELATIVE = ("os.remove", "os.rmdir")
"""Events whose last argument may be a folder's handle, as inside shutil.rmtree."""
_NEEDS_SPACE = ("open", "os.mkdir", "os.link")
_ENDING = (signal.SIGINT, signal.SIGTERM)
TIMEOUT_S = 180.0
"""From then on a child counts as hung."""
Work = Callable[[], None]


@dataclass(frozen=True)
class Limits:
    """What befalls a child; steps are counted from 1."""

    kill_at: int | None = None
    full_from: int | None = None
    file_bytes: int | None = None
    """Longest file that it may write (RLIMIT_FSIZE)."""


@dataclass(frozen=True)
class Ending:
    """How a child ended: `signal`, or `status` with what a user would have read."""

    signal: int | None
    status: int | None
    words: str
    steps: int

    @property
    def is_orderly(self) -> bool:
        """Done, refused in one line, or ended by a signal; no traceback and no hang."""
        return self.signal is not None or (self.status in (0, 2, 3, 130) and "\n" not in self.words)


def run(
    work: Work,
    root: Path,
    limits: Limits | None = None,
    meanwhile: Callable[[BaseProcess], None] | None = None,
) -> Ending:
    """Do `work` in a child; `meanwhile` may hurt it by its process id.

    Steps below `root` count. A child that hangs is killed, and its status is None.
    """
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_child, args=(work, root, limits or Limits(), there))
    # Until the child has the usual handlers its parent's would end it, and in no usual way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    there.close()
    if meanwhile:
        meanwhile(process)
    hung = not wait([process.sentinel], TIMEOUT_S)
    if hung:
        process.kill()
    process.join()
    said: dict[str, Any] = {"status": None, "words": "hangs" if hung else "", "steps": 0}
    with contextlib.suppress(EOFError, OSError):
        said = json.loads(here.recv()) if here.poll() else said
    here.close()
    code = process.exitcode
    by_signal = -code if code is not None and code < 0 and not hung else None
    return Ending(by_signal, None if by_signal else said["status"], said["words"], said["steps"])


def pause(process: BaseProcess, seconds: float) -> bool:
    """Wait so long; False when it ended meanwhile."""
    return not wait([process.sentinel], seconds)


def _child(work: Work, root: Path, limits: Limits, parent: Connection) -> None:
    for signum in _ENDING:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if limits.file_bytes is not None:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, most))
    steps = _Steps(str(root), limits)
    sys.addaudithook(steps)
    status, words = 0, ""
    try:
        work()
    except ToxicityError as error:
        status, words = error.exit_status, str(error)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        status, words = 1, traceback.format_exc()
    steps.root = "\0"  # what follows is not the work's
    parent.send(json.dumps({"status": status, "words": words, "steps": steps.count}))
    os._exit(0)


class _Steps:
    """Audit hook that counts steps and lets the disk or the process end at one of them."""

    def __init__(self, root: str, limits: Limits) -> None:
        self.count = 0
        self.root = root
        self._limits = limits

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            place, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in _PLACES:
            place = arguments[_PLACES[event]]
            if event in _RELATIVE and arguments[-1] >= 0:
                place = os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), place)  # noqa: PTH115, PTH118
        else:
            return
        if not isinstance(place, (str, bytes, os.PathLike)):
            return
        if not os.fsdecode(place).startswith(self.root):
            return
        self.count += 1
        if self.count == self._limits.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        first = self._limits.full_from
        if first is not None and self.count >= first and event in _NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(place))
