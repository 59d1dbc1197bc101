"""Kill, starve and damage the commands at random moments and check what is left: `make faults`.

    python -m bench.faults --count 1000 --seed 0
    python -m bench.faults --targets publish rollback --count 100

A trial gives a command (train, export, publish, rollback, ...; bench/fault_targets.py) files of its
own and lets one fault befall it: SIGKILL at a step or a time, SIGTERM, SIGSTOP while another one
wants the same files, two at once, a disk that is full from a step on, a full tmpfs where root may
mount one, a limit on the size of files, damaged files, a clock that was elsewhere. Then it looks
whether every version that was there verifies bit for bit, whether the command that follows works,
and whether anything half-made is left. Each trial follows from --seed and its number; a run that
ended goes on where it stopped. Prints a table, and writes faults.json; `--json` prints that, too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass as plain_dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from bench.fault_child import Ending, Limits, pause, run
from bench.fault_targets import INVARIANTS, TARGETS, Broken, Found, Target
from bench.run import hardware, report_broken_bars
from contract import BadInput, ToxicityError
from export import switch
from train.cli import parse_config
from train.cli import run as run_command
from train.files import write_atomically, write_json
from train.locks import LOCK_FILE

_TMPFS_MB = 256
_SHORT_WAIT_S = 0.2
_EPOCHS_S = (0, 2**32)
"""Times of files whose clock was elsewhere: 1970 and 2106."""


@dataclass(frozen=True)
class FaultsConfig:
    """Flags of `python -m bench.faults`."""

    count: int = Field(1000, ge=1, description="faults in all")
    seed: int = Field(0, ge=0, description="seed of all of them")
    seconds: float = Field(math.inf, gt=0, description="begin no fault after so long")
    targets: tuple[str, ...] = Field(tuple(TARGETS), description="commands to hurt")
    faults: tuple[str, ...] = Field((), description="kinds of faults; left out: all")
    out: Path = Field(Path("bench/out"), description="folder of faults.json and the trials done")
    restart: bool = Field(False, description="forget the trials that an earlier run did")
    json: bool = Field(False, description="print the document as the last line")


@plain_dataclass(frozen=True)
class Usual:
    """A target's command when nothing befalls it."""

    steps: int
    seconds: float


@plain_dataclass(frozen=True)
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


def main() -> None:
    config = parse_config(
        FaultsConfig, None, prog="python -m bench.faults", description="Hurt the commands."
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is mounted is unmounted
    document = measure(config)
    write_json(config.out / "faults.json", document)
    print(table(document))
    if config.json:
        print(json.dumps(document))
    report_broken_bars(document)


def measure(config: FaultsConfig) -> dict[str, Any]:
    """The whole document; trials that an earlier run of the same seed did are not done again."""
    unknown = sorted({*config.targets} - TARGETS.keys()) or sorted({*config.faults} - FAULTS.keys())
    if unknown:
        known = ", ".join([*TARGETS, *FAULTS])
        raise BadInput(f"--targets or --faults has {unknown[0]!r}, expected some of {known}")
    config.out.mkdir(parents=True, exist_ok=True)
    log = config.out / "faults.jsonl"
    done = {} if config.restart else _done(log, config)
    write_atomically(log, "".join(json.dumps(row) + "\n" for row in done.values()))
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread might hold a lock when a child is forked
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, _tmpfs(Path(folder)) as small:
        usual = _prepare(config, Path(folder))
        often = 0.1 if sys.stderr.isatty() else 10.0
        bar = tqdm(total=config.count, initial=len(done), unit="fault", mininterval=often)
        ends = time.monotonic() + config.seconds
        for number in range(config.count):
            if number not in done and time.monotonic() < ends:
                done[number] = _trial(config, number, Path(folder), small, usual)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[number]) + "\n")
                bar.update()
        bar.close()
    rows = [done[number] for number in sorted(done)]
    if not rows:
        raise BadInput(f"--seconds is {config.seconds:g}, too few for one fault; give more")
    return {
        "bench": "faults",
        "seed": config.seed,
        "count": len(rows),
        "tmpfs": any(row["fault"] == "tmpfs full" for row in rows),
        "hardware": hardware(),
        "trials": _counted(rows),
        "broken": [row for row in rows if row["broken"]],
        "bars": bars(rows),
    }


def _done(log: Path, config: FaultsConfig) -> dict[int, dict[str, Any]]:
    """Trials of an earlier run with these settings; a line that a kill cut is none."""
    rows = {}
    for line in log.read_text("utf-8").splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError, LookupError, TypeError):
            row = json.loads(line)
            if row["settings"] == _settings(config) and row["number"] < config.count:
                rows[int(row["number"])] = row
    return rows


def _settings(config: FaultsConfig) -> list[Any]:
    return [config.seed, list(config.targets), list(config.faults)]


