"""Plans for a number of minutes: which fits, what contradicts; measured and run in small."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from console.options import parse_config
from contract import BadInput
from recipes import budget, plans, probe
from recipes.budget import BudgetConfig, chosen
from recipes.plans import OF_READING, PLANS, STUDENT, config_of, costs_of, span, trainings
from recipes.probe import Probe, StageCost
from toxicity.commands import COMMANDS
from train.config import TrainConfig

TRAIN = COMMANDS["From comments to a model"]["train"]
GIVEN = {"data": ("a.csv", "b.csv"), "label_map": ("bad=1", "good=0"), "device": "cpu"}


def parsed(*argv: str, prog: str = "toxicity train") -> BudgetConfig:
    return parse_config(BudgetConfig, argv, prog=prog, description="", positional="minutes")


# --- What is chosen ----------------------------------------------------------------------
def test_the_largest_plan_that_fits_is_chosen() -> None:
    seconds = {"alone": 60.0, "quick": 300.0, "best": 1200.0}
    assert chosen(10, seconds, spent_s=20.0) == "quick"
    assert chosen(30, seconds, spent_s=20.0) == "best"
    # What it may be wrong by, and what the measuring took, must fit, too.
    assert chosen(5.4, seconds, spent_s=0.0) == "alone"
    assert chosen(6, seconds, spent_s=31.0) == "alone"
    with pytest.raises(
        BadInput, match=r"--minutes is 1, expected at least 1\.4 for .* alone"
    ) as no:
        chosen(1, seconds, spent_s=20.0)
    assert "\n" not in str(no.value)


def test_stages_are_projected_side_by_side_as_they_run() -> None:
    stages = trainings("best", GIVEN, "").stages
    seconds = {stage.name: 10.0 for stage in stages} | {"pretrained": 35.0, STUDENT: 5.0}
    assert span(stages, seconds, cores=1) == 60.0
    assert span(stages, seconds, cores=2) == 40.0
    assert span(stages, seconds, cores=16) == 40.0
    assert span(stages, dict.fromkeys(seconds, 1.0), cores=4) == 2.0


# --- What the plans are --------------------------------------------------------------------
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_trains_and_ends_with_the_student(name: str) -> None:
    recipe = trainings(name, GIVEN, "test.csv")
    assert {stage.command.module for stage in recipe.stages} == {"train"}
    assert recipe.stages[-1].name == STUDENT
    made = {stage.name: f"out/{stage.name}" for stage in recipe.stages}
    for stage in recipe.stages:
        words = stage.arguments({"test-data": "test.csv"}, made)
        taught = "--distill" in words
        assert ("--data" in words) == ("--label-map" in words) == (not taught)
        assert words[words.index("--device") + 1] == "cpu"
        assert ("--test-data" in words) == (stage.name == STUDENT)
        if not taught:
            assert words[words.index("--data") + 1 :][:2] == ["a.csv", "b.csv"]


def test_what_is_measured_once_is_read_as_every_plan_reads_it() -> None:
    read = []
    for name in PLANS:
        recipe = trainings(name, GIVEN, "")
        taught = {stage.name for stage in recipe.stages if "distill" in stage.flags}
        read += [
            tuple(getattr(config_of(stage, recipe, GIVEN), name) for name in OF_READING)
            for stage in recipe.stages
            if stage.name not in taught
        ]
    assert set(read) == {(1.5, 0.05)}


def test_a_file_of_sources_stands_for_the_data() -> None:
    recipe = trainings("quick", {"sources": Path("own.yaml")}, "")
    words = recipe.stages[0].arguments({"test-data": ""}, {})
    assert "--data" not in words and words[words.index("--sources") + 1] == "own.yaml"
    assert budget.given_of(parsed("10", "--sources", "own.yaml")) == {"sources": Path("own.yaml")}
    assert budget.given_of(parsed("10")) == {"data": ("synthetic",)}


def test_what_a_stage_costs_is_known_from_the_recipe() -> None:
    recipe = trainings("best", {"data": "synthetic"}, "")
    costs = costs_of(recipe, {"data": "synthetic"}, cores=2)
    assert (costs["plain"].threads, costs["plain"].beside) == (1, 1)
    assert costs["pretrained"].config.pretrain_epochs == 1
    student = costs[STUDENT]
    assert (student.threads, student.beside, len(student.teachers)) == (2, 0, 3)
    assert (student.ngram_teacher, student.augment) == (True, 1)
    # As its first teacher reads.
    assert student.config.max_len == recipe.stages[0].flags["max-len"] == 256


# --- What contradicts ------------------------------------------------------------------------
def test_every_flag_of_a_training_is_the_datas_the_runs_or_refused() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {"epochs", "d_model", "distill", "qat", "augment", "identity_balance"} <= set(
        budget.REFUSED
    )
    assert names - set(budget.REFUSED) == set(budget._ALLOWED) - {"minutes"}


@pytest.mark.parametrize(
    "words", [["--epochs", "2"], ["--distill", "runs/model"], ["--d-model=32"], ["--no-respell"]]
)
def test_a_flag_that_contradicts_is_refused_even_at_its_default(words: list[str]) -> None:
    flag = words[0].partition("=")[0].replace("--no-", "--")
    with pytest.raises(BadInput, match=f"^{flag} is given, expected none with --minutes: its plan"):
        parsed("10", *words)
    assert parsed("2.5", "--data", "x.csv", "--seed", "3").minutes == 2.5


def test_a_variable_that_contradicts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXICITY_TRAIN_LR", "1e-3")
    with pytest.raises(BadInput, match="--lr is given, expected none with --minutes"):
        parsed("10")


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_minutes_that_are_none_are_refused(minutes: str) -> None:
    with pytest.raises(BadInput, match="--minutes is"):
        parsed(minutes)


def test_minutes_and_a_recipe_are_refused_together() -> None:
    entry, words = TRAIN.chosen(["--data", "x.csv", "--minutes", "10"])
    assert (entry.module, words) == ("recipes.budget", ["--data", "x.csv", "10"])
    with pytest.raises(BadInput, match="--recipe and --minutes are given, expected one"):
        TRAIN.chosen(["--minutes=10", "--recipe", "best"])


# --- Measured and run --------------------------------------------------------------------------
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in {"_WARM_UP": 1, "_STEPS": 2, "_LEAST_STEPS": 1, "_SCORED": 32}.items():
        monkeypatch.setattr(probe, name, count)


@pytest.mark.slow
def test_a_projection_is_the_measured_speed_times_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    config = TrainConfig(data="synthetic:600", d_model=16, n_layers=1, n_heads=2, max_len=32)
    found = Probe.of(config, torch.device("cpu"), tmp_path, import_s=100.0)
    once = StageCost(dataclasses.replace(config, epochs=1), threads=1, beside=0)
    (least, more) = (
        found.seconds(dataclasses.replace(once, config=dataclasses.replace(config, epochs=n)))
        for n in (1, 3)
    )
    (speed,) = found._speeds.values()
    assert least > 100.0 + found.load_s
    train = found._tokens(found.data.training_rows, config)
    judged = found._tokens(found.corpus.split.validation, config)
    lengths = [len(found.data.ids[row]) for row in found.data.training_rows]
    assert train == pytest.approx(sum(lengths))
    assert more - least == pytest.approx(2 * (speed.step * train + speed.score * judged))
    # A teacher scores every comment, the letters are fitted on it, passages are as many again.
    taught = dataclasses.replace(once, teachers=(config,))
    assert found.seconds(taught) - least == pytest.approx(speed.score * train)
    assert found.seconds(dataclasses.replace(once, ngram_teacher=True)) > least
    assert found.seconds(dataclasses.replace(once, augment=1)) > least + found.load_s


@pytest.mark.slow
def test_a_plan_is_run_into_out_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few_steps(monkeypatch)
    for module in (budget, plans):
        monkeypatch.setattr(module, "PLANS", ("alone",))
    out = tmp_path / "model"
    words = ["--data", "synthetic:600", "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["budget", "600", *words])
    budget.main()
    said = capsys.readouterr().out
    assert "alone: projected " in said and " of 600 with the measuring\n" in said
    assert "too long" not in said and "auroc" in said
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert (config["model"]["d_model"], config["model"]["n_layers"]) == (64, 1)
    assert config["train"]["epochs"] == 1
    kept = json.loads((tmp_path / "model-plans/alone/budget.json").read_text("utf-8"))
    assert kept["plan"] == "alone" and kept["stages"][STUDENT]["ran"]
    weights = (out / "model.safetensors").read_bytes()
    budget.main()
    assert "unchanged" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == weights
    assert {path.name for path in (tmp_path / "model-plans").iterdir()} == {"alone", ".lock"}
    monkeypatch.setattr(sys, "argv", ["budget", "0.01", *words])
    with pytest.raises(BadInput, match=r"--minutes is 0\.01, expected at least \d.*the least plan"):
        budget.main()
