"""Rows of a file, in order and in chunks of bounded size: CSV, Parquet, JSON lines or text.

A chunk is what `serve.offline.columns` reads in a worker: here nothing is read that can be left to
it. Nothing is lost on the way, and bytes that are not UTF-8 come through.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract import TEXT, BadInput
from serve.offline.records import CHUNK_BYTES, CHUNK_ROWS, Kind, RawBlock, RawBlocks
from storage.remote import Place, RemotePath, place_of
from train.data import json_lines, tables
from train.data.json_lines import JSON_SUFFIXES
from train.data.tables import CSV_SUFFIXES, PARQUET_SUFFIX, Unreadable, is_text

STDIN = "-"
_LINES = (".txt", ".txt.gz")

Rows = list[list[Any]]
"""Fields of every row."""


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows of a file."""

    number: int
    first_row: int
    """Counted from 0, a header not among them."""
    rows: int
    payload: RawBlock | bytes | Rows
    """Rows as they lie in the file, the columns that are needed as an Arrow IPC stream, or all
    fields."""
    span: int
    """How far it took the reading on, in units of `Source.total`."""


def send_chunk(pipe: Connection, chunk: Chunk) -> None:
    """Send a chunk to a process of this machine, without what it can read where it lies."""
    block = chunk.payload
    if not isinstance(block, RawBlock):
        pipe.send(chunk)
        return
    pipe.send(replace(chunk, payload=block.without_data()))
    if block.place is None and block.data is not None:
        pipe.send_bytes(block.data)  # by itself it is not copied first


def receive_chunk(pipe: Connection) -> Chunk:
    """What `send_chunk` sent."""
    chunk: Chunk = pipe.recv()
    block = chunk.payload
    if not isinstance(block, RawBlock) or block.place is not None:
        return chunk
    return replace(chunk, payload=replace(block, data=memoryview(pipe.recv_bytes())))


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
                source = _lines("lines", (TEXT,), None, sys.stdin.buffer, None, lambda: 0)
            elif lower.endswith(PARQUET_SUFFIX):
                table: Any = path
                if isinstance(path, RemotePath):
                    table = stack.enter_context(path.open_bytes())
                source = _parquet(stack.enter_context(pq.ParquetFile(table, pre_buffer=False)))
            elif lower.endswith(CSV_SUFFIXES):
                source = stack.enter_context(_open_csv(path))
            elif lower.endswith(JSON_SUFFIXES):
                with tables.open_bytes(path) as (file, _, _):
                    names = _names_of(file)
                opened = stack.enter_context(tables.open_bytes(path))
                source = _lines("json", names, _plain(path), *opened)
            else:
                opened = stack.enter_context(tables.open_bytes(path))
                source = _lines("lines", (TEXT,), _plain(path), *opened)
        read = source.chunks

        def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
            with tables.explained(name):
                yield from read(columns)

        source.chunks = chunks
        yield source


# --- CSV, lines of text, JSON lines ------------------------------------------------------
@contextmanager
def _open_csv(path: Place) -> Iterator[Source]:
    limit = csv.field_size_limit(tables.MOST_FIELD_BYTES)
    try:
        with tables.open_bytes(path) as (file, total, position):
            blocks = RawBlocks("csv", file, _plain(path))
            blocks.begin(has_header=True)
            yield _source(blocks.header, blocks, total, position)
    finally:
        csv.field_size_limit(limit)


def _plain(path: Place) -> Path | None:
    """A file of this machine that is not packed."""
    packed = path.name.lower().endswith((".gz", ".zip"))
    return path.absolute() if isinstance(path, Path) and not packed else None


def _lines(
    kind: Kind,
    names: tuple[str, ...],
    path: Path | None,
    file: IO[bytes],
    total: int | None,
    position: Callable[[], int],
) -> Source:
    blocks = RawBlocks(kind, file, path)
    blocks.begin(has_header=False)
    return _source(names, blocks, total, position)


def _source(
    names: tuple[str, ...], blocks: RawBlocks, total: int | None, position: Callable[[], int]
) -> Source:
    def chunks(_: Sequence[str]) -> Iterator[Chunk]:
        number = first = read = 0
        for block in blocks:
            source.blank_lines += block.blank
            if block.rows:
                before, read = read, position()
                yield Chunk(number, first, block.rows, block, read - before)
                number, first = number + 1, first + block.rows

    source = Source(names, "B", total, chunks)
    return source


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


# --- Parquet -----------------------------------------------------------------------------
def _parquet(file: Any) -> Source:
    schema = file.schema_arrow
    names = tuple(schema.names)

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        number = first = 0
        for batch in file.iter_batches(CHUNK_ROWS, columns=list(columns)):
            batch = batch.select(list(columns))
            for rows in _slices(batch):
                payload = ipc_bytes(rows)
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


def ipc_bytes(batch: Any) -> bytes:
    """A record batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()
