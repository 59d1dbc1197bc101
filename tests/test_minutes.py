"""Quality against minutes: two tiny plans trained for real; the bars and the plot by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from console.options import make_config
from experiments import minutes
from experiments.minutes import PlanPoint

LEAST = PlanPoint("alone", 1.0, 1.1, {"validation": 0.94, "test": 0.93}, "0" * 64)
TINY = """
about = "a tiny student"

[student]
command = "train"
data = "{{data}}"
d-model = 16
n-layers = 1
n-heads = 2
max-len = 32
epochs = {epochs}
"""


def point(plan: str, took: float, test: float) -> PlanPoint:
    auroc = {"validation": 0.95, "test": test}
    return dataclasses.replace(LEAST, plan=plan, minutes=took, projected_minutes=10.0, auroc=auroc)


def test_bars_are_late_plans_and_minutes_that_give_nothing() -> None:
    late, gain = minutes.bars([LEAST, point("quick", 9.0, 0.94)]).values()
    assert (late["value"], late["holds"]) == (1.1, True)
    assert gain == {"value": 0.01, "wanted": "at least", "bar": 0.0, "holds": True}
    late, gain = minutes.bars([point("best", 12.0, 0.929), LEAST]).values()
    assert (late["value"], late["holds"]) == (1.2, False)
    assert (gain["value"], gain["holds"]) == (-0.001, False)
    assert minutes.bars([LEAST])["least_gain_of_a_larger_plan"]["holds"] is None


def test_table_and_plot_show_every_plan(tmp_path: Path) -> None:
    points = [dataclasses.asdict(one) for one in (LEAST, point("quick", 9.0, 0.94))]
    minutes.plot({"trained_on": "some.csv", "points": points}, tmp_path / "minutes.png")
    assert (tmp_path / "minutes.png").read_bytes().startswith(b"\x89PNG")
    lines = minutes.table(points).splitlines()
    assert [line.split()[0] for line in lines] == ["plan", "alone", "quick"]
    assert lines[1].split()[1:] == ["1.0", "1.1", "0.9400", "0.9300"]


@pytest.mark.slow
def test_plans_are_trained_once_and_judged(tmp_path: Path) -> None:
    for epochs in (1, 2):
        (tmp_path / f"epochs-{epochs}.toml").write_text(TINY.format(epochs=epochs), "utf-8")
    files = [str(tmp_path / f"epochs-{epochs}.toml") for epochs in (1, 2)]
    values = {"data": "synthetic:600", "plans": files, "runs": tmp_path / "runs"}
    config = make_config(minutes.MinutesConfig, values)
    found = json.loads(json.dumps(minutes.measure(config, import_s=1.0)))
    assert [one["plan"] for one in found["points"]] == ["epochs-1", "epochs-2"]
    assert all(one["projected_minutes"] > 0 < one["minutes"] for one in found["points"])
    assert all(one["auroc"].keys() == {"validation", "test"} for one in found["points"])
    metrics = json.loads((tmp_path / "runs/epochs-2/student/metrics.json").read_text("utf-8"))
    assert found["points"][1]["auroc"]["test"] == metrics["test"]["auroc"]
    again = minutes.measure(config, import_s=1.0)
    kept = ("minutes", "auroc", "weights_sha256")
    assert [[one[k] for k in kept] for one in again["points"]] == [
        [one[k] for k in kept] for one in found["points"]
    ]
