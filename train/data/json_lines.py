"""Comments in JSON lines (.jsonl, .ndjson, also .gz): an object a line, what is nested by its path.

{"text": "...", "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.9}}}} has the columns
`text` and `attributeScores.TOXICITY.summaryScore.value`. Objects need not have the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from train.data.tables import MOST_FIELD_BYTES, Choose, Unreadable, explained, open_bytes

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_BOM = b"\xef\xbb\xbf"
_ONE_A_LINE = "write one JSON object a line"


def is_json_lines(path: Path) -> bool:
    """Whether the file's name says so."""
    return path.name.lower().endswith(JSON_SUFFIXES)


def read_table(path: Path, choose: Choose) -> Any:
    """Chosen columns as an Arrow table of text, null where an object lacks the key.

    Raises BadInput as `train.data.tables.read_table` does.
    """
    with explained(str(path)):
        names: dict[str, None] = {}
        with open_bytes(path) as (file, _, _):
            for row in objects(file):
                names.update(dict.fromkeys(row))
        chosen = choose(tuple(names))
        columns: dict[str, list[str | None]] = {name: [] for name in chosen}
        with open_bytes(path) as (file, _, _):
            for number, row in enumerate(objects(file)):
                for name, value in zip(chosen, values_of(row, number, chosen), strict=True):
                    columns[name].append(value)
    return pa.table(
        [pa.array(values, pa.large_string()) for values in columns.values()], names=list(columns)
    )


def objects(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Each line's object, flat; empty lines are none. Raises Unreadable with the row, from 0."""
    row = 0
    for row, found in enumerate(lines(file), 1):  # noqa: B007
        if isinstance(found, Unreadable):
            raise found
        yield found
    if not row:
        raise Unreadable("it is empty, without an object")


def lines(
    file: IO[bytes], row: int = 0, *, first: bool = True
) -> Iterator[dict[str, Any] | Unreadable]:
    """As `objects`, with what is wrong with a line in its place.

    `row` is that of the file which it begins with; `first`, whether with the file's first byte.
    """
    while line := file.readline(MOST_FIELD_BYTES):
        if len(line) == MOST_FIELD_BYTES:
            raise Unreadable(f"a line is longer than {MOST_FIELD_BYTES >> 20} MiB")
        if first:
            line, first = line.removeprefix(_BOM), False
        if line.isspace():
            continue
        try:
            found: dict[str, Any] | Unreadable = _object(line, row)
        except Unreadable as error:
            found = error
        yield found
        row += 1


def _object(line: bytes, row: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise Unreadable(f"row {row} is nested too deeply", _ONE_A_LINE) from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"row {row} is not UTF-8", "convert it to UTF-8") from error
    except ValueError as error:  # its words may quote the line
        at = f", at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(f"row {row} is not JSON{at}", _ONE_A_LINE) from error
    if not isinstance(found, dict):
        raise Unreadable(f"row {row} is no JSON object", _ONE_A_LINE)
    return _flat(found)


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = list(reversed(found.items()))
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += ((f"{path}.{name}", inner) for name, inner in reversed(value.items()))
        else:
            flat[path] = value
    return flat


def as_text(value: Any, row: int, name: str) -> str | None:
    """What a CSV would have. Raises Unreadable for a list, and for half a surrogate pair."""
    if value is None:
        return None
    if isinstance(value, list):
        raise Unreadable(f"row {row} has a list in {name!r}", "name a column of single values")
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"row {row} has half of a character (a lone surrogate) in {name!r}"
        raise Unreadable(where, "write it again with whole characters") from error
    return text


def values_of(row: dict[str, Any], number: int, columns: Sequence[str]) -> list[str | None]:
    """Text of the chosen columns of an object of `objects`, the row `number`."""
    return [as_text(row.get(name), number, name) for name in columns]


def has_half_characters(values: Sequence[Any]) -> bool:
    """Whether a text among JSON values, at any depth, cannot be UTF-8."""
    try:
        for value in values:
            if isinstance(value, str):
                value.encode()
            elif isinstance(value, list):
                json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
