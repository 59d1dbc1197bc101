"""How a comment was read: which words were known, respelled, unknown, or behind the cut.

The core reads the whole comment, which is what counts, and each piece between spaces alone; where
both agree every token has its piece, and where not (letters that are spelled out: "i d i o t")
neighbouring pieces are shown as one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from contract import (
    ARTIFACT_FILE,
    MODEL_VERSION,
    PUBLIC_MODEL,
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    UNK_ID,
)
from export.scorer import LongText
from serve.app.refusals import NO_SERVER, Refusal
from train.data.tokenizer import Tokenizer

MAX_CHARACTERS = 8000
"""Most characters of a comment that are shown."""
_MOST_IDS = 1 << 17
_NEAR, _SURE = 80, 2
"""Words after which both readings agree again, at most: more than the letters that are joined; and
how many equal words say so."""
_UNKNOWN = SPECIAL_TOKENS[UNK_ID]
Read = tuple[str, int]
"""A word as it was read, and its place."""


class Readers:
    """The tokenizers of the versions that answer, from the folders `views`; the last is kept."""

    def __init__(self, views: Sequence[str]) -> None:
        self._views = [Path(view) / PUBLIC_MODEL for view in views]
        self._reader: Reader | None = None
        self._version = ""
        self._one = asyncio.Lock()

    async def read(self, version: str, text: str) -> dict[str, Any]:
        """`Reader.read` of that version. Raises Refusal."""
        async with self._one:  # the event loop and the servers have the other core
            return await asyncio.to_thread(self._read, version, text)

    def _read(self, version: str, text: str) -> dict[str, Any]:
        if version != self._version or self._reader is None:
            self._reader, self._version = self._open(version), version
        return {MODEL_VERSION: version, "most": self._reader.most, **self._reader.read(text)}

    def _open(self, version: str) -> Reader:
        for view in self._views:
            try:
                artifact = msgspec.json.decode((view / version / ARTIFACT_FILE).read_bytes())
                document = (view / version / TOKENIZER_FILE).read_text("utf-8")
            except OSError:
                continue
            return Reader(Tokenizer.from_json(document), LongText.of_artifact(artifact))
        raise Refusal(503, NO_SERVER, retry_after_s=1)


class Reader:
    """Of one version."""

    def __init__(self, tokenizer: Tokenizer, long_text: LongText) -> None:
        self._tokenizer = tokenizer
        self.most = long_text.reader(tokenizer).max_len - 1
        """Tokens that the encoder reads of a comment, in all windows, without [CLS]."""

    def read(self, text: str) -> dict[str, Any]:
        """Pieces of a text, each `[as written, state, as read]`, how many tokens, whether cut."""
        shown = text[:MAX_CHARACTERS]
        pieces = re.findall(r"\S+", shown)
        alone = [(word, n) for n, piece in enumerate(pieces) for word, _ in self._words(piece)]
        parts = []
        for first, last, read in _groups(self._words(shown), alone, len(pieces)):
            written = " ".join(pieces[first:last])
            parts.append((written, *self._state(written, read)))
        tokens = len(self._tokenizer.native.encode(text, _MOST_IDS)[0]) - 1
        return {
            "pieces": parts,
            "tokens": min(tokens, self.most),
            "cut": tokens > self.most,
            "shown_whole": shown == text,
        }

    def _words(self, text: str) -> list[Read]:
        """Words as the encoder reads them, each with its token's place."""
        ids, _ = self._tokenizer.native.encode(text, _MOST_IDS)
        vocabulary = self._tokenizer.vocabulary
        return [
            (word, place)
            for place, token in enumerate(ids[1:])
            for word in vocabulary[token].split(" ")  # a phrase is two words and one token
        ]

    def _state(self, written: str, read: Sequence[Read]) -> tuple[str, str]:
        words = [word for word, _ in read]
        if any(place >= self.most for _, place in read):
            return "cut", ""
        if _UNKNOWN in words:
            return "unknown", " ".join(words)
        if words != self._tokenizer.tokens(written):
            return "respelled", " ".join(words)
        return "read", " ".join(words)


def _groups(
    words: Sequence[Read], alone: Sequence[Read], pieces: int
) -> Iterator[tuple[int, int, list[Read]]]:
    """Pieces that were read together, as a range, and the words that they were read as."""
    glued, read_of = [False] * pieces, [list[Read]() for _ in range(pieces)]
    for same, part, whole in _runs([word for word, _ in alone], [word for word, _ in words]):
        if same:
            for (_, piece), word in zip(alone[part], words[whole], strict=True):
                read_of[piece].append(word)
        else:
            near = [piece for _, piece in alone[part] or alone[max(0, part.start - 1) :][:1]]
            glued[near[0] + 1 : near[-1] + 1] = [True] * (near[-1] - near[0])
            read_of[near[0]] += words[whole]
    first = 0
    for piece in range(1, pieces + 1):
        if piece == pieces or not glued[piece]:
            yield first, piece, [word for read in read_of[first:piece] for word in read]
            first = piece


def _runs(parts: Sequence[str], whole: Sequence[str]) -> Iterator[tuple[bool, slice, slice]]:
    """Ranges of both that are equal, and of what differs between them, in turns."""
    end = [""] * _SURE  # which is no word: both end there
    a, b = [*parts, *end], [*whole, *end]
    i = j = 0
    while i < len(parts) or j < len(whole):
        i1, j1 = i, j
        while i < len(parts) and j < len(whole) and parts[i] == whole[j]:
            i, j = i + 1, j + 1
        if i > i1:
            yield True, slice(i1, i), slice(j1, j)
            continue
        i, j = _again(a, b, i, j) or (len(parts), len(whole))
        yield False, slice(i1, i), slice(j1, j)


def _again(a: Sequence[str], b: Sequence[str], i: int, j: int) -> tuple[int, int] | None:
    """The nearest places behind `i` and `j` where both go on with the same words."""
    for near in range(1, 2 * _NEAR):
        for ahead in range(near + 1):
            x, y = i + ahead, j + near - ahead
            if len(a[x : x + _SURE]) == _SURE and a[x : x + _SURE] == b[y : y + _SURE]:
                return x, y
    return None
