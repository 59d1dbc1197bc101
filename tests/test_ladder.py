"""Student ladder: trained and exported for real in small; the bar and the plot by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from console.options import make_config
from contract import BadInput
from experiments import ladder
from experiments.ladder import LadderRung

TEACHER = LadderRung("teacher", 0.97, 0.96, 500.0, 1.0, None, "0" * 64, "hold")


def rung(name: str, test_auroc: float, cost: float, gates: str = "hold") -> LadderRung:
    changes = {"name": name, "test_auroc": test_auroc, "cost": cost, "gates": gates}
    return dataclasses.replace(TEACHER, comments_per_s=500 / cost, **changes)


def test_bar_is_the_cheapest_rung_that_is_good_enough_and_passes() -> None:
    rungs = [TEACHER, rung("a", 0.95, 0.1), rung("b", 0.9585, 0.3), rung("c", 0.959, 0.2, "int8")]
    (bar,) = ladder.bars(rungs).values()
    assert bar == {"value": 0.3, "wanted": "at most", "bar": 0.25, "holds": False}
    (bar,) = ladder.bars([*rungs, rung("d", 0.9581, 0.24)]).values()
    assert bar["holds"]
    (bar,) = ladder.bars(rungs[:2]).values()
    assert bar == {"value": 1.0, "wanted": "at most", "bar": 0.25, "holds": False}


def test_plot_and_table_show_every_rung(tmp_path: Path) -> None:
    rungs = [dataclasses.asdict(r) for r in (TEACHER, rung("64x1", 0.95, 0.1))]
    ladder.plot({"trained_on": "some.csv", "rungs": rungs}, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split()[0] for line in ladder.table(rungs).splitlines()[1:]] == ["teacher", "64x1"]


def test_shape_that_is_none_is_refused(trained_run: Path, tmp_path: Path) -> None:
    config = make_config(ladder.LadderConfig, {"teacher": trained_run, "runs": tmp_path})
    with pytest.raises(BadInput, match="'96by2', expected shapes such as 96x2"):
        ladder.distilled(config, "96by2")


def test_small_ladder_from_training_to_document(trained_run: Path, tmp_path: Path) -> None:
    settings = {"students": ("16x1",), "runs": tmp_path / "runs", "epochs": 1, "comments": 32}
    config = make_config(ladder.LadderConfig, {"teacher": trained_run, **settings})
    document = json.loads(json.dumps(ladder.measure(config)))
    rungs = {rung["name"]: rung for rung in document["rungs"]}
    assert rungs.keys() == {"teacher", "16x1", "cascade 16x1"}
    assert rungs["teacher"]["cost"] == 1.0
    assert all(rung["comments_per_s"] > 0 for rung in rungs.values())
    assert (tmp_path / "runs/16x1/model.safetensors").exists()
    assert len({rung["onnx_sha256"] for rung in rungs.values()}) == 3
    other = dataclasses.replace(config, more_teachers=(tmp_path / "runs/16x1",))
    with pytest.raises(BadInput, match=r"16x1 has learned from other weights.*delete it"):
        ladder.distilled(other, "16x1")
