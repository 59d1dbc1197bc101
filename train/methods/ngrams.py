"""Letters as a second teacher: TF-IDF of words and character n-grams, and logistic regression.

    python -m train --distill runs/model --ngram-teacher 1 --d-model 64 --n-layers 1

It errs elsewhere than an encoder does, which reads words. A student has no letters to read, yet
learns what the two agree on. Each training comment is scored by a regression that was fitted on
other comments (cross-fitted): one that has seen the comment's label says that label, and teaches
nothing. For the same reason these scores need no other split to be calibrated on.

Where the first teacher weighed comments for their identity terms, the regressions weigh likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from contract import BadInput
from train import artifacts
from train.methods.calibration import fit_platt

FOLDS = 5
"""Regressions; each scores its share of the comments and is fitted on the others."""
STEPS = 1024
"""Steps of a logit between two whole numbers. A solver's last bits are the processor's; students of
them would differ with it."""


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
    extra: Sequence[str],
    sources: np.ndarray,
    *,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
) -> np.ndarray:
    """Calibrated logits float64 of `texts`, then of `extra`, to the next of `STEPS`.

    They are computed once and kept in `folder`.

    `labels` (0/1) and `weights` (what a comment counts in the fit) are [len(texts)]. An extra
    comment made of text number `sources[i]` is scored as that text is; one with -1 by a regression
    on all the texts. Raises BadInput for too few comments.
    """
    of = [array.tolist() for array in (labels, weights, sources)]
    key = artifacts.sha256_of_texts([f"4 {seed} {FOLDS} {of}", *texts, *extra])[:16]
    file = folder / f"ngrams-{key}.safetensors"
    if not file.exists():
        say(f"{FOLDS} regressions on letters score each the comments that it was not fitted on ...")
        logits = _fit(list(texts), labels, weights, list(extra), sources, seed)
        artifacts.save_tensors(file, {"logit": torch.from_numpy(logits)})
    return artifacts.load_tensors(file, f"delete {file}")["logit"].numpy()


def _fit(
    texts: list[str],
    labels: np.ndarray,
    weights: np.ndarray,
    extra: list[str],
    sources: np.ndarray,
    seed: int,
) -> np.ndarray:
    features, last = regression(characters=True)
    own, others = np.empty(len(texts)), np.empty(len(extra))
    try:
        # Labels are what a regression must not have seen; how rare an n-gram is, all texts may say.
        counted = features.fit_transform(texts)
        new = features.transform(extra) if extra else counted[:0]
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for fitted, held_out in folds.split(counted, labels):
            last.fit(counted[fitted], labels[fitted], sample_weight=weights[fitted])
            own[held_out] = last.decision_function(counted[held_out])
            if (made_of_them := np.isin(sources, held_out)).any():
                others[made_of_them] = last.decision_function(new[made_of_them])
    except ValueError as error:  # no n-gram is frequent enough, or no fold has both classes
        raise BadInput(
            f"{len(texts):,} training comments, {int(labels.sum()):,} of them toxic, are too few "
            f"for --ngram-teacher ({error}); set it to 0"
        ) from error
    if (from_elsewhere := sources < 0).any():
        last.fit(counted, labels, sample_weight=weights)
        others[from_elsewhere] = last.decision_function(new[from_elsewhere])
    calibrated = fit_platt(labels, own)(np.concatenate([own, others]))
    return np.ascontiguousarray(np.round(calibrated * STEPS) / STEPS)
