"""How every bench begins and ends: its options, its bars, its document, what a person reads.

    config = begin(CapacityConfig, "bench.serving.capacity", "Capacity by rung.")
    report(config, document("capacity", config, rungs=rows, bars=bars(rows)), table(rows))

A bar is what the project aims at: a value, the bound, and whether it holds. A missed one is told,
and is an error only with `--check`. The document always goes to a file, and with `--json` to the
screen, too.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import math
import signal
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.report.machine import hardware, versions
from bench.report.tables import aligned
from console.options import JSON_HELP, parse_config
from contract import ONNX_FILE, ToxicityError
from export.repository import current, read_artifact
from storage.files import write_json
from storage.revision import source_commit

Config = TypeVar("Config")
Bars = dict[str, dict[str, Any]]
"""By name: `value`, `bar`, `wanted` (how the value stands to the bar) and `holds`."""
LOAD: dict[str, Any] = {"group": "load"}
SERVER: dict[str, Any] = {"group": "server"}
RUNS: dict[str, Any] = {"group": "measurement"}
RESULT: dict[str, Any] = {"group": "result"}
"""Groups of flags, for the metadata of a config's fields."""
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "numpy")
"""Whose versions every document states."""
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class ResultOptions:
    """Flags that every bench has."""

    out: Path = Field(
        Path("bench/out"), description="folder of the results", json_schema_extra=RESULT
    )
    json: bool = Field(False, description=JSON_HELP, json_schema_extra=RESULT)
    check: bool = Field(
        False, description="exit with status 1 when a bar is missed", json_schema_extra=RESULT
    )


# --- Beginning -----------------------------------------------------------------------------
def begin(
    config_class: type[Config], module: str, description: str, *, positional: str | None = None
) -> Config:
    """Config from the command line; from here on all that this process starts ends with it."""
    config = parse_config(
        config_class,
        None,
        prog=f"python -m {module}",
        description=description,
        positional=positional,
    )
    end_with_children()
    return config


def end_with_children() -> None:
    """Let SIGTERM, SIGHUP and Ctrl-C unwind this process once, and leave nothing of it behind.

    What unwinds stops its servers in good order; a daemon that was just being started, which nobody
    knows yet, becomes a child of this process and is killed at its end.
    """
    for signum in _SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            signal.signal(signum, _interrupt)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    atexit.register(_kill_children)


def _interrupt(*_: object) -> NoReturn:
    for signum in _SIGNALS:  # once is enough: another one would cut short what stops the servers
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def _kill_children() -> None:
    deadline = 50
    while (left := _children()) and deadline:
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=1)  # their own children are this process's afterwards
        deadline -= 1


def _children() -> list[psutil.Process]:
    """Those that still run, but for what multiprocessing cleans up with when this one has ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


# --- Bars ----------------------------------------------------------------------------------
def at_most(value: float | None, bar: float, digits: int = 4) -> dict[str, Any]:
    """A bar for a value that must not be greater; None was not measured."""
    return _bar(value, "at most", bar, digits, value is not None and value <= bar)


def at_least(value: float | None, bar: float, digits: int = 4) -> dict[str, Any]:
    """A bar for a value that must not be smaller; None was not measured."""
    return _bar(value, "at least", bar, digits, value is not None and value >= bar)


def exactly(value: float | None, bar: float, digits: int = 4) -> dict[str, Any]:
    """A bar for a value that must be the bar; None was not measured."""
    return _bar(value, "exactly", bar, digits, value is not None and value == bar)


def _bar(
    value: float | None,
    wanted: Literal["at most", "at least", "exactly"],
    bar: float,
    digits: int,
    holds: bool,
) -> dict[str, Any]:
    return {
        "value": None if value is None else round(value, digits),
        "wanted": wanted,
        "bar": bar,
        "holds": None if value is None else bool(holds),
    }


def bars_table(bars: Bars) -> str:
    """Each bar, its value, what was wanted and whether that holds."""
    words = {True: "holds", False: "MISSED", None: "not measured"}
    lines = [["bar", "value", "wanted", ""]]
    for name, bar in bars.items():
        value = "-" if bar["value"] is None else f"{bar['value']:.4g}"
        spread = bar.get("spread")
        value += f" ({spread[0]:.4g} to {spread[1]:.4g})" if spread else ""
        lines.append([name, value, f"{bar['wanted']} {bar['bar']:g}", words[bar["holds"]]])
    return aligned(lines)


def refuse_missed(bars: Bars, remedies: Mapping[str, str] | None = None) -> None:
    """Raise ToxicityError, exit status 1, that names every bar which is missed.

    `remedies` says what to do, by the bar's name.
    """
    missed = [
        f"{name} is {bar['value']:g}, expected {bar['wanted']} {bar['bar']:g}"
        + (f" ({remedies[name]})" if remedies and name in remedies else "")
        for name, bar in bars.items()
        if bar["holds"] is False
    ]
    if missed:
        raise ToxicityError(f"{'; '.join(missed)}; leave out --check to have it told only")


# --- Ending --------------------------------------------------------------------------------
def document(bench: str, config: Any, **measured: Any) -> dict[str, Any]:
    """The result of a bench: its name, its settings, what it ran on and what it measured.

    A config with a `repository` is a bench of the version that serves from there, which the
    document then names, unless `measured` has an `artifact`. Raises BadInput without one.
    """
    own = {}
    if hasattr(config, "repository") and "artifact" not in measured:
        own = {"artifact": artifact_named(config.repository, current(config.repository))}
    commit = source_commit()
    return {
        "bench": bench,
        "config": settings_of(config),
        "hardware": hardware(),
        "versions": versions(*PACKAGES),
        **({"commit": commit} if commit else {}),
        **own,
        **measured,
    }


def artifact_named(repository: Path, version: int) -> dict[str, Any]:
    """What a document says of a published version: number, precision, lengths, and the sha256 of
    its graph and of the weights that it was exported from. Raises BadInput without it.
    """
    artifact = read_artifact(repository, version)
    return {
        "version": version,
        "precision": artifact["precision"],
        "max_len": artifact["max_len"],
        "long_text": artifact.get("long_text", {}),
        "checkpoint_sha256": artifact.get("checkpoint_sha256"),
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
    }


def settings_of(config: Any) -> dict[str, Any]:
    """A config for a document: no path of this machine, nothing about where results go."""
    own = {field.name for field in fields(ResultOptions)}
    return {name: _plain(value) for name, value in asdict(config).items() if name not in own}


def _plain(value: Any) -> Any:
    if isinstance(value, Path | str):
        return Path(value).name if Path(value).is_absolute() else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def report(
    config: ResultOptions,
    result: dict[str, Any],
    table: str,
    *,
    also: tuple[str, ...] = (),
    name: str | None = None,
    remedies: Mapping[str, str] | None = None,
) -> None:
    """Write the document to `<name or bench>.json`, print the table and the bars.

    `also` are other files in the same folder that were written. Raises ToxicityError for a missed
    bar with `--check` only.
    """
    file = f"{name or result['bench']}.json"
    write_json(config.out / file, result)
    if table:
        print(table)
    print(bars_table(result["bars"]))
    print(f"wrote {', '.join(str(config.out / one) for one in (file, *also))}")
    if config.json:
        print(json.dumps(result))
    if config.check:
        refuse_missed(result["bars"], remedies)
