"""Tables of comments in files, every character as it stands: CSV (also .gz and .zip) and Parquet.

Nothing is lost on the way: Python's csv keeps a NUL, which pandas' parser cuts a field at, and with
`strict` takes no quote that is not closed, or within quotes not doubled. What cannot be read is
refused with its row, counted from 0 without the header. `serve.offline` reads in chunks.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contract import BadInput
from storage.remote import Place, RemotePath

CSV_SUFFIXES = (".csv", ".csv.gz", ".zip")
PARQUET_SUFFIX = ".parquet"
MOST_FIELD_BYTES = 64 << 20
"""Longest field or line that is read at all, so that an open quote does not fill the memory."""
_BATCH_ROWS = 1 << 11
_MOST_NAME = 40
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Names of all columns -> those that are needed, each once."""


class Unreadable(Exception):
    """What is wrong with a file, in words that stand in brackets, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "fetch or convert it again") -> None:
        super().__init__(reason)
        self.remedy = remedy


def read_table(path: Path, choose: Choose) -> Any:
    """Chosen columns of a file as an Arrow table; those of a CSV are text.

    Raises BadInput for a file that is damaged or of another kind, and what `choose` raises.
    """
    with explained(str(path)):
        if path.name.lower().endswith(PARQUET_SUFFIX):
            with pq.ParquetFile(path) as file:
                return file.read(list(choose(file.schema_arrow.names)))
        with open_csv(path) as rows:
            return _table_of(rows, choose(rows.header))


def column_names(path: Path) -> tuple[str, ...]:
    """Names of all columns of a file. Raises BadInput as `read_table` does."""
    with explained(str(path)):
        if path.name.lower().endswith(PARQUET_SUFFIX):
            return tuple(pq.read_schema(path).names)
        with open_csv(path) as rows:
            return rows.header


def find_column(
    names: Sequence[str],
    source: str,
    what: str,
    *,
    asked: str | None,
    known: Sequence[str],
    flag: str | None,
) -> str:
    """The column of `what` ("text"): the one asked for, else the first of `known` that is there.

    Letters' case aside. Raises BadInput for none or several; `flag` names another, where one does.
    """
    lower = {column.lower(): column for column in reversed(names)}
    for wanted in (asked,) if asked else known:
        found = wanted if wanted in names else lower.get(wanted.lower())
        if found is None:
            continue
        if names.count(found) > 1:
            raise BadInput(
                f"{source} has {names.count(found)} columns {found!r}, expected one; rename them"
            )
        return found
    raise BadInput(
        f"{shown_names(source, names)}, expected "
        f"{repr(asked) if asked else 'one of ' + ', '.join(known)} for the {what}; "
        f"{f'name it with {flag}' if flag else 'rename it'}"
    )


def shown_names(source: str, names: Sequence[str]) -> str:
    """A sentence of a file's columns that quotes no comment, should its first row be one."""
    if any(_NUMBER.fullmatch(name) or len(name) > _MOST_NAME for name in names):
        return f"the first row of {source} holds {len(names)} fields that are no names of columns"
    words = [
        # One word is no comment.
        f"(one of {len(name.split())} words)" if any(map(str.isspace, name)) else name or "(none)"
        for name in names
    ]
    return f"the columns of {source} are {textwrap.shorten(', '.join(words), 300)}"


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what a damaged file raises into BadInput. What the system refuses stays an OSError."""
    try:
        yield
    except (
        ValueError,
        EOFError,
        RuntimeError,  # an encrypted zip
        zlib.error,
        zipfile.BadZipFile,
        OSError,  # not a gzip, a damaged Parquet
        pa.ArrowException,
        Unreadable,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join((str(error) or type(error).__name__).split())
        remedy = error.remedy if isinstance(error, Unreadable) else Unreadable("").remedy
        raise BadInput(
            f"{name} cannot be read ({reason}), expected a whole file of its kind in UTF-8; "
            f"{remedy}"
        ) from error


# --- Bytes -------------------------------------------------------------------------------
@contextmanager
def open_bytes(path: Place) -> Iterator[tuple[IO[bytes], int, Callable[[], int]]]:
    """The unpacked bytes, how many there are to read, and how many were; of a zip its one CSV."""
    size = path.stat().st_size
    lower = path.name.lower()
    if lower.endswith(".zip"):
        with _opened(path) as packed, zipfile.ZipFile(packed) as archive:
            inside = _only_csv(path, archive)
            with archive.open(inside) as file:
                yield file, inside.file_size, file.tell
        return
    with _opened(path) as raw:
        if lower.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked, 1 << 17), size, raw.tell
        else:
            yield raw, size, raw.tell


def _opened(path: Place) -> Any:
    return path.open_bytes() if isinstance(path, RemotePath) else path.open("rb")


def _only_csv(path: Place, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    found = [
        info
        for info in archive.infolist()
        if info.filename.lower().endswith(".csv") and not info.filename.startswith("__MACOSX/")
    ]
    if len(found) != 1:
        raise BadInput(
            f"{path} holds {len(found)} CSV files, expected one; unpack it and name the file"
        )
    return found[0]


# --- CSV ---------------------------------------------------------------------------------
class CsvRows:
    """The header, then the rows, each a list of fields; bytes that are not UTF-8 are surrogates."""

    def __init__(self, text: IO[str], total: int, position: Callable[[], int]) -> None:
        """`total` and `position` as `open_bytes` has them. Raises Unreadable without a header."""
        self.total, self.position = total, position
        self.blank_lines = 0
        """They are no rows."""
        self._at_end = False
        self._reader = csv.reader(self._lines(text), strict=True)
        self.header = checked_header(self._next("its header"))
        self.blank_lines = 0

    def __iter__(self) -> Iterator[list[str]]:
        number = 0
        while (row := self._next(f"row {number}")) is not None:
            yield row
            number += 1

    def _next(self, what: str) -> list[str] | None:
        """The next row that is no blank line; None at the end."""
        while True:
            try:
                row = next(self._reader, None)
            except csv.Error as error:
                line = self._reader.line_num
                raise CsvFault(what, str(error), line, at_end=self._at_end) from error
            if row or row is None:
                return row
            self.blank_lines += 1

    def _lines(self, text: IO[str]) -> Iterator[str]:
        while line := text.readline(MOST_FIELD_BYTES):
            if len(line) == MOST_FIELD_BYTES:
                raise Unreadable(f"a line is longer than {MOST_FIELD_BYTES >> 20} MiB")
            yield line
        self._at_end = True


_QUOTE = "close each quote, and double those within a quoted field"
_CONVERT = "convert it, as with `iconv -f WINDOWS-1252 -t UTF-8`"


class CsvFault(Unreadable):
    """What Python's csv says of a row, `what`, that it was reading up to a line, counted from 1."""

    def __init__(self, what: str, words: str, line: int, *, at_end: bool) -> None:
        quoted = "expected after" in words
        words = "has a quote within quotes that is not doubled" if quoted else f"is none: {words}"
        reason = f"{what} (up to line {line}) {words}"
        super().__init__(f"{what} opens a quote that nothing closes" if at_end else reason, _QUOTE)


