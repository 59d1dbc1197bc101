"""The text -> ids rule once more, in plain Python: the specification that the core is compared to.

Nothing of the product imports it. It reads a tokenizer file by itself.

The rule, for a comment given as a string of Unicode code points:

1. Fold. Each code point is replaced on its own, whatever stands beside it: one of category Cf
   (zero-width joiners, soft hyphens, direction marks) is deleted; otherwise it becomes its
   NFKC form where that is a single code point, then its lower case where that is one.
2. Split. Categories L*, M* and N* are word characters. Z*, Cc and Cs separate. A token is a
   maximal run of word characters, or any one other character.
3. Look up. The ids are [CLS], then one id for each token, [UNK] for a token outside the
   vocabulary. A token of the vocabulary with a space in it is a phrase: from the left, its two
   ids are replaced by its one. Ids past `max_len` are cut.

With a `Respelling` (format version 2; without one the rule is that of version 1), a disguised word
is looked for in the vocabulary before it becomes [UNK]; a known token keeps its id:

a. Before step 2, ASCII letters and digits that stand alone, one separator apart, 3 to 64 in a row,
   are joined and cut into known words, the likeliest by rank ("i d i o t"); left if it has none.
b. A run of ASCII letters, digits and marks ("f*ck", "$h1t") without the `*` and `!` round it, or
   without any mark behind it, is one word when, read with its look-alikes as letters and `*`, or
   every mark, as any letter, it is a known one; of several, the most frequent.
c. An unknown word takes the known word that it is with runs of a letter cut to two, or with all
   runs cut to one as in the known word ("stuuupid"), or so with its digits as letters ("sh1t");
   else the most frequent one that two neighbouring characters swapped make of it ("sutpid").
d. What is still unknown is cut into the likeliest known words of three letters or more, of which
   the first four count ("ballsballs").

A reading counts only for what is a third letters or more.

The tables of steps 1 and 2 are read from the interpreter's Unicode database once, when the
vocabulary is built, and saved with it, so that a server with a newer Unicode gives the same
ids. Step a reads no further than its run, all else no further than what stands between two
separators.

"""

from __future__ import annotations

import functools
import json
import re
import sys
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

from contract import CLS_ID, SPECIAL_TOKENS, UNK_ID, BadInput

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
_ASCII_FOLD = bytes(0x20 if i < 0x20 or i == 0x7F else ord(chr(i).lower()) for i in range(128))
_ASCII_FOLD += bytes(range(128, 256))
"""Step 1 for ASCII as `bytes.translate` takes it; what separates becomes a space."""
_HEAD_CHARS = 8
"""Of a long text, this many characters for each id that fits are read first: English has five."""
_HEAD_ENDS = re.compile("[A-Za-z0-9]{2} ")
"""Where a text can be cut in two without a change of its tokens: no single letter is there."""
_MEMO_CHUNKS, _MEMO_CHARS = 1 << 15, 32
"""Most chunks beside the vocabulary whose ids are kept, and the longest of them."""
_SHORTEST_WORD, _LONGEST_WORD = 3, 16
"""Letters of the known words that disguised and spaced-out ones are read as."""
_REPEATED, _THREE_OR_MORE = re.compile(r"(.)\1+"), re.compile(r"(.)\1{2,}")


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
        pieces = isinstance(self.pieces, int) and 1 <= self.pieces <= _MEMO_CHARS
        if not (letters and lengths == {len(self.lookalikes)} and pieces):
            raise BadInput(
                f"the tokenizer's respelling is {self}, expected a letter of each reading for "
                f"each of the lookalikes, and 1 to {_MEMO_CHARS} pieces; train again"
            )


class _Fold(dict[int, str]):
    """Table for `str.translate`: step 1 of the rule, and a space for what separates."""

    def __init__(self, rule: UnicodeRule) -> None:
        super().__init__(dict.fromkeys(rule.deleted, ""))
        self._fold = dict(zip(rule.fold_from, rule.fold_to, strict=True))
        self._space = rule.space

    def __missing__(self, code_point: int) -> str:
        folded = self._fold.get(chr(code_point), chr(code_point))
        self[code_point] = folded = " " if _within(self._space, ord(folded)) else folded
        return folded


