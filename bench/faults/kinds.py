"""The faults that may befall a command of `bench.faults.run`, each by its name in `FAULTS`."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.faults.child import Ending, Limits, pause, run
from bench.faults.targets import Broken, Target
from export import switch

_SHORT_WAIT_S = 0.2
_EPOCHS_S = (0, 2**32)
"""Times of files whose clock was elsewhere: 1970 and 2106."""


@dataclass(frozen=True)
class Usual:
    """A target's command when nothing befalls it."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """Everything that a fault needs."""

    target: Target
    scratch: Path
    usual: Usual
    draw: random.Random

    def run(self, **how: Any) -> Ending:
        return run(partial(self.target.work, self.scratch), self.scratch, **how)

    def moment(self) -> float:
        """A time in seconds, most often while the command runs."""
        return self.draw.uniform(0, 1.1 * self.usual.seconds)

    def step(self) -> int:
        return self.draw.randint(1, max(1, self.usual.steps))


Fault = Callable[[Trial], tuple[str, Broken]]
"""Lets it befall the trial's command; gives how that ended, and what is broken at once."""


def _told(ending: Ending) -> tuple[str, Broken]:
    if ending.signal is not None:
        return f"signal {ending.signal}", {}
    words = ending.words if ending.words else "done"
    return words.splitlines()[0], {} if ending.is_orderly else {"orderly": ending.words}


def _killed_at_a_step(trial: Trial) -> tuple[str, Broken]:
    return _told(trial.run(limits=Limits(kill_at=trial.step())))


def _signalled(signum: int, trial: Trial) -> tuple[str, Broken]:
    moment = trial.moment()

    def hurt(process: BaseProcess) -> None:
        if pause(process, moment) and process.pid:
            os.kill(process.pid, signum)

    return _told(trial.run(meanwhile=hurt))


def _stopped(trial: Trial) -> tuple[str, Broken]:
    """Meanwhile another one is refused by the name of the stopped one, or does its work."""
    moment, others = trial.moment(), []

    def second() -> None:
        switch.LOCK_WAIT_S = _SHORT_WAIT_S
        trial.target.work(trial.scratch)

    def hurt(process: BaseProcess) -> None:
        if pause(process, moment) and process.pid:
            os.kill(process.pid, signal.SIGSTOP)
            others.append((process.pid, run(second, trial.scratch)))
            os.kill(process.pid, signal.SIGCONT)

    words, broken = _told(trial.run(meanwhile=hurt))
    for pid, other in others:
        named = (f"process {pid} ", "another process")  # which has not said yet who it is
        if other.status == 2 and not any(name in other.words for name in named):
            broken["orderly"] = f"process {pid} is stopped, the second one says: {other.words}"
        elif not other.is_orderly:
            broken["orderly"] = other.words
    return words, broken


def _two_at_once(trial: Trial) -> tuple[str, Broken]:
    others: list[Ending] = []
    words, broken = _told(trial.run(meanwhile=lambda _: others.append(trial.run())))
    return words, broken | _told(others[0])[1]


def _full_from_a_step(trial: Trial) -> tuple[str, Broken]:
    return _told(trial.run(limits=Limits(full_from=trial.step())))


def _file_limit(trial: Trial) -> tuple[str, Broken]:
    most = int(math.exp(trial.draw.uniform(math.log(50), math.log(500_000))))
    return _told(trial.run(limits=Limits(file_bytes=most)))


def _tmpfs_full(trial: Trial) -> tuple[str, Broken]:
    """Until the command has ended nearly all of the file system is taken."""
    filler, left = trial.scratch.parent / "filler", trial.draw.randint(0, 700_000)
    free = shutil.disk_usage(trial.scratch).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - left))
    try:
        return _told(trial.run())
    finally:
        filler.unlink()


def _damaged_file(trial: Trial) -> tuple[str, Broken]:
    """Cut, altered, removed, or something else in its place; a training is interrupted first."""
    files = trial.target.files(trial.scratch)
    if not files:
        _signalled(signal.SIGTERM, trial)
        files = trial.target.files(trial.scratch)
    if not files:
        return "nothing to damage yet", {}
    path = trial.draw.choice(files)
    data = path.read_bytes()
    path.unlink()  # the name alone: other trials have the same file
    how = trial.draw.choice(("cut", "altered", "removed", "a folder", "a link"))
    if how == "cut":
        path.write_bytes(data[: trial.draw.randrange(max(1, len(data)))])
    elif how == "altered":
        at = trial.draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif how == "a folder":
        path.mkdir()
    elif how == "a link":
        other = trial.scratch.with_name(f"{trial.scratch.name}-linked")
        other.write_bytes(data)
        path.symlink_to(other)
    return f"{path.relative_to(trial.scratch)}: {how}", trial.target.notices(trial.scratch, path)


def _clock(trial: Trial) -> tuple[str, Broken]:
    when = trial.draw.choice(_EPOCHS_S)
    for path in trial.scratch.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)
    ending = trial.run()
    words, broken = _told(ending)
    return words, broken | ({} if ending.status == 0 else {"orderly": ending.words})


FAULTS: dict[str, Fault] = {
    "killed at a step": _killed_at_a_step,
    "killed at a time": partial(_signalled, signal.SIGKILL),
    "terminated": partial(_signalled, signal.SIGTERM),
    "stopped": _stopped,
    "two at once": _two_at_once,
    "disk full from a step": _full_from_a_step,
    "files limited": _file_limit,
    "tmpfs full": _tmpfs_full,
    "damaged file": _damaged_file,
    "clock elsewhere": _clock,
}
