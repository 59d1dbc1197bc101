"""A site's own log of texts, old scores and labels, read in chunks of bounded size.

What cannot be used is refused with its row, counted from 0 without the header; a row without a
text or without a score is left out and counted. No text of a comment is in an error.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from contract import MAX_COMMENT_BYTES, BadInput
from migrate.config import MigrateConfig
from serve.offline.columns import csv_rows
from serve.offline.records import CHUNK_BYTES, CHUNK_ROWS, RawBlock
from serve.offline.rows import Chunk, Source, open_source
from train.data.json_lines import JSON_SUFFIXES, is_json_lines, objects, values_of
from train.data.labels import read_labels
from train.data.load import TEXT_COLUMNS
from train.data.tables import (
    CSV_SUFFIXES,
    PARQUET_SUFFIX,
    as_bytes,
    explained,
    find_column,
    is_text,
    malformed,
    not_utf8,
    number_of,
    open_bytes,
)

LABEL_COLUMNS = ("label", "toxic", "target")
_TEXTS = (*TEXT_COLUMNS, "body", "content", "message", "comment.text", "request.comment.text")
_MOST_SHOWN = 12
"""Characters of a score that is none, if it is one word: it cannot be a comment."""
Fields = list[str | None]
"""Text, score, label of one row."""


@dataclass(frozen=True)
class Columns:
    """Columns that are read, and of what they are."""

    text: str
    score: str
    label: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.text, self.score, *([self.label] if self.label else []))


@dataclass(frozen=True)
class LogChunk:
    """Usable rows of a chunk, n of them."""

    texts: list[str]
    rows: np.ndarray
    """int64 [n], counted from 0."""
    scores: np.ndarray
    """float64 [n], old scores."""
    labels: np.ndarray
    """float64 [n] in [0, 1], NaN where there is none."""
    read: int
    """Rows of the file, those left out too."""
    span: int
    """As `Source` counts."""


@dataclass
class Log:
    """An open log."""

    config: MigrateConfig
    columns: Columns
    source: Source
    dropped: Counter[str] = field(default_factory=Counter)

    def chunks(self) -> Iterator[LogChunk]:
        """Raises BadInput that names the first row which is no row of a log."""
        for chunk in self.source.chunks(self.columns.names):
            fields = _fields(chunk, self.source, self.columns, self.config.scores)
            yield self._usable(chunk, fields)

    def _usable(self, chunk: Chunk, fields: list[Fields]) -> LogChunk:
        places, texts, scores = [], [], []
        for place, row in enumerate(fields):
            text, score = row[0], self._score(row[1], chunk.first_row + place)
            if text is None or not text.strip():
                self.dropped["no_text"] += 1
            elif score is None:
                self.dropped["no_score"] += 1
            elif len(text) * 4 > MAX_COMMENT_BYTES and len(text.encode()) > MAX_COMMENT_BYTES:
                self.dropped["too_long"] += 1
            else:
                places.append(place)
                texts.append(text)
                scores.append(score)
        labels = self._labels(chunk, fields)[places]
        rows = np.array(places, np.int64) + chunk.first_row
        found = np.array(scores, np.float64)
        return LogChunk(texts, rows, found, labels, chunk.rows, chunk.span)

    def _score(self, value: str | None, row: int) -> float | None:
        """None where there is none."""
        word = (value or "").strip()
        if not word:
            return None
        number = number_of(word)
        if number is not None and 0 <= number <= 1:
            return number
        shown = word if len(word) <= _MOST_SHOWN and len(word.split()) == 1 else None
        remedy = "name another column with --score-column, or mend the row"
        if number is not None and 1 < number <= 100:
            remedy = "divide percentages by 100, or name another column with --score-column"
        raise BadInput(
            f"row {row} of {self.config.scores} has "
            f"{shown or f'a text of {len(word):,} characters'} as its score in "
            f"{self.columns.score!r}, expected a number from 0 to 1; {remedy}"
        )

    def _labels(self, chunk: Chunk, fields: list[Fields]) -> np.ndarray:
        name = self.columns.label
        if name is None:
            return np.full(len(fields), np.nan)
        has_text = np.array([bool(row[0] and row[0].strip()) for row in fields], bool)
        column = pa.chunked_array([pa.array([row[2] for row in fields], pa.large_string())])
        about: dict[str, Any] = {"source": str(self.config.scores), "name": name, "flags": "--"}
        asked = self.config.label_map
        return read_labels(column, has_text, asked, first_row=chunk.first_row, **about).targets


# --- Opening -----------------------------------------------------------------------------
@contextlib.contextmanager
def open_log(config: MigrateConfig) -> Iterator[Log]:
    """Open `config.scores`. Raises BadInput for another kind of file or without its columns."""
    path, lower = config.scores, config.scores.name.lower()
    if not path.is_file():
        raise BadInput(
            f"no file at {path}, expected a log of texts and old scores; give another with --scores"
        )
    if not lower.endswith((*CSV_SUFFIXES, *JSON_SUFFIXES, PARQUET_SUFFIX)):
        raise BadInput(
            f"--scores is {path}, expected a name that ends in .csv, .csv.gz, .zip, .jsonl, "
            ".jsonl.gz or .parquet; convert or rename it"
        )
    opened = _open_json(path) if is_json_lines(path) else open_source(str(path))
    with opened as source:
        columns = _columns(config, source)
        types = source.types or {}
        if columns.text in types and not is_text(types[columns.text]):
            raise BadInput(
                f"column {columns.text!r} of {path} holds {types[columns.text]}, expected text; "
                "name another with --text-column"
            )
        yield Log(config, columns, source)


def _columns(config: MigrateConfig, source: Source) -> Columns:
    names, where = source.names, str(config.scores)
    answers = f"{config.attribute}.summaryScore.value"
    scores = [
        *("score", config.attribute, f"attributeScores.{answers}"),
        *(f"response.attributeScores.{answers}", "perspective", "probability"),
    ]
    text = find_column(
        names, where, "text", asked=config.text_column, known=_TEXTS, flag="--text-column"
    )
    score = find_column(
        names, where, "old score", asked=config.score_column, known=scores, flag="--score-column"
    )
    label = None
    lower = {name.lower() for name in names} - {score.lower()}
    if config.label_column or lower & set(LABEL_COLUMNS):
        known = [name for name in LABEL_COLUMNS if name != score.lower()]
        asked = config.label_column
        label = find_column(names, where, "label", asked=asked, known=known, flag="--label-column")
    chosen = [name for name in (text, score, label) if name]
    if len(set(chosen)) < len(chosen):
        raise BadInput(
            f"{where} has text, score and label in {', '.join(map(repr, chosen))}, expected a "
            "column each; name others with --text-column, --score-column and --label-column"
        )
    return Columns(text, score, label)


@contextlib.contextmanager
def _open_json(path: Path) -> Iterator[Source]:
    with explained(str(path)), open_bytes(path) as (file, _, _):
        names = dict.fromkeys(name for row in objects(file) for name in row)
    with contextlib.ExitStack() as stack:
        file, total, position = stack.enter_context(open_bytes(path))

        def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
            with explained(str(path)):
                held: list[Any] = []
                number = first = size = read = 0
                for row, found in enumerate(objects(file)):
                    held.append(values_of(found, row, columns))
                    size += sum(len(value or "") for value in held[-1])
                    if len(held) == CHUNK_ROWS or size >= CHUNK_BYTES:
                        yield Chunk(number, first, len(held), held, position() - read)
                        number, first, read = number + 1, row + 1, position()
                        held, size = [], 0
                if held:
                    yield Chunk(number, first, len(held), held, position() - read)

        yield Source(tuple(names), "B", total, chunks)


# --- Rows of a chunk ---------------------------------------------------------------------
def _fields(chunk: Chunk, source: Source, columns: Columns, path: Path) -> list[Fields]:
    if isinstance(chunk.payload, bytes):
        with pa.ipc.open_stream(chunk.payload) as stream:
            batch = stream.read_next_batch()
        read = (_of_column(batch.column(name), chunk, name, path) for name in columns.names)
        return [list(row) for row in zip(*read, strict=True)]
    rows = csv_rows(chunk.payload.read()) if isinstance(chunk.payload, RawBlock) else chunk.payload
    if is_json_lines(path):
        return list(map(list, rows))
    places, width = [source.names.index(name) for name in columns.names], len(source.names)
    found: list[Fields] = []
    for number, row in enumerate(rows, chunk.first_row):
        if len(row) != width:
            raise BadInput(
                f"row {number} of {path} has {len(row)} fields, expected {width} as in its header; "
                "put texts that hold a comma or a line end in quotes"
            )
        found.append([row[place] for place in places])
        for name, value in zip(columns.names, found[-1], strict=True):
            if value and (reason := malformed(value)):
                raise _not_utf8(number, path, name, reason)
    return found


def _of_column(column: Any, chunk: Chunk, name: str, path: Path) -> Fields:
    if not is_text(column.type):
        return [None if value is None else str(value).lower() for value in column.to_pylist()]
    found: Fields = []
    for number, raw in enumerate(as_bytes(column).to_pylist(), chunk.first_row):
        if raw is not None and (reason := not_utf8(raw)):
            raise _not_utf8(number, path, name, reason)
        found.append(None if raw is None else raw.decode())
    return found


def _not_utf8(row: int, path: Path, name: str, reason: str) -> BadInput:
    return BadInput(
        f"row {row} of {path} is not UTF-8 in {name!r} {reason}, expected text in UTF-8; convert "
        "it, as with `iconv -f WINDOWS-1252 -t UTF-8`"
    )
