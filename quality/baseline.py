"""The yardstick: TF-IDF and logistic regression, fitted on the very rows that the encoder was.

    make baseline

It costs a minute, so it is fitted anew for each evaluation and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.pipeline import Pipeline

from train.methods.ngrams import regression

BASELINE, WORDS = "baseline", "baseline-words"


def fit_baseline(name: str, texts: Sequence[str], labels: np.ndarray) -> Pipeline:
    """Fitted pipeline; its `decision_function` gives float64 [n] logits, not yet calibrated.

    `labels` are 0 or 1, [n]. WORDS is the usual one, on single words and punctuation marks.
    BASELINE adds the character n-grams within a word, which read a misspelled one too.
    """
    return regression(characters=name == BASELINE).fit(texts, labels)
