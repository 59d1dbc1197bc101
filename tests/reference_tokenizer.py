"""The text -> ids rule once more, in plain Python: the specification that the core is compared to.

    python -m tests.compare_tokenizers

It reads a tokenizer file by itself and imports nothing of the product but the contract. It is
written to be read, not to be fast.

The rule, for a comment given as a string of Unicode code points:

1. Fold. Each code point is replaced on its own, whatever stands beside it: one of category Cf
   (zero-width joiners, soft hyphens, direction marks) is deleted; otherwise it becomes its
   NFKC form where that is a single code point, then its lower case where that is one.
2. Split. Categories L*, M* and N* are word characters. Z*, Cc and Cs separate. A token is a
   maximal run of word characters, or any one other character.
3. Look up. The ids are [CLS], then one id for each token, [UNK] for a token outside the
   vocabulary. A token of the vocabulary with a space in it is a phrase: from the left, its two
   ids are replaced by its one. Ids past `most` are cut.

With a respelling (format version 2; without one the rule is that of version 1), a disguised
word is looked for in the vocabulary before it becomes [UNK]; a known token keeps its id:

a. Before step 2, ASCII letters and digits that stand alone, one separator apart, 3 to 64 in a
   row, are joined and cut into known words, the likeliest by rank ("i d i o t"); left if it has
   none.
b. A run of ASCII letters, digits and marks ("f*ck", "$h1t") without the `*` and `!` round it, or
   without any mark behind it, is one word when, read with its look-alikes as letters and `*`, or
   every mark, as any letter, it is a known one; of several, the most frequent.
c. An unknown word takes the known word that it is with runs of a letter cut to two, or with all
   runs cut to one as in the known word ("stuuupid"), or so with its digits as letters ("sh1t");
   else the most frequent one that two neighbouring characters swapped make of it ("sutpid").
d. What is still unknown is cut into the likeliest known words of three letters or more, of which
   the first four count ("ballsballs").

A reading counts only for what is a third letters or more. A word's first 32 characters are read.

What the steps leave open is said beside the code: where a run of step b ends, and how many runs
step a joins. The tables of steps 1 and 2 come from the tokenizer's file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

from contract import CLS_ID, SPECIAL_TOKENS, UNK_ID

_SHORTEST_WORD, _LONGEST_WORD = 3, 16
"""Letters of the known words that disguised and spaced-out ones are read as."""
_MOST_LETTERS = 32
"""Of an unknown word or a run of step b."""
_SPELLED_OUT = re.compile(" [a-z0-9](?: [a-z0-9]){2,63}(?=[ .,!?])")
"""Step a, in folded text between two spaces."""
_FREQUENT_MARKS = ".,'\"-()?:/="


class ReferenceTokenizer:
    """One tokenizer file and the rule."""

    def __init__(self, document: dict[str, Any]) -> None:
        """`document` is a file that the core takes: what it refuses is not looked for here."""
        self.max_len: int = document["max_len"]
        vocabulary: list[str] = document["vocabulary"]
        self._fold_of = dict(zip(document["fold_from"], document["fold_to"], strict=True))
        self._deleted = set(map(chr, document["deleted"]))
        self._word_characters = _characters(document["word"])
        self._separators = _characters(document["space"])
        # Typed text never becomes a special token.
        self._id_of = {token: i for i, token in enumerate(vocabulary) if i >= len(SPECIAL_TOKENS)}
        self._phrase_of: dict[tuple[int, int], int] = {}
        for token, i in self._id_of.items():
            if " " in token:
                first, second = token.split(" ")
                self._phrase_of[self._id_of[first], self._id_of[second]] = i
        respelling = document["respelling"] if document["format_version"] > 1 else None
        self._respeller = _Respeller(respelling, self._id_of) if respelling else None

    @classmethod
    def from_json(cls, text: str) -> ReferenceTokenizer:
        """The tokenizer that a file's text describes."""
        return cls(json.loads(text))

    def tokens(self, text: str) -> list[str]:
        """Tokens of `text` in order by steps 1 and 2, without [CLS] and without a cut."""
        return self._split(self._folded(text))

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Ids of `text`: [CLS] first, between 1 and `most` of them, by default `max_len`."""
        return self.encode_and_cut(text, most)[0]

    def encode_and_cut(self, text: str, most: int | None = None) -> tuple[list[int], bool]:
        """Ids of `text` as `encode` gives them, and whether text had to be cut."""
        most = self.max_len if most is None else most
        ids = [CLS_ID, *islice(self._merged(self._ids(text, most)), most)]
        return ids[:most], len(ids) > most

    def _folded(self, text: str) -> str:
        """Step 1, and a space for each code point that separates."""
        folded = [self._fold_of.get(char, char) for char in text if char not in self._deleted]
        return "".join(" " if char in self._separators else char for char in folded)

    def _split(self, folded: str) -> list[str]:
        """Step 2."""
        tokens: list[str] = []
        word = ""
        for char in f"{folded} ":
            if char in self._word_characters:
                word += char
                continue
            if word:
                tokens.append(word)
                word = ""
            if char != " ":
                tokens.append(char)
        return tokens

    def _ids(self, text: str, most: int) -> Iterator[int]:
        """Ids of all tokens, before phrases."""
        text = f" {self._folded(text)} "
        if self._respeller:
            # No more than `most` runs are joined, which shows only where phrases make more of
            # them fit.
            text = _SPELLED_OUT.sub(self._respeller.joined, text, count=most)
        for chunk in _chunks(text):
            if chunk in self._id_of:
                yield self._id_of[chunk]
            elif self._respeller:
                yield from self._respelled_ids(chunk, self._respeller)
            else:
                yield from (self._id_of.get(token, UNK_ID) for token in self._split(chunk))

    def _respelled_ids(self, chunk: str, respeller: _Respeller) -> Iterator[int]:
        """Ids of a chunk's tokens, those outside the vocabulary by steps b to d."""
        # Step b is for a chunk of ASCII only.
        for run in respeller.runs(chunk) if chunk.isascii() else [chunk]:
            before, word, after = respeller.disguised(run) or (run, None, "")
            for token in self._split(before):
                known = [token] if token in self._id_of else respeller.respelled(token)
                yield from (self._id_of.get(piece, UNK_ID) for piece in known)
            if word is not None:
                yield self._id_of[word]
                yield from (self._id_of.get(mark, UNK_ID) for mark in after)

    def _merged(self, ids: Iterable[int]) -> Iterator[int]:
        """`ids` with each pair that is a phrase, from the left, as the phrase's one id."""
        previous: int | None = None
        for i in ids:
            if previous is None:
                previous = i
            elif (previous, i) in self._phrase_of:
                yield self._phrase_of[previous, i]
                previous = None
            else:
                yield previous
                previous = i
        if previous is not None:
            yield previous


