"""Quality against speed: the teacher, its students and their cascades: `make ladder`.

    python -m experiments.ladder --teacher runs/model

A student is taken from `runs/ladder/<d_model>x<n_layers>` when it is there and distilled into it
otherwise. Every rung goes through the gates of `python -m export` in INT8. AUROC is the served
graph's on the run's own test split, on which nothing was trained, fitted or chosen; the speed is
one thread's on batches of the real length mix, the rungs in turns. Read ratios within one run.
A table, a Pareto plot and `ladder.json`; `--json` prints that, too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from pydantic import dataclasses as pydantic
from sklearn.metrics import roc_auc_score

from bench.report.result import RESULT, Bars, ResultOptions, at_most, begin, document, report
from bench.traffic.comments import default_source, load_pool
from console.options import make_config, run
from contract import BadInput, GateFailed
from export.__main__ import export
from export.cascade import worth_asking
from export.config import ExportConfig
from export.gates import parity, rates
from export.gates import run as gates
from export.scorer import Scorer
from train.artifacts import (
    CONFIG_FILE,
    METRICS_FILE,
    read_json,
    sha256_of,
    write_atomically,
)
from train.config import TrainConfig
from train.loop import train
from train.methods import distill

_STUDENT = ("epochs", "batch_size", "lr", "augment", "ngram_teacher")
_LOSS, _COST = 0.002, 0.25
"""The bar: some rung loses at most this much AUROC at this share of the teacher's cost."""


@pydantic.dataclass(frozen=True)
class LadderConfig(ResultOptions):
    """Flags of `python -m experiments.ladder`."""

    teacher: Path = Field(
        Path("runs/model"), description="finished run that teaches, and that the bar compares with"
    )
    more_teachers: tuple[Path, ...] = Field(
        (), description="finished runs of its split that teach with it"
    )
    students: tuple[str, ...] = Field(
        ("96x2", "64x2", "64x1", "48x1"), description="shapes, d_model x n_layers"
    )
    runs: Path = Field(Path("runs/ladder"), description="folder of the students and the exports")
    data: str | None = Field(None, description="where the training comments are now, if they moved")
    epochs: int = Field(2, ge=1, description="of a distillation")
    batch_size: int = Field(64, ge=1, description="of a distillation")
    lr: float = Field(1e-3, gt=0, description="of a distillation")
    augment: int = Field(0, ge=0, description="of a distillation")
    ngram_teacher: float = Field(
        distill.NGRAM_TEACHER, ge=0, description="of a distillation: what letters count"
    )
    comments: int = Field(960, ge=32, description="comments that time the rungs")
    out: Path = Field(
        Path("bench/out/ladder"),
        description="folder of the JSON and the plot",
        json_schema_extra=RESULT,
    )


@dataclass(frozen=True)
class LadderRung:
    """One artifact. `cost` is time a comment over the teacher's in the same run."""

    name: str
    validation_auroc: float
    test_auroc: float
    comments_per_s: float
    cost: float
    asked_share: float | None
    onnx_sha256: str
    gates: str
    """"hold", or the first that does not."""


def main() -> None:
    config = begin(LadderConfig, "experiments.ladder", "Quality against speed.")
    found = measure(config)
    plot(found, config.out / "ladder.png")
    report(config, found, table(found["rungs"]), also=("ladder.png",))


def measure(config: LadderConfig) -> dict[str, Any]:
    """The whole document. Raises BadInput for a shape that is none, or a damaged checkpoint."""
    students = {shape: distilled(config, shape) for shape in config.students}
    exports = {"teacher": _export_config(config, "teacher", config.teacher)}
    for shape, folder in students.items():
        exports[shape] = _export_config(config, shape, folder)
    for shape, folder in students.items():
        if not _needs_teacher(config, folder):
            print(f"--- {shape} alone is within {_LOSS} of the teacher: no cascade", flush=True)
            continue
        name = f"cascade {shape}"
        exports[name] = _export_config(config, name, config.teacher, student=folder)
    verdicts = {name: _gated(name, settings) for name, settings in exports.items()}

    pool = load_pool(default_source(), size=config.comments)
    subject = gates.load_subject(exports["teacher"])
    tokenizer, split = subject.checkpoint.tokenizer, subject.split
    ids = [parity.named(row, tokenizer.encode(text)) for row, text in enumerate(pool.texts)]
    paths = {name: settings.out / "int8.onnx" for name, settings in exports.items()}
    speed = rates.measure({name: parity.onnx_runner(path) for name, path in paths.items()}, ids)

    def auroc(path: Path, rows: np.ndarray) -> float:
        logits = Scorer(path, tokenizer).score([subject.texts[row] for row in rows]).logit
        return float(roc_auc_score(subject.labels[rows], logits))

    rungs = [
        LadderRung(
            name=name,
            validation_auroc=auroc(path, split.validation),
            test_auroc=auroc(path, split.test),
            comments_per_s=round(speed[name], 1),
            cost=speed["teacher"] / speed[name],
            asked_share=verdicts[name][1],
            onnx_sha256=sha256_of(path),
            gates=verdicts[name][0],
        )
        for name, path in paths.items()
    ]
    return document(
        "ladder",
        config,
        trained_on=subject.checkpoint.config["data"]["name"],
        timed_on=pool.to_json(),
        batch=rates.BATCH,
        threads=1,
        rungs=[asdict(rung) for rung in rungs],
        bars=bars(rungs),
    )


