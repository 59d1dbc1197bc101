"""Kill, starve and damage the commands at random moments and check what is left: `make faults`.

    python -m bench.faults.run --count 1000 --seed 0
    python -m bench.faults.run --targets publish rollback --count 100
    python -m bench.faults.run --only 48 181 --out runs/again    # two of its trials once more

A trial gives a command (train, export, publish, rollback, ...; bench/faults/targets.py) files of
its own and lets one fault befall it: SIGKILL at a step or a time, SIGTERM, SIGSTOP while another
one wants the same files, two at once, a disk that is full from a step on, a full tmpfs where root
may mount one, a limit on the size of files, damaged files, a clock that was elsewhere. Then it
looks whether every version that was there verifies bit for bit, whether the command that follows
works, and whether anything half-made is left. Each trial follows from --seed and its number; a run
that ended goes on where it stopped. Prints a table and writes `faults.json`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from bench.faults.child import Ending, run
from bench.faults.kinds import FAULTS, Trial, Usual
from bench.faults.registry import TARGETS
from bench.faults.targets import INVARIANTS, Broken, Found
from bench.report.result import RUNS, Bars, ResultOptions, begin, document, exactly, report
from bench.report.tables import aligned
from console.options import run as run_command
from contract import BadInput, ToxicityError
from storage.files import write_atomically
from storage.locks import LOCK_FILE

_TMPFS_MB = 256
TRIALS: dict[str, Any] = {"group": "trials"}


@dataclass(frozen=True)
class FaultsConfig(ResultOptions):
    """Flags of `python -m bench.faults.run`."""

    count: int = Field(1000, ge=1, description="faults in all", json_schema_extra=RUNS)
    seed: int = Field(0, ge=0, description="seed of all of them", json_schema_extra=RUNS)
    seconds: float = Field(
        math.inf, gt=0, description="begin no fault after so long", json_schema_extra=RUNS
    )
    targets: tuple[str, ...] = Field(
        tuple(TARGETS), description="commands to hurt", json_schema_extra=TRIALS
    )
    faults: tuple[str, ...] = Field(
        (), description="kinds of faults; left out: all", json_schema_extra=TRIALS
    )
    only: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="numbers of the trials to do, of a run that broke something; left out: all",
        json_schema_extra=TRIALS,
    )
    restart: bool = Field(
        False, description="forget the trials that an earlier run did", json_schema_extra=RUNS
    )


def main() -> None:
    config = begin(FaultsConfig, "bench.faults.run", "Hurt the commands.")
    found = measure(config)
    report(config, found, table(found))


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
        numbers = config.only or range(config.count)
        bar = tqdm(total=len(numbers), initial=len(done), unit="fault", mininterval=often)
        ends = time.monotonic() + config.seconds
        for number in numbers:
            if number not in done and time.monotonic() < ends:
                done[number] = _trial(config, number, Path(folder), small, usual)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[number]) + "\n")
                bar.update()
        bar.close()
    rows = [done[number] for number in sorted(done)]
    if not rows:
        raise BadInput(f"--seconds is {config.seconds:g}, too few for one fault; give more")
    return document(
        "faults",
        config,
        count=len(rows),
        tmpfs=any(row["fault"] == "tmpfs full" for row in rows),
        trials=_counted(rows),
        broken=[row for row in rows if row["broken"]],
        bars=bars(rows),
    )


def _done(log: Path, config: FaultsConfig) -> dict[int, dict[str, Any]]:
    """Trials of an earlier run with these settings; a line that a kill cut is none."""
    rows, wanted = {}, config.only or range(config.count)
    for line in log.read_text("utf-8").splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError, LookupError, TypeError):
            row = json.loads(line)
            if row["settings"] == _settings(config) and row["number"] in wanted:
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
    kinds = [
        kind
        for kind in config.faults or FAULTS
        if kind not in target.spared and (small or kind != "tmpfs full")
    ]
    if not kinds:
        raise BadInput(f"--faults has none that may befall {name}; name others")
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
        target.clean(scratch)
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


# --- Telling -----------------------------------------------------------------------------
def bars(rows: list[dict[str, Any]]) -> Bars:
    """Of each invariant the share of the trials in which it holds: all of them."""
    shares = {
        name: sum(name not in row["broken"] for row in rows) / len(rows) for name in INVARIANTS
    }
    return {name: exactly(share, 1, digits=5) for name, share in shares.items()}


def _counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials and broken ones by command and fault."""
    trials = Counter((row["target"], row["fault"]) for row in rows)
    broken = Counter((row["target"], row["fault"]) for row in rows if row["broken"])
    return [
        {"target": target, "fault": fault, "trials": count, "broken": broken[target, fault]}
        for (target, fault), count in sorted(trials.items())
    ]


def table(found: dict[str, Any]) -> str:
    """A line for each fault with its trials by command, then what broke."""
    counted = found["trials"]
    targets = [name for name in TARGETS if any(row["target"] == name for row in counted)]
    lines = [["fault", *targets, "broken"]]
    for fault in FAULTS:
        of = {row["target"]: row for row in counted if row["fault"] == fault}
        cells = [str(of[name]["trials"] if name in of else 0) for name in targets]
        lines.append([fault, *cells, str(sum(row["broken"] for row in of.values()))])
    told = [aligned(lines), f"{found['count']} trials"]
    for row in found["broken"][:20]:
        reasons = "; ".join(f"{name}: {text}" for name, text in row["broken"].items())
        where = f"trial {row['number']} ({row['target']}, {row['fault']})"
        told.append(f"{where}: {' '.join(reasons.split())[:300]}")
    return "\n".join(told)


if __name__ == "__main__":
    run_command(main)