def _characters(ranges: list[tuple[int, int]]) -> set[str]:
    return {chr(point) for first, last in ranges for point in range(first, last + 1)}


def _chunks(text: str) -> list[str]:
    """What stands between separators and frequent marks, and those marks: a run ends there.

    Of several `!`, the last one is such a mark.
    """
    for mark in _FREQUENT_MARKS:
        text = text.replace(mark, f" {mark} ")
    return text.replace("! ", " ! ").split()


def _has_letters(word: str) -> bool:
    return 3 * sum(map(str.isalpha, word)) >= len(word)


def _cut_runs(word: str, longest: int) -> str:
    """`word` with every run of a character no longer than that."""
    return re.sub(r"(.)\1+", lambda run: run[0][:longest], word)


class _Respeller:
    """Steps a to d of the rule over one vocabulary."""

    def __init__(self, respelling: dict[str, Any], id_of: dict[str, int]) -> None:
        self._id_of = id_of
        self._mask, self._pieces = respelling["mask"], respelling["pieces"]
        lookalikes = respelling["lookalikes"]
        self._readings = [str.maketrans(lookalikes, reading) for reading in respelling["readings"]]
        self._marks = self._mask + re.sub("[a-z0-9]", "", lookalikes)
        self._all_masked = str.maketrans(dict.fromkeys(self._marks, self._mask))
        # Words of ASCII letters, the most frequent first.
        self._plain_words = [
            w for w in id_of if len(w) >= _SHORTEST_WORD and w.isascii() and w.isalpha()
        ]
        self._of_skeleton: dict[str, str] = {}
        self._alike: dict[tuple[str, int], list[str]] = {}  # by first letter and length
        for word in self._plain_words:
            self._of_skeleton.setdefault(_cut_runs(word, 1), word)
            self._alike.setdefault((word[0], len(word)), []).append(word)

    def joined(self, spelled_out: re.Match[str]) -> str:
        """Step a: known words for " i d i o t", or the match as it is."""
        letters = spelled_out[0].replace(" ", "")
        if not _has_letters(letters):
            return spelled_out[0]
        words = self._cut_into_words(letters.translate(self._readings[0]), 1)
        return "".join(f" {word}" for word in words) or spelled_out[0]

    def runs(self, chunk: str) -> list[str]:
        """Of ASCII letters, digits and marks, and what stands between such runs."""
        inside = f"a-z0-9{re.escape(self._marks)}"
        return re.findall(f"[{inside}]+|[^{inside}]+", chunk)

    def disguised(self, run: str) -> tuple[str, str, str] | None:
        """Step b: what stands before the word, the known word, the marks after it."""
        if len(run) > _MOST_LETTERS or not run.isascii():
            return None
        core = run.lstrip("!" + self._mask)
        before = run[: len(run) - len(core)]
        for strip in ("!" + self._mask, self._marks):
            word = core.rstrip(strip)
            if len(word) < _SHORTEST_WORD or word.isalnum() or not _has_letters(word):
                continue
            readings = [word.translate(table) for table in (*self._readings, self._all_masked)]
            known = [found for found in map(self._unmasked, readings) if found]
            if known:
                return before, min(known, key=self._id_of.__getitem__), core[len(word) :]
        return None

    def _unmasked(self, word: str) -> str | None:
        if self._mask not in word:
            return self._known_form(word)
        if len(word) == _SHORTEST_WORD:  # "a*b" is a product
            return None
        for known in self._alike.get((word[0], len(word)), []):
            if all(a in (self._mask, b) for a, b in zip(word, known, strict=True)):
                return known
        return None

    def respelled(self, token: str) -> list[str]:
        """Steps c and d; the token itself where no known word is found."""
        token = token[:_MOST_LETTERS]
        forms = [token]
        if not token.isalpha() and _has_letters(token):
            forms += [token.translate(reading) for reading in self._readings]
        for form in forms:
            if known := self._known_form(form):
                return [known]
        if known := self._unswapped(token):
            return [known]
        return self._cut_into_words(token, _SHORTEST_WORD)[: self._pieces] or [token]

    def _known_form(self, word: str) -> str | None:
        if word in self._id_of:
            return word
        once, twice = _cut_runs(word, 1), _cut_runs(word, 2)
        if len(once) <= len(word) - 2 and twice in self._id_of:
            return twice
        return self._of_skeleton.get(once)

    def _unswapped(self, word: str) -> str | None:
        if len(word) <= _SHORTEST_WORD:
            return None
        swapped = [word[:i] + b + a + word[i + 2 :] for i, (a, b) in enumerate(pairwise(word))]
        known = [other for other in swapped if other in self._id_of]
        return min(known, key=self._id_of.__getitem__, default=None)

    def _cut_into_words(self, letters: str, shortest: int) -> list[str]:
        """The known words of `shortest` letters or more that `letters` most likely are, or none.

        Word number r by frequency has a probability of about 1/(11 r) (Zipf's law), so it costs
        log2 r + 3.5 bits; in whole numbers, so that every machine adds up the same. Of two ways
        that cost the same, the one with the longer last word counts.
        """
        length = len(letters)
        costs: list[int | None] = [0] + [None] * length  # by letters read
        starts = [0] * (length + 1)  # of the last word
        for start, spent in enumerate(costs):
            if spent is None:
                continue
            for end in range(start + shortest, min(start + _LONGEST_WORD, length) + 1):
                word = letters[start:end]
                if word not in self._id_of or (len(word) == 1 and word not in "ai"):
                    continue
                cost, least = spent + self._id_of[word].bit_length() + 4, costs[end]
                if least is None or cost < least:
                    costs[end], starts[end] = cost, start
        words: list[str] = []
        end = length if costs[length] is not None else 0
        while end:
            words.append(letters[starts[end] : end])
            end = starts[end]
        return words[::-1]