def checked_header(row: Sequence[str] | None) -> tuple[str, ...]:
    """Names of a CSV's columns, its first row. Raises Unreadable without one, or for other text."""
    if not row:
        raise Unreadable("it is empty, without a header")
    for column in row:
        if (reason := malformed(column)) is not None:
            raise Unreadable(f"its header is not UTF-8 {reason}", _CONVERT)
    return tuple(row)


@contextmanager
def open_csv(path: Place) -> Iterator[CsvRows]:
    """Rows of a CSV file. Within `explained`, which says what is wrong with it."""
    limit = csv.field_size_limit(MOST_FIELD_BYTES)
    try:
        with (
            open_bytes(path) as (file, total, position),
            io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text,
        ):
            yield CsvRows(text, total, position)
    finally:
        csv.field_size_limit(limit)


def malformed(field: str) -> str | None:
    """`not_utf8` of a field of `CsvRows`."""
    if field.isascii():
        return None
    return not_utf8(field.encode("utf-8", "surrogateescape"))


def not_utf8(raw: bytes) -> str | None:
    """The first byte that is not UTF-8, in brackets."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"(byte 0x{raw[error.start]:02x} at {error.start})"
    return None


def _table_of(rows: CsvRows, columns: Sequence[str]) -> Any:
    places = [rows.header.index(name) for name in columns]
    kinds = pa.schema([(name, pa.large_string()) for name in columns])
    batches: list[Any] = []
    first = 0
    checked = _of_width(rows, len(rows.header))
    while held := list(itertools.islice(checked, _BATCH_ROWS)):
        try:
            arrays = [pa.array([row[at] for row in held], pa.large_string()) for at in places]
        except UnicodeEncodeError as error:
            raise _bad_row(held, places, first) from error
        batches.append(pa.record_batch(arrays, schema=kinds))
        first += len(held)
    return pa.Table.from_batches(batches, kinds)


def csv_column(path: Path, name: str) -> Iterator[str]:
    """One column of a CSV file, row by row. Within `explained`, as `open_csv`.

    Raises Unreadable for a row of another width, and for one that is not UTF-8.
    """
    with open_csv(path) as rows:
        at = rows.header.index(name)
        for number, row in enumerate(_of_width(rows, len(rows.header))):
            if malformed(row[at]) is not None:
                raise _bad_row([row], [at], number)
            yield row[at]


def _of_width(rows: Iterable[list[str]], width: int) -> Iterator[list[str]]:
    number = 0
    for row in rows:
        if len(row) == width:
            yield row
        elif len(row) == 1 and row[0].isspace():  # a blank line
            continue
        else:
            raise Unreadable(
                f"row {number} has {len(row)} fields, the header {width} names",
                "put comments that hold a comma or a line end in quotes",
            )
        number += 1


def _bad_row(held: list[list[str]], places: list[int], first: int) -> Unreadable:
    number, reason = next(
        (number, reason)
        for number, row in enumerate(held, first)
        for reason in (malformed(row[at]) for at in places)
        if reason is not None
    )
    return Unreadable(f"row {number} is not UTF-8 {reason}", _CONVERT)


# --- Columns -----------------------------------------------------------------------------
def is_text(kind: Any) -> bool:
    """Whether an Arrow column can hold comments: strings, or bytes that are read as UTF-8."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in (*tests, "null"))


