"""The yardstick: TF-IDF and logistic regression, fitted on the very rows that the encoder was.

    make baseline

It costs a minute, so it is fitted anew for each evaluation and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

BASELINE, WORDS = "baseline", "baseline-words"


def fit_baseline(name: str, texts: Sequence[str], labels: np.ndarray) -> Pipeline:
    """Fitted pipeline; its `decision_function` gives float64 [n] logits, not yet calibrated.

    `labels` are 0 or 1, [n]. WORDS is the usual one, on single words and punctuation marks.
    BASELINE adds the character n-grams within a word, which read a misspelled one too. Features
    and C are those of the best AUROC on the validation split of Jigsaw Wikipedia, 0.9664 and
    0.9724; pairs of words on top gave 0.9726, without the words 0.9718.
    """
    kept = {"sublinear_tf": True, "strip_accents": "unicode"}
    features = [("words", TfidfVectorizer(min_df=2, token_pattern=r"\w+|[^\w\s]", **kept))]
    if name == BASELINE:
        characters = {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": 100_000}
        features.append(("characters", TfidfVectorizer(min_df=10, **characters, **kept)))
    c = 2.0 if name == BASELINE else 3.0
    regression = LogisticRegression(C=c, class_weight="balanced", solver="liblinear")
    return make_pipeline(FeatureUnion(features), regression).fit(texts, labels)
