"""How a classifier does on a source that it never saw: one training a source, that one held out.

    python -m experiments.leave_one_out --sources sources.yaml
    python -m experiments.leave_one_out --data wiki.csv.gz tweets.csv civil.parquet

Beside each, TF-IDF of words and character n-grams with logistic regression, fitted on the very
comments that the encoder was: the same split, without the near duplicates of the source that is
held out. A seed draws the split, the weights and the batches; of several the means count, with
Student's interval. A finished training is kept in `--runs` and read again; an interrupted one goes
on where it stopped. A table, and `leave_one_out.json`; `--json` prints that, too. The bars: on each
source the encoder ranks no worse than the regression, and in the mean of all better by 0.03.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as pydantic
from sklearn.metrics import roc_auc_score

from bench.report.result import RESULT, Bars, ResultOptions, at_least, begin, document, report
from bench.report.tables import aligned, with_interval
from console.options import make_config, run
from contract import BadInput
from quality.baseline import BASELINE, fit_baseline
from train.artifacts import CONFIG_FILE, METRICS_FILE, read_json
from train.config import SYNTHETIC, TrainConfig
from train.data.sources import CommentSource, Sources, given_sources, load_source
from train.data.split import comments_of_run
from train.loop import train
from train.operating.intervals import Estimate, mean


@pydantic.dataclass(frozen=True, kw_only=True)
class LeaveOneOutConfig(ResultOptions):
    """Flags of `python -m experiments.leave_one_out`."""

    sources: Path | None = Field(None, description="YAML file of the sources")
    data: tuple[str, ...] = Field((), description="files instead, each a source")
    only: tuple[str, ...] = Field(
        (), description="names of sources to hold out; left out: each in its turn"
    )
    d_model: int = Field(64, ge=1, description="width of every training")
    n_layers: int = Field(1, ge=1, description="encoder blocks of every training")
    n_heads: int = Field(4, ge=1, description="attention heads of every training")
    max_vocab: int = Field(30_000, ge=4, description="tokens kept of every training")
    max_len: int = Field(128, ge=2, description="longest comment in tokens of every training")
    batch_size: int = Field(64, ge=1, description="comments a step of every training")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of every training")
    epochs: int = Field(1, ge=1, description="epochs of every training")
    word_vectors: Path | None = Field(
        None, description="word vectors that every training starts from, as `toxicity train` has it"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of each source")
    runs: Path = Field(Path("runs/leave_one_out"), description="folder of the trainings")
    out: Path = Field(
        Path("bench/out/leave_one_out"), description="folder of the JSON", json_schema_extra=RESULT
    )


_MEAN_GAIN = 0.03
"""Least mean over the sources of what the encoder's AUROC is above the regression's."""


@dataclass(frozen=True)
class HeldOut:
    """One source, and two models that never saw it. AUROC are None where it has one class."""

    source: str
    seed: int
    comments: int
    toxic_share: float
    training_comments: int
    left_out: int
    """Training comments near to one of another part or of the source."""
    validation_auroc: float
    """Of the encoder, on the sources that it was trained on."""
    auroc: float | None
    baseline_auroc: float | None
    ece: float
    """Of the encoder on the source."""


@dataclass(frozen=True)
class SourceGain:
    """A source with all seeds; without AUROC where it has one class."""

    source: str
    comments: int
    toxic_share: float
    seeds: int
    validation_auroc: float
    auroc: Estimate | None
    baseline_auroc: Estimate | None
    gain: Estimate | None
    """Of the encoder over the regression with the same seed."""
    ece: float


def main() -> None:
    config = begin(
        LeaveOneOutConfig, "experiments.leave_one_out", "One training a source, that one held out."
    )
    found = measure(config)
    report(config, found, table(found["held_out"]))


def measure(config: LeaveOneOutConfig) -> dict[str, Any]:
    """The whole document. Raises BadInput for fewer than two sources, or a name that is none."""
    if bool(config.sources) == bool(config.data):
        given = "both are given" if config.data else "neither is given"
        raise BadInput(f"of --sources and --data {given}, expected one; see --help")
    columns: dict[str, Any] = {"text_column": None, "label_column": None, "label_map": ()}
    sources, where = given_sources(config.data or SYNTHETIC, config.sources, **columns)
    if len(sources) < 2:
        raise BadInput(f"{where or '--data'} has one source, expected at least two; add another")
    names = [source.name for source in sources]
    if unknown := sorted(set(config.only) - set(names)):
        raise BadInput(f"--only has {unknown[0]!r}, expected some of {', '.join(names)}; drop it")
    rows: list[HeldOut] = []
    for source in sources:
        if source.name in (config.only or names):
            rows += [_held_out(config, source, where, seed) for seed in config.seeds]
            print(table([asdict(one) for one in summary(rows)]), flush=True)
    return document(
        "leave_one_out",
        config,
        sources=_about(sources),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rows=[asdict(row) for row in rows],
        held_out=[asdict(one) for one in summary(rows)],
        bars=bars(summary(rows)),
    )


def summary(rows: Sequence[HeldOut]) -> list[SourceGain]:
    """Means of each source's trainings, in the order of `rows`."""
    found: dict[str, list[HeldOut]] = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    return [_source_gain(trained) for trained in found.values()]


