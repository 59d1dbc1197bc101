"""Token embeddings that start from which words stand near each other, not from noise.

    python -m train --embeddings cooccurrence

Most of the vocabulary is rare: two epochs hardly move the embedding of a word seen five times. The
training split's texts alone say which words are alike, at the cost of one sparse factorization:
positive pointwise mutual information of words within a window, its truncated SVD, as word2vec
does implicitly (Levy, Goldberg and Dagan 2015, section 3 and the hyperparameters of section 6).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from contract import CLS_ID, PAD_ID, UNK_ID

WINDOW = 5
"""Tokens to either side that count as near."""
_SMOOTHING = 0.75
"""Power of the neighbours' counts: tames the information of rare neighbours."""
ROOT_MEAN_SQUARE = 0.1
"""Of the embeddings that it writes: AdamW moves a number by about the learning rate, 1e-3, each
time its token is met, so that a rare word keeps its place and a frequent one may leave it."""


def cooccurrence_embeddings(
    comments: Iterable[np.ndarray], vocab_size: int, d_model: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [V, D] and bool [V] of the tokens that have one.

    `comments` are ids int [L]. [CLS], [UNK], padding and tokens without a neighbour have none;
    nor has any where the vocabulary is not larger than `d_model`.
    """
    information = _information(_neighbours(comments, vocab_size))
    known = np.diff(information.indptr) > 0
    vectors = np.zeros((vocab_size, d_model), np.float32)
    if min(information.shape) <= d_model:
        return vectors, np.zeros(vocab_size, bool)
    left, singular, _ = randomized_svd(information, d_model, n_iter=3, random_state=seed)
    vectors[:] = left * np.sqrt(singular)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    known &= norms[:, 0] > 0
    vectors[known] *= ROOT_MEAN_SQUARE * np.sqrt(d_model) / norms[known]
    return vectors, known


def start_from(embedding: torch.nn.Embedding, vectors: np.ndarray, known: np.ndarray) -> None:
    """Write the `known` rows of `vectors` into `embedding`; the others stay as they are."""
    rows = torch.from_numpy(np.flatnonzero(known)).to(embedding.weight.device)
    values = torch.from_numpy(vectors[known]).to(embedding.weight.device)
    with torch.no_grad():
        embedding.weight[rows] = values


def _neighbours(comments: Iterable[np.ndarray], vocab_size: int) -> sparse.csr_matrix:
    """How often two tokens stand within WINDOW of each other, float64 [V, V], symmetric."""
    # Comments end to end, WINDOW paddings between, so that no pair crosses a border.
    border = np.full(WINDOW, PAD_ID, np.int32)
    row = np.concatenate([part for ids in comments for part in (ids, border)])
    row = np.where(np.isin(row, (CLS_ID, UNK_ID)), PAD_ID, row)
    counts = sparse.csr_matrix((vocab_size, vocab_size))
    for distance in range(1, WINDOW + 1):
        first, second = row[:-distance], row[distance:]
        words = (first != PAD_ID) & (second != PAD_ID)
        pairs = (first[words], second[words])
        counts += sparse.csr_matrix((np.ones(words.sum()), pairs), counts.shape)
    return counts + counts.T


def _information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """max(0, log p(a, b) / (p(a) p'(b))), p' with smoothed counts."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = total**_SMOOTHING
    pairs = counts.tocoo()
    values = np.log(pairs.data * smoothed.sum() / (total[pairs.row] * smoothed[pairs.col]))
    information = sparse.csr_matrix((np.maximum(values, 0), (pairs.row, pairs.col)), counts.shape)
    information.eliminate_zeros()
    return information
