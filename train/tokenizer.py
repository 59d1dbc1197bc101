"""The one text -> ids rule, used byte for byte by training and by serving.

Standard library only: `make export` copies this file beside every published model, and the
server imports that copy.

The rule, for a comment given as a string of Unicode code points:

1. Fold. Each code point is replaced on its own, whatever stands beside it: one of category Cf
   (zero-width joiners, soft hyphens, direction marks) is deleted; otherwise it becomes its
   NFKC form where that is a single code point, then its lower case where that is one.
2. Split. Categories L*, M* and N* are word characters. Z*, Cc and Cs separate. A token is a
   maximal run of word characters, or any one other character.
3. Look up. The ids are [CLS], then one id for each token, [UNK] for a token outside the
   vocabulary. Ids past `max_len` are cut.

The tables of steps 1 and 2 are read from the interpreter's Unicode database once, when the
vocabulary is built, and saved with it, so that a server with a newer Unicode gives the same
ids. No step looks at its neighbours, so the rule is a table look-up in any language.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from contract import CLS_ID, SPECIAL_TOKENS, UNK_ID, BadInput

FORMAT_VERSION = 1


@dataclass(frozen=True)
class UnicodeRule:
    """Steps 1 and 2 of the rule as tables over code points.

    `fold_from[i]` becomes `fold_to[i]`; every code point of `deleted` vanishes; `word` and
    `space` hold inclusive ranges `(first, last)`.
    """

    unicode_version: str
    fold_from: str
    fold_to: str
    deleted: tuple[int, ...]
    word: tuple[tuple[int, int], ...]
    space: tuple[tuple[int, int], ...]


def _ranges(code_points: list[int]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for code_point in code_points:
        if ranges and ranges[-1][1] == code_point - 1:
            ranges[-1] = (ranges[-1][0], code_point)
        else:
            ranges.append((code_point, code_point))
    return tuple(ranges)


@functools.cache
def unicode_rule() -> UnicodeRule:
    """Tables of this interpreter's Unicode database (about 0.5 s, once a process)."""
    fold_from, fold_to, deleted, word, space = [], [], [], [], []
    for code_point in range(sys.maxunicode + 1):
        char = chr(code_point)
        category = unicodedata.category(char)
        if category == "Cf":
            deleted.append(code_point)
            continue
        if category == "Cs":  # lone surrogates: not in valid UTF-8, and JSON cannot hold them
            space.append(code_point)
            continue
        compatible = unicodedata.normalize("NFKC", char)
        folded = compatible if len(compatible) == 1 else char
        lower = folded.lower()
        folded = lower if len(lower) == 1 else folded
        if folded != char:
            fold_from.append(char)
            fold_to.append(folded)
        if category[0] in "LMN":
            word.append(code_point)
        elif category[0] == "Z" or category == "Cc":
            space.append(code_point)
    return UnicodeRule(
        unicode_version=unicodedata.unidata_version,
        fold_from="".join(fold_from),
        fold_to="".join(fold_to),
        deleted=tuple(deleted),
        word=_ranges(word),
        space=_ranges(space),
    )


_ASCII_TOKEN = re.compile("[a-z0-9]+|[^a-z0-9\x00-\x20\x7f]")
"""Steps 1 and 2 for lower-cased ASCII text, on which every Unicode version agrees."""
_LAZY_FROM_CHARS = 4096
"""From this length on, ASCII tokens are taken one by one: only the first `max_len` count."""


class _Rewrite(dict[int, str]):
    """Table for `str.translate`: folds a code point, and sets spaces round one that splits."""

    def __init__(self, rule: UnicodeRule) -> None:
        super().__init__(dict.fromkeys(rule.deleted, ""))
        self._fold = dict(zip(rule.fold_from, rule.fold_to, strict=True))
        self._word, self._space = rule.word, rule.space

    def __missing__(self, code_point: int) -> str:
        folded = self._fold.get(chr(code_point), chr(code_point))
        if _within(self._word, ord(folded)):
            rewritten = folded
        elif _within(self._space, ord(folded)):
            rewritten = " "
        else:
            rewritten = f" {folded} "
        self[code_point] = rewritten
        return rewritten


def _within(ranges: tuple[tuple[int, int], ...], code_point: int) -> bool:
    at = bisect_right(ranges, (code_point, sys.maxunicode)) - 1
    return at >= 0 and code_point <= ranges[at][1]


