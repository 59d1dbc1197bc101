"""How benches end: a missed bar is an error with --check only, and nothing outlives them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import TinyModel

from bench.report.result import (
    ResultOptions,
    at_least,
    at_most,
    bars_table,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from bench.traffic.comments import SYNTHETIC
from console.figures import whole_numbers
from contract import ToxicityError
from train.curves import plot_curves

ROOT = Path(__file__).parent.parent


def test_bars_hold_up_to_the_bound_and_none_is_not_judged() -> None:
    assert at_most(1.0, 1)["holds"] and not at_most(1.001, 1)["holds"]
    assert at_least(1.0, 1)["holds"] and not at_least(0.999, 1)["holds"]
    assert exactly(1, 1)["holds"] and not exactly(2, 1)["holds"]
    assert at_least(None, 1) == {"value": None, "wanted": "at least", "bar": 1, "holds": None}
    shown = bars_table({"a": at_most(2, 1), "b": exactly(1, 1), "c": at_least(None, 1)})
    assert [line.split()[-1] for line in shown.splitlines()[1:]] == ["MISSED", "holds", "measured"]


def test_a_missed_bar_is_an_error_with_check_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for json_, check in ((False, False), (True, False), (False, True)):
        config = ResultOptions(out=tmp_path, json=json_, check=check)
        found = document("probe", config, bars={"speed": at_least(1, 2)})
        if check:
            with pytest.raises(ToxicityError, match="speed is 1, expected at least 2"):
                report(config, found, "a table")
        else:
            report(config, found, "a table")
        shown = capsys.readouterr().out
        assert "a table" in shown and "MISSED" in shown
        assert ('{"bench"' in shown) is json_
        assert json.loads((tmp_path / "probe.json").read_text()) == found


def test_tables_are_aligned() -> None:
    assert aligned([["name", "n"], ["x", "100"]]) == "name    n\nx     100"


def test_curves_of_one_epoch_have_an_axis_of_whole_epochs(tmp_path: Path) -> None:
    values = dict.fromkeys(("train_loss", "loss", "auroc", "f1", "precision", "recall"), 0.5)
    plot_curves([{"epoch": 1, **values}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    whole_numbers(axes, [1])
    assert axes.get_xlim() == (0.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_its_bench(
    how: signal.Signals, tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path / "repository")
    command = [sys.executable, "-m", "bench.serving.tune", "--comments", SYNTHETIC]
    command += ["--repository", str(tmp_path / "repository"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    def servers() -> list[psutil.Process]:
        """Of this bench: their files lie below its folder."""
        found = []
        for one in psutil.process_iter(["name", "cmdline"]):
            words = " ".join(one.info["cmdline"] or [])
            if "tritonserver" in (one.info["name"] or "") and str(tmp_path) in words:
                found.append(one)
        return found

    try:
        deadline = time.monotonic() + 180
        while not servers():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        assert process.wait(timeout=60) == (130 if how == signal.SIGTERM else -signal.SIGKILL)
        deadline = time.monotonic() + 60
        while servers():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.terminate()  # one that did not begin in time is still there
        process.wait(timeout=60)
