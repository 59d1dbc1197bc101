"""A recipe with several seeds: a tiny one trained for real; means and bars by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.report import quality_tables
from console.options import make_config
from contract import BadInput
from experiments import recipe_seeds
from recipes import recipe

TINY = """
base = "alone"

[student]
d-model = 16
n-heads = 2
max-len = 32
epochs = 4

[version]
precision = "fp32"

[evaluation]
command = "eval"
after = ["version"]
run = "@student"
models = ["{repository}", "baseline-words"]
data = ["test"]
resamples = 100
"""


def run_of(seed: int, auroc: float, ece: float | None = 0.01) -> dict[str, Any]:
    both = {"version": auroc, "baseline": 0.97}
    return {
        "seed": seed,
        "sets": {"test": both, "jigsaw_wiki_test": both},
        "baselines": ["baseline"],
        "bars": {"ece": {"value": ece, "bar": 0.02}, "checklist_mean": {"value": 0.7, "bar": 0.8}},
    }


def test_means_gains_and_bars_over_seeds() -> None:
    runs = [run_of(seed, auroc) for seed, auroc in enumerate((0.981, 0.983, 0.985))]
    sets = recipe_seeds.sets_of(runs)
    auroc, gain = sets["test"]["auroc"], sets["test"]["gains"]["baseline"]
    assert auroc["value"] == pytest.approx(0.983) and gain["value"] == pytest.approx(0.013)
    # Student's, of two degrees of freedom: 4.303 x 0.002 / sqrt(3).
    assert auroc["high"] - auroc["value"] == pytest.approx(0.004968, abs=1e-5)
    found = recipe_seeds.bars(runs, sets)
    assert list(found) == ["auroc.jigsaw_wiki_test", "ece", "checklist_mean"]
    assert found["auroc.jigsaw_wiki_test"]["holds"] and found["ece"]["holds"]
    assert found["auroc.jigsaw_wiki_test"]["spread"] == [0.97803, 0.98797]
    assert not found["checklist_mean"]["holds"]
    # A worse mean misses; what one seed lacks is no mean.
    worse = [run_of(0, 0.97), run_of(1, 0.99, None)]
    found = recipe_seeds.bars(worse, recipe_seeds.sets_of(worse))
    assert not found["auroc.jigsaw_wiki_test"]["holds"] and "ece" not in found
    # Of one seed there is no interval.
    alone = [run_of(0, 0.99)]
    assert "spread" not in recipe_seeds.bars(alone, recipe_seeds.sets_of(alone))["ece"]


def test_a_seed_is_of_every_training_but_a_students() -> None:
    settings = {"data": "synthetic", "test-data": "", "repository": "model_repository"}
    found = recipe.with_seed(recipe.load("best", settings), 3)
    seeds = {stage.name: stage.flags.get("seed") for stage in found.stages}
    wanted = dict.fromkeys(("plain", "pretrained", "phrases"), 3)
    assert {name: seed for name, seed in seeds.items() if seed is not None} == wanted


def test_a_recipe_without_an_evaluation_is_refused() -> None:
    config = make_config(recipe_seeds.RecipeSeedsConfig, {"recipe": "quick"})
    with pytest.raises(BadInput, match="quick has 0 stages of the command eval, expected one"):
        recipe_seeds.measure(config)


@pytest.mark.slow
def test_each_seed_is_a_run_of_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY, "utf-8")
    values = {"recipe": str(file), "data": "synthetic:600", "seeds": (0, 5), "runs": tmp_path}
    found = recipe_seeds.measure(make_config(recipe_seeds.RecipeSeedsConfig, values))
    first, second = found["runs"]
    assert first["onnx_sha256"] != second["onnx_sha256"]
    for one in (first, second):
        assert 0.5 < one["sets"]["test"]["version"] <= 1
    in_mean = (first["sets"]["test"]["version"] + second["sets"]["test"]["version"]) / 2
    assert found["sets"]["test"]["auroc"]["value"] == pytest.approx(in_mean)
    assert set(found["sets"]["test"]["gains"]) == {"baseline-words"}
    assert found["texts"][0] == TINY
    assert re.search(r"^test +[01]\.\d{4} \[", recipe_seeds.table(found), re.MULTILINE)
    rows = quality_tables.recipe_seeds(found)
    assert rows[0] == ["comments", "AUROC", "gained over `baseline-words`"]
    assert [row[0] for row in rows[1:]] == ["`validation`", "test split"]
