"""Attributes: what a comment is beside toxic, each with a logit of its own.

    python -m train --data comments.csv.gz --attributes insult threat identity_attack

The label of an attribute is the column of its name: the share of the annotators who said so, or 0
and 1, and empty where nobody was asked, which the loss leaves out. The heads are one more Linear
layer on the state of [CLS] that toxicity's head reads; blocks and embeddings are shared.

The loss is toxicity's own, as without attributes, plus WEIGHT times the mean over the attributes of
the cross-entropy against the share. No pos_weight: a share of 0.003 would make it 300, and the
order of the scores needs none. At the end each attribute is calibrated as toxicity is, against the
shares cut at LABEL_THRESHOLD; with --soft-labels it stays on the scale of the shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from contract import LABEL_THRESHOLD, BadInput
from train.data.load import Comments
from train.methods import calibration

WEIGHT = 1.0
"""Of the attributes' mean loss beside toxicity's."""


def check_columns(names: Sequence[str], comments: Comments) -> None:
    """Raise BadInput for an attribute that the comments have no column of."""
    for name in names:
        if name not in comments.attributes:
            raise BadInput(
                f"--attributes names {name}, and no column of {comments.source['name']} has that "
                "name, expected one with its shares; rename the column, or leave the attribute out"
            )


def summary(comments: Comments, train: np.ndarray) -> str:
    """One line for people: what the rows `train` (int64 [n]) say of each attribute.

    Raises BadInput for one of which they have no example, or no counterexample.
    """
    found = []
    for name, shares in comments.attributes.items():
        own = shares[train]
        known, positive = int((~np.isnan(own)).sum()), int((own >= LABEL_THRESHOLD).sum())
        if not 0 < positive < known:
            raise BadInput(
                f"{name} has {known:,} labels in the training split of {comments.source['name']}, "
                f"{positive:,} of them of {LABEL_THRESHOLD:g} or more, expected some of both "
                "kinds; leave it out of --attributes"
            )
        found.append(f"{name} {known:,} ({positive:,} positive)")
    return f"attributes' labels in the training split: {', '.join(found)}"


def targets(names: Sequence[str], comments: Comments, rows: int) -> np.ndarray:
    """float32 [rows, A]: shares of the comments, NaN where they have none, and for rows beyond."""
    found = np.full((rows, len(names)), np.nan, np.float32)
    for column, name in enumerate(names):
        if name in comments.attributes:
            found[: len(comments.texts), column] = comments.attributes[name]
    return found


def masked_loss(logits_BA: Tensor, targets_BA: Tensor) -> Tensor:
    """Mean cross-entropy over the attributes, float32 [B]; one of target NaN adds nothing to it."""
    known_BA = ~torch.isnan(targets_BA)
    losses_BA = functional.binary_cross_entropy_with_logits(
        logits_BA, torch.nan_to_num(targets_BA), reduction="none"
    )
    return (losses_BA * known_BA).mean(dim=1)


def auroc(shares: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Comments with a label, how many are positive, and AUROC: None without both kinds.

    `shares` float [n], NaN where there is none; `logits` [n].
    """
    known = ~np.isnan(shares)
    labels = shares[known] >= LABEL_THRESHOLD
    both = 0 < labels.sum() < len(labels)
    return {
        "comments": len(labels),
        "positive": int(labels.sum()),
        "auroc": float(roc_auc_score(labels, logits[known])) if both else None,
    }


def choose(shares: np.ndarray, logits: np.ndarray) -> calibration.Chosen:
    """`calibration.choose` on the comments that have a label of the attribute."""
    known = ~np.isnan(shares)
    labels = (shares[known] >= LABEL_THRESHOLD).astype(np.float32)
    return calibration.choose(labels, logits[known])


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """What a person is told of metrics.json's `attributes`."""
    found = []
    for name, of in results.items():
        parts = [
            f"{part} {of[part]['auroc']:.4f} ({of[part]['positive']:,} of {of[part]['comments']:,})"
            for part in ("validation", "test", "test_file")
            if of.get(part) and of[part]["auroc"] is not None
        ]
        told = "  ".join(parts) or "no comments of both kinds outside the training split"
        found.append(f"{name}: AUROC {told}")
    return found
