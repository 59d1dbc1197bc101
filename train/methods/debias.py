"""Words for who people are should not tell whether a comment is toxic: `--identity-balance`.

    python -m train --identity-balance 1.0

In comments as they are collected, "gay" stands mostly in attacks, so a classifier learns the word
for the attack and flags those whom it should protect. Two remedies, both from the training
split's own labels:

- `--identity-balance S` weighs comments so that a term tells nothing: with Z the terms of a
  comment, a label y counts (P(y) / P(y | Z)) ** S. With S = 1 that is the instance weighting of
  Zhang et al. 2020, "Demographics Should Not Be the Reason of Toxicity"; more also makes up for
  the words that stand beside a term.
- `--identity-insertion P` shows that share of the harmless comments with one of their words
  replaced by a term, the more often the more of the term's comments are toxic beyond the overall
  rate: harmless examples as Dixon et al. 2018, "Measuring and Mitigating Unintended Bias in Text
  Classification", add them, without other data.

A student has the weights in its teacher's probabilities; the insertion is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from train.data.batches import Batch, CommentIds

IDENTITY_TERMS = (
    *("lesbian", "gay", "bisexual", "transgender", "trans", "queer", "lgbt", "lgbtq"),
    *("homosexual", "straight", "heterosexual", "male", "female", "nonbinary", "african"),
    *("black", "white", "european", "hispanic", "latino", "latina", "latinx", "mexican"),
    *("canadian", "american", "asian", "indian", "eastern", "chinese", "japanese", "christian"),
    *("muslim", "jewish", "buddhist", "catholic", "protestant", "sikh", "taoist", "old", "older"),
    *("young", "younger", "teenage", "elderly", "blind", "deaf", "paralyzed"),
)
"""After the terms of Dixon et al. 2018; of two words ("African American"), each or the last one."""
_PRIOR_COMMENTS = 2.0
"""Comments at the overall rate that every term is taken to have had besides its own."""


@dataclass(frozen=True)
class IdentityStatistics:
    """What the training split says of the terms, T of them in its vocabulary."""

    ids: np.ndarray
    """int64 [T], sorted."""
    toxic_rate: np.ndarray
    """float64 [T], share of the comments with the term that are toxic, at least `overall_rate`."""
    surplus: np.ndarray
    """float64 [T], toxic comments with the term beyond the overall rate, at least 0."""
    overall_rate: float


def term_ids(vocabulary: Sequence[str]) -> np.ndarray:
    """int64 [T]: ids of the IDENTITY_TERMS that `vocabulary` has, sorted."""
    terms = frozenset(IDENTITY_TERMS)
    return np.array([i for i, token in enumerate(vocabulary) if token in terms], np.int64)


def statistics(
    comments: CommentIds, rows: np.ndarray, labels: np.ndarray, ids: np.ndarray
) -> IdentityStatistics:
    """Counts over `rows` int64 [n] of `comments`, `labels` float [n]; `ids` as of `term_ids`."""
    count, toxic = np.zeros(len(ids)), np.zeros(len(ids))
    for row, label in zip(rows, labels, strict=True):
        present = np.isin(ids, comments[row])
        count += present
        toxic += present * label
    overall = float(labels.mean())
    rate = (toxic + _PRIOR_COMMENTS * overall) / (count + _PRIOR_COMMENTS)
    surplus = np.maximum(toxic - overall * count, 0.0)
    return IdentityStatistics(ids, np.maximum(rate, overall), surplus, overall)


def summary(terms: IdentityStatistics, vocabulary: Sequence[str]) -> str:
    """One line for people: the terms that most often stand in toxic comments."""
    if not len(terms.ids):
        return "no identity term is in the vocabulary: there is nothing to balance"
    worst = [i for i in np.argsort(-terms.surplus, kind="stable")[:5] if terms.surplus[i]]
    named = (f"{vocabulary[terms.ids[i]]} {terms.toxic_rate[i]:.0%}" for i in worst)
    return (
        f"{len(terms.ids)} identity terms in the vocabulary; most often in toxic comments: "
        f"{', '.join(named) or 'none'} (of all comments {terms.overall_rate:.0%})"
    )


def balancing_weights(
    comments: CommentIds,
    rows: np.ndarray,
    labels: np.ndarray,
    terms: IdentityStatistics,
    strength: float,
) -> np.ndarray:
    """float32 [n]: what each comment of `rows` int64 [n] counts in the loss; 1 without a term.

    Of several terms, the one that is most often toxic decides.
    """
    weights = np.ones(len(rows), np.float32)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        present = np.isin(terms.ids, comments[row])
        if present.any():
            rate = float(terms.toxic_rate[present].max())
            share = terms.overall_rate / rate
            if not label:
                share = (1 - terms.overall_rate) / (1 - rate)
            weights[i] = share**strength
    return weights


def with_terms_inserted(
    batch: Batch, labels: torch.Tensor, terms: IdentityStatistics, share: float
) -> Batch:
    """`batch` with a term in place of one word in a random `share` of the harmless.

    `labels` float [B]; a comment is harmless below one half. [CLS] stays.
    """
    if not share or not terms.surplus.any():
        return batch
    lengths = batch.attention_mask.sum(dim=1)
    chosen = (torch.rand(len(labels)) < share) & (labels.cpu() < 0.5) & (lengths > 1)
    places = 1 + (torch.rand(len(labels)) * (lengths - 1)).long()
    drawn = torch.multinomial(torch.from_numpy(terms.surplus), len(labels), replacement=True)
    ids = batch.input_ids.clone()
    rows = torch.nonzero(chosen).squeeze(1)
    ids[rows, places[rows]] = torch.from_numpy(terms.ids)[drawn[rows]]
    return replace(batch, input_ids=ids)
