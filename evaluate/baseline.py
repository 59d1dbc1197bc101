"""The yardstick: TF-IDF and logistic regression, fitted on the very rows that the encoder was.

    make baseline

It costs some seconds, so it is fitted anew for each evaluation and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline


def fit_baseline(texts: Sequence[str], labels: np.ndarray) -> Pipeline:
    """Fitted pipeline; its `decision_function` gives float64 [n] logits.

    `labels` are 0 or 1, [n]. Single words, sublinear counts, balanced classes and C = 4: on the
    validation split of Jigsaw Wikipedia the best of (words, words and pairs) x (plain, balanced)
    x C in (1, 4).
    """
    return make_pipeline(
        TfidfVectorizer(min_df=2, sublinear_tf=True, strip_accents="unicode"),
        LogisticRegression(C=4.0, class_weight="balanced", max_iter=1000),
    ).fit(texts, labels)
