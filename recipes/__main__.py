"""Run a recipe: `toxicity train --recipe best`, or `make best`.

    python -m recipes best --data comments.csv.gz --test-data test.csv.gz
    python -m recipes my-own.toml --data ...     # a copy of recipes/best.toml that you changed
    python -m recipes best --list                # the stages and what each would run

Ctrl-C saves the progress; the same command goes on. What is done and depends on nothing that
changed is not done again. Writes the stages' folders and `recipe.json` into --out.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import BadInput
from recipes.display import Display
from recipes.recipe import Recipe, load, names, with_seed
from recipes.runner import RecipeRun, StageOutcome
from storage.files import write_json
from storage.locks import LOCK_FILE, locked

_WHAT: dict[str, Any] = {"group": "what is made"}
_HOW: dict[str, Any] = {"group": "how"}


@dataclass(frozen=True)
class RecipeConfig:
    """Flags of `python -m recipes`."""

    recipe: str = Field("best", description=f"{' or '.join(names())}, or a file of your own")
    data: str = Field(
        "synthetic",
        description="labelled comments to train on, as `toxicity train` takes them",
        json_schema_extra=_WHAT,
    )
    test_data: str = Field(
        "", description="a second labelled file: evaluated only", json_schema_extra=_WHAT
    )
    word_vectors: str = Field(
        "",
        description="word vectors for a recipe that starts from them, as text of GloVe or "
        "word2vec, as in glove.6B.100d.txt",
        json_schema_extra=_WHAT,
    )
    repository: Path = Field(
        Path("model_repository"),
        description="model repository to publish into",
        json_schema_extra=_WHAT,
    )
    seed: int = Field(
        0, ge=0, description="of the split, the weights and the batches", json_schema_extra=_WHAT
    )
    out: Path | None = Field(
        None,
        description="folder of the stages",
        json_schema_extra={**_WHAT, "default": "runs/<recipe>"},
    )
    cores: int = Field(
        os.cpu_count() or 1, ge=1, le=1024, description="cores to use", json_schema_extra=_HOW
    )
    restart: bool = Field(False, description="make every stage again", json_schema_extra=_HOW)
    list: bool = Field(False, description="only show what would run", json_schema_extra=_HOW)


def main() -> None:
    config = parse_config(
        RecipeConfig,
        None,
        prog="python -m recipes",
        description="Train by a recipe.",
        positional="recipe",
    )
    settings = {
        "data": config.data,
        "test-data": config.test_data,
        "word-vectors": config.word_vectors,
        "repository": str(config.repository),
    }
    recipe = load(config.recipe, settings)
    if config.seed:
        recipe = with_seed(recipe, config.seed)
    _check_word_vectors(recipe, config.word_vectors)
    out = config.out or Path("runs") / recipe.name
    if config.list:
        print("\n".join(_listed(recipe, settings, out)))
        return
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file, expected a folder for the stages; give another --out")
    print(f"{recipe.name}: {recipe.about}; {len(recipe.stages)} stages into {out}", flush=True)
    with locked(out / LOCK_FILE, str(out), "wait for it, or give another --out"):
        display = Display(len(recipe.stages))
        recipe_run = RecipeRun(recipe, settings, out, config.cores, config.restart, display)
        outcomes = asyncio.run(recipe_run.run())
        write_json(out / "recipe.json", _document(recipe, settings, config.cores, outcomes))
    for line in _ending(recipe, out):
        print(line)


def _check_word_vectors(recipe: Recipe, path: str) -> None:
    """Raise BadInput before anything is trained, not after."""
    named = any("{word-vectors}" in stage.flags.values() for stage in recipe.stages)
    if named and not path:
        raise BadInput(
            f"{recipe.name} starts from word vectors, expected --word-vectors; give a file of "
            "GloVe or word2vec as text, or take the recipe best"
        )
    if path and not named:
        raise BadInput(
            f"--word-vectors is {path}, expected none with {recipe.name}, which names no "
            "{word-vectors}; take the recipe vectors"
        )
    if path and not Path(path).is_file():
        raise BadInput(f"there is no file {path}, expected word vectors; mend --word-vectors")


def _listed(recipe: Recipe, settings: dict[str, str], out: Path) -> list[str]:
    made = {stage.name: str(out / stage.name) for stage in recipe.stages}
    lines = [f"{recipe.name}: {recipe.about}"]
    for stage in recipe.stages:
        after = f" (after {', '.join(stage.needs)})" if stage.needs else ""
        words = shlex.join(["python", "-m", stage.command.module])
        words = f"{words} {shlex.join(stage.arguments(settings, made))} --out {made[stage.name]}"
        lines += [f"{stage.name}{after}, {stage.threads} threads", f"  {words}"]
    return lines


def _document(
    recipe: Recipe, settings: dict[str, str], cores: int, outcomes: list[StageOutcome]
) -> dict[str, object]:
    return {
        "recipe": recipe.name,
        "texts": recipe.texts,
        "settings": settings,
        "cores": cores,
        "stages": {one.stage: {"seconds": one.seconds, "digest": one.digest} for one in outcomes},
    }


def _ending(recipe: Recipe, out: Path) -> list[str]:
    """The last lines of the logs that say how good the results are."""
    lines = []
    for stage in recipe.stages:
        log = out / f"{stage.name}.log"
        if log.exists() and stage.command.module in ("train", "export"):
            written = log.read_text("utf-8", "replace").splitlines()
            wanted = [line for line in written if line.startswith(("test ", "published "))]
            lines += [f"{stage.name}: {line}" for line in wanted[-1:]]
    return lines


if __name__ == "__main__":
    run(main)
