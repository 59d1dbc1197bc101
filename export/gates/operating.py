"""Where the form that is published decides: its own scores of the validation split."""

from __future__ import annotations

import numpy as np

from export.config import ExportConfig
from export.gates.run import Form, GateSubject, load_subject, served_scores
from train.data.split import essence
from train.operating.choice import Labelled, Wish, default_threshold
from train.operating.document import Thresholds, thresholds_of
from train.validation import probability_of


def of_form(config: ExportConfig, subject: GateSubject, form: Form) -> Thresholds:
    """Of the validation split, as the served code scores it with this form.

    Raises BadInput for a --threshold-precision that is not reachable.
    """
    return thresholds_of(
        _labelled(subject, served_scores(subject, form).logit),
        source="validation split",
        scores=f"the {form.precision.upper()} graph",
        wish=_wish(config),
    )


def checked_subject(config: ExportConfig) -> GateSubject:
    """What is exported; before the work, BadInput for what PyTorch's own scores do not reach.

    Raises as `load_subject` does, too.
    """
    subject = load_subject(config)
    if config.threshold_precision is not None:
        default_threshold(_labelled(subject, subject.validation_logits), _wish(config))
    return subject


def _wish(config: ExportConfig) -> Wish:
    return Wish(config.threshold_precision, config.prevalence)


def _labelled(subject: GateSubject, logits: np.ndarray) -> Labelled:
    """Of the validation split's `logits` [n]."""
    rows = subject.split.validation
    groups = [essence(subject.texts[row]) for row in rows]
    return Labelled.of(subject.labels[rows], probability_of(np.nan_to_num(logits)), groups)
