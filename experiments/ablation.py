"""What lifts AUROC: one training a change from the default, side by side: `make ablation`.

    python -m experiments.ablation --data train.csv.gz --test-data test.csv.gz
    --out-of-domain other.csv --harmless harmless.csv --seeds 0 1 2

A row is the default with one change; the last one, `combination`, has every change that alone
beat the default on validation, with several seeds beyond chance, the better one where two set the
same flag; where one row alone did, there is none. Rows are chosen by validation AUROC only; the
test file, the files from elsewhere and the false-positive rates of harmless comments with and
without an identity are reported. A seed draws the split, the weights and the batches; gains are
of the same seed, with Student's interval of their mean. With one seed there is no interval, and
differences of about 0.001 are noise. A finished training is kept in `--runs` and read again; an
interrupted one goes on where it stopped. A table, and `ablation.json`; `--json` prints that, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as pydantic
from sklearn.metrics import roc_auc_score

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
from console.options import make_config, run
from contract import DECISION_THRESHOLD, BadInput
from quality.curated import GROUP, load_curated
from train.artifacts import CONFIG_FILE, METRICS_FILE, load_teacher, read_json
from train.config import TrainConfig
from train.data.batches import TokenizedOnTheFly
from train.data.load import Comments, load_comments
from train.loop import train
from train.operating.intervals import Estimate, mean
from train.validation import logits_of, probability_of

Changes = Mapping[str, Any]
"""TrainConfig fields by name."""

ROWS: dict[str, Changes] = {
    "default": {},
    "random": {"embeddings": "random"},
    "cooccurrence": {"embeddings": "cooccurrence"},
    "balance-1": {"identity_balance": 1.0},
    "balance-2": {"identity_balance": 2.0},
    "insertion": {"identity_balance": 1.5, "identity_insertion": 0.05},
    "epochs-2": {"epochs": 2},
    "lr-5e-4": {"lr": 5e-4},
    "pretrain-1": {"pretrain_epochs": 1},
    "phrases": {"phrases": 2000},
    "batch-256": {"batch_size": 256, "lr": 2e-3},
    "dropout-0.2": {"dropout": 0.2},
    "vocab-100k": {"max_vocab": 100_000},
    "no-respell": {"respell": False},
    "layers-2": {"n_layers": 2},
    "layers-4": {"n_layers": 4},
    "word-vectors": {"word_vectors": "FILE"},
    "recurrent": {"architecture": "recurrent", "dropout": 0.2},
    "recurrent-vectors": {"architecture": "recurrent", "dropout": 0.2, "word_vectors": "FILE"},
}
"""The learning rate of the larger batch grows with the root of its size, as suits AdamW. FILE
stands for --word-vectors; without it there is no such row."""
COMBINATION = "combination"
_TEST_BAR, _OUT_OF_DOMAIN_BAR, _FPR_RATIO_BAR = 0.980, 0.873, 3.0


@pydantic.dataclass(frozen=True, kw_only=True)
class AblationConfig(ResultOptions):
    """Flags of `python -m experiments.ablation`."""

    data: str = Field(description="labelled comments to train on")
    test_data: str = Field(description="labelled comments, reported")
    out_of_domain: tuple[str, ...] = Field(
        description="files of labelled comments from elsewhere, reported"
    )
    harmless: str = Field(
        description="harmless comments in two groups, of which the first mentions an identity"
    )
    rows: tuple[str, ...] = Field(
        (*ROWS, COMBINATION), description="rows to train; the default always is"
    )
    word_vectors: Path | None = Field(
        None, description="word vectors for the rows that start from them, which are left out else"
    )
    d_model: int = Field(64, ge=1, description="width of every row")
    n_layers: int = Field(1, ge=1, description="encoder blocks of every row")
    max_len: int = Field(128, ge=2, description="longest comment in tokens of every row")
    batch_size: int = Field(64, ge=1, description="of the default row")
    lr: float = Field(1e-3, gt=0, description="of the default row")
    epochs: int = Field(1, ge=1, description="of the default row")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of every row")
    runs: Path = Field(Path("runs/ablation"), description="folder of the trained rows")
    out: Path = Field(
        Path("bench/out/ablation"), description="folder of the JSON", json_schema_extra=RESULT
    )


@dataclass(frozen=True)
class Row:
    """One training. AUROC on each set, false-positive rates of the two harmless groups at 0.5;
    `seconds` and speed are of its steps, pre-training too.
    """

    name: str
    changes: dict[str, Any]
    validation_auroc: float
    test_auroc: float
    out_of_domain_auroc: dict[str, float]
    """By file."""
    fpr_identity: float
    fpr_random: float
    seconds: float
    real_tokens_per_second: float
    matmul_peak_share: float
    seed: int = 0

    @property
    def elsewhere(self) -> float:
        """Mean AUROC of the files from elsewhere."""
        return float(np.mean(list(self.out_of_domain_auroc.values())))


@dataclass(frozen=True)
class AblationChange:
    """A row's trainings with all seeds; gains are over the default with the same seed."""

    name: str
    changes: dict[str, Any]
    seeds: int
    validation: float
    test: float
    elsewhere: float
    fpr_identity: float
    fpr_random: float
    seconds: float
    gain_validation: Estimate
    gain_test: Estimate
    gain_elsewhere: Estimate

    @property
    def gains(self) -> bool:
        """On validation, beyond chance where there are several seeds; of what can be served."""
        if "architecture" in self.changes:  # it only teaches
            return False
        gain = self.gain_validation
        return (gain.value if gain.low is None else gain.low) > 0  # type: ignore[operator]


