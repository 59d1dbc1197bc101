"""Faults at random moments leave nothing broken, and what would be broken is seen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from bench.faults import run as faults
from bench.faults.child import Limits, run
from bench.faults.registry import TARGETS
from bench.faults.run import FaultsConfig, bars, measure, table
from bench.faults.targets import INVARIANTS, Broken
from contract import BadInput
from export import switch

QUICK = ("publish", "rollback", "serve version", "tune", "verify")


@pytest.mark.slow
def test_thirty_faults_break_nothing_and_a_second_run_goes_on(tmp_path: Path) -> None:
    first = measure(FaultsConfig(count=2, targets=QUICK[:1], out=tmp_path, seed=1))
    assert first["broken"] == [] and first["count"] == 2
    assert measure(FaultsConfig(count=4, targets=QUICK, out=tmp_path, seed=1))["count"] == 4
    log = (tmp_path / "faults.jsonl").read_text().splitlines()
    assert len(log) == 4  # the others were of other settings
    # The line that a kill cut is done again, the others are not.
    altered = json.loads(log[0]) | {"ended": "kept"}
    lines = [json.dumps(altered), *log[1:-1], log[-1][:20]]
    (tmp_path / "faults.jsonl").write_text("\n".join(lines))
    # On a slow machine fewer than thirty.
    document = measure(FaultsConfig(count=30, seconds=8, targets=QUICK, out=tmp_path, seed=1))
    assert document["broken"] == []
    assert all(bar["holds"] for bar in document["bars"].values())
    count = document["count"]
    assert sum(row["trials"] for row in document["trials"]) == count >= 4
    rows = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert sorted(row["number"] for row in rows) == [*range(count)]
    assert sum(row["ended"] == "kept" for row in rows) == 1
    assert f"{count} trials" in table(document)
    assert [*document["bars"]] == [*INVARIANTS]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    target = TARGETS["publish"]
    assert run(partial(target.make, tmp_path / "base"), tmp_path).status == 0
    return tmp_path / "base"


def _broken_by_kills(base: Path, steps: range) -> set[str]:
    """Invariants that kills of a publish at these steps break."""
    target, broken = TARGETS["publish"], set()
    for step in steps:
        scratch = base.with_name(f"trial-{step}")
        faults._copy(base, scratch)
        before = target.found(scratch)
        run(partial(target.work, scratch), scratch, Limits(kill_at=step))
        broken |= target.broken(scratch, before, settled=False).keys()
        shutil.rmtree(scratch)
    return broken


@pytest.mark.slow
def test_a_removal_that_is_not_whole_is_seen(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = base.with_name("counted")
    faults._copy(base, scratch)
    steps = run(partial(TARGETS["publish"].work, scratch), scratch).steps
    last = range(steps - 14, steps, 4)
    assert not _broken_by_kills(base, last)
    monkeypatch.setattr(switch, "remove", shutil.rmtree)
    assert _broken_by_kills(base, last)


def test_a_write_that_is_not_whole_is_seen(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(path: Path, data: bytes | str) -> None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    def broken() -> Broken:
        scratch = base.with_name("trial")
        faults._copy(base, scratch)
        before = target.found(scratch)
        run(partial(target.work, scratch), scratch, Limits(file_bytes=600))
        found = target.broken(scratch, before, settled=False)
        shutil.rmtree(scratch)
        return found

    target = TARGETS["rollback"]
    assert not broken()
    monkeypatch.setattr(switch, "write_atomically", in_place)
    assert broken()


def test_a_child_ends_by_its_signal_however_early(tmp_path: Path) -> None:
    def raised(*_: object) -> None:
        raise KeyboardInterrupt  # as in a bench

    def hurt(process: BaseProcess) -> None:
        assert process.pid
        os.kill(process.pid, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, raised)
    try:
        ends = [run(partial(time.sleep, 60), tmp_path, meanwhile=hurt) for _ in range(5)]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {ending.signal for ending in ends} == {signal.SIGTERM}


def test_bars_turn_red() -> None:
    rows: list[dict[str, Any]] = [{"broken": {}}, {"broken": {"no_litter": "x is left"}}]
    assert bars(rows)["verifies"]["holds"]
    assert bars(rows)["no_litter"]["value"] == 0.5
    assert bars(rows)["no_litter"]["holds"] is False


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has 'fly', expected some of publish.*killed at a step"):
        measure(FaultsConfig(targets=("fly",), out=tmp_path))
