"""What a worker reads of a chunk: its columns by Arrow, or its rows by Python's own readers.

Arrow's reader of CSV is the faster by far, and reads a block as Python's does when the block's
quotes and line ends stand where they should (`serve.offline.records`) and all rows have as many
fields as the header. Any other block is Python's to read.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from contract import TEXT, ToxicityError
from serve.offline.job import Job
from serve.offline.records import BOM, RawBlock, lines_as_written
from serve.offline.rows import Chunk, Rows
from train.data import json_lines, tables
from train.data.tables import Unreadable

_RAW = pa.large_binary()


@dataclass(frozen=True)
class Read:
    """Of a chunk either the columns that are needed, or all fields of its rows."""

    batch: Any = None
    """Arrow record batch."""
    rows: Rows | None = None
    """Text, of JSON lines any value; what is not UTF-8 as lone surrogates (PEP 383)."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a row of these, from 0, could not be read at all."""
    typed: bool = False
    """Whether the batch has the types of the file, not bytes for text."""
    lines: Any = None
    """The rows as lines of CSV, a column of text, where the output has them as they stand."""


def read_chunk(chunk: Chunk, job: Job) -> Read:
    """Read a chunk, which has as many rows as it says."""
    if isinstance(chunk.payload, bytes):
        with pa.ipc.open_stream(chunk.payload) as stream:
            return Read(stream.read_next_batch(), typed=True)
    if isinstance(chunk.payload, list):
        return Read(rows=chunk.payload)
    block = chunk.payload
    if block.kind == "csv":
        data = block.read()
        found = _columns(block, data, job) or Read(rows=csv_rows(data))
    elif block.kind == "lines":
        found = Read(pa.record_batch([pa.array(_lines(block.read()), _RAW)], [TEXT]))
    else:
        found = _objects(block.read(), chunk.first_row, job.names)
    count = found.batch.num_rows if found.rows is None else len(found.rows)
    if count != chunk.rows:
        raise ToxicityError(
            f"chunk {chunk.number} was read as {count} rows, expected the {chunk.rows} that were "
            "counted; please report it"
        )
    return found


# --- CSV ---------------------------------------------------------------------------------
def _columns(block: RawBlock, data: bytes, job: Job) -> Read | None:
    """By Arrow; None for a block that it may read in another way than Python's csv."""
    if not block.regular or data.startswith(BOM):  # Arrow would skip it
        return None
    lines = None
    if job.form == "csv" and job.keep == job.names and block.ends is not None:
        lines = lines_as_written(data, block.ends)
    names = [str(place) for place in range(len(job.names))]  # a file's own may be there twice
    kept = job.keep if lines is None and job.keep else ()
    wanted = dict.fromkeys((job.text_column, *kept))
    places = [names[job.names.index(name)] for name in wanted]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            arrow_csv.ParseOptions(newlines_in_values=block.lines_in_values(data)),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, _RAW),
                include_columns=places,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:  # a row has another width
        return None
    columns = [table.column(place).combine_chunks() for place in places]
    return Read(pa.record_batch(columns, list(wanted)), lines=lines)


def csv_rows(data: bytes) -> Rows:
    """Fields of every row of a block, by Python's csv; blank lines are none."""
    limit = csv.field_size_limit(tables.MOST_FIELD_BYTES)
    try:
        text = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="")
        return [row for row in csv.reader(text, strict=True) if row]
    finally:
        csv.field_size_limit(limit)


# --- Lines -------------------------------------------------------------------------------
def _lines(data: bytes) -> list[bytes]:
    """Without their ends: a line feed, and a carriage return before it."""
    *whole, last = data.split(b"\n")
    if b"\r" in data:
        whole = [line.removesuffix(b"\r") for line in whole]
    return [*whole, last] if last else whole


def _objects(data: bytes, first_row: int, names: tuple[str, ...]) -> Read:
    rows: Rows = []
    reasons: dict[int, str] = {}
    for found in json_lines.lines(io.BytesIO(data), first_row, first=False):
        row = found if isinstance(found, Unreadable) else [found.get(name) for name in names]
        if not isinstance(row, Unreadable) and json_lines.has_half_characters(row):
            number = first_row + len(rows)
            row = Unreadable(f"row {number} has half of a character (a lone surrogate)")
        if isinstance(row, Unreadable):
            reasons[len(rows)] = str(row)
            row = []
        rows.append(row)
    return Read(rows=rows, reasons=reasons)
