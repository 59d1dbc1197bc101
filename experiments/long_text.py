"""What windows over long comments gain in quality: cut, max and mean of one checkpoint.

    python -m experiments.long_text --checkpoint runs/model --data test.csv.gz

AUROC of the PyTorch model on a labelled file, by the rule that the server follows for comments
beyond the checkpoint's max_len (`export.scorer.LongText`): on those comments alone, and on all.
The gain over cut stands with its 95 % interval by a paired bootstrap over the comments. Prints a
table and writes `long_text.json`. A missed bar is named, and an error with `--check` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.metrics import roc_auc_score

from console.options import make_config, parse_config, run
from contract import BadInput, ToxicityError
from export.config import ExportConfig
from export.gates.parity import reference_logits, windows_of
from export.scorer import LongTextRule
from storage.files import write_json
from train.artifacts import WEIGHTS_FILE, load_checkpoint, sha256_of
from train.data.load import load_comments
from train.validation import classification_metrics

_RULES: tuple[LongTextRule, ...] = ("cut", "max", "mean")
_RESAMPLES = 1000


@dataclass(frozen=True)
class LongTextBenchConfig:
    """Flags of `python -m experiments.long_text`."""

    data: str = Field(description="a labelled file that the checkpoint was not trained on")
    checkpoint: Path = Field(Path("runs/model"), description="folder that `make train` wrote")
    stride: int | None = Field(None, ge=1, description="of the windows, as `python -m export` has")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    out: Path = Field(Path("bench/out"), description="folder of long_text.json")
    json: bool = Field(False, description="print the document as the last line")
    check: bool = Field(False, description="exit with status 1 when a bar is missed")


def main() -> None:
    config = parse_config(
        LongTextBenchConfig,
        None,
        prog="python -m experiments.long_text",
        description="Quality of windows over long comments.",
    )
    document = bench(config)
    write_json(config.out / "long_text.json", document)
    print(f"wrote {config.out / 'long_text.json'}")
    if config.json:
        print(json.dumps(document))
    missed = [f"{name} is {bar['value']:g}" for name, bar in _missed(document["bars"])]
    if missed and config.check:
        raise ToxicityError(f"missed: {', '.join(missed)}; train or choose another rule")
    for words in missed:
        print(f"missed: {words}")


def _missed(bars: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, bar) for name, bar in bars.items() if not bar["holds"]]


def bench(config: LongTextBenchConfig) -> dict[str, Any]:
    """Score the file by every rule, print the table, return the JSON document."""
    checkpoint = load_checkpoint(config.checkpoint)
    settings, tokenizer = checkpoint.config["train"], checkpoint.tokenizer
    comments = load_comments(
        config.data,
        text_column=settings["text_column"],
        label_column=settings["label_column"],
        label_map=settings.get("label_map", ()),
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
    document = {
        "bench": "long_text",
        "data": comments.source,
        "checkpoint_sha256": sha256_of(config.checkpoint / WEIGHTS_FILE),
        "max_len": tokenizer.max_len,
        "comments": len(comments.texts),
        "long_comments": int(long.sum()),
        "results": results,
        "bars": {
            f"{name}_auroc_gain_on_long_comments": {
                "value": results[name]["gain_on_long"]["auroc"],
                "bar": 0.0,
                "holds": results[name]["gain_on_long"]["auroc"] >= 0,
            }
            for name in ("max", "mean")
        },
    }
    print(_table(document))
    return document


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
