"""What lifts AUROC: one training a change from the default, side by side: `make ablation`.

    python -m experiments.ablation --data train.csv.gz --test-data test.csv.gz
    --out-of-domain other.csv --harmless harmless.csv

A row is the default with one change; the last one, `combination`, has every change that alone
beat the default on validation, the better one where two set the same flag; where one row alone
did, there is none. Rows are chosen by validation AUROC only; the test file, the out-of-domain file
and the false-positive rates of harmless comments with and without an identity are reported. A
finished row is kept in `--runs` and read again; an interrupted one goes on where it stopped. One
seed a row, so that differences of about 0.001 are noise. A table, and
`ablation.json`; `--json` prints that, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
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
from console.options import make_config, run
from contract import DECISION_THRESHOLD, BadInput
from quality.curated import GROUP, load_curated
from train.artifacts import CONFIG_FILE, METRICS_FILE, load_checkpoint, read_json
from train.config import TrainConfig
from train.data.batches import TokenizedOnTheFly
from train.data.load import Comments, load_comments
from train.loop import train
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
}
"""The learning rate of the larger batch grows with the root of its size, as suits AdamW."""
COMBINATION = "combination"
_TEST_BAR, _OUT_OF_DOMAIN_BAR, _FPR_RATIO_BAR = 0.980, 0.873, 3.0


@pydantic.dataclass(frozen=True, kw_only=True)
class AblationConfig(ResultOptions):
    """Flags of `python -m experiments.ablation`."""

    data: str = Field(description="labelled comments to train on")
    test_data: str = Field(description="labelled comments, reported")
    out_of_domain: str = Field(description="labelled comments from elsewhere, reported")
    harmless: str = Field(
        description="harmless comments in two groups, of which the first mentions an identity"
    )
    rows: tuple[str, ...] = Field(
        (*ROWS, COMBINATION), description="rows to train; the default always is"
    )
    d_model: int = Field(96, ge=1, description="width of every row")
    n_layers: int = Field(2, ge=1, description="encoder blocks of every row")
    max_len: int = Field(128, ge=2, description="longest comment in tokens of every row")
    batch_size: int = Field(64, ge=1, description="of the default row")
    lr: float = Field(1e-3, gt=0, description="of the default row")
    epochs: int = Field(1, ge=1, description="of the default row")
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
    out_of_domain_auroc: float
    fpr_identity: float
    fpr_random: float
    seconds: float
    real_tokens_per_second: float
    matmul_peak_share: float


def main() -> None:
    config = begin(AblationConfig, "experiments.ablation", "What lifts AUROC.")
    found = measure(config)
    report(config, found, table(found["rows"]))


def measure(config: AblationConfig) -> dict[str, Any]:
    """The whole document. Raises BadInput for a row that is none, or a file that is missing."""
    unknown = sorted(set(config.rows) - {*ROWS, COMBINATION})
    if unknown:
        raise BadInput(f"--rows has {unknown[0]!r}, expected some of {', '.join(ROWS)}; drop it")
    elsewhere = load_comments(config.out_of_domain)
    harmless = next(iter(load_curated([config.harmless]).values()))
    groups = sorted(set(harmless.extra[GROUP]))
    if harmless.labels.any() or len(groups) != 2:
        raise BadInput(
            f"--harmless {config.harmless} has {int(harmless.labels.sum())} toxic comments in "
            f"{len(groups)} groups, expected none in two; name another file"
        )
    names = [name for name in ROWS if name == "default" or name in config.rows]
    rows = []
    for name in names:
        rows.append(_trained(config, name, ROWS[name], elsewhere, harmless))
        print(table([vars(row) for row in rows]), flush=True)
    changes = combined(rows)
    # Of one row alone it would be that row again.
    if COMBINATION in config.rows and all(changes != row.changes for row in rows):
        rows.append(_trained(config, COMBINATION, changes, elsewhere, harmless))
    return document(
        "ablation",
        config,
        out_of_domain=elsewhere.source,
        harmless=harmless.source,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rows=[vars(row) for row in rows],
        best_by_validation=best(rows).name,
        bars=bars(rows),
    )


def combined(rows: Sequence[Row]) -> dict[str, Any]:
    """Changes of every row that beat the first on validation; a better row wins a flag."""
    better = [row for row in rows[1:] if row.validation_auroc > rows[0].validation_auroc]
    changes: dict[str, Any] = {}
    for row in sorted(better, key=lambda row: row.validation_auroc):
        changes |= row.changes
    return changes


def best(rows: Sequence[Row]) -> Row:
    """The row that validation chooses."""
    return max(rows, key=lambda row: row.validation_auroc)


def bars(rows: Sequence[Row]) -> Bars:
    """The row that validation chose, on what did not choose it.

    `fpr_ratio` has no value where no random comment is flagged; it holds if no other is either.
    """
    chosen = best(rows)
    ratio = chosen.fpr_identity / chosen.fpr_random if chosen.fpr_random else None
    few = chosen.fpr_identity <= _FPR_RATIO_BAR * chosen.fpr_random
    return {
        "test_auroc": at_least(chosen.test_auroc, _TEST_BAR, 5),
        "out_of_domain_auroc": at_least(chosen.out_of_domain_auroc, _OUT_OF_DOMAIN_BAR, 5),
        "fpr_ratio": {**at_most(ratio, _FPR_RATIO_BAR, 5), "holds": few},
    }


def _settings(config: AblationConfig, changes: Changes) -> dict[str, Any]:
    shared = {field.name for field in fields(AblationConfig)} & {
        f.name for f in fields(TrainConfig)
    }
    base = {name: getattr(config, name) for name in sorted(shared - {"out"})}
    return {**base, **changes}


def _trained(
    config: AblationConfig,
    name: str,
    changes: Changes,
    elsewhere: Comments,
    harmless: Comments,
) -> Row:
    """Row `name`, trained now unless its run is finished."""
    out = config.runs / name
    settings = make_config(TrainConfig, {**_settings(config, changes), "out": out})
    if not out.is_dir():
        print(f"--- {name}", flush=True)
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
    checkpoint = load_checkpoint(out)

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
        out_of_domain_auroc=float(roc_auc_score(elsewhere.labels, scored(elsewhere))),
        fpr_identity=identity,
        fpr_random=random,
        seconds=metrics["training_seconds"] + (before["seconds"] if before else 0.0),
        real_tokens_per_second=metrics["real_tokens_per_second"],
        matmul_peak_share=metrics["matmul_peak_share"],
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For people; takes the document's rows."""
    lines = [
        f"{'change':<20} {'validation':>10} {'test':>8} {'elsewhere':>9} "
        f"{'FPR identity, random':>20} {'seconds':>8} "
        f"{'tokens/s':>9} {'of peak':>7}"
    ]
    for row in rows:
        lines.append(
            f"{row['name']:<20} {row['validation_auroc']:>10.4f} {row['test_auroc']:>8.4f} "
            f"{row['out_of_domain_auroc']:>9.4f} {row['fpr_identity']:>12.3f}, "
            f"{row['fpr_random']:.3f} {row['seconds']:>8.0f} "
            f"{row['real_tokens_per_second']:>9,.0f} {row['matmul_peak_share']:>7.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
