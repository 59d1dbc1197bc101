"""What windows over long comments gain in quality: cut, max and mean of one checkpoint.

    python -m experiments.long_text --checkpoint runs/model --data test.csv.gz

AUROC of the PyTorch model on a labelled file, by the rule that the server follows for comments
beyond the checkpoint's max_len (`export.scorer.LongText`): on those comments alone, and on all.
The gain over cut stands with its 95 % interval by a paired bootstrap over the comments. Prints a
table and writes `long_text.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.metrics import roc_auc_score

from bench.report.result import ResultOptions, at_least, begin, report
from bench.report.result import document as result_document
from console.options import JSON_HELP, make_config, run
from contract import BadInput
from export.config import ExportConfig
from export.gates.parity import reference_logits, windows_of
from export.scorer import LongTextRule
from train.artifacts import WEIGHTS_FILE, load_checkpoint, sha256_of
from train.data.load import load_comments
from train.validation import classification_metrics

_RULES: tuple[LongTextRule, ...] = ("cut", "max", "mean")
_RESAMPLES = 1000


@dataclass(frozen=True)
class LongTextBenchConfig(ResultOptions):
    """Flags of `python -m experiments.long_text`."""

    data: str | None = Field(
        None, description="a labelled file that the checkpoint was not trained on"
    )
    text_column: str | None = Field(None, description="column of the comment; as in training")
    label_column: str | None = Field(None, description="column of the label; as in training")
    label_map: tuple[str, ...] = Field((), description="what other labels mean; as in training")
    checkpoint: Path = Field(Path("runs/model"), description="folder that `make train` wrote")
    stride: int | None = Field(None, ge=1, description="of the windows, as `python -m export` has")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    out: Path = Field(Path("bench/out"), description="folder of long_text.json")
    json: bool = Field(False, description=JSON_HELP)
    check: bool = Field(False, description="exit with status 1 when a bar is missed")


def main() -> None:
    config = begin(
        LongTextBenchConfig, "experiments.long_text", "Quality of windows over long comments."
    )
    document = bench(config)
    report(config, document, _table(document))


def bench(config: LongTextBenchConfig) -> dict[str, Any]:
    """Score the file by every rule; the JSON document."""
    if config.data is None:
        raise BadInput("--data is missing, expected a labelled file; give --data test.csv.gz, say")
    checkpoint = load_checkpoint(config.checkpoint)
    settings, tokenizer = checkpoint.config["train"], checkpoint.tokenizer
    comments = load_comments(
        config.data,
        text_column=config.text_column or settings["text_column"],
        label_column=config.label_column or settings["label_column"],
        label_map=config.label_map or settings.get("label_map", ()),
    )
    print(comments.summary(), flush=True)
    long = np.array([tokenizer.encode_and_cut(text)[1] for text in comments.texts])
    if len(set(comments.labels[long])) < 2:
        raise BadInput(
            f"{config.data} has {long.sum()} comments beyond max_len, {tokenizer.max_len}, "
            "expected some of each label; give another --data"
        )
    long_texts = [text for text, is_long in zip(comments.texts, long, strict=True) if is_long]
    logits: dict[str, np.ndarray] = {}
    windows: dict[str, int] = {}
    for name in _RULES:
        stride = None if name == "cut" else config.stride
        chosen = make_config(ExportConfig, {"long_text": name, "stride": stride})
        rule = chosen.long_text_for(tokenizer.max_len)
        if name == "cut":
            logits[name] = reference_logits(checkpoint.model, comments.texts, tokenizer, rule)
        else:  # short comments have the same logits by every rule
            logits[name] = logits["cut"].copy()
            logits[name][long] = reference_logits(checkpoint.model, long_texts, tokenizer, rule)
        windows[name] = sum(windows_of(long_texts, tokenizer, rule)[1])
    labels = comments.labels
    results: dict[str, Any] = {
        name: {
            "windows_of_long_comments": windows[name],
            "long": classification_metrics(labels[long], logits[name][long]),
            "all": classification_metrics(labels, logits[name]),
            "gain_on_long": _gain(labels[long], logits["cut"][long], logits[name][long], config),
        }
        for name in _RULES
    }
    return result_document(
        "long_text",
        config,
        data=comments.source,
        checkpoint_sha256=sha256_of(config.checkpoint / WEIGHTS_FILE),
        max_len=tokenizer.max_len,
        comments=len(comments.texts),
        long_comments=int(long.sum()),
        results=results,
        bars={
            f"{name}_auroc_gain_on_long_comments": at_least(
                results[name]["gain_on_long"]["auroc"], 0.0, digits=6
            )
            for name in ("max", "mean")
        },
    )


def _gain(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, config: LongTextBenchConfig
) -> dict[str, Any]:
    """AUROC gained, and its 95 % interval; all arrays are of the same comments, [n]."""
    rng = np.random.default_rng(config.seed)
    gains: list[float] = []
    while len(gains) < _RESAMPLES:
        rows = rng.integers(0, len(labels), len(labels))
        if 0 < labels[rows].sum() < len(rows):
            new, old = (roc_auc_score(labels[rows], x[rows]) for x in (after, before))
            gains.append(new - old)
    low, high = np.percentile(gains, [2.5, 97.5])
    gain = roc_auc_score(labels, after) - roc_auc_score(labels, before)
    # Percentiles of few resamples need not hold the estimate; an interval does.
    low, high = min(low, gain), max(high, gain)
    return {"auroc": float(gain), "low": float(low), "high": float(high)}


def _table(document: Mapping[str, Any]) -> str:
    cut = document["results"]["cut"]["long"]
    lines = [
        f"{document['long_comments']:,} of {document['comments']:,} comments are longer than "
        f"{document['max_len']} tokens, {cut['toxic_share']:.1%} of them toxic",
        f"{'':<6}{'windows':>9}{'AUROC long':>12}{'F1 long':>9}{'AUROC all':>11}{'F1 all':>8}"
        f"{'gain of AUROC on long, 95 %':>34}",
    ]
    for name, result in document["results"].items():
        gain = result["gain_on_long"]
        lines.append(
            f"{name:<6}{result['windows_of_long_comments']:>9,}{result['long']['auroc']:>12.4f}"
            f"{result['long']['f1']:>9.3f}{result['all']['auroc']:>11.4f}"
            f"{result['all']['f1']:>8.3f}"
            f"{gain['auroc']:>14.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
