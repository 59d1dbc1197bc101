"""Read the suite: templates in YAML become sentences, the same ones every time.

A file is a list of capabilities:

    - name: negated-insult
      says: an insult is denied              # for people
      expect: harmless                       # or toxic: every sentence alone
      templates: ["You are no {insult}."]    # {insult} is a list of lists.yaml

    - name: negation-lowers
      says: a denied insult scores lower
      kind: lower                            # or one of KINDS: the second beside the first
      pairs: [["You are a {insult}.", "You are no {insult}."]]

With `change` what stands between < and > is written as CHANGES says.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contract import BadInput
from quality import misspell

_FOLDER = Path(__file__).parent
_LISTS = "lists.yaml"
MOST = 72
"""Sentences, or pairs, of a capability; of more, evenly chosen ones are taken."""
TOXIC, HARMLESS = "toxic", "harmless"
KINDS = ("invariance", "higher", "lower", "not-higher", "not-lower")
_SLOT = re.compile(r"\{(\w+)\}")
_MARKED = re.compile(r"<([^<>]*)>")
_ARTICLE = re.compile(r"\b([Aa]) (?=<?[aeiouAEIOU])")
_COPIES = 3
_HOMOGLYPHS = str.maketrans("aceiopxyACEHKMOPTX", "асеіорхуАСЕНКМОРТХ")
"""Latin letters to the Cyrillic ones of the same look, by Unicode's confusables.txt."""
_INVISIBLE = "\u200b"
_ACUTE = "\u0301"


@dataclass(frozen=True)
class Capability:
    """Sentences that show one thing."""

    name: str
    says: str
    kind: str
    """TOXIC or HARMLESS: each sentence alone; else one of KINDS: the second beside the first."""
    cases: tuple[tuple[str, ...], ...]
    """One sentence each, or two."""


def _each_word(change: Callable[[str, int, int], str]) -> Callable[[str], str]:
    return lambda text: " ".join(change(w, max(1, len(w) // 2), _COPIES) for w in text.split())


def _mathematical(text: str) -> str:
    """In the bold letters of U+1D400 and on."""
    return "".join(chr(0x1D41A + ord(c) - ord("a")) if "a" <= c <= "z" else c for c in text.lower())


CHANGES: dict[str, Callable[[str], str]] = {
    **{kind: _each_word(change) for kind, change in misspell.CHANGES.items()},
    "homoglyph": lambda text: text.translate(_HOMOGLYPHS),
    "invisible": lambda text: _INVISIBLE.join(text),
    "fullwidth": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "mathematical": _mathematical,
    "accented": lambda text: unicodedata.normalize(
        "NFC", "".join(c + _ACUTE if c in "aeiou" else c for c in text)
    ),
    "capitals": str.upper,
}
"""Ways to write words so that a filter may not read them."""


@functools.cache
def load_suite(folder: Path = _FOLDER) -> tuple[Capability, ...]:
    """Every capability of the files in `folder`, by file and place.

    Raises BadInput with the file and the capability for what cannot be read.
    """
    lists = {
        name: [str(word) for word in words] for name, words in _read(folder / _LISTS, dict).items()
    }
    found: list[Capability] = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != _LISTS:
            found += [_capability(path, table, lists) for table in _read(path, list)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{folder} has two capabilities {name!r}, expected one; rename one")
    return tuple(found)


def _read(path: Path, kind: type) -> Any:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())
        raise BadInput(f"{path} cannot be read ({words}), expected YAML; mend it") from error
    if not isinstance(document, kind):
        raise BadInput(f"{path} holds a {type(document).__name__}, expected a {kind.__name__}")
    return document


def _capability(path: Path, table: Any, lists: Mapping[str, Sequence[str]]) -> Capability:
    if not isinstance(table, dict) or not {"name", "says"} <= table.keys():
        raise BadInput(f"{path} has a capability without `name` or `says`; mend it")
    where = f"{table['name']} in {path}"
    alone, kind = "expect" in table, table.get("expect", table.get("kind"))
    if kind not in ((TOXIC, HARMLESS) if alone else KINDS):
        raise BadInput(
            f"{where} is of kind {kind!r}, expected `expect` {TOXIC} or {HARMLESS}, or `kind` "
            f"{', '.join(KINDS)}; mend it"
        )
    change = CHANGES.get(table.get("change", ""), str)
    if "change" in table and table["change"] not in CHANGES:
        raise BadInput(
            f"{where}: there is no change {table['change']!r}, expected one of "
            f"{', '.join(CHANGES)}; mend it"
        )
    templates = [[one] for one in table["templates"]] if alone else table["pairs"]
    each = [list(_filled(where, template, lists, change)) for template in templates]
    most = MOST // len(each)
    cases = tuple(dict.fromkeys(case for one in each for case in _evenly(one, most)))
    return Capability(str(table["name"]), str(table["says"]), str(kind), cases)


def _filled(
    where: str,
    template: Sequence[str],
    lists: Mapping[str, Sequence[str]],
    change: Callable[[str], str],
) -> Iterator[tuple[str, ...]]:
    """Every filling of the template's sentences, with the same words in all of them."""
    slots = list(dict.fromkeys(_SLOT.findall(" ".join(template))))
    for slot in slots:
        if slot not in lists:
            raise BadInput(
                f"{where}: there is no list {{{slot}}}, expected one of {', '.join(lists)}; mend it"
            )
    for words in itertools.product(*(lists[slot] for slot in slots)):
        filled = dict(zip(slots, words, strict=True))
        yield tuple(_sentence(text, filled, change) for text in template)


def _sentence(text: str, words: Mapping[str, str], change: Callable[[str], str]) -> str:
    begins_with_slot = text.startswith("{")
    text = _SLOT.sub(lambda found: words[found[1]], text)
    text = _ARTICLE.sub(r"\1n ", text)
    text = text[0].upper() + text[1:] if begins_with_slot else text
    return _MARKED.sub(lambda found: change(found[1]), text)


def _evenly(cases: list[tuple[str, ...]], most: int) -> list[tuple[str, ...]]:
    """At most so many, at even distances."""
    if len(cases) <= most:
        return cases
    return [cases[(place * len(cases)) // most] for place in range(most)]
