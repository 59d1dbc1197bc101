"""Letters as a second teacher: TF-IDF of words and character n-grams, and logistic regression.

    python -m train --distill runs/model --ngram-teacher 1 --d-model 64 --n-layers 1

It errs elsewhere than an encoder does, which reads words. A student has no letters to read, yet
learns what the two agree on. Each training comment is scored by a regression that was fitted on
other comments (cross-fitted): one that has seen the comment's label says that label, and teaches
nothing. For the same reason these scores need no other split to be calibrated on.

Where the first teacher weighed comments for their identity terms, the regressions weigh likewise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from contract import BadInput
from train import artifacts
from train.calibration import fit_platt

FOLDS = 5
"""Regressions; each scores its share of the comments and is fitted on the others."""


def regression(*, characters: bool) -> Pipeline:
    """Not yet fitted; its `decision_function` gives float64 [n] logits, not yet calibrated.

    On single words and punctuation marks, and with `characters` on the character n-grams within a
    word, too. Features and C are those of the best AUROC on the validation split of Jigsaw
    Wikipedia, 0.9664 and 0.9724; pairs of words on top gave 0.9726, without the words 0.9718.
    """
    kept = {"sublinear_tf": True, "strip_accents": "unicode"}
    features = [("words", TfidfVectorizer(min_df=2, token_pattern=r"\w+|[^\w\s]", **kept))]
    if characters:
        grams = {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": 100_000}
        features.append(("characters", TfidfVectorizer(min_df=10, **grams, **kept)))
    c = 2.0 if characters else 3.0
    last = LogisticRegression(C=c, class_weight="balanced", solver="liblinear")
    return make_pipeline(FeatureUnion(features), last)


def cross_fitted_logits(
    texts: Sequence[str],
    labels: np.ndarray,
    weights: np.ndarray,
    unlabelled: Sequence[str],
    *,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
) -> np.ndarray:
    """Calibrated logits float64 of `texts`, then of `unlabelled`; computed once, kept in `folder`.

    `labels` (0/1) and `weights` (what a comment counts in the fit) are [len(texts)]. Unlabelled
    comments are scored by a regression on all the texts. Raises BadInput for too few comments.
    """
    settings = f"2 {seed} {FOLDS} {labels.tolist()} {weights.tolist()} {len(texts)}"
    key = artifacts.sha256_of_texts([settings, *texts, *unlabelled])[:16]
    file = folder / f"ngrams-{key}.safetensors"
    if not file.exists():
        say(f"{FOLDS} regressions on letters score each the comments that it was not fitted on ...")
        logits = _fit(list(texts), labels, weights, list(unlabelled), seed)
        artifacts.save_tensors(file, {"logit": torch.from_numpy(logits)})
    return artifacts.load_tensors(file, f"delete {file}")["logit"].numpy()


def _fit(
    texts: list[str], labels: np.ndarray, weights: np.ndarray, unlabelled: list[str], seed: int
) -> np.ndarray:
    features, last = regression(characters=True)
    try:
        # Labels are what a regression must not have seen; how rare an n-gram is, all texts may say.
        counted = features.fit_transform(texts)
        logits = cross_val_predict(
            last,
            counted,
            labels,
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
            method="decision_function",
            params={"sample_weight": weights},
            n_jobs=min(FOLDS, os.cpu_count() or 1),
        )
    except ValueError as error:  # no n-gram is frequent enough, or no fold has both classes
        raise BadInput(
            f"{len(texts):,} training comments, {int(labels.sum()):,} of them toxic, are too few "
            f"for --ngram-teacher ({error}); set it to 0"
        ) from error
    platt = fit_platt(labels, logits)
    if unlabelled:
        last.fit(counted, labels, sample_weight=weights)
        logits = np.concatenate([logits, last.decision_function(features.transform(unlabelled))])
    return np.ascontiguousarray(platt(logits))
