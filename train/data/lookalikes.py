"""Characters that are not what they look like: which ASCII letter, blank or nothing each one shows.

They are used to write a word so that a filter does not find it: Cyrillic "а" for "a", "ɪ" for "i",
letters with accents, boxes with letters, marks and fillers that cannot be seen. The letters of
other scripts are those of Unicode's confusables (UTS #39), in `confusables.json`; the rest follows
from the characters' names. Every code point is judged on its own, as `tokenizer` needs it.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

VERSION = "1"
"""Of what this module says, written into every tokenizer."""
_TABLE = Path(__file__).with_name("confusables.json")
_SCRIPTS = ("ARMENIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "GREEK", "LATIN", "LISU")
"""Whose letters stand for Latin ones in words that people read from left to right."""
_LATIN = re.compile(
    r"LATIN (?:SMALL LETTER|CAPITAL LETTER|LETTER SMALL CAPITAL) (?:DOTLESS )?([A-Z])(?: WITH .+)?"
)
_LATIN_END = 0x20000
"""There are no Latin letters from here on."""
_BLANKS = (0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0)
"""Fillers: letters and symbols by category, and blank on every screen."""
_LETTERS_IN_BOXES = (0x1F150, 0x1F170, 0x1F1E6)
"""First of twenty-six each: in a black circle, in a black square, of a flag."""
_INVISIBLE = (
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x180B, 0x180F),  # Mongolian variation selectors
    (0xFE00, 0xFE0F),  # variation selectors
    (0xE0100, 0xE01EF),
)
_MARKS = (  # combining marks that are no letters of any script
    (0x0300, 0x036F),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0xFE20, 0xFE2F),
)


VANISHING = frozenset(
    code_point for first, last in (*_INVISIBLE, *_MARKS) for code_point in range(first, last + 1)
)
"""Of which nothing is left: what cannot be seen, and strokes over other letters."""


@functools.cache
def shown() -> Mapping[str, str]:
    """By character that is no ASCII: the letter a to z, or the space, that a reader sees."""
    found = {chr(first + at): chr(ord("a") + at) for first in _LETTERS_IN_BOXES for at in range(26)}
    found |= dict.fromkeys(map(chr, _BLANKS), " ")
    found |= json.loads(_TABLE.read_text("utf-8"))["letters"]
    for code_point in range(0x80, _LATIN_END):
        char = chr(code_point)
        if name := _LATIN.fullmatch(unicodedata.name(char, "")):
            found[char] = name[1].lower()
    return MappingProxyType(found)


def of_confusables(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What `confusables.json` has, made of all pairs of characters that look alike.

    A letter of _SCRIPTS becomes the ASCII letter that it looks like, in lower case. One that has
    none becomes that of its other case: Cyrillic "в" looks like a small "B", "В" like "B". A
    capital that looks like "l" is an "I".
    """
    ascii_of: dict[str, str] = {}
    for char, other in pairs:
        if len(other) == 1 and other.isascii() and other.isalpha() and _is_letter(char):
            ascii_of.setdefault(char, other)
    found = {}
    for char in sorted({*ascii_of, *(c.swapcase() for c in ascii_of if _is_letter(c.swapcase()))}):
        letter = ascii_of.get(char) or ascii_of[char.swapcase()]
        found[char] = "i" if letter == "l" and char.isupper() else letter.lower()
    return found


def _is_letter(char: str) -> bool:
    return (
        len(char) == 1
        and not char.isascii()
        and unicodedata.category(char)[0] == "L"
        and unicodedata.name(char, "").startswith(_SCRIPTS)
    )
