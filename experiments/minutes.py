"""Quality against time: what each plan of `toxicity train --minutes` gives: `make minutes`.

    python -m experiments.minutes --data train.csv.gz --test-data test.csv.gz

Every plan (recipes/plans.py, or a recipe's file with a stage `student`) is projected and trained
into `--runs`, what is finished there is read again, and its student judged on the run's own
validation and test split, on which nothing was trained or chosen, and on `--test-data`. A plan's
minutes are those of its stages, side by side as the recipes run them. One seed a plan, so that
differences of about 0.001 are noise. A table, a plot and `minutes.json`; `--json` prints that, too.
"""

from __future__ import annotations

import io
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
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
from bench.report.tables import aligned
from console.options import make_config, run
from recipes.budget import given_of, projections, run_plan
from recipes.plans import PLANS, STUDENT, span, trainings
from train.artifacts import CONFIG_FILE, METRICS_FILE, read_json, sha256_of, write_atomically
from train.artifacts import WEIGHTS_FILE as WEIGHTS
from train.config import TrainConfig

_LATE = 1.15
"""The bar: no plan takes more than so many times its projection, on an otherwise idle machine."""
_SETS = {"validation": "o-", "test": "s-", "test_file": "^-"}
"""What a student is judged on, and how that is drawn."""


@pydantic.dataclass(frozen=True)
class MinutesConfig(ResultOptions):
    """Flags of `python -m experiments.minutes`."""

    data: str = Field("synthetic", description="labelled comments to train on")
    test_data: str = Field("", description="a second labelled file: evaluated only")
    plans: tuple[str, ...] = Field(PLANS, description="plans to train, or files of recipes")
    runs: Path = Field(Path("runs/minutes"), description="folder of the trainings")
    cores: int = Field(os.cpu_count() or 1, ge=1, le=1024, description="cores to use")
    out: Path = Field(
        Path("bench/out/minutes"),
        description="folder of the JSON and the plot",
        json_schema_extra=RESULT,
    )


@dataclass(frozen=True)
class PlanPoint:
    """One plan; AUROC of its student by set of comments."""

    plan: str
    projected_minutes: float
    minutes: float
    auroc: dict[str, float]
    weights_sha256: str


def main() -> None:
    import_s = time.process_time()
    config = begin(MinutesConfig, "experiments.minutes", "Quality against minutes.")
    found = measure(config, import_s)
    plot(found, config.out / "minutes.png")
    report(config, found, table(found["points"]), also=("minutes.png",))


def measure(config: MinutesConfig, import_s: float) -> dict[str, Any]:
    """The whole document; a command takes `import_s` seconds to begin. Raises BadInput."""
    given = {"data": config.data, **({"test_data": config.test_data} if config.test_data else {})}
    training = make_config(TrainConfig, given)
    needed = (training, config.runs, config.cores, import_s, float("inf"))
    seconds = projections(*needed, plans=config.plans)
    points = []
    for plan, projected in seconds.items():
        folder = config.runs / Path(plan).stem
        own = make_config(TrainConfig, {**given, "out": folder / STUDENT})
        outcomes = run_plan(plan, own, folder, config.cores)
        took = {one.stage: one.seconds for one in outcomes}
        stages = trainings(plan, given_of(own), config.test_data).stages
        metrics = read_json(own.out / METRICS_FILE, "delete it")
        points.append(
            PlanPoint(
                plan=Path(plan).stem,
                projected_minutes=round(projected / 60, 2),
                minutes=round(span(stages, took, config.cores) / 60, 2),
                auroc={name: metrics[name]["auroc"] for name in _SETS if name in metrics},
                weights_sha256=sha256_of(own.out / WEIGHTS),
            )
        )
    return document(
        "minutes",
        config,
        trained_on=read_json(own.out / CONFIG_FILE, "delete it")["data"]["name"],
        points=[asdict(point) for point in points],
        bars=bars(points),
    )


def bars(points: Sequence[PlanPoint]) -> Bars:
    """Projections hold, and more minutes never give less on the test split."""
    late = max(point.minutes / max(point.projected_minutes, 0.01) for point in points)
    tests = [point.auroc["test"] for point in sorted(points, key=lambda point: point.minutes)]
    gain = min((b - a for a, b in itertools.pairwise(tests)), default=None)
    return {
        "taken_over_projected": at_most(late, _LATE, 3),
        "least_gain_of_a_larger_plan": at_least(gain, 0.0),
    }


def table(points: Sequence[dict[str, Any]]) -> str:
    """For people; takes the document's points."""
    sets = [name for name in _SETS if all(name in point["auroc"] for point in points)]
    lines = [["plan", "projected minutes", "minutes", *(f"AUROC {name}" for name in sets)]]
    for point in points:
        times = [f"{point[name]:.1f}" for name in ("projected_minutes", "minutes")]
        lines.append([point["plan"], *times, *(f"{point['auroc'][name]:.4f}" for name in sets)])
    return aligned(lines)


def plot(document: dict[str, Any], path: Path) -> None:
    """Write AUROC against minutes of `measure`'s document as a PNG."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    points = sorted(document["points"], key=lambda point: point["minutes"])
    for name, style in _SETS.items():
        drawn = [(point["minutes"], point["auroc"].get(name)) for point in points]
        if drawn := [at for at in drawn if at[1] is not None]:
            axes.plot(*zip(*drawn, strict=True), style, label=name.replace("_", " "))
    for point in points:
        at = point["minutes"], point["auroc"]["test"]
        axes.annotate(point["plan"], at, xytext=(5, -10), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="minutes of training on this machine", ylabel="AUROC")
    axes.set_title(f"trained on {Path(document['trained_on']).name}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    run(main)
