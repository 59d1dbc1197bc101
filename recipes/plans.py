"""The plans of `toxicity train --minutes`: the trainings of three recipes, from the least on.

    alone   one epoch of the small student by itself
    quick   one teacher and character n-grams teach it
    best    three teachers and character n-grams teach it

What they train is in the recipes of these names; the export is left to `toxicity export`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from console.options import make_config
from recipes.probe import Probe, StageCost
from recipes.recipe import Recipe, Stage, load
from train.config import TrainConfig
from train.methods.distill import NGRAM_TEACHER

PLANS = ("alone", "quick", "best")
"""Recipes, the cheapest first."""
STUDENT = "student"
"""The stage whose run is the plan's result."""
OF_THE_DATA = (
    *("data", "sources", "hold_out_source", "near_duplicates", "text_column", "label_column"),
    *("label_map", "fractions", "seed"),
)
"""Fields of TrainConfig that a student has from its first teacher."""
OF_EACH_RUN = ("device", "precision", "pretokenize", "checkpoint_steps")
OF_READING = ("identity_balance", "identity_insertion")
"""Fields by which every plan reads the comments in its own way, the first stage of each alike."""
_FROM_TEACHER = ("max_len", "identity_insertion")


def trainings(name: str, given: Mapping[str, Any], test_data: str) -> Recipe:
    """The stages of plan `name` that train, with the fields of TrainConfig that are `given`."""
    settings = {"data": "", "test-data": test_data, "repository": ""}
    recipe = load(name, settings)
    chosen = [stage for stage in recipe.stages if stage.command.config is TrainConfig]
    return replace(recipe, stages=tuple(_with(stage, given) for stage in chosen))


def _with(stage: Stage, given: Mapping[str, Any]) -> Stage:
    names = OF_EACH_RUN if "distill" in stage.flags else (*OF_THE_DATA, *OF_EACH_RUN)
    more = {name.replace("_", "-"): _flag(given[name]) for name in names if name in given}
    own = {name: value for name, value in stage.flags.items() if name != "data"}
    return replace(stage, flags={**own, **more})


def _flag(value: Any) -> Any:
    """As a recipe has it."""
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float) else str(value)


def projected(recipe: Recipe, probe: Probe, given: Mapping[str, Any], cores: int) -> float:
    """Seconds that the stages take on this machine, side by side as the runner has them."""
    costs = costs_of(recipe, given, cores)
    return span(recipe.stages, {name: probe.seconds(c) for name, c in costs.items()}, cores)


def costs_of(recipe: Recipe, given: Mapping[str, Any], cores: int) -> dict[str, StageCost]:
    """What each stage computes, by its name."""
    configs = {stage.name: config_of(stage, recipe, given) for stage in recipe.stages}
    first = [stage for stage in recipe.stages if not stage.needs]
    together = min(cores, sum(min(stage.threads, cores) for stage in first))
    found = {}
    for stage in recipe.stages:
        threads = min(stage.threads, cores)
        distills = "distill" in stage.flags
        found[stage.name] = StageCost(
            configs[stage.name],
            threads,
            max(0, together - threads) if stage in first else 0,
            tuple(configs[name] for name in stage.needs),
            bool(stage.flags.get("ngram-teacher", NGRAM_TEACHER)) and distills,
            int(stage.flags.get("augment", 0)),
        )
    return found


def config_of(stage: Stage, recipe: Recipe, given: Mapping[str, Any]) -> TrainConfig:
    """The training of `stage`, without what it has of its teachers' scores."""
    known = {field.name for field in fields(TrainConfig)}
    flags = {name.replace("-", "_"): value for name, value in stage.flags.items()}
    own = {name: value for name, value in flags.items() if name in known}
    for name in ("distill", "ngram_teacher", "augment", "contrast", "test_data"):
        own.pop(name, None)
    if stage.needs:
        teacher = next(one for one in recipe.stages if one.name == stage.needs[0])
        learned = config_of(teacher, recipe, given)
        own = {**{name: getattr(learned, name) for name in _FROM_TEACHER}, **own}
    return make_config(TrainConfig, {**given, **own})


def span(stages: Sequence[Stage], seconds: Mapping[str, float], cores: int) -> float:
    """When the last stage ends that begins as recipes/runner.py lets it; in seconds."""
    now, done = 0.0, set[str]()
    running: dict[str, float] = {}
    threads = {stage.name: min(stage.threads, cores) for stage in stages}
    left = list(stages)
    while left or running:
        for stage in list(left):
            busy = sum(threads[name] for name in running)
            fits = not running or busy + threads[stage.name] <= cores
            if fits and done.issuperset(stage.needs):
                left.remove(stage)
                running[stage.name] = now + seconds[stage.name]
        name = min(running, key=lambda one: running[one])
        now = running.pop(name)
        done.add(name)
    return now