class _Rewrite(dict[int, str]):
    """Table for `str.translate`: folds a code point, and sets spaces round one that splits."""

    def __init__(self, rule: UnicodeRule) -> None:
        super().__init__(dict.fromkeys(rule.deleted, ""))
        self._fold, self._word = _Fold(rule), rule.word

    def __missing__(self, code_point: int) -> str:
        folded = self._fold[code_point]
        is_word = folded == " " or _within(self._word, ord(folded))
        self[code_point] = rewritten = folded if is_word else f" {folded} "
        return rewritten


def _within(ranges: tuple[tuple[int, int], ...], code_point: int) -> bool:
    at = bisect_right(ranges, (code_point, sys.maxunicode)) - 1
    return at >= 0 and code_point <= ranges[at][1]


@functools.cache
def _rewrite(rule: UnicodeRule) -> _Rewrite:
    return _Rewrite(rule)


@dataclass(frozen=True)
class ReferenceTokenizer:
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
    def _id_of(self) -> dict[str, int]:
        special = len(SPECIAL_TOKENS)  # typed text never becomes a special token
        return {t: i for i, t in enumerate(self.vocabulary[special:], start=special)}

    @functools.cached_property
    def _ids_of(self) -> _IdsOf:
        return _IdsOf(self)

    @functools.cached_property
    def _respeller(self) -> _Respeller | None:
        return _Respeller(self.respelling, self) if self.respelling else None

    @functools.cached_property
    def _phrases(self) -> dict[tuple[int, int], int]:
        pairs = [(token.split(" "), i) for token, i in self._id_of.items() if " " in token]
        return {(self._id_of[a], self._id_of[b]): i for (a, b), i in pairs}

    @functools.cached_property
    def _rewrite(self) -> _Rewrite:
        return _rewrite(self.rule)

    @functools.cached_property
    def _fold(self) -> _Fold:
        return _Fold(self.rule)

    def tokens(self, text: str) -> Iterable[str]:
        """Tokens of `text` in order by steps 1 and 2, without [CLS] and without a cut."""
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

        Reads a very long comment no further than its ids fit.
        """
        head = text
        if len(text) > _HEAD_CHARS * self.max_len:
            end = _HEAD_ENDS.search(text, _HEAD_CHARS * self.max_len)
            head = text[: end.end()] if end else text
        ids = self._ids(head)
        if len(ids) <= self.max_len and len(head) < len(text):
            ids = self._ids(text)
        return ids[: self.max_len], len(ids) > self.max_len

    def _ids(self, text: str) -> list[int]:
        """[CLS] and all ids of `text`, or at least `max_len` of them."""
        ids = self._ids_in_python(text)
        return self._merged(ids) if self._phrases else ids

    @functools.cached_property
    def _most(self) -> int:
        """Ids that are read: a phrase makes one of two."""
        return self.max_len * (2 if self._phrases else 1)

    def _ids_in_python(self, text: str) -> list[int]:
        """[CLS] and all ids of `text` before phrases, or at least `_most` of them."""
        if text.isascii():
            text = text.encode().translate(_ASCII_FOLD).decode()
        else:
            text = text.translate(self._fold)
        text = f" {text} "
        if self._respeller:
            text = self._respeller.spelled_out.sub(self._respeller.joined, text, count=self.max_len)
        # Any other mark is split off in `_IdsOf`: these are the frequent ones, none of them is
        # a mark of a disguised word except the last before a space.
        text = (
            text.replace(".", " . ")
            .replace(",", " , ")
            .replace("'", " ' ")
            .replace('"', ' " ')
            .replace("-", " - ")
            .replace("(", " ( ")
            .replace(")", " ) ")
            .replace("?", " ? ")
            .replace(":", " : ")
            .replace("/", " / ")
            .replace("=", " = ")
            .replace("! ", " ! ")
        )
        chunks = text.split(None, self._most)[: self._most]  # each gives an id at least
        found: list[Any] = list(map(self._ids_of.__getitem__, chunks))
        try:
            array("i", found)  # the quickest way to see that no chunk has several ids
        except TypeError:
            found = list(chain.from_iterable((i,) if isinstance(i, int) else i for i in found))
        return [CLS_ID, *found]

    def _merged(self, ids: list[int]) -> list[int]:
        """`ids` with each pair that is a phrase, from the left, as the phrase's one id."""
        merged, phrase_of = list[int](), self._phrases
        previous = None
        for i in ids:
            if previous is None:
                previous = i
            elif phrase := phrase_of.get((previous, i)):
                merged.append(phrase)
                previous = None
            else:
                merged.append(previous)
                previous = i
        if previous is not None:
            merged.append(previous)
        return merged

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
    def from_json(cls, text: str) -> ReferenceTokenizer:
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
            return cls(tuple(document["vocabulary"]), document["max_len"], rule, respelling)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"the tokenizer file is not readable ({error!r}), expected the JSON that "
                "training wrote; train again"
            ) from error


