"""Rows of a file, in order and in chunks of bounded size: CSV, Parquet or lines of text.

Nothing is lost on the way (see `train.data.tables`), and bytes that are not UTF-8 come through as
lone surrogates (PEP 383) for `serve.offline.worker` to name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract import TEXT, BadInput
from storage.remote import RemotePath, place_of
from train.data import json_lines, tables
from train.data.json_lines import JSON_SUFFIXES
from train.data.tables import CSV_SUFFIXES, PARQUET_SUFFIX, CsvRows, Unreadable, is_text, open_csv

CHUNK_ROWS = 2048
CHUNK_BYTES = 1 << 20
"""A chunk ends with the row that reaches either: about a second of one core's work."""
STDIN = "-"
_LINES = (".txt", ".txt.gz")
_BOM = b"\xef\xbb\xbf"

Rows = list[list[Any]]
"""Fields of every row: text, of JSON lines any value."""


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows of a file."""

    number: int
    first_row: int
    """Counted from 0, a header not among them."""
    rows: int
    payload: Rows | bytes
    """Fields of every row, or the columns that are needed as an Arrow IPC stream."""
    span: int
    """How far it took the reading on, in units of `Source.total`."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a row of these, from 0, could not be read at all."""


@dataclass
class Source:
    """An open file."""

    names: tuple[str, ...]
    unit: str
    """"B", bytes of the file as it lies there, or "row"."""
    total: int | None
    """What there is to read, None for a pipe."""
    chunks: Callable[[Sequence[str]], Iterator[Chunk]]
    """Of these columns; a CSV's rows come whole."""
    types: dict[str, Any] | None = None
    """Arrow type by column; None where everything is text."""
    blank_lines: int = 0
    """Of a CSV: they are no rows."""


@contextmanager
def open_source(name: str) -> Iterator[Source]:
    """Open a path, or STDIN for lines of text. Raises BadInput, also while it is read."""
    path = place_of(name)
    lower = path.name.lower()
    if name != STDIN and not path.is_file():
        raise BadInput(f"no file at {name}, expected comments; give another with --file")
    if name != STDIN and not lower.endswith(
        (*_LINES, *CSV_SUFFIXES, *JSON_SUFFIXES, PARQUET_SUFFIX)
    ):
        raise BadInput(
            f"{name} ends in {path.suffix or 'nothing'}, expected .csv, .csv.gz, .zip, .parquet, "
            ".jsonl, .jsonl.gz, .txt or .txt.gz; convert or rename it"
        )
    with ExitStack() as stack:
        with tables.explained(name):
            if name == STDIN:
                source = _lines(sys.stdin.buffer, None, lambda: 0)
            elif lower.endswith(PARQUET_SUFFIX):
                opened = path
                if isinstance(path, RemotePath):
                    opened = stack.enter_context(path.open_bytes())
                source = _parquet(stack.enter_context(pq.ParquetFile(opened, pre_buffer=False)))
            elif lower.endswith(CSV_SUFFIXES):
                source = _csv(stack.enter_context(open_csv(path)))
            elif lower.endswith(JSON_SUFFIXES):
                with tables.open_bytes(path) as (file, _, _):
                    names = _names_of(file)
                source = _objects(names, *stack.enter_context(tables.open_bytes(path)))
            else:
                source = _lines(*stack.enter_context(tables.open_bytes(path)))
        read = source.chunks

        def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
            with tables.explained(name):
                yield from read(columns)

        source.chunks = chunks
        yield source


# --- CSV ---------------------------------------------------------------------------------
def _csv(file: CsvRows) -> Source:
    def rows() -> Iterator[list[str]]:
        yield from file
        source.blank_lines = file.blank_lines

    source = Source(file.header, "B", file.total, lambda _: _chunks(rows(), file.position))
    return source


