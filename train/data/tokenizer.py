"""The one text -> ids rule, used byte for byte by training and by serving.

The rule itself is native code, core/src/tokenizer.h, for both. This is its Python side: the
tokenizer's file, and how a vocabulary is made from comments.

The tables of steps 1 and 2 are read from the interpreter's Unicode database once, when the
vocabulary is built, and saved with it, so that a server with a newer Unicode gives the same
ids.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, repeat
from typing import Any

import numpy as np

from contract import SPECIAL_TOKENS, UNK_ID, BadInput
from core.binding import NativeTokenizer
from train.data import lookalikes

FORMAT_VERSION = 2


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
    """Tables of this interpreter's Unicode database and of `lookalikes` (0.5 s, once a process)."""
    fold_from, fold_to, deleted, word, space = [], [], [], [], []
    for code_point in range(sys.maxunicode + 1):
        char = chr(code_point)
        category = unicodedata.category(char)
        folded = _folded(char)
        if category == "Cf" or ord(folded) in lookalikes.VANISHING:
            deleted.append(code_point)
            continue
        if category == "Cs":  # lone surrogates: not in valid UTF-8, and JSON cannot hold them
            space.append(code_point)
            continue
        if folded != char:
            fold_from.append(char)
            fold_to.append(folded)
        if category[0] in "LMN":
            word.append(code_point)
        elif category[0] == "Z" or category == "Cc":
            space.append(code_point)
    return UnicodeRule(
        unicode_version=f"{unicodedata.unidata_version}, look-alikes {lookalikes.VERSION}",
        fold_from="".join(fold_from),
        fold_to="".join(fold_to),
        deleted=tuple(deleted),
        word=_ranges(word),
        space=_ranges(space),
    )


def _folded(char: str) -> str:
    """NFKC form and lower case, each where it is one code point; then what it looks like."""
    compatible = unicodedata.normalize("NFKC", char)
    folded = compatible if len(compatible) == 1 else char
    lower = folded.lower()
    folded = lower if len(lower) == 1 else folded
    if folded.isascii():
        return folded
    shown = lookalikes.shown()
    return shown.get(char) or shown.get(folded) or folded


_MOST_PIECES = 32


@dataclass(frozen=True)
class Respelling:
    """Steps a to d of the rule: how a word that is not in the vocabulary may be read.

    Each string of `readings` gives the letters that the characters of `lookalikes` stand for, the
    first that leads to a known word counting; `mask` stands for any letter. An unknown word is cut
    into at most `pieces` known ones.
    """

    lookalikes: str = "013457$@!"
    readings: tuple[str, ...] = ("oieastsai", "oleastsal")
    mask: str = "*"
    pieces: int = 4

    def __post_init__(self) -> None:
        letters = all(re.fullmatch("[a-z]+", reading) for reading in self.readings)
        lengths = {len(reading) for reading in self.readings}
        pieces = isinstance(self.pieces, int) and 1 <= self.pieces <= _MOST_PIECES
        if not (letters and lengths == {len(self.lookalikes)} and pieces):
            raise BadInput(
                f"the tokenizer's respelling is {self}, expected a letter of each reading for "
                f"each of the lookalikes, and 1 to {_MOST_PIECES} pieces; train again"
            )


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the rule that it was built with. Immutable, safe to share.

    `vocabulary` lists the tokens by id, the special tokens first.
    """

    vocabulary: tuple[str, ...]
    max_len: int
    rule: UnicodeRule = field(default_factory=unicode_rule)
    respelling: Respelling | None = None

    def __post_init__(self) -> None:
        if tuple(self.vocabulary[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise BadInput(
                f"the vocabulary starts with {list(self.vocabulary[:3])}, expected "
                f"{list(SPECIAL_TOKENS)}; train again to write a new one"
            )
        if self.max_len < 1:
            raise BadInput(f"max_len is {self.max_len}, expected at least 1; set --max-len")
        if len(set(self.vocabulary)) < len(self.vocabulary):
            raise BadInput("the vocabulary has a token twice, expected each once; train again")

    @functools.cached_property
    def native(self) -> NativeTokenizer:
        """The same in the core, which reads the texts."""
        return NativeTokenizer(self.to_json())

    def tokens(self, text: str) -> list[str]:
        """Tokens of `text` in order by steps 1 and 2, without [CLS] and without a cut."""
        return self.native.split(text)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: [CLS] first, between 1 and `max_len` of them."""
        return self.encode_and_cut(text)[0]

    def encode_and_cut(self, text: str) -> tuple[list[int], bool]:
        """Ids of `text` as `encode` gives them, and whether text had to be cut."""
        return self.native.encode(text, self.max_len)

    def __getstate__(self) -> dict[str, Any]:
        """Without the native part, which another process makes for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "native"}

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
            "respelling": self.respelling and asdict(self.respelling),
            "vocabulary": self.vocabulary,
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Raises BadInput when `text` is not a tokenizer that this version wrote."""
        try:
            document: dict[str, Any] = json.loads(text)
            version = document["format_version"]
            if version not in (1, FORMAT_VERSION):
                raise BadInput(
                    f"the tokenizer's format_version is {version!r}, expected 1 or "
                    f"{FORMAT_VERSION}; train again, or use the release that wrote it"
                )
            spelling = document["respelling"] if version > 1 else None
            respelling = spelling and Respelling(
                spelling["lookalikes"],
                tuple(spelling["readings"]),
                spelling["mask"],
                spelling["pieces"],
            )
            rule = UnicodeRule(
                unicode_version=document["unicode_version"],
                fold_from=document["fold_from"],
                fold_to=document["fold_to"],
                deleted=tuple(document["deleted"]),
                word=tuple((first, last) for first, last in document["word"]),
                space=tuple((first, last) for first, last in document["space"]),
            )
            tokenizer = cls(tuple(document["vocabulary"]), document["max_len"], rule, respelling)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"the tokenizer file is not readable ({error!r}), expected the JSON that "
                "training wrote; train again"
            ) from error
        _ = tokenizer.native  # which reads the file once more, and refuses what it cannot read
        return tokenizer


