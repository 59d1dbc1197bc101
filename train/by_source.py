"""How a finished training does on each of its sources: ranking, calibration and thresholds.

The same model and the same probabilities for all; what differs is what "toxic" means in a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_auc_score
from torch import nn

from contract import DECISION_THRESHOLD
from train.corpus import Corpus
from train.data.batches import TokenizedOnTheFly
from train.data.sources import ALL
from train.examples import Examples
from train.methods.calibration import quality
from train.validation import logits_of, probability_of

_SHOWN = ("auroc", "ece", "precision", "recall", "f1", "fpr", "best_threshold", "best_f1")


def figures(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """AUROC, log loss and ECE, rates at DECISION_THRESHOLD, and the threshold of the best F1.

    `labels` [n] are 0 or 1, `logits` [n] calibrated. None where a figure is not defined, as the
    AUROC of one class is.
    """
    toxic = labels > 0.5
    decided = probability_of(logits) >= DECISION_THRESHOLD
    hits = int((decided & toxic).sum())
    both = bool(toxic.any() and not toxic.all())
    best_threshold, best_f1 = _best_f1(labels, logits) if both else (None, None)
    return {
        "comments": len(labels),
        "toxic_share": float(toxic.mean()),
        "auroc": float(roc_auc_score(labels, logits)) if both else None,
        **quality(labels, logits),
        "precision": _share(hits, int(decided.sum())),
        "recall": _share(hits, int(toxic.sum())),
        "f1": _share(2 * hits, int(decided.sum() + toxic.sum())),
        "fpr": _share(int((decided & ~toxic).sum()), int((~toxic).sum())),
        "best_threshold": best_threshold,
        "best_f1": best_f1,
    }


def _best_f1(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    precision, recall, thresholds = precision_recall_curve(labels, logits)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))
    return float(probability_of(thresholds[best])), float(f1[best])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def figures_by_source(
    corpus: Corpus,
    data: Examples,
    model: nn.Module,
    labels: np.ndarray,
    logits: np.ndarray,
) -> dict[str, Any]:
    """What metrics.json says of several sources; nothing of one.

    `labels` and calibrated `logits` [n] are the validation split's; `model` is calibrated.
    """
    found: dict[str, Any] = {}
    if corpus.held_out is not None:
        texts = TokenizedOnTheFly(corpus.held_out.texts, corpus.tokenizer)  # each is read once
        own = logits_of(model, texts, np.arange(len(texts)))
        about = corpus.held_out.source
        found["held_out_source"] = {"source": about, **figures(corpus.held_out.labels, own)}
    if len(corpus.split.left_out):
        found["near_duplicates_left_out"] = len(corpus.split.left_out)
    origin, drawn = corpus.comments.origin, data.sampling
    if origin is None or drawn is None:
        return found
    test = corpus.split.test
    test_labels, test_logits = corpus.comments.labels[test], logits_of(model, data.ids, test)
    found["by_source"] = {
        ALL: {"validation": figures(labels, logits), "test": figures(test_labels, test_logits)}
    }
    for number, source in enumerate(corpus.sources):
        of_validation = origin[corpus.split.validation] == number
        of_test = origin[test] == number
        found["by_source"][source.name] = {
            "training_comments": len(drawn.rows[number]),
            "examples_an_epoch": drawn.counts[number],
            "weight": source.weight,
            "left_out": int((origin[corpus.split.left_out] == number).sum()),
            "validation": _of(labels, logits, of_validation),
            "test": _of(test_labels, test_logits, of_test),
        }
    return found


def _of(labels: np.ndarray, logits: np.ndarray, chosen: np.ndarray) -> dict[str, Any] | None:
    return figures(labels[chosen], logits[chosen]) if chosen.any() else None


def table_lines(results: Mapping[str, Any]) -> list[str]:
    """For people; takes metrics.json. No line where there is one source."""
    rows = [
        (f"{name}, {part}", of[part])
        for name, of in results.get("by_source", {}).items()
        for part in ("validation", "test")
        if of[part]
    ]
    if held_out := results.get("held_out_source"):
        rows.append(("held out", held_out))
    if not rows:
        return []
    width = max(24, *(len(name) for name, _ in rows))
    heads = (
        *("comments", "auroc", "ece", "precision", "recall", "f1", "fpr"),
        "best at",
        "best f1",
    )
    lines = [f"{'source':<{width}} " + " ".join(f"{head:>9}" for head in heads)]
    for name, own in rows:
        values = (own[key] for key in _SHOWN)
        shown = " ".join(f"{'-' if v is None else format(v, '.4f'):>9}" for v in values)
        lines.append(f"{name:<{width}} {own['comments']:>9,} {shown}")
    return lines
