"""A recipe with several seeds: what it gives in the mean, and how far the seeds differ.

    python -m experiments.recipe_seeds --recipe best --data train.csv.gz --test-data test.csv.gz

A seed draws the split, the weights and the batches of every training. Each is a whole run of the
recipe into `--runs`, where what is finished is not done again, and is judged by the recipe's own
evaluation; for other comments name a file with `base = "best"` and an evaluation of its own. The
published version counts, and beside it the regressions that the evaluation fits on the very split.
Values are means with Student's interval. A table, and `recipe_seeds.json`; `--json` prints that,
too. The bars are those of the evaluation, and the AUROC that the project aims at, in the mean.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic import dataclasses as pydantic

from bench.report.result import (
    RESULT,
    Bars,
    ResultOptions,
    at_least,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned, with_interval
from console.options import run
from contract import ONNX_FILE, BadInput, ToxicityError
from export.repository import current, read_artifact
from recipes.recipe import load
from storage.files import read_json
from train.operating.intervals import mean

_AUROC = {"jigsaw_wiki_test": 0.982, "civil_comments_gender": 0.885}
"""What the project aims at, by set of comments."""
_MOST = ("ece", "fpr_ratio", "int8_auroc_difference")
"""What the bars' names begin with that are upper bounds."""


@pydantic.dataclass(frozen=True, kw_only=True)
class RecipeSeedsConfig(ResultOptions):
    """Flags of `python -m experiments.recipe_seeds`."""

    recipe: str = Field("best", description="name of a recipe, or a file")
    data: str = Field("synthetic", description="labelled comments to train on")
    test_data: str = Field("", description="a second labelled file: evaluated only")
    word_vectors: str = Field("", description="word vectors, for a recipe that starts from them")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="seeds of the recipe")
    cores: int = Field(os.cpu_count() or 1, ge=1, le=1024, description="cores to use")
    runs: Path = Field(Path("runs/recipe_seeds"), description="folder of the recipe's runs")
    out: Path = Field(
        Path("bench/out/recipe_seeds"), description="folder of the JSON", json_schema_extra=RESULT
    )


def main() -> None:
    config = begin(RecipeSeedsConfig, "experiments.recipe_seeds", "A recipe with several seeds.")
    found = measure(config)
    report(config, found, table(found))


def measure(config: RecipeSeedsConfig) -> dict[str, Any]:
    """The whole document. Raises BadInput for a recipe that has not one evaluation."""
    given = {"data": config.data, "test-data": config.test_data, "repository": "model_repository"}
    recipe = load(config.recipe, {**given, "word-vectors": config.word_vectors})
    judges = [stage.name for stage in recipe.stages if stage.command.module == "quality"]
    if len(judges) != 1:
        raise BadInput(
            f"{config.recipe} has {len(judges)} stages of the command eval, expected one; take "
            "best, or a file based on it"
        )
    runs = []
    for seed in config.seeds:
        folder = config.runs / f"{recipe.name}-{seed}"
        _made(config, seed, folder)
        runs.append(_run_of(seed, folder, judges[0]))
    sets = sets_of(runs)
    return document(
        "recipe_seeds",
        config,
        texts=recipe.texts,
        runs=runs,
        sets=sets,
        bars=bars(runs, sets),
    )


def _made(config: RecipeSeedsConfig, seed: int, folder: Path) -> None:
    """Run the recipe with this seed. Raises ToxicityError where it fails."""
    words: dict[str, Any] = {
        **{"data": config.data, "test-data": config.test_data, "seed": seed},
        **{"word-vectors": config.word_vectors, "cores": config.cores, "out": folder},
        "repository": folder / "repository",
    }
    flags = [f"--{name}={value}" for name, value in words.items() if str(value)]
    status = subprocess.run([sys.executable, "-m", "recipes", config.recipe, *flags]).returncode
    if status:
        error = ToxicityError(f"the recipe ended with status {status} for seed {seed}; see above")
        error.exit_status = status if status > 0 else 1
        raise error


def _run_of(seed: int, folder: Path, judge: str) -> dict[str, Any]:
    """What one seed's evaluation says of its published version."""
    found = read_json(folder / judge / "evaluation.json", f"delete {folder}")
    repository = folder / "repository"
    served = read_artifact(repository, current(repository))["files"][ONNX_FILE]["sha256"]
    names = [n for n, about in found["models"].items() if about.get("onnx_sha256") == served]
    if not names:
        raise BadInput(
            f"{folder / judge} has no figures of {repository}, expected its version among "
            "--models; mend the recipe"
        )
    others = [name for name, about in found["models"].items() if about["kind"] == "baseline"]
    models = {"version": names[0], **{other: other for other in others}}
    return {
        "seed": seed,
        "onnx_sha256": served,
        "sets": {
            name: {shown: of[model]["metrics"]["auroc"]["value"] for shown, model in models.items()}
            for name, of in found["results"].items()
        },
        "baselines": others,
        "bars": {
            name: {k: bar[k] for k in ("value", "bar")} for name, bar in found["bars"].items()
        },
    }


def sets_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """AUROC of the version on each set, and what it gains over each regression of its seed."""
    return {
        name: {
            "auroc": asdict(mean([one["sets"][name]["version"] for one in runs])),
            "gains": {
                other: asdict(
                    mean([one["sets"][name]["version"] - one["sets"][name][other] for one in runs])
                )
                for other in runs[0]["baselines"]
            },
        }
        for name in runs[0]["sets"]
    }


def bars(runs: Sequence[Mapping[str, Any]], sets: Mapping[str, Any]) -> Bars:
    """Means over the seeds; `spread` is Student's interval."""
    found: Bars = {}
    for name, aim in _AUROC.items():
        if name in sets:
            auroc = sets[name]["auroc"]
            found[f"auroc.{name}"] = _with_spread(at_least(auroc["value"], aim, 5), auroc)
    for name, bar in runs[0]["bars"].items():
        values = [one["bars"][name]["value"] for one in runs if name in one["bars"]]
        if len(values) == len(runs) and None not in values:
            judged = at_most if name.startswith(_MOST) else at_least
            over_seeds = asdict(mean(values))
            found[name] = _with_spread(judged(over_seeds["value"], bar["bar"], 5), over_seeds)
    return found


def _with_spread(bar: dict[str, Any], estimate: Mapping[str, float | None]) -> dict[str, Any]:
    low, high = estimate["low"], estimate["high"]
    return (
        bar if low is None or high is None else {**bar, "spread": [round(low, 5), round(high, 5)]}
    )


def table(found: Mapping[str, Any]) -> str:
    """For people: a line a set."""
    others = found["runs"][0]["baselines"]
    lines = [["comments", "AUROC", *(f"gained over {other}" for other in others)]]
    for name, of in found["sets"].items():
        gains = [with_interval(of["gains"][other]) for other in others]
        lines.append([name, with_interval(of["auroc"]), *gains])
    return aligned(lines)


if __name__ == "__main__":
    run(main)