def build_tokenizer(
    texts: Iterable[str],
    *,
    max_vocab: int,
    max_len: int,
    respelling: Respelling | None = None,
    phrases: int = 0,
    unmerged: Collection[str] = (),
) -> Tokenizer:
    """The special tokens and the `max_vocab - 3` most frequent tokens of `texts` by frequency.

    `phrases` of them, the last, are the most frequent pairs of kept words that stand side by side,
    neither of them one of the words `unmerged`.
    Ties go to the token that sorts first, so the same texts in any order give the same
    vocabulary. `max_len` counts [CLS].
    """
    blank = Tokenizer(SPECIAL_TOKENS, max_len)
    counts: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        tokens = blank.tokens(text)
        counts.update(tokens)
        if phrases:
            pairs.update(pairwise(tokens))
    kept = _most_frequent(counts, max_vocab - len(SPECIAL_TOKENS) - phrases)
    words = {token for token in kept if token.isalnum()} - set(unmerged)
    joined = {f"{a} {b}": n for (a, b), n in pairs.items() if a in words and b in words}
    vocabulary = (*SPECIAL_TOKENS, *kept, *_most_frequent(joined, phrases))
    return Tokenizer(vocabulary, max_len, respelling=respelling)


def _most_frequent(counts: Mapping[str, int], most: int) -> list[str]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [token for token, _ in ranked[: max(0, most)]]


def oov_rates(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    ids: Iterable[Sequence[int] | np.ndarray] | None = None,
) -> dict[str, float]:
    """Shares of `texts` outside the vocabulary: "before", of the tokens as they are written;
    "after", of the ids, which are [UNK]. What is cut at `max_len` does not count.

    `ids` are the texts', [CLS] first, where they are known already.
    """
    known = frozenset(tokenizer.vocabulary)
    known_ids = repeat(None) if ids is None else ids
    tokens = unknown = read = unread = 0
    for text, encoded in zip(texts, known_ids, strict=ids is not None):
        written = tokenizer.tokens(text)[: tokenizer.max_len - 1]
        tokens += len(written)
        unknown += sum(token not in known for token in written)
        row = tokenizer.encode(text) if encoded is None else encoded
        read += len(row) - 1
        unread += int(np.count_nonzero(np.asarray(row[1:]) == UNK_ID))
    return {"before": unknown / max(1, tokens), "after": unread / max(1, read)}