def _chunks(rows: Iterator[list[Any] | Unreadable], position: Callable[[], int]) -> Iterator[Chunk]:
    held: Rows = []
    reasons: dict[int, str] = {}
    number = first = size = read = 0

    def chunk() -> Chunk:
        nonlocal read
        before, read = read, position()
        return Chunk(number, first, len(held), held, read - before, reasons)

    for row in rows:
        if isinstance(row, Unreadable):
            reasons[len(held)] = str(row)
            row = []
        held.append(row)
        size += sum(len(value) if isinstance(value, str) else 8 for value in row)
        if len(held) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk()
            number, first = number + 1, first + len(held)
            held, reasons, size = [], {}, 0
    if held:
        yield chunk()


# --- Lines of text -----------------------------------------------------------------------
def _lines(file: IO[bytes], total: int | None, position: Callable[[], int]) -> Source:
    def rows() -> Iterator[list[str]]:
        # By "\n" alone, and a "\r" before it: a comment may hold any other mark.
        first = True
        while line := file.readline(tables.MOST_FIELD_BYTES):
            if len(line) == tables.MOST_FIELD_BYTES:
                raise Unreadable(f"a line is longer than {tables.MOST_FIELD_BYTES >> 20} MiB")
            if first:
                line, first = line.removeprefix(_BOM), False
            if line.endswith(b"\n"):
                line = line[:-1].removesuffix(b"\r")
            yield [line.decode("utf-8", "surrogateescape")]

    return Source((TEXT,), "B", total, lambda _: _chunks(rows(), position))


# --- JSON lines --------------------------------------------------------------------------
def _names_of(file: IO[bytes]) -> tuple[str, ...]:
    """Keys of all objects that can be read, in the order in which they come."""
    names: dict[str, None] = {}
    for found in json_lines.lines(file):
        if not isinstance(found, Unreadable):
            names.update(dict.fromkeys(found))
    if not names:
        raise Unreadable("it has no line with an object")
    return tuple(names)


def _objects(
    names: tuple[str, ...], file: IO[bytes], total: int, position: Callable[[], int]
) -> Source:
    def rows() -> Iterator[list[Any] | Unreadable]:
        for number, found in enumerate(json_lines.lines(file)):
            yield found if isinstance(found, Unreadable) else _fields(found, number, names)

    return Source(names, "B", total, lambda _: _chunks(rows(), position))


def _fields(found: dict[str, Any], number: int, names: Sequence[str]) -> list[Any] | Unreadable:
    row = [found.get(name) for name in names]
    if json_lines.has_half_characters(row):
        return Unreadable(f"row {number} has half of a character (a lone surrogate)")
    return row


# --- Parquet -----------------------------------------------------------------------------
def _parquet(file: Any) -> Source:
    schema = file.schema_arrow
    names = tuple(schema.names)

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        number = first = 0
        for batch in file.iter_batches(CHUNK_ROWS, columns=list(columns)):
            batch = batch.select(list(columns))
            for rows in _slices(batch):
                payload = _ipc(rows)
                yield Chunk(number, first, rows.num_rows, payload, rows.num_rows)
                number, first = number + 1, first + rows.num_rows

    types = dict(zip(names, schema.types, strict=True))
    return Source(names, "row", file.metadata.num_rows, chunks, types)


def _slices(batch: Any) -> Iterator[Any]:
    """A batch in parts of CHUNK_BYTES, or of one row."""
    if batch.nbytes <= CHUNK_BYTES:
        yield batch
        return
    start = size = 0
    per_row = [0] * batch.num_rows
    for column in batch.columns:
        if is_text(column.type) and not pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column).to_pylist()
            per_row = [size + (length or 0) for size, length in zip(per_row, lengths, strict=True)]
    for row, own in enumerate(per_row):
        size += own
        if size >= CHUNK_BYTES:
            yield batch.slice(start, row + 1 - start)
            start, size = row + 1, 0
    if start < batch.num_rows:
        yield batch.slice(start)


def _ipc(batch: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()
