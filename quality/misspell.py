"""Seeded misspellings of the kinds that people use to get past a filter.

    misspell("you are an idiot", np.random.default_rng(0), KINDS)  ->  "y o u are an idiooot"

Half of the words of three letters or more are changed, each in one way; the rest of the text
stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_WORD = re.compile(r"[^\W\d_]{3,}")
_SHARE = 0.5
"""Of the words, since nobody told us which ones a filter would look at."""
_LEET = str.maketrans("aeiostAEIOST", "4310$74310$7")


CHANGES: dict[str, Callable[[str, int, int], str]] = {
    "repeated": lambda word, at, copies: word[:at] + word[at] * copies + word[at:],  # idiooot
    "leet": lambda word, _at, _copies: word.translate(_LEET),  # 1d10t
    "asterisk": lambda word, at, _copies: f"{word[:at]}*{word[at + 1 :]}",  # id*ot
    "swapped": lambda word, at, _copies: word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
    "spaced": lambda word, _at, _copies: " ".join(word),  # i d i o t
}
"""Kind -> (word, a place in it from 1 on, copies of a letter) -> the word misspelled."""
KINDS = tuple(CHANGES)


def misspell(text: str, rng: np.random.Generator, kinds: Sequence[str]) -> str:
    """`text` with words changed, each in one of `kinds` (of KINDS) at random."""

    def change(match: re.Match[str]) -> str:
        word = match.group()
        # All drawn for every word, so that each kind hits the same words at the same places.
        chosen, kind = rng.random() < _SHARE, kinds[int(rng.integers(len(kinds)))]
        at, copies = int(rng.integers(1, len(word))), int(rng.integers(2, 5))
        return CHANGES[kind](word, at, copies) if chosen else word

    return _WORD.sub(change, text)


def misspell_all(texts: Sequence[str], kinds: Sequence[str], *, seed: int) -> list[str]:
    """`misspell` of each text; the same (texts, kinds, seed) gives the same result."""
    return [
        misspell(text, np.random.default_rng([seed, row]), kinds) for row, text in enumerate(texts)
    ]
