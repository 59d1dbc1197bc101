"""Token embeddings that start from which words stand near each other, not from noise.

    python -m train --embeddings spelling
    python -m train --embeddings cooccurrence

Most of the vocabulary is rare: two epochs hardly move the embedding of a word seen five times. The
training split's texts alone say which words are alike, at the cost of one sparse factorization:
positive pointwise mutual information of words within a window, its truncated SVD, as word2vec
does implicitly (Levy, Goldberg and Dagan 2015, section 3 and the hyperparameters of section 6).
Of a rare word that is mostly chance, so `spelling` draws it to the words that are spelled alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.utils.extmath import randomized_svd

from contract import CLS_ID, PAD_ID, UNK_ID

WINDOW = 5
"""Tokens to either side that count as near."""
_SMOOTHING = 0.75
"""Power of the neighbours' counts: tames the information of rare neighbours."""
ROOT_MEAN_SQUARE = 0.1
"""Of the embeddings that it writes: AdamW moves a number by about the learning rate, 1e-3, each
time its token is met, so that a rare word keeps its place and a frequent one may leave it."""

_PIECE = 1 << 22
"""Tokens that are counted at a time."""
_GRAMS, _MOST_WORDS = (3, 5), 300
"""Lengths of the character n-grams, and the most words that one which says something stands in."""
_LEAST_ALIKE = 0.3
"""Least cosine of two words' n-grams that counts."""
_MOST_COUNTED = 50
"""Times a word is met from which its vector counts no more in those of words spelled like it."""
_ENOUGH = 20
"""Times a word is met from which its own neighbours say more than those spelled like it."""


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


def of_one_length(vectors: np.ndarray) -> np.ndarray:
    """`vectors` [V, D], each of length 1; one of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def spelled_alike(
    vectors: np.ndarray, comments: Iterable[np.ndarray], alike: sparse.csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """`vectors` [V, D] drawn to those of words spelled alike, the rarer the word the more.

    `comments` are ids int [L], whose tokens are counted; `alike` is what `alike_words` gives.
    Gives float32 [V, D] of one length and bool [V] of the tokens that have one. As fastText shares
    what words of the same character n-grams have (Bojanowski et al. 2017), but in the table alone:
    "stupidest", met 14 times, starts near "stupid", and a comment costs no more to read.
    """
    units = of_one_length(vectors)
    counts = np.zeros(len(vectors), np.int64)
    for ids in _pieces(comments):
        counts += np.bincount(ids, minlength=len(vectors))
    seen = np.minimum(counts, _MOST_COUNTED)[:, None] * vectors.any(axis=1, keepdims=True)
    neighbours = alike @ (units * seen)
    total = alike @ seen
    mixed = units * counts[:, None] + _ENOUGH * neighbours / np.where(total > 0, total, 1)
    lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
    scale = ROOT_MEAN_SQUARE * np.sqrt(vectors.shape[1])
    return (scale * mixed / np.where(lengths > 0, lengths, 1)).astype(np.float32), lengths[:, 0] > 0


def alike_words(vocabulary: Sequence[str]) -> sparse.csr_matrix:
    """Squared cosine of two words' TF-IDF character n-grams, [V, V]; 0 on the diagonal."""
    words = [token if token.isalpha() else "" for token in vocabulary]
    none = sparse.csr_matrix((len(words), len(words)))
    if not any(words):
        return none
    counted = CountVectorizer(analyzer="char_wb", ngram_range=_GRAMS).fit_transform(words)
    words_with = np.asarray((counted > 0).sum(axis=0)).ravel()
    telling = counted[:, (words_with > 1) & (words_with <= _MOST_WORDS)]
    if not telling.shape[1]:
        return none
    of_words = TfidfTransformer().fit_transform(telling).tocsr()
    alike = (of_words @ of_words.T).tocsr()
    alike.setdiag(0)
    alike.data[alike.data < _LEAST_ALIKE] = 0
    alike.eliminate_zeros()
    return alike.power(2)


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
    counts = sparse.csr_matrix((vocab_size, vocab_size))
    for row in _pieces(part for ids in comments for part in (ids, border)):
        row = np.where(np.isin(row, (CLS_ID, UNK_ID)), PAD_ID, row)
        found = sparse.csr_matrix(counts.shape)
        for distance in range(1, WINDOW + 1):
            first, second = row[:-distance], row[distance:]
            words = (first != PAD_ID) & (second != PAD_ID)
            pairs = (first[words], second[words])
            found += sparse.csr_matrix((np.ones(words.sum()), pairs), counts.shape)
        counts += found
    return counts + counts.T


def _pieces(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts end to end, in pieces of about _PIECE, so that memory does not grow with them."""
    held: list[np.ndarray] = []
    size = 0
    for part in parts:
        if size + len(part) > _PIECE and held:
            yield np.concatenate(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    if held:
        yield np.concatenate(held)


def _information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """max(0, log p(a, b) / (p(a) p'(b))), p' with smoothed counts."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = total**_SMOOTHING
    pairs = counts.tocoo()
    values = np.log(pairs.data * smoothed.sum() / (total[pairs.row] * smoothed[pairs.col]))
    information = sparse.csr_matrix((np.maximum(values, 0), (pairs.row, pairs.col)), counts.shape)
    information.eliminate_zeros()
    return information