def _source_gain(trained: Sequence[HeldOut]) -> SourceGain:
    first = trained[0]
    pairs = [
        (row.auroc, row.baseline_auroc)
        for row in trained
        if row.auroc is not None and row.baseline_auroc is not None
    ]
    return SourceGain(
        source=first.source,
        comments=first.comments,
        toxic_share=first.toxic_share,
        seeds=len(trained),
        validation_auroc=float(np.mean([row.validation_auroc for row in trained])),
        auroc=mean([own for own, _ in pairs]) if pairs else None,
        baseline_auroc=mean([regression for _, regression in pairs]) if pairs else None,
        gain=mean([own - regression for own, regression in pairs]) if pairs else None,
        ece=float(np.mean([row.ece for row in trained])),
    )


def bars(found: Sequence[SourceGain]) -> Bars:
    """By how much the encoder's AUROC on each source is above the regression's, and in the mean."""
    gains = {one.source: one.gain.value or 0.0 for one in found if one.gain is not None}
    over = f"auroc_over_{BASELINE}"
    in_mean = float(np.mean(list(gains.values()))) if gains else None
    return {
        **{f"{over}.{source}": at_least(gain, 0.0, 5) for source, gain in gains.items()},
        f"mean_{over}": at_least(in_mean, _MEAN_GAIN, 5),
    }


def _about(sources: Sources) -> list[dict[str, Any]]:
    """The entries, without a path of this machine."""
    return [{**source.to_json(), "path": Path(source.path).name} for source in sources]


def _held_out(config: LeaveOneOutConfig, source: CommentSource, where: str, seed: int) -> HeldOut:
    """The row of one source, trained without it now unless its run is finished."""
    out = config.runs / f"seed-{seed}" / source.name
    shared = {f.name for f in fields(LeaveOneOutConfig)} & {f.name for f in fields(TrainConfig)}
    base = {name: getattr(config, name) for name in shared - {"out", "data"}}
    data = {"data": config.data} if config.data else {}
    settings = make_config(
        TrainConfig,
        {**base, **data, "hold_out_source": source.name, "seed": seed, "out": out},
    )
    if not out.is_dir():
        print(f"--- without {source.name}, seed {seed}", flush=True)
        train(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _check_same(out, settings, where)
    metrics = read_json(out / METRICS_FILE, f"delete {out}")
    held = load_source(source, where)
    comments, split = comments_of_run(out)
    print(f"fitting {BASELINE} on {len(split.train):,} comments ...", flush=True)
    texts = [comments.texts[row] for row in split.train]
    model = fit_baseline(BASELINE, texts, comments.labels[split.train])
    both = len(np.unique(held.labels)) == 2
    scores = model.decision_function(held.texts)
    own = metrics["held_out_source"]
    return HeldOut(
        source=source.name,
        seed=seed,
        comments=len(held.texts),
        toxic_share=float(held.labels.mean()),
        training_comments=len(split.train),
        left_out=len(split.left_out),
        validation_auroc=metrics["validation"]["auroc"],
        auroc=own["auroc"],
        baseline_auroc=float(roc_auc_score(held.labels, scores)) if both else None,
        ece=own["ece"],
    )


def _check_same(out: Path, settings: TrainConfig, where: str) -> None:
    """Raise BadInput for a finished run of other settings, or of other sources of that name."""
    remedy = f"delete {out}"
    recorded = read_json(out / CONFIG_FILE, remedy)
    wanted = json.loads(json.dumps(settings.to_json()))
    found = recorded["train"]
    for key in sorted(wanted.keys() & found.keys() - {"out"}):
        if found[key] != wanted[key]:
            raise BadInput(f"{out} has {key} {found[key]}, expected {wanted[key]}; {remedy}")
    columns: dict[str, Any] = {"text_column": None, "label_column": None, "label_map": ()}
    sources, _ = given_sources(settings.data, settings.sources, **columns)
    rest = [source.to_json() for source in sources if source.name != settings.hold_out_source]
    free = "share"  # of the others it is of what is left
    if [{**s, free: None} for s in rest] != [{**s, free: None} for s in recorded["sources"]]:
        raise BadInput(
            f"{out} is of other sources than {where or '--data'}, expected the same; {remedy}"
        )


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """For people; takes the document's `held_out`."""
    lines = [["held out", "comments", "toxic", "seeds", "validation", "AUROC", BASELINE]]
    lines[0] += ["gained", "ECE"]
    for one in found:
        lines.append(
            [
                *(one["source"], f"{one['comments']:,}", f"{one['toxic_share']:.1%}"),
                *(str(one["seeds"]), f"{one['validation_auroc']:.4f}"),
                *(
                    with_interval(one[name]) if one[name] else "-"
                    for name in ("auroc", "baseline_auroc", "gain")
                ),
                f"{one['ece']:.4f}",
            ]
        )
    return aligned(lines)


if __name__ == "__main__":
    run(main)
