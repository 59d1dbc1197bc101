"""More comments for a student, made of the training comments: `--augment`.

    python -m train --distill runs/model --augment 1 --d-model 64 --n-layers 1

A teacher knows more than it says of 48,000 comments: what it makes of a rare word, or of a sentence
by itself. So it is asked about passages of the training comments with some words replaced by others
of them, rare ones as often as frequent ones, and the student learns the answers (Tang et al. 2019,
"Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", section 3.3; there the
words are masked or replaced by their part of speech). Nobody needs to label a passage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from train.data.tokenizer import Tokenizer

_SHORTEST, _LONGEST = 3, 80
"""Tokens of a passage, where the comment has as many."""
_REPLACED = (0.05, 0.2, 0.4)
"""Share of the tokens that are replaced; one of these for each passage."""
_LEAST_COMMENTS = 2
"""Comments that a word must stand in to be put in place of another."""
_STREAM = 1
"""Of the seed: the numbers drawn here are none of the split's or the batches'."""


def passages(
    texts: Sequence[str], tokenizer: Tokenizer, *, count: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """`count` passages of each of the `texts`, and which text each is of, int64 [n].

    None twice, and of a text without a token none. The same texts and seed give the same passages.
    """
    if not count:
        return [], np.empty(0, np.int64)
    tokens = [list(tokenizer.tokens(text)) for text in texts]
    comments_with = Counter(token for row in tokens for token in dict.fromkeys(row))
    words = [
        token for token, n in comments_with.items() if n >= _LEAST_COMMENTS and token.isalpha()
    ]
    rng = np.random.default_rng((seed, _STREAM))
    source_of: dict[str, int] = {}
    for _ in range(count):
        for source, row in enumerate(tokens):
            if not row:
                continue
            length = rng.integers(min(_SHORTEST, len(row)), min(_LONGEST, len(row)) + 1)
            start = rng.integers(len(row) - length + 1)
            passage = row[start : start + length]
            if words:
                replaced = np.flatnonzero(rng.random(length) < rng.choice(_REPLACED))
                for at, word in zip(replaced, rng.integers(len(words), size=length), strict=False):
                    passage[at] = words[word]
            source_of.setdefault(" ".join(passage), source)
    return list(source_of), np.fromiter(source_of.values(), np.int64, len(source_of))
