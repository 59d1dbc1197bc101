"""Train what fits into a time: `toxicity train --minutes 10`, or `make train MINUTES=10`.

    python -m recipes.budget 10 --data comments.csv.gz --test-data test.csv.gz

Of the plans in recipes/plans.py it takes the largest whose projected time fits. The projection is
measured on this machine and these comments before anything is trained (recipes/probe.py), which
counts, too. The student goes to --out as that of any training does, its teachers and what was
projected and taken (`budget.json`) to `<out>-plans/<plan>`. Ctrl-C saves the progress.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from console.options import make_config, parse_config, run
from contract import BadInput
from recipes.display import Display
from recipes.plans import (
    OF_EACH_RUN,
    OF_READING,
    OF_THE_DATA,
    PLANS,
    STUDENT,
    config_of,
    projected,
    trainings,
)
from recipes.probe import Probe
from recipes.runner import RecipeRun, StageOutcome
from storage.files import write_json
from storage.locks import LOCK_FILE, locked
from train.config import TrainConfig
from train.distributed import joined

_MARGIN = 0.1
"""Share of a projection that it may be wrong by; with it, it must fit."""
_LARGER = 1.5
"""Times that a plan costs the one before at least: where that is too long, none is measured."""
_MEASURING = 0.08
"""Share of the time after which no further plan is measured."""
_ALLOWED = (*OF_THE_DATA, *OF_EACH_RUN, "test_data", "out", "restart", "minutes")
REFUSED = {field.name for field in fields(TrainConfig)}.difference(_ALLOWED)
"""Flags of a training that contradict --minutes: its plans set them."""


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(TrainConfig):
    """Flags of `python -m recipes.budget`: those of a training, less what the plans set."""

    minutes: float = Field(
        10.0,
        gt=0,
        le=100_000,
        description="time for the whole training, in minutes",
        json_schema_extra={"group": "Time"},
    )

    @model_validator(mode="before")
    @classmethod
    def _left_to_the_plans(cls, given: Any) -> Any:
        for name in getattr(given, "kwargs", given) or ():
            if name in REFUSED:
                flag = "--" + name.replace("_", "-")
                raise BadInput(
                    f"{flag} is given, expected none with --minutes: its plans set it; leave one "
                    "of the two out"
                )
        return given


def main() -> None:
    # What an import costs, every stage's command pays again; other programs do not count in it.
    import_s, began = time.process_time(), time.monotonic() - _age()
    about: dict[str, Any] = {
        "prog": "python -m recipes.budget",
        "description": "Train what fits into a time.",
    }
    config = parse_config(BudgetConfig, None, positional="minutes", **about)
    cores, base = os.cpu_count() or 1, config.out.with_name(f"{config.out.name}-plans")
    if base.exists() and not base.is_dir():
        raise BadInput(f"{base} is a file, expected a folder for the plans; give another --out")
    with locked(base / LOCK_FILE, str(base), "wait for it, or give another --out"):
        left_s = config.minutes * 60 - (time.monotonic() - began)
        seconds = projections(config, base, cores, import_s, left_s)
        plan = chosen(config.minutes, seconds, time.monotonic() - began)
        outcomes = run_plan(plan, config, base / plan, cores)
        took = time.monotonic() - began
        document = {
            "plan": plan,
            "minutes": config.minutes,
            "projected_s": {name: round(s, 1) for name, s in seconds.items()},
            "took_s": round(took, 1),
            "stages": {one.stage: {"seconds": one.seconds, "ran": one.ran} for one in outcomes},
        }
        write_json(base / plan / "budget.json", document)
    for line in (base / plan / f"{STUDENT}.log").read_text("utf-8", "replace").splitlines():
        if line.startswith(("validation ", "test")):
            print(line)
    print(_ending(plan, seconds[plan], took, config.minutes))


def run_plan(plan: str, config: TrainConfig, folder: Path, cores: int) -> list[StageOutcome]:
    """Train `plan` into `folder`, its student into `config.out`; see RecipeRun for the errors."""
    recipe = trainings(plan, given_of(config), config.test_data or "")
    print(f"{plan}: {recipe.about}; into {config.out}", flush=True)
    settings = {"test-data": config.test_data or ""}
    display, places = Display(len(recipe.stages)), {STUDENT: config.out}
    run_of = RecipeRun(recipe, settings, folder, cores, config.restart, display, places)
    return asyncio.run(run_of.run())


def given_of(config: TrainConfig) -> dict[str, Any]:
    """Fields of a training that its stages are given; those that are as by default are not."""
    names = (*OF_THE_DATA, *OF_EACH_RUN)
    default = TrainConfig()
    found = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(default, n)}
    return found if "sources" in found else {"data": config.data, **found}


def projections(
    config: TrainConfig,
    base: Path,
    cores: int,
    import_s: float,
    left_s: float,
    plans: Sequence[str] = (),
) -> dict[str, float]:
    """Seconds of `plans` (else all), from the least to one that cannot end within `left_s`.

    It measures no further plan after a share of that time. `import_s` is how long a command takes
    to begin. Raises BadInput for comments that cannot be trained on.
    """
    began = time.monotonic()
    given, found = given_of(config), dict[str, float]()
    base.mkdir(parents=True, exist_ok=True)
    with joined(config) as (device, _, _), tempfile.TemporaryDirectory(dir=base) as folder:
        least = trainings((plans or PLANS)[0], given, config.test_data or "")
        first = config_of(least.stages[0], least, given)
        read = {**given, **{name: getattr(first, name) for name in OF_READING}}
        if config.test_data:
            read["test_data"] = config.test_data
        print("measuring this machine ...", flush=True)
        probe = Probe.of(make_config(TrainConfig, read), device, Path(folder), import_s)
        for name in plans or PLANS:
            recipe = trainings(name, given, config.test_data or "")
            found[name] = projected(recipe, probe, given, cores)
            print(f"{recipe.name}: projected {found[name] / 60:.1f} minutes", flush=True)
            spent = time.monotonic() - began
            if found[name] * _LARGER > left_s - spent or spent > _MEASURING * left_s:
                break
    return found


def chosen(minutes: float, seconds: Mapping[str, float], spent_s: float) -> str:
    """The largest plan that still fits. Raises BadInput where none does."""
    left = minutes * 60 - spent_s
    fitting = [name for name, needed in seconds.items() if needed * (1 + _MARGIN) <= left]
    if not fitting:
        least = min(seconds.values())
        needed = (least * (1 + _MARGIN) + spent_s) / 60
        raise BadInput(
            f"--minutes is {minutes:g}, expected at least {needed:.1f} for the least plan, "
            f"{PLANS[0]}, of these comments on this machine; give more minutes or fewer comments"
        )
    return fitting[-1]


def _ending(plan: str, projected_s: float, took_s: float, minutes: float) -> str:
    words = f"{plan}: projected {projected_s / 60:.1f} minutes, took {took_s / 60:.1f} of"
    over = took_s / (minutes * 60) - 1
    late = f", {100 * over:.0f} % too long: this machine became slower" if over > 0 else ""
    return f"{words} {minutes:g} with the measuring{late}"


def _age() -> float:
    """Seconds since this process began."""
    return time.time() - psutil.Process().create_time()


if __name__ == "__main__":
    run(main)