@functools.cache
def _rewrite(rule: UnicodeRule) -> _Rewrite:
    return _Rewrite(rule)


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the rule that it was built with. Immutable, safe to share.

    `vocabulary` lists the tokens by id, the special tokens first.
    """

    vocabulary: tuple[str, ...]
    max_len: int
    rule: UnicodeRule = field(default_factory=unicode_rule)

    def __post_init__(self) -> None:
        if tuple(self.vocabulary[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise BadInput(
                f"the vocabulary starts with {list(self.vocabulary[:3])}, expected "
                f"{list(SPECIAL_TOKENS)}; train again to write a new one"
            )
        if self.max_len < 1:
            raise BadInput(f"max_len is {self.max_len}, expected at least 1; set --max-len")

    @functools.cached_property
    def _id_of(self) -> dict[str, int]:
        special = len(SPECIAL_TOKENS)  # typed text never becomes a special token
        return {t: i for i, t in enumerate(self.vocabulary[special:], start=special)}

    @functools.cached_property
    def _rewrite(self) -> _Rewrite:
        return _rewrite(self.rule)

    def tokens(self, text: str) -> Iterable[str]:
        """Tokens of `text` in order, without [CLS] and without a cut."""
        if not text.isascii():
            return text.translate(self._rewrite).split()
        if len(text) < _LAZY_FROM_CHARS:
            return _ASCII_TOKEN.findall(text.lower())
        return (match.group() for match in _ASCII_TOKEN.finditer(text.lower()))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: [CLS] first, between 1 and `max_len` of them."""
        return self.encode_and_cut(text)[0]

    def encode_and_cut(self, text: str) -> tuple[list[int], bool]:
        """Ids of `text` as `encode` gives them, and whether text had to be cut.

        Stops at the first token past `max_len`, so a very long comment costs no more
        dictionary look-ups than one of `max_len` tokens.
        """
        id_of = self._id_of
        ids = [CLS_ID]
        # One token more than fits, so that a cut shows.
        ids += [id_of.get(token, UNK_ID) for token in islice(self.tokens(text), self.max_len)]
        return ids[: self.max_len], len(ids) > self.max_len

    def to_json(self) -> str:
        """The whole tokenizer as JSON text; `from_json` reads it back to an equal one."""
        rule = self.rule
        document = {
            "format_version": FORMAT_VERSION,
            "max_len": self.max_len,
            "unicode_version": rule.unicode_version,
            "fold_from": rule.fold_from,
            "fold_to": rule.fold_to,
            "deleted": rule.deleted,
            "word": rule.word,
            "space": rule.space,
            "vocabulary": self.vocabulary,
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Raises BadInput when `text` is not a tokenizer that this version wrote."""
        try:
            document: dict[str, Any] = json.loads(text)
            if document["format_version"] != FORMAT_VERSION:
                raise BadInput(
                    f"the tokenizer's format_version is {document['format_version']!r}, "
                    f"expected {FORMAT_VERSION}; train again, or use the release that wrote it"
                )
            rule = UnicodeRule(
                unicode_version=document["unicode_version"],
                fold_from=document["fold_from"],
                fold_to=document["fold_to"],
                deleted=tuple(document["deleted"]),
                word=tuple((first, last) for first, last in document["word"]),
                space=tuple((first, last) for first, last in document["space"]),
            )
            return cls(tuple(document["vocabulary"]), document["max_len"], rule)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"the tokenizer file is not readable ({error!r}), expected the JSON that "
                "training wrote; train again"
            ) from error


def build_tokenizer(texts: Iterable[str], *, max_vocab: int, max_len: int) -> Tokenizer:
    """The `max_vocab - 3` most frequent tokens of `texts` after the special ones.

    Ties go to the token that sorts first, so the same texts in any order give the same
    vocabulary. `max_len` counts [CLS].
    """
    counts: Counter[str] = Counter()
    blank = Tokenizer(SPECIAL_TOKENS, max_len)
    for text in texts:
        counts.update(blank.tokens(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = [token for token, _ in ranked[: max(0, max_vocab - len(SPECIAL_TOKENS))]]
    return Tokenizer(SPECIAL_TOKENS + tuple(kept), max_len)
