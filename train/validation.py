"""Scores of a model over comments, and the metrics of scores against labels (scikit-learn)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from contract import DECISION_THRESHOLD

if TYPE_CHECKING:
    from torch import nn

    from train.data.batches import CommentIds

RELIABILITY_BINS = 15
"""Equal-width bins of the probability, as in Guo et al. 2017, "On Calibration of Modern Neural
Networks"."""


def logits_of(
    model: nn.Module, ids: CommentIds, rows: np.ndarray, *, batch_size: int = 128
) -> np.ndarray:
    """Logits of `rows` in their order, in eval mode; the model's mode is restored.

    float32 [n], or [n, 1 + A] of a model that gives as many (`train.model.AllHeads`).
    """
    import torch  # slow to import, and not there where scores are only watched

    from train.data.batches import evaluation_batches

    device = next(model.parameters()).device
    logits: np.ndarray | None = None
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in evaluation_batches(ids, rows, batch_size=batch_size):
                output = model(batch.input_ids.to(device), batch.attention_mask.to(device))
                found = output.float().cpu().numpy()
                if logits is None:
                    logits = np.empty((len(ids), *found.shape[1:]), np.float32)
                logits[batch.rows] = found
    finally:
        model.train(was_training)
    return np.empty(0, np.float32) if logits is None else logits[rows]


def probability_of(logits: np.ndarray) -> np.ndarray:
    """float64 logistic function of the logits, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


def classification_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Loss, accuracy, precision, recall, F1 (at DECISION_THRESHOLD) and AUROC.

    `labels` [n] are 0 or 1, `logits` [n] any real. The loss is the plain cross-entropy in nats,
    without pos_weight.
    """
    probability = probability_of(logits)
    decided = probability >= DECISION_THRESHOLD
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, decided, average="binary", zero_division=0.0
    )
    return {
        "comments": len(labels),
        "toxic_share": float(np.mean(labels)),
        "loss": float(log_loss(labels, probability, labels=[0, 1])),
        "accuracy": float(accuracy_score(labels, decided)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auroc": float(roc_auc_score(labels, logits)),
    }


def reliability_bin(probability: np.ndarray) -> np.ndarray:
    """int64 [n], which of RELIABILITY_BINS equal parts of [0, 1] each probability lies in."""
    return np.minimum((probability * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)


def expected_calibration_error(
    labels: np.ndarray, probability: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """float64 [R]: mean over comments of |mean label - mean probability| of their bin.

    The bins are those of the probability of toxic. `weights` [R, n] is how often a comment
    counts in each of R resamples.
    """
    in_bin = reliability_bin(probability)[:, None] == np.arange(RELIABILITY_BINS)  # [n, bins]
    gaps = weights @ (in_bin * (labels - probability)[:, None])
    return np.abs(gaps).sum(axis=1) / weights.sum(axis=1)
