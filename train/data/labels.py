"""What a label says: a number in [0, 1] as it stands, anything else by `--label-map`.

--label-map toxic=1 non-toxic=0            # words
--label-map 0=1 1=1 2=0 -1=drop            # classes; the rows of one are left out
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract import BadInput
from train.data.tables import distinct, number_of

DROP = "drop"
_TRUTH = {"true": 1.0, "false": 0.0}
_MISSING = ("", "nan")
_MOST_SHOWN = 10
_MOST_WORDS, _MOST_CHARS = 20, 40
"""More different words than that, or longer ones, are no labels but a text: it is not shown."""
_LEFT_OUT = np.inf


@dataclass(frozen=True)
class Labels:
    """Labels of a source, row by row."""

    targets: np.ndarray
    """float64 [n] in [0, 1], NaN where there is none."""
    dropped: np.ndarray
    """bool [n], where the map says so; NaN among `targets`."""


def parse_label_map(entries: Sequence[str], flag: str = "--label-map") -> dict[str, float]:
    """What each label means, by `_key`; infinite where its rows are dropped.

    Raises BadInput for an entry that is not VALUE=NUMBER, the number in [0, 1], or VALUE=drop.
    """
    found: dict[str, float] = {}
    for entry in entries:
        label, equals, meaning = entry.rpartition("=")
        number = _LEFT_OUT if meaning.strip().lower() == DROP else number_of(meaning)
        if not equals or number is None or not (0 <= number <= 1 or number == _LEFT_OUT):
            raise BadInput(
                f"{flag} has {entry!r}, expected VALUE=NUMBER from 0 to 1, or VALUE={DROP}; as in "
                f"{flag} toxic=1 non-toxic=0"
            )
        if found.setdefault(_key(label), number) != number:
            raise BadInput(f"{flag} names {label!r} twice, expected each value once; drop one")
    return found


def _key(label: str) -> str:
    """Labels that are the same have the same: case and spaces aside, "1" as "1.0"."""
    number = number_of(label)
    return label.strip().casefold() if number is None else repr(number)


def read_labels(
    column: Any,
    has_text: np.ndarray,
    label_map: Sequence[str],
    *,
    source: str,
    name: str,
    flags: str,
    first_row: int = 0,
) -> Labels:
    """Labels of an Arrow column, of whose rows those with a text count: bool [n].

    `first_row` is the row of the source that the column begins with.

    Raises BadInput that shows the values which are no label, with their counts, and the flag that
    says what they mean; `flags` is what the names of the flags begin with.
    """
    meaning = parse_label_map(label_map, f"{flags}label-map")
    values, at = distinct(column, name)
    known = np.array([_meaning(value, meaning) for value in values] + [np.nan])
    counts = np.bincount(at[has_text & (at >= 0)], minlength=len(values))
    if unknown := [
        place for place in range(len(values)) if counts[place] and np.isneginf(known[place])
    ]:
        where = f"column {name!r} of {source}"
        first = first_row + int(np.argmax(has_text & np.isin(at, unknown)))
        raise _refused(where, values, counts, unknown, first, bool(meaning), flags)
    known[np.isneginf(known)] = np.nan  # where there is no text
    dropped = np.isposinf(known)
    known[dropped] = np.nan
    return Labels(known[at], dropped[at])


def read_shares(column: Any, has_text: np.ndarray, *, source: str, name: str) -> np.ndarray:
    """Shares of an attribute, float32 [n] in [0, 1], NaN where there is none.

    Raises BadInput for a row with a text (bool [n]) and anything else in it.
    """
    values, at = distinct(column, name)
    shares = np.array([_meaning(value, {}) for value in values] + [np.nan])[at]
    if (wrong := has_text & np.isneginf(shares)).any():
        raise BadInput(
            f"column {name!r} of {source} has no share of an attribute in row "
            f"{int(np.argmax(wrong))}, expected a number from 0 to 1, true, false or nothing; mend "
            "it, or leave the attribute out"
        )
    shares[np.isneginf(shares)] = np.nan  # where there is no text
    return shares.astype(np.float32)


def _meaning(value: str, label_map: Mapping[str, float]) -> float:
    """In [0, 1]; NaN for none, _LEFT_OUT, and -infinity for what is no label."""
    if value.strip().casefold() in _MISSING:
        return np.nan
    if label_map:
        return label_map.get(_key(value), -np.inf)
    number = _TRUTH.get(value.strip().casefold(), number_of(value))
    return number if number is not None and 0 <= number <= 1 else -np.inf


def _refused(
    where: str,
    values: list[str],
    counts: np.ndarray,
    unknown: list[int],
    first: int,
    mapped: bool,
    flags: str,
) -> BadInput:
    """The error for labels of no known meaning, the places `unknown` among the `values`."""
    words = [values[place] for place in unknown if number_of(values[place]) is None]
    if len(words) > _MOST_WORDS or any(len(word) > _MOST_CHARS for word in words):
        return BadInput(
            f"{where} holds {len(words):,} different texts that are no numbers, the first in row "
            f"{first}, expected labels in [0, 1]; name another with {flags}label-column"
        )
    order = np.argsort(-counts, kind="stable")
    present = [p for p in order if counts[p] and values[p].strip().casefold() not in _MISSING]
    shown = present if len(present) <= _MOST_SHOWN else [p for p in present if p in unknown]
    listed = ", ".join(f"{values[p].strip()!r} ({counts[p]:,})" for p in shown[:_MOST_SHOWN])
    if len(shown) > _MOST_SHOWN:
        listed += f" and {len(shown) - _MOST_SHOWN:,} more values"
    asked = unknown if mapped else shown
    numbers_first = sorted(
        asked, key=lambda p: (number_of(values[p]) is None, number_of(values[p]) or 0.0, p)
    )
    plain = (" ".join(values[p].split()) for p in numbers_first[:_MOST_SHOWN])
    entries = " ".join(shlex.quote(f"{value}=N") for value in plain)
    expected = f"only what {flags}label-map names" if mapped else "numbers in [0, 1], true or false"
    how = "add" if mapped else "say what each means with"
    how = textwrap.shorten(f"{how} {flags}label-map {entries}", 400, placeholder=" ...")
    return BadInput(
        f"{where} holds the labels {listed}, the first that is none in row {first}, expected "
        f"{expected}; {how}, each N from 0 to 1 or {DROP}"
    )