def main() -> None:
    config = begin(AblationConfig, "experiments.ablation", "What lifts AUROC.")
    found = measure(config)
    report(config, found, table(found["changes"]))


def measure(config: AblationConfig) -> dict[str, Any]:
    """The whole document. Raises BadInput for a row that is none, or a file that is missing."""
    unknown = sorted(set(config.rows) - {*ROWS, COMBINATION})
    if unknown:
        raise BadInput(f"--rows has {unknown[0]!r}, expected some of {', '.join(ROWS)}; drop it")
    elsewhere = {Path(path).name: load_comments(path) for path in config.out_of_domain}
    harmless = next(iter(load_curated([config.harmless]).values()))
    groups = sorted(set(harmless.extra[GROUP]))
    if harmless.labels.any() or len(groups) != 2:
        raise BadInput(
            f"--harmless {config.harmless} has {int(harmless.labels.sum())} toxic comments in "
            f"{len(groups)} groups, expected none in two; name another file"
        )
    there = {n: c for n, c in ROWS.items() if config.word_vectors or "word_vectors" not in c}
    names = [name for name in there if name == "default" or name in config.rows]
    rows: list[Row] = []

    def add(name: str, changes: Changes) -> None:
        rows.extend(
            _trained(config, name, changes, seed, elsewhere, harmless) for seed in config.seeds
        )
        print(table([asdict(change) for change in changes_of(rows)]), flush=True)

    for name in names:
        add(name, there[name])
    changes = combined(changes_of(rows))
    # Of one row alone it would be that row again.
    if COMBINATION in config.rows and all(changes != row.changes for row in rows):
        add(COMBINATION, changes)
    found = changes_of(rows)
    return document(
        "ablation",
        config,
        out_of_domain=[comments.source for comments in elsewhere.values()],
        harmless=harmless.source,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rows=[vars(row) for row in rows],
        changes=[asdict(change) for change in found],
        best_by_validation=best(found).name,
        bars=bars(found),
    )


