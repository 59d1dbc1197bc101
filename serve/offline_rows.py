"""Rows of a file, in order and in chunks of bounded size: CSV, Parquet or lines of text.

Nothing is lost on the way: Python's csv keeps a NUL, which pandas' parser cuts a field at, and
bytes that are not UTF-8 come through as lone surrogates (PEP 383) for `serve.offline_worker` to
name.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract import TEXT, BadInput

CHUNK_ROWS = 2048
CHUNK_BYTES = 1 << 20
"""A chunk ends with the row that reaches either: about a second of one core's work."""
MOST_FIELD_BYTES = 64 << 20
"""Longest field or line that is read at all, so that an open quote does not fill the memory."""
STDIN = "-"
_LINES = (".txt", ".txt.gz")
_CSV = (".csv", ".csv.gz", ".zip")
_PARQUET = ".parquet"
_END = "\0end of the file"
_BOM = b"\xef\xbb\xbf"

Rows = list[list[str]]


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
    path, lower = Path(name), Path(name).name.lower()
    if name != STDIN and not path.is_file():
        raise BadInput(f"no file at {name}, expected comments; give another with --file")
    if name != STDIN and not lower.endswith((*_LINES, *_CSV, _PARQUET)):
        raise BadInput(
            f"{name} ends in {path.suffix or 'nothing'}, expected .csv, .csv.gz, .zip, .parquet, "
            ".txt or .txt.gz; convert or rename it"
        )
    with ExitStack() as stack:
        with _explained(name):
            if lower.endswith(_PARQUET):
                source = _parquet(stack.enter_context(pq.ParquetFile(path, pre_buffer=False)))
            elif lower.endswith(_CSV):
                stack.callback(csv.field_size_limit, csv.field_size_limit(MOST_FIELD_BYTES))
                file, total, position = stack.enter_context(_bytes_of(name, lower))
                text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
                source = _csv(stack.enter_context(text), total, position)
            else:
                source = _lines(*stack.enter_context(_bytes_of(name, lower)))
        read = source.chunks

        def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
            with _explained(name):
                yield from read(columns)

        source.chunks = chunks
        yield source


def find_column(names: Sequence[str], name: str, asked: str | None, known: Sequence[str]) -> str:
    """The column asked for, else the first of `known` that is there; letters' case aside."""
    lower = {column.lower(): column for column in reversed(names)}
    for wanted in (asked,) if asked else known:
        if wanted in names:
            return wanted
        if wanted.lower() in lower:
            return lower[wanted.lower()]
    # In a file without a header these are its first comment, of any length and many lines.
    found = textwrap.shorten(", ".join(names), 300, placeholder=" ...")
    raise BadInput(
        f"the columns of {name} are {found}, expected "
        f"{repr(asked) if asked else 'one of ' + ', '.join(known)} for the text; "
        "name it with --text-column"
    )


def is_text(kind: Any) -> bool:
    """Whether an Arrow column can hold comments: strings, or bytes that are read as UTF-8."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in (*tests, "null"))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (
        ValueError,
        EOFError,
        RuntimeError,  # an encrypted zip
        csv.Error,
        zlib.error,
        zipfile.BadZipFile,
        OSError,  # not a gzip, a disk's fault
        pa.ArrowException,
        _Unreadable,
    ) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise BadInput(
            f"{name} cannot be read ({reason}), expected a whole file of its kind in UTF-8; fetch "
            "or convert it again"
        ) from error


class _Unreadable(Exception):
    """What is wrong with the file, in words that stand in brackets."""


# --- Bytes -------------------------------------------------------------------------------
@contextmanager
def _bytes_of(name: str, lower: str) -> Iterator[tuple[IO[bytes], int | None, Callable[[], int]]]:
    """The unpacked bytes, how many there are to read, and how many were."""
    if name == STDIN:
        yield sys.stdin.buffer, None, lambda: 0
        return
    path = Path(name)
    size = path.stat().st_size
    if lower.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            inside = _only_csv(name, archive)
            with archive.open(inside) as file:
                yield file, inside.file_size, file.tell
        return
    with path.open("rb") as raw:
        if lower.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked, 1 << 17), size, raw.tell
        else:
            yield raw, size, raw.tell


def _only_csv(name: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    found = [
        info
        for info in archive.infolist()
        if info.filename.lower().endswith(".csv") and not info.filename.startswith("__MACOSX/")
    ]
    if len(found) != 1:
        raise BadInput(
            f"{name} holds {len(found)} CSV files, expected one; unpack it and name the file"
        )
    return found[0]


# --- CSV ---------------------------------------------------------------------------------
def _csv(text: IO[str], total: int | None, position: Callable[[], int]) -> Source:
    at_end = False

    def lines() -> Iterator[str]:
        nonlocal at_end
        while line := text.readline(MOST_FIELD_BYTES):
            if len(line) == MOST_FIELD_BYTES:
                raise _Unreadable(f"a line is longer than {MOST_FIELD_BYTES >> 20} MiB")
            yield line
        at_end = True
        yield _END  # a row of its own, unless a quote is still open

    reader = csv.reader(lines())
    header = next(reader)
    if at_end:
        raise _Unreadable("it is empty, without a header")
    for column in header:
        if not _is_utf8(column):
            raise _Unreadable("its header is not UTF-8")
    source = Source(tuple(header), "B", total, lambda _: _chunks(rows(), position))

    def rows() -> Iterator[list[str]]:
        number = 0
        for row in reader:
            if at_end:
                if row == [_END]:
                    return
                raise _Unreadable(f"row {number} opens a quote that nothing closes")
            if row:
                yield row
                number += 1
            else:
                source.blank_lines += 1

    return source


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _chunks(rows: Iterator[list[str]], position: Callable[[], int]) -> Iterator[Chunk]:
    held: Rows = []
    number = first = size = read = 0

    def chunk() -> Chunk:
        nonlocal read
        before, read = read, position()
        return Chunk(number, first, len(held), held, read - before)

    for row in rows:
        held.append(row)
        size += sum(map(len, row))
        if len(held) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk()
            number, first, held, size = number + 1, first + len(held), [], 0
    if held:
        yield chunk()


# --- Lines of text -----------------------------------------------------------------------
def _lines(file: IO[bytes], total: int | None, position: Callable[[], int]) -> Source:
    def rows() -> Iterator[list[str]]:
        # By "\n" alone, and a "\r" before it: a comment may hold any other mark.
        first = True
        while line := file.readline(MOST_FIELD_BYTES):
            if len(line) == MOST_FIELD_BYTES:
                raise _Unreadable(f"a line is longer than {MOST_FIELD_BYTES >> 20} MiB")
            if first:
                line, first = line.removeprefix(_BOM), False
            if line.endswith(b"\n"):
                line = line[:-1].removesuffix(b"\r")
            yield [line.decode("utf-8", "surrogateescape")]

    return Source((TEXT,), "B", total, lambda _: _chunks(rows(), position))


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
