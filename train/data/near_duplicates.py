"""Comments to train on that are nearly those which judge the model: found by MinHash, left out.

Two comments are near where their letters, digits and emoji are the same (`essence`), or where the
sets of five such characters in a row have a Jaccard similarity of at least SIMILARITY. Candidates
come from banded MinHash signatures (Broder 1997, "On the resemblance and containment of
documents"; Leskovec et al., "Mining of Massive Datasets", section 3.4), of which each is then
computed exactly. The time grows with the number of comments; what is held is the signatures of
those that judge and a chunk of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rensa import RMinHash, RMinHashLSH

from train.data.split import essence

SIMILARITY = 0.8
_SHINGLE = 5
_PERMUTATIONS, _BANDS = 256, 32
"""Eight rows a band: of pairs with SIMILARITY, 1 - (1 - 0.8 ** 8) ** 32 become candidates, 99.7 %,
and nearly all of those beyond; of pairs with half of it, one in fifty."""
_CHUNK = 4096
_MOST_CANDIDATES = 64
"""Compared exactly with one comment, so that thousands of copies of one template stay linear."""


def near_rows(texts: Sequence[str], rows: np.ndarray, judging: Sequence[str]) -> np.ndarray:
    """int64 [m], sorted: those of `rows` (int64 [n]) whose text is near one of `judging`."""
    index = _Index(judging)
    return np.array([row for row, near in index.look_up(texts, rows) if near], np.int64)


class _Index:
    """The comments that judge, each form once."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._forms = list(dict.fromkeys(essence(text) for text in texts))
        self._known = set(self._forms)
        self._lsh = RMinHashLSH(SIMILARITY, _PERMUTATIONS, _BANDS)
        for first in range(0, len(self._forms), _CHUNK):
            chunk = self._forms[first : first + _CHUNK]
            self._lsh.insert_many(_signatures(chunk), first)

    def look_up(self, texts: Sequence[str], rows: np.ndarray) -> Iterator[tuple[int, bool]]:
        """Each of `rows`, and whether its text is near a known one."""
        for first in range(0, len(rows), _CHUNK):
            chosen = rows[first : first + _CHUNK].tolist()
            forms = [essence(texts[row]) for row in chosen]
            candidates = self._lsh.query_all(_signatures(forms))
            for row, form, found in zip(chosen, forms, candidates, strict=True):
                yield row, form in self._known or self._near(form, found)

    def _near(self, form: str, candidates: Sequence[int]) -> bool:
        own = _shingles(form)
        for place in sorted(candidates)[:_MOST_CANDIDATES]:
            other = _shingles(self._forms[place])
            if len(own & other) >= SIMILARITY * len(own | other):
                return True
        return False


def _signatures(forms: Sequence[str]) -> list[RMinHash]:
    return RMinHash.from_token_sets([list(_shingles(form)) for form in forms], _PERMUTATIONS, 0)


def _shingles(form: str) -> set[str]:
    return {form[at : at + _SHINGLE] for at in range(max(1, len(form) - _SHINGLE + 1))}