def changes_of(rows: Sequence[Row]) -> list[AblationChange]:
    """Means of each row's trainings, the default first, and what they gain over it."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.seed] = row
    return [_change(trained, found["default"]) for trained in found.values()]


def _change(trained: Mapping[int, Row], default: Mapping[int, Row]) -> AblationChange:
    """Of one row's trainings and the default's, by seed."""
    rows = list(trained.values())

    def of(value: Callable[[Row], float]) -> float:
        return float(np.mean([value(row) for row in rows]))

    def gain(value: Callable[[Row], float]) -> Estimate:
        return mean([value(row) - value(default[row.seed]) for row in rows])

    validation, test, elsewhere = (
        attrgetter(name) for name in ("validation_auroc", "test_auroc", "elsewhere")
    )
    return AblationChange(
        name=rows[0].name,
        changes=rows[0].changes,
        seeds=len(rows),
        validation=of(validation),
        test=of(test),
        elsewhere=of(elsewhere),
        fpr_identity=of(attrgetter("fpr_identity")),
        fpr_random=of(attrgetter("fpr_random")),
        seconds=of(attrgetter("seconds")),
        gain_validation=gain(validation),
        gain_test=gain(test),
        gain_elsewhere=gain(elsewhere),
    )


def combined(changes: Sequence[AblationChange]) -> dict[str, Any]:
    """Flags of every change that gains on validation; of two that set one, the better wins."""
    better = [change for change in changes[1:] if change.gains]
    flags: dict[str, Any] = {}
    for change in sorted(better, key=lambda change: change.validation):
        flags |= change.changes
    return flags


def best(changes: Sequence[AblationChange]) -> AblationChange:
    """What validation chooses: the default unless a change gains."""
    return max(
        [changes[0], *(change for change in changes[1:] if change.gains)],
        key=lambda change: change.validation,
    )


def bars(changes: Sequence[AblationChange]) -> Bars:
    """The change that validation chose, on what did not choose it.

    `fpr_ratio` has no value where no random comment is flagged; it holds if no other is either.
    """
    chosen = best(changes)
    ratio = chosen.fpr_identity / chosen.fpr_random if chosen.fpr_random else None
    few = chosen.fpr_identity <= _FPR_RATIO_BAR * chosen.fpr_random
    return {
        "test_auroc": at_least(chosen.test, _TEST_BAR, 5),
        "out_of_domain_auroc": at_least(chosen.elsewhere, _OUT_OF_DOMAIN_BAR, 5),
        "fpr_ratio": {**at_most(ratio, _FPR_RATIO_BAR, 5), "holds": few},
    }


def _settings(config: AblationConfig, changes: Changes) -> dict[str, Any]:
    shared = {field.name for field in fields(AblationConfig)} & {
        f.name for f in fields(TrainConfig)
    }
    base = {name: getattr(config, name) for name in sorted(shared - {"out"})}
    vectors = config.word_vectors if "word_vectors" in changes else None
    return {**base, **changes, "word_vectors": vectors}


def _trained(
    config: AblationConfig,
    name: str,
    changes: Changes,
    seed: int,
    elsewhere: Mapping[str, Comments],
    harmless: Comments,
) -> Row:
    """Row `name` with this seed, trained now unless its run is finished."""
    out = config.runs / f"seed-{seed}" / name
    settings = make_config(TrainConfig, {**_settings(config, changes), "seed": seed, "out": out})
    if not out.is_dir():
        print(f"--- {name}, seed {seed}", flush=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        train(settings, torch.device(device))
    remedy = f"delete {out}"
    wanted = json.loads(json.dumps(settings.to_json()))
    found = read_json(out / CONFIG_FILE, remedy)["train"]
    # A run may be older than a flag, which then did nothing.
    for key in sorted(wanted.keys() & found.keys() - {"out"}):
        if found[key] != wanted[key]:
            raise BadInput(f"{out} has {key} {found[key]}, expected {wanted[key]}; {remedy}")
    metrics = read_json(out / METRICS_FILE, remedy)
    before = metrics["pretraining"]
    checkpoint = load_teacher(out)

    def scored(comments: Comments) -> np.ndarray:
        ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
        return logits_of(checkpoint.model, ids, np.arange(len(ids)))

    decided, groups = probability_of(scored(harmless)) >= DECISION_THRESHOLD, harmless.extra[GROUP]
    identity, random = (float(decided[groups == g].mean()) for g in dict.fromkeys(groups))
    return Row(
        name=name,
        changes=dict(changes),
        validation_auroc=metrics["validation"]["auroc"],
        test_auroc=metrics["test_file"]["auroc"],
        out_of_domain_auroc={
            name: float(roc_auc_score(comments.labels, scored(comments)))
            for name, comments in elsewhere.items()
        },
        fpr_identity=identity,
        fpr_random=random,
        seconds=metrics["training_seconds"] + (before["seconds"] if before else 0.0),
        real_tokens_per_second=metrics["real_tokens_per_second"],
        matmul_peak_share=metrics["matmul_peak_share"],
        seed=seed,
    )


def table(changes: Sequence[Mapping[str, Any]]) -> str:
    """For people; takes the document's changes."""
    heads = ["change", "seeds", "validation", "test", "elsewhere", "gained on validation"]
    lines = [[*heads, "elsewhere", "FPR identity, random", "seconds"]]
    for change in changes:
        lines.append(
            [
                *(change["name"], str(change["seeds"])),
                *(f"{change[name]:.4f}" for name in ("validation", "test", "elsewhere")),
                *(
                    with_interval(change[f"gain_{name}"], signed=True)
                    for name in ("validation", "elsewhere")
                ),
                f"{change['fpr_identity']:.3f}, {change['fpr_random']:.3f}",
                f"{change['seconds']:.0f}",
            ]
        )
    return aligned(lines)


if __name__ == "__main__":
    run(main)
