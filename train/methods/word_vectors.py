"""Token embeddings that start from word vectors, too, learned from billions of words elsewhere.

    python -m train --word-vectors glove.6B.100d.txt

The training split has a rare word a few times and a synonym of it never. What stands near each in
other texts is known, as by GloVe (Pennington, Socher and Manning 2014): "hypocrite" lies near
"liar" before the first label is read. Only the start is another; a comment costs no more to read.

What the training split itself says of a word (train/methods/embeddings.py) says other things, as
who insults whom with it. So both stand beside each other, each of one length, and a truncated SVD
brings them to `d_model` numbers.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from contract import BadInput
from train.methods.embeddings import ROOT_MEAN_SQUARE, of_one_length

_EXPECTED = "expected lines of a word and its numbers, as GloVe and word2vec write them as text"
_LEAST_NUMBERS = 2
_BORROWED = 0.7
"""Length of the vector of a word that has none and takes that of words spelled alike, where a
word's own has 1."""


def read_word_vectors(path: Path, vocabulary: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [V, K] of `path` and bool [V] of the tokens that have one.

    A frequent pair of words, "a b", has the mean of both. `path` is text, plain or gzip: a line has
    a word and K numbers, and a first line of two numbers, as word2vec writes one, says nothing new.
    Raises BadInput with the line that is something else, or where no token is in it.
    """
    wanted = {word for token in vocabulary for word in token.split(" ")}
    found: dict[str, np.ndarray] = {}
    size = 0
    for number, line in _lines(path):
        word, _, rest = line.partition(" ")
        if number == 1 and rest.isdecimal():  # word2vec's: how many words, how many numbers
            continue
        if not size:
            size = len(rest.split())
            if size < _LEAST_NUMBERS:
                raise BadInput(f"{path}, line {number} has {size} numbers, {_EXPECTED}")
        if word in wanted and word not in found and (values := _numbers(rest, size)) is not None:
            found[word] = values
    vectors = np.zeros((len(vocabulary), size), np.float32)
    known = np.zeros(len(vocabulary), bool)
    for row, token in enumerate(vocabulary):
        words = token.split(" ")
        if all(word in found for word in words):
            vectors[row] = np.mean([found[word] for word in words], axis=0)
            known[row] = True
    if not known.any():
        raise BadInput(
            f"{path} has a vector for none of the {len(vocabulary):,} tokens, {_EXPECTED}, of the "
            "language of the comments; give another --word-vectors"
        )
    return vectors, known


def beside(
    start: np.ndarray,
    vectors: np.ndarray,
    known: np.ndarray,
    alike: sparse.csr_matrix,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [V, D] of `start`, float32 [V, D], and `vectors`, float32 [V, K], in one.

    `known` is bool [V] of those that have a vector; another takes that of words spelled alike,
    by `alike` of `train.methods.embeddings.alike_words`. Also gives bool [V] of the tokens that
    have an embedding.
    """
    d_model = start.shape[1]
    own = np.where(known[:, None], vectors - vectors[known].mean(axis=0), 0)
    own = of_one_length(own)
    borrowed = of_one_length(alike @ own)
    own = np.where(known[:, None], own, _BORROWED * borrowed)
    both = np.hstack([own, of_one_length(start)])
    left, singular, _ = randomized_svd(both, d_model, n_iter=5, random_state=seed)
    has = both.any(axis=1)
    embeddings = np.zeros(start.shape, np.float32)
    embeddings[has, : len(singular)] = of_one_length((left * singular)[has])
    embeddings *= ROOT_MEAN_SQUARE * np.sqrt(d_model)
    return embeddings, has


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, from 1, plain or gzip. Raises BadInput where it is no text."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        read = gzip.open if zipped else open
        with read(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield number, line.rstrip()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as text: {error}; {_EXPECTED}") from error


def _numbers(rest: str, size: int) -> np.ndarray | None:
    """float32 [size]; None of a line of another form, as of GloVe's words with a space in them."""
    try:
        values = np.array(rest.split(), np.float32)
    except ValueError:
        return None
    return values if len(values) == size and np.isfinite(values).all() else None