# --- Trials ------------------------------------------------------------------------------
def _prepare(config: FaultsConfig, folder: Path) -> dict[str, Usual]:
    """Make what the trials start from, and measure every command once, unharmed."""
    usual = {}
    for name in config.targets:
        target, base = TARGETS[name], folder / TARGETS[name].base
        if not base.exists():
            base.mkdir()
            _require_done(run(partial(target.make, base), base), f"making files for {name}")
        scratch = folder / "usual"
        _copy(base, scratch)
        began = time.monotonic()
        ending = run(partial(target.work, scratch), scratch)
        usual[name] = Usual(ending.steps, time.monotonic() - began)
        _require_done(ending, name)
        shutil.rmtree(scratch)
    return usual


def _require_done(ending: Ending, what: str) -> None:
    if ending.status != 0:
        raise ToxicityError(f"{what} does not work when nothing befalls it: {ending.words}")


def _trial(
    config: FaultsConfig, number: int, folder: Path, small: Path | None, usual: dict[str, Usual]
) -> dict[str, Any]:
    draw = random.Random(f"{config.seed} {number}")
    names = list(config.targets)
    name = draw.choices(names, [TARGETS[name].share for name in names])[0]
    target = TARGETS[name]
    kinds = [kind for kind in config.faults or FAULTS if small or kind != "tmpfs full"]
    kind = draw.choice(kinds)
    scratch = (small if kind == "tmpfs full" and small else folder) / f"trial-{number}"
    _copy(folder / target.base, scratch)
    try:
        trial = Trial(target, scratch, usual[name], draw)
        before = target.found(scratch)
        damages = kind == "damaged file"
        words, broken = FAULTS[kind](trial)
        if not damages:
            broken |= target.broken(scratch, before, settled=False)
        broken |= _follow(trial, before, damages=damages)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "number": number,
        "settings": _settings(config),
        **{"target": name, "fault": kind, "ended": words, "broken": broken},
    }


def _follow(trial: Trial, before: Found, *, damages: bool) -> Broken:
    """What does not hold after the command that follows."""
    target, scratch = trial.target, trial.scratch
    ending = run(partial(target.again, scratch), scratch)
    if ending.status != 0:
        return {"next_works": ending.words or f"ended by signal {ending.signal}"}
    if damages:
        return target.recovered(scratch)
    return target.broken(scratch, before, settled=True)


def _copy(base: Path, scratch: Path) -> None:
    """The same files under other names; on another file system a copy that keeps links."""
    if base.stat().st_dev != scratch.parent.stat().st_dev:
        subprocess.run(["cp", "-a", base, scratch], check=True)
        return
    ignore = shutil.ignore_patterns(f"*{LOCK_FILE}")  # it is written in place
    shutil.copytree(base, scratch, copy_function=os.link, ignore=ignore)


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[Path | None]:
    """A small file system in memory, None where it may not be mounted."""
    place = folder / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_MB}m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


# --- Faults ------------------------------------------------------------------------------
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


# --- Telling -----------------------------------------------------------------------------
def bars(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each invariant the share of the trials in which it holds: all of them."""
    found = {}
    for name in INVARIANTS:
        share = sum(name not in row["broken"] for row in rows) / len(rows)
        found[name] = {"value": round(share, 5), "bar": 1, "holds": share == 1}
    return found


def _counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials and broken ones by command and fault."""
    trials = Counter((row["target"], row["fault"]) for row in rows)
    broken = Counter((row["target"], row["fault"]) for row in rows if row["broken"])
    return [
        {"target": target, "fault": fault, "trials": count, "broken": broken[target, fault]}
        for (target, fault), count in sorted(trials.items())
    ]


def table(document: dict[str, Any]) -> str:
    """A line for each fault with its trials by command, then the invariants and what broke."""
    counted = document["trials"]
    targets = [name for name in TARGETS if any(row["target"] == name for row in counted)]
    lines = [f"{'fault':<22}" + "".join(f"{name:>14}" for name in targets) + f"{'broken':>8}"]
    for fault in FAULTS:
        of = {row["target"]: row for row in counted if row["fault"] == fault}
        cells = "".join(f"{of[name]['trials'] if name in of else 0:>14}" for name in targets)
        lines.append(f"{fault:<22}{cells}{sum(row['broken'] for row in of.values()):>8}")
    for name, bar in document["bars"].items():
        lines.append(f"{name:<22} {100 * bar['value']:.2f} % of {document['count']} trials")
    for row in document["broken"][:20]:
        reasons = "; ".join(f"{name}: {text}" for name, text in row["broken"].items())
        where = f"trial {row['number']} ({row['target']}, {row['fault']})"
        lines.append(f"{where}: {' '.join(reasons.split())[:300]}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
