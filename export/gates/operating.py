"""Where the form that is published decides: its own scores of the validation split."""

from __future__ import annotations

import numpy as np

from export.config import ExportConfig
from export.gates.run import Form, GateSubject, served_logits
from train.data.split import essence
from train.operating.choice import Labelled, Wish
from train.operating.document import Thresholds, thresholds_of
from train.validation import probability_of


def of_form(config: ExportConfig, subject: GateSubject, form: Form) -> Thresholds:
    """Of the validation split, as the served code scores it with this form.

    Raises BadInput for a --threshold-precision that is not reachable.
    """
    rows = subject.split.validation
    logits = np.nan_to_num(served_logits(subject, form))
    groups = [essence(subject.texts[row]) for row in rows]
    return thresholds_of(
        Labelled.of(subject.labels[rows], probability_of(logits), groups),
        source="validation split",
        scores=f"the {form.precision.upper()} graph",
        wish=Wish(config.threshold_precision, config.prevalence),
    )