def distilled(config: LadderConfig, shape: str) -> Path:
    """Folder of the student of `shape`, trained now if it is not there. Raises BadInput."""
    teachers = (config.teacher, *config.more_teachers)
    d_model, _, n_layers = shape.partition("x")
    if not (d_model.isdecimal() and n_layers.isdecimal()):
        raise BadInput(f"--students has {shape!r}, expected shapes such as 96x2; name others")
    out = config.runs / shape
    if not out.is_dir():
        settings = {
            **distill.defaults_of(config.teacher),
            **{name: getattr(config, name) for name in _STUDENT},
            **{"d_model": int(d_model), "n_layers": int(n_layers), "device": "cpu"},
            **({"data": config.data} if config.data else {}),
        }
        settings |= {"distill": teachers, "out": out}
        train(make_config(TrainConfig, settings), torch.device("cpu"))
    remedy = "delete it, or give another folder with --runs"
    learned = read_json(out / CONFIG_FILE, remedy)["distillation"] or {}
    if learned.get("teacher_sha256") != distill.sha256_of_weights(teachers):
        raise BadInput(
            f"{out} has learned from other weights than those of "
            f"{', '.join(map(str, teachers))}; {remedy}"
        )
    return out


def _export_config(
    config: LadderConfig, name: str, checkpoint: Path, student: Path | None = None
) -> ExportConfig:
    """Each rung has its own repository: the one that serves is left alone."""
    out = config.runs / "exports" / name.replace(" ", "-")
    settings = {
        **{"checkpoint": checkpoint, "student": student, "auroc_loss": _LOSS, "data": config.data},
        **{"repository": out / "model_repository", "out": out, "device": "cpu"},
    }
    return make_config(ExportConfig, settings)


def _needs_teacher(config: LadderConfig, student: Path) -> bool:
    folders, remedy = (student, config.teacher), "run `make train`"
    metrics = [read_json(folder / METRICS_FILE, remedy)["validation"] for folder in folders]
    return worth_asking(metrics[0]["auroc"], metrics[1]["auroc"], _LOSS)


def _gated(name: str, settings: ExportConfig) -> tuple[str, float | None]:
    """Whether the gates hold, and the share of comments that a teacher is asked for."""
    print(f"--- {name}", flush=True)
    try:
        cascade = export(settings)["cascade"]
    except GateFailed as error:  # a rung may fail and still be worth its place in the table
        return str(error).split(",")[0], None
    return "hold", cascade and cascade["asked_share"]


def bars(rungs: Sequence[LadderRung]) -> Bars:
    """The cheapest rung that passes its gates within _LOSS of the teacher's test AUROC."""
    goal = next(rung.test_auroc for rung in rungs if rung.name == "teacher") - _LOSS
    value = min((r.cost for r in rungs if r.test_auroc >= goal and r.gates == "hold"), default=1.0)
    return {f"cost_within_{_LOSS}_auroc": at_most(value, _COST, 3)}


def table(rungs: Sequence[dict[str, Any]]) -> str:
    """For people; takes the document's rungs."""
    lines = [
        f"{'INT8 on one thread':<18} {'validation':>10} {'test AUROC':>10} {'comments/s':>10} "
        f"{'cost':>6} {'asked':>6}  gates"
    ]
    for rung in rungs:
        asked = "-" if rung["asked_share"] is None else f"{100 * rung['asked_share']:.1f} %"
        lines.append(
            f"{rung['name']:<18} {rung['validation_auroc']:>10.4f} {rung['test_auroc']:>10.4f} "
            f"{rung['comments_per_s']:>10.0f} {rung['cost']:>6.3f} {asked:>6}  {rung['gates']}"
        )
    return "\n".join(lines)


def plot(document: dict[str, Any], path: Path) -> None:
    """Write the Pareto plot of `measure`'s document as a PNG."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    rungs = document["rungs"]
    for rung in rungs:
        at = rung["comments_per_s"], rung["test_auroc"]
        axes.plot(*at, "s" if rung["name"].startswith("cascade") else "o")
        axes.annotate(rung["name"], at, xytext=(5, 5), textcoords="offset points", fontsize=8)
    best = [
        rung
        for rung in sorted(rungs, key=lambda rung: rung["comments_per_s"])
        if not any(_beats(other, rung) for other in rungs)
    ]
    xs, ys = ([rung[key] for rung in best] for key in ("comments_per_s", "test_auroc"))
    axes.plot(xs, ys, "-", alpha=0.4, zorder=0)
    axes.set(xscale="log", xlabel="comments/s on one thread, INT8", ylabel="AUROC, test split")
    axes.set_title(f"trained on {Path(document['trained_on']).name}", fontsize=9)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    keys = ("comments_per_s", "test_auroc")
    return all(a[k] >= b[k] for k in keys) and any(a[k] > b[k] for k in keys)


if __name__ == "__main__":
    run(main)