class _IdsOf(dict[str, int | tuple[int, ...]]):
    """Chunk -> its id, or its ids where there are several: the vocabulary, and the chunks met last.

    A chunk is folded text without a separator. What is kept depends on what was met, what is
    found does not. Threads may share it: at worst two of them resolve the same chunk.
    """

    def __init__(self, tokenizer: ReferenceTokenizer) -> None:
        super().__init__(tokenizer._id_of)
        self._id_of, self._tokens = tokenizer._id_of, tokenizer.tokens
        self._most, self._respeller = tokenizer._most, tokenizer._respeller

    def __missing__(self, chunk: str) -> int | tuple[int, ...]:
        tokens: Iterable[str] = self._tokens(chunk)
        if self._respeller:
            tokens = self._respeller.known_words(chunk)
        ids = tuple(self._id_of.get(token, UNK_ID) for token in islice(tokens, self._most))
        found = ids[0] if len(ids) == 1 else ids
        if len(chunk) <= _MEMO_CHARS:
            if len(self) >= len(self._id_of) + _MEMO_CHUNKS:
                self.clear()
                self.update(self._id_of)
            self[chunk] = found
        return found


def _has_letters(word: str) -> bool:
    return 3 * sum(map(str.isalpha, word)) >= len(word)


class _Respeller:
    """Steps a to d of the rule over one vocabulary."""

    spelled_out = re.compile(" [a-z0-9](?: [a-z0-9]){2,63}(?=[ .,!?])")

    def __init__(self, respelling: Respelling, tokenizer: ReferenceTokenizer) -> None:
        self._id_of, self._tokens = tokenizer._id_of, tokenizer.tokens
        self._mask, self._pieces = respelling.mask, respelling.pieces
        self._readings: list[dict[int, str]] = [
            {
                ord(alike): letter
                for alike, letter in zip(respelling.lookalikes, reading, strict=True)
            }
            for reading in respelling.readings
        ]
        self._marks = respelling.mask + re.sub("[a-z0-9]", "", respelling.lookalikes)
        self._all_masked = dict.fromkeys(map(ord, self._marks), self._mask)
        marks = re.escape(self._marks)
        self._runs = re.compile(f"[a-z0-9{marks}]+|[^a-z0-9{marks}]+")
        self._of_skeleton: dict[str, str] = {}
        self._of_letters: dict[str, list[str]] = {}
        alike: dict[tuple[str, int], list[str]] = {}
        for word in self._id_of:  # the most frequent first
            if len(word) > _SHORTEST_WORD:
                self._of_letters.setdefault("".join(sorted(word)), []).append(word)
            if len(word) >= _SHORTEST_WORD and word.isascii() and word.isalpha():
                self._of_skeleton.setdefault(_REPEATED.sub(r"\1", word), word)
                alike.setdefault((word[0], len(word)), []).append(word)
        self._alike = {key: "\n".join(["", *words, ""]) for key, words in alike.items()}

    def known_words(self, chunk: str) -> Iterator[str]:
        """Tokens of a chunk, those outside the vocabulary respelled where that leads to one."""
        runs: Iterable[str] = [chunk]
        if chunk.isascii() and not chunk.isalnum():
            runs = (match[0] for match in self._runs.finditer(chunk))
        for run in runs:
            found = self._disguised(run) if run.isascii() and not run.isalnum() else None
            before, word, after = found or (run, "", "")
            for token in self._tokens(before):
                if token in self._id_of:
                    yield token
                else:
                    yield from self._respelled(token)
            if found:
                yield word
                yield from self._tokens(after)

    def _respelled(self, token: str) -> list[str]:
        """Steps c and d; the token itself where no known word is found."""
        token = token[:_MEMO_CHARS]
        known = self._known_form(token)
        if not known and not token.isalpha() and _has_letters(token):
            readings = map(token.translate, self._readings)
            known = next(filter(None, map(self._known_form, readings)), None)
        if known := known or self._unswapped(token):
            return [known]
        return self._cut_into_words(token, _SHORTEST_WORD)[: self._pieces] or [token]

    def _known_form(self, word: str) -> str | None:
        if word in self._id_of:
            return word
        once = _REPEATED.sub(r"\1", word)
        if len(once) <= len(word) - 2:
            twice = _THREE_OR_MORE.sub(r"\1\1", word)
            if twice in self._id_of:
                return twice
        return self._of_skeleton.get(once)

    def _unswapped(self, word: str) -> str | None:
        for known in self._of_letters.get("".join(sorted(word)), ()):
            at = next((i for i, (a, b) in enumerate(zip(word, known, strict=True)) if a != b), 0)
            if word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :] == known:
                return known
        return None

    def _disguised(self, run: str) -> tuple[str, str, str] | None:
        """Step b: what stands before the word, the known word, what stands after it."""
        if len(run) > _MEMO_CHARS:
            return None
        core = run.lstrip("!" + self._mask)
        before = run[: len(run) - len(core)]
        for strip in ("!" + self._mask, self._marks):
            word = core.rstrip(strip)
            if word.isalnum() or len(word) < _SHORTEST_WORD or not _has_letters(word):
                continue
            candidates = {
                word.translate(reading) for reading in (*self._readings, self._all_masked)
            }
            if known := set(filter(None, map(self._unmasked, candidates))):
                return before, min(known, key=self._id_of.__getitem__), core[len(word) :]
        return None

    def _unmasked(self, word: str) -> str | None:
        if self._mask not in word:
            return self._known_form(word)
        if len(word) == _SHORTEST_WORD:  # "a*b" is a product
            return None
        pattern = re.escape(word).replace(re.escape(self._mask), ".")
        found = re.search(f"\n{pattern}\n", self._alike.get((word[0], len(word)), ""))
        return found[0].strip() if found else None

    def joined(self, spelled_out: re.Match[str]) -> str:
        """Step a: known words for " i d i o t", or the match as it is."""
        letters = spelled_out[0].replace(" ", "")
        if not _has_letters(letters):
            return spelled_out[0]
        words = self._cut_into_words(letters.translate(self._readings[0]), 1)
        return " ".join(["", *words]) if words else spelled_out[0]

    def _cut_into_words(self, letters: str, shortest: int) -> list[str]:
        """The known words of `shortest` letters or more that `letters` most likely are, or none.

        Word number r by frequency has a probability of about 1/(11 r) (Zipf's law), so it costs
        log2 r + 3.5 bits; in whole numbers, so that every machine adds up the same.
        """
        rank_of, length = self._id_of.get, len(letters)
        costs: list[int | None] = [0] + [None] * length  # by letters read
        starts = [0] * (length + 1)  # of the last word
        for start, spent in enumerate(costs):
            if spent is None:
                continue
            for end in range(start + shortest, min(start + _LONGEST_WORD, length) + 1):
                rank = rank_of(letters[start:end])
                if rank is None or (end == start + 1 and letters[start] not in "ai"):
                    continue
                cost, least = spent + rank.bit_length() + 4, costs[end]
                if least is None or cost < least:
                    costs[end], starts[end] = cost, start
        words: list[str] = []
        end = length if costs[length] is not None else 0
        while end:
            words.append(letters[starts[end] : end])
            end = starts[end]
        return words[::-1]
