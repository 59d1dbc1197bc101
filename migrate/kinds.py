"""Kinds of comments, told by simple rules that `docs/migrating.md` lists: where two models differ.

A comment may be of several kinds, or of none. The rules know English words; the scripts, marks
and lengths are of any language.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from train.methods.debias import IDENTITY_TERMS

SHORT_WORDS, LONG_WORDS = 3, 100
_CAPITALS, _LEAST_LETTERS = 0.8, 6
"""Share of the letters, and how many there must be."""

PROFANITIES = frozenset(
    (
        "arse arsehole ass asses asshole assholes bastard bastards bitch bitches bollocks "
        "bullshit cock crap cunt cunts damn dick dickhead dumbass fag faggot faggots fuck fucked "
        "fucker fuckers fuckin fucking goddamn idiot idiots jackass moron morons motherfucker "
        "motherfucking nigger niggers piss pissed prick pussy retard retarded shit shits shitty "
        "slut sluts stfu tits twat wanker whore whores wtf"
    ).split()
)
"""Common English swear words and insults; not a list to moderate with."""
_IDENTITIES = frozenset(f"{term}{ending}" for term in IDENTITY_TERMS for ending in ("", "s"))
_NEGATIONS = re.compile(
    r"\b(?:not?|never|nobody|nothing|none|neither|nor|without|cannot)\b|n['’]t\b"
)
_QUOTES = re.compile(r"[\"“„«][^\"“”„«»\n]{2,}[\"”“»]|^\s*(?:>|&gt;)", re.MULTILINE)
_URL = re.compile(r"https?://|\bwww\.\w", re.IGNORECASE)
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\u203c\u2049]")
_WORD = re.compile(r"[^\W\d_]+")
_SPELLED_OUT = re.compile(r"(?<![^\W_])[^\W\d_](?:[ .\-_*][^\W\d_]){2,}(?![^\W_])")
"""Single letters, three or more, a space or mark between each."""
_MASKED = re.compile(r"(?<![^\W_*])[^\W\d_]+\*+[^\W\d_]*|(?<![^\W_*])[^\W\d_]*\*+[^\W\d_]+")
_MIXED = re.compile(r"[\w$@!]*[a-z][\w$@!]*")
_SUSPECT = re.compile(r"[013457$@!]|([a-z])\1\1")
"""Without one of them no word is disguised by its signs."""
_ALIKE = (str.maketrans("013457$@!", "oieastsai"), str.maketrans("013457$@!", "oleastsal"))
"""As the tokenizer's `Respelling` reads them."""
_REPEATED = re.compile(r"(.)\1{2,}")


# --- Rules -------------------------------------------------------------------------------
def _is_capitals(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    return letters >= _LEAST_LETTERS and sum(map(str.isupper, text)) >= _CAPITALS * letters


def _is_disguised(folded: str) -> bool:
    """A listed word behind look-alike signs, repeated letters or asterisks, or spelled out."""
    for match in _SPELLED_OUT.finditer(folded):
        if any(word in re.sub(r"[ .\-_*]", "", match[0]) for word in _SPELLED):
            return True
    for match in _MASKED.finditer(folded):
        if _masked(match[0]):
            return True
    if not _SUSPECT.search(folded):
        return False
    return any(_reads_as_listed(word) for word in _MIXED.findall(folded))


_SPELLED = frozenset(word for word in PROFANITIES if len(word) >= 4)
"""Within spelled-out letters a shorter one would be chance."""


@functools.lru_cache(1 << 12)
def _masked(word: str) -> bool:
    letters = len(word) - word.count("*")
    if len(word) < 3 or (word[0] == "*" and letters < 3):  # "t*" and "*on" may be anything
        return False
    pattern = re.compile(re.sub(r"\*+", lambda stars: f"[a-z]{{1,{len(stars[0]) + 2}}}", word))
    return any(pattern.fullmatch(listed) for listed in PROFANITIES)


@functools.lru_cache(1 << 16)
def _reads_as_listed(word: str) -> bool:
    if word in PROFANITIES:
        return False
    for table in _ALIKE:
        read = word.translate(table)
        if read in PROFANITIES:
            return True
        if _REPEATED.search(read):
            once, twice = (_REPEATED.sub(kept, read) for kept in (r"\1", r"\1\1"))
            if once in PROFANITIES or twice in PROFANITIES:
                return True
    return False


# --- Scripts -----------------------------------------------------------------------------
_EAST = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
_SCRIPTS = {"LATIN": "latin", "CYRILLIC": "cyrillic", "ARABIC": "arabic"}
_SCRIPTS |= dict.fromkeys(_EAST, "east")


@functools.lru_cache(1 << 16)
def _script_of(letter: str) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "")
    return _SCRIPTS.get(re.split(r"[ -]", name, maxsplit=1)[0], "another")


def script(text: str) -> str:
    """Of most of its letters: latin, cyrillic, arabic, east, another; none without a letter."""
    if text.isascii():
        return "latin" if re.search("[A-Za-z]", text) else "none"
    counts = Counter(_script_of(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


# --- Kinds -------------------------------------------------------------------------------
_BY_SCRIPT = {
    "cyrillic": "in Cyrillic",
    "arabic": "in Arabic script",
    "east": "in Chinese, Japanese or Korean script",
    "another": "in another script than Latin",
    "none": "without a letter",
}


@dataclass(frozen=True)
class _Read:
    """A text, as the rules look at it."""

    text: str
    folded: str
    """In small letters."""
    words: frozenset[str]
    """Of it, letters alone."""
    count: int
    """Words, as spaces part them."""


OTHER_SCRIPTS = tuple(kind for name, kind in _BY_SCRIPT.items() if name != "none")
_RULES: dict[str, Callable[[_Read], object]] = {
    f"up to {SHORT_WORDS} words": lambda read: read.count <= SHORT_WORDS,
    f"over {LONG_WORDS} words": lambda read: read.count > LONG_WORDS,
    "in capitals": lambda read: _is_capitals(read.text),
    "with a swear word or insult": lambda read: not PROFANITIES.isdisjoint(read.words),
    "with one in disguise": lambda read: _is_disguised(read.folded),
    "with an identity term": lambda read: not _IDENTITIES.isdisjoint(read.words),
    "with a negation": lambda read: _NEGATIONS.search(read.folded),
    "with a quotation": lambda read: _QUOTES.search(read.text),
    "with a link": lambda read: _URL.search(read.text),
    "with an emoji": lambda read: not read.text.isascii() and _EMOJI.search(read.text),
}
CUT = "cut: longer than the model reads"
NONE = "none of these"
KINDS = (*_RULES, *_BY_SCRIPT.values(), CUT)
"""In the order of their bits."""
_CUT_BIT = 1 << KINDS.index(CUT)
_SCRIPT_BITS = {name: 1 << KINDS.index(kind) for name, kind in _BY_SCRIPT.items()} | {"latin": 0}


def kinds_of(text: str, *, cut: bool = False) -> int:
    """Bits of the KINDS that a text is of; `cut` says whether the model reads all of it."""
    folded = text.casefold()
    bits = _SCRIPT_BITS[script(text)] | cut * _CUT_BIT
    read = _Read(text, folded, frozenset(_WORD.findall(folded)), len(text.split()))
    for place, is_so in enumerate(_RULES.values()):
        if is_so(read):
            bits |= 1 << place
    return bits