def as_bytes(column: Any) -> Any:
    """A column of `is_text` as bytes: Parquet's strings need not be UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return column.cast(pa.large_binary())


def texts_of(column: Any, name: str, first: int = 0) -> list[str | None]:
    """Its texts, None where there is none. Raises Unreadable for a row that is not UTF-8.

    `first` is the row of the file that the column begins with.
    """
    found: list[str | None] = []
    for row, raw in enumerate(as_bytes(column).to_pylist(), first):
        try:
            found.append(None if raw is None else raw.decode())
        except UnicodeDecodeError as error:
            reason = f"row {row} of the column {name!r} is not UTF-8 {not_utf8(raw)}"
            raise Unreadable(reason, _CONVERT) from error
    return found


def distinct(column: Any, name: str) -> tuple[list[str], np.ndarray]:
    """Different values of a column of texts, numbers or truth values as text, and which each has.

    int64 [n], -1 where there is none. Raises Unreadable for other types, and as `texts_of` does.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    tests = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_decimal)
    if is_text(kind):
        column = as_bytes(column)
    elif pa.types.is_floating(kind):
        column = column.cast(pa.float64())
    elif not any(test(kind) for test in tests):
        raise Unreadable(f"the column {name!r} holds {kind}, expected numbers or text")
    encoded = column.combine_chunks().dictionary_encode()
    at = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = encoded.dictionary.to_pylist()
    for place, value in enumerate(values):
        if isinstance(value, bytes):
            if reason := not_utf8(value):
                row = int(np.argmax(at == place))
                raise Unreadable(
                    f"row {row} of the column {name!r} is not UTF-8 {reason}", _CONVERT
                )
            values[place] = value.decode()
    return list(map(str, values)), at


def number_of(text: str) -> float | None:
    """The finite number that a field says, None for any other text."""
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None
