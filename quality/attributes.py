"""AUROC of each attribute of a model, on the sets that have a column of its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contract import ATTRIBUTES, LABEL_THRESHOLD
from quality import metrics
from quality.config import QualityConfig
from quality.metrics import Values, bootstrap, interval
from quality.models import Model
from train.data.load import Comments


def measured(
    config: QualityConfig, sets: Mapping[str, Comments], models: Sequence[Model]
) -> dict[str, Any]:
    """What the document says under ATTRIBUTES, by set, model and attribute; nothing without any.

    `comments` with a label, `positive` ones, and `auroc`, an interval. An attribute whose labels in
    a set are of one kind is left out there.
    """
    found = {name: _of_set(config, comments, models) for name, comments in sets.items()}
    found = {name: of for name, of in found.items() if of}
    return {ATTRIBUTES: found} if found else {}


def _of_set(
    config: QualityConfig, comments: Comments, models: Sequence[Model]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        names = [name for name in model.attributes if name in comments.attributes]
        if not names:
            continue
        logits = model.attribute_logits(comments.texts)
        for name in names:
            shares = comments.attributes[name]
            own = logits[:, model.attributes.index(name)]
            if (of := _auroc(config, shares, own)) is not None:
                found.setdefault(model.name, {})[name] = of
    return found


def _auroc(config: QualityConfig, shares: np.ndarray, logits: np.ndarray) -> dict[str, Any] | None:
    """Of the comments whose share, float [n], is not NaN."""
    known = ~np.isnan(shares)
    labels, own = (shares[known] >= LABEL_THRESHOLD).astype(np.float32), logits[known]
    positive = int(labels.sum())
    if not 0 < positive < len(labels):
        return None

    def statistic(weights: np.ndarray) -> Values:
        return {"auroc": metrics.auroc(labels, own, weights)}

    values = bootstrap(statistic, len(labels), resamples=config.resamples, seed=config.seed)
    return {"comments": len(labels), "positive": positive, "auroc": interval(values["auroc"])}
