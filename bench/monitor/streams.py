"""Comments as the monitor sees them: counts of each, drawn as they are and drifted on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from contract import ONNX_FILE, TOKENIZER_FILE, UNK_ID
from export.repository import read_artifact, version_folder
from export.scorer import LongText, Scorer, probability
from monitor import series
from train.data.load import load_comments
from train.data.tokenizer import Tokenizer

SCORE_BOUNDS = np.r_[np.arange(1, 21) / 20, np.inf]
TOKEN_BOUNDS = np.array([8, 16, 32, 64, 128, 256, 512, 1024, 4096, np.inf])
_GENERATED = 20_000
_LOGIT_BOUND = 30.0


@dataclass(frozen=True)
class Population:
    """One row a comment."""

    score: np.ndarray
    """float64 [n]."""
    tokens: np.ndarray
    """int64 [n]."""
    words: np.ndarray
    """int64 [n], at least 1."""
    unknown: np.ndarray
    """int64 [n], of the words those that the vocabulary has not."""

    def __len__(self) -> int:
        return len(self.score)

    def rows(self, chosen: np.ndarray) -> Population:
        """Those rows, in that order."""
        return Population(*(column[chosen] for column in self.columns))

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """All of them."""
        return self.score, self.tokens, self.words, self.unknown


def generated(seed: int) -> Population:
    """Scores near 0 for nine in ten, near 1 for the tenth; lengths and words as people write."""
    rng = np.random.default_rng(seed)
    n = _GENERATED
    toxic = rng.random(n) < 0.1
    score = np.where(toxic, rng.beta(4, 1.5, n), rng.beta(0.7, 9, n))
    words = np.maximum(1, rng.lognormal(3.6, 1.0, n).astype(np.int64))
    unknown = rng.binomial(words, rng.beta(1, 40, n))
    return Population(score, words + 1, words, unknown)


def scored(file: Path, repository: Path, most: int, seed: int) -> Population:
    """Comments of a file, scored by the core with the version that serves. Raises BadInput."""
    folder, artifact = version_folder(repository), read_artifact(repository)
    tokenizer = Tokenizer.from_json((folder / TOKENIZER_FILE).read_text("utf-8"))
    scorer = Scorer(folder / ONNX_FILE, tokenizer, long_text=LongText.of_artifact(artifact))
    texts = list(load_comments(str(file), both_classes=False).texts)
    if len(texts) > most:
        drawn = np.random.default_rng(seed).choice(len(texts), most, replace=False)
        texts = [texts[row] for row in drawn]
    ids = [np.asarray(tokenizer.encode(text)) for text in texts]
    tokens = np.array([len(one) for one in ids])
    unknown = np.array([int((one == UNK_ID).sum()) for one in ids])
    score = probability(scorer.score(texts).logit).astype(np.float64)
    return Population(score, tokens, np.maximum(1, tokens - 1), unknown)


# --- Drift ---------------------------------------------------------------------------------
Drift = Callable[[Population, float, np.random.Generator], Population]


def _more_toxic(window: Population, strength: float, rng: np.random.Generator) -> Population:
    """`strength` times the share of high scores."""
    high, low = (np.flatnonzero(window.score >= 0.5), np.flatnonzero(window.score < 0.5))
    if not len(high) or not len(low):
        return window
    share = min(0.9, strength * len(high) / len(window))
    is_high = rng.random(len(window)) < share
    rows = np.where(is_high, rng.choice(high, len(window)), rng.choice(low, len(window)))
    return window.rows(rows)


def _shifted_scores(window: Population, strength: float, _: np.random.Generator) -> Population:
    """Logits `strength` higher, as those of a model that is not the same."""
    p = window.score.clip(np.exp(-_LOGIT_BOUND), 1 - 1e-12)
    logit = np.log(p / (1 - p)) + strength
    return replace(window, score=1 / (1 + np.exp(-logit)))


def _longer(window: Population, strength: float, _: np.random.Generator) -> Population:
    """Comments `strength` times as long."""
    words = np.maximum(1, (window.words * strength).astype(np.int64))
    unknown = np.minimum(words, (window.unknown * strength).astype(np.int64))
    return replace(window, words=words, tokens=words + 1, unknown=unknown)


def _unknown_words(window: Population, strength: float, rng: np.random.Generator) -> Population:
    """`strength` times as many unknown words, as another language has."""
    share = min(0.9, strength * window.unknown.sum() / window.words.sum())
    return replace(window, unknown=rng.binomial(window.words, share))


def _one_comment(window: Population, strength: float, rng: np.random.Generator) -> Population:
    """A share of `strength` is one and the same comment, as in a campaign."""
    rows = np.arange(len(window))
    rows[rng.random(len(window)) < strength] = np.argsort(window.score)[int(0.97 * len(window))]
    return window.rows(rows)


DRIFTS: dict[str, tuple[Drift, tuple[float, float, float]]] = {
    "more toxic comments": (_more_toxic, (1.5, 2.0, 4.0)),
    "higher logits": (_shifted_scores, (0.25, 0.5, 1.0)),
    "longer comments": (_longer, (1.25, 1.5, 2.0)),
    "more unknown words": (_unknown_words, (1.5, 2.0, 4.0)),
    "one comment again and again": (_one_comment, (0.05, 0.1, 0.3)),
}
"""Kind -> what makes it, and three strengths."""


def windows(
    population: Population,
    size: int,
    rng: np.random.Generator,
    drift: Drift | None = None,
    strength: float = 0.0,
) -> Population:
    """A window of `size` comments drawn from the population, drifted when told to."""
    window = population.rows(rng.integers(len(population), size=size))
    return window if drift is None else drift(window, strength, rng)


def counts_of(comments: Population) -> series.Counts:
    """What a server would have counted of them."""
    counts: series.Counts = {
        series.COMMENTS: float(len(comments)),
        series.WORDS: float(comments.words.sum()),
        series.UNKNOWN: float(comments.unknown.sum()),
    }
    for name, values, bounds in (
        (series.SCORE, comments.score, SCORE_BOUNDS),
        (series.TOKENS, comments.tokens, TOKEN_BOUNDS),
    ):
        places = np.searchsorted(bounds, values)
        cumulated = np.cumsum(np.bincount(places, minlength=len(bounds)))
        for bound, count in zip(bounds, cumulated, strict=True):
            counts[f'{name}_bucket{{le="{bound}"}}'] = float(count)
    return counts
