"""Raw blocks of a file, each of whole records: only where a record ends is looked for.

That is far cheaper than reading them, which the workers do, each for its own block. A line end
within quotes ends no record of a CSV, so quotes are counted. While they stand where a CSV's quotes
stand, around a field or doubled within one, an even number of them before a line end tells that a
record ends there. From the first one elsewhere on, and from a lone carriage return between fields,
Python's own reader finds the ends of a block, and it reads that block in the worker. Both cut a
file alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from train.data import tables
from train.data.tables import CsvFault, Unreadable, checked_header

CHUNK_ROWS = 2048
CHUNK_BYTES = 1 << 20
"""A block ends with the row that reaches either: up to a tenth of a second of one core's work."""
BOM = b"\xef\xbb\xbf"
_READ_BYTES = 2 << 20
_COMMA, _QUOTE, _LF, _CR = b',"\n\r'
_BEFORE_QUOTE, _AFTER_QUOTE = np.zeros((2, 256), bool)
_BEFORE_QUOTE[[_COMMA, _QUOTE, _LF]] = _AFTER_QUOTE[[_COMMA, _QUOTE, _LF, _CR]] = True

Kind = Literal["csv", "json", "lines"]


@dataclass(frozen=True)
class RawBlock:
    """Neighbouring records of a file as they lie there."""

    kind: Kind
    data: memoryview | None
    """None for those that `place` says."""
    rows: int
    blank: int
    """Lines that are no rows."""
    ends: np.ndarray | None = None
    """int64 [rows]: of a CSV without blank lines that is regular, where each row ends."""
    regular: bool = True
    """Of a CSV: quotes stand around fields or doubled within, and rows end in line feeds."""
    place: tuple[Path, int, int] | None = None
    """File, first byte and size, of one that lies there as it is."""

    def read(self) -> bytes:
        """The records."""
        if self.data is not None:
            return bytes(self.data)
        assert self.place is not None
        path, first, size = self.place
        with path.open("rb") as file:
            file.seek(first)
            return file.read(size)

    def lines_in_values(self, data: bytes) -> bool:
        """Whether a row of a CSV may go on over several lines; `data` as `read` gives it."""
        line_ends = np.count_nonzero(np.frombuffer(data, np.uint8) == _LF)
        return self.ends is None or line_ends != len(self.ends)

    def without_data(self) -> RawBlock:
        """The same, to be sent to a process of this machine."""
        return replace(self, data=None)

    def __reduce__(self) -> tuple[Any, ...]:
        data = None if self.data is None else self.read()
        rest = (self.rows, self.blank, self.ends, self.regular, self.place)
        return _block, (self.kind, data, *rest)


def _block(kind: Kind, data: bytes | None, *rest: Any) -> RawBlock:
    return RawBlock(kind, None if data is None else memoryview(data), *rest)


@dataclass(frozen=True)
class _Ends:
    """Where records end, as far as it can be told from line ends and quotes."""

    ends: np.ndarray
    """int64 [records], each behind the line end."""
    is_row: np.ndarray
    """Bool [records]: not blank."""
    lines: np.ndarray
    """int64 [lines], the last byte of each, those within quotes too."""
    known: int
    """Bytes up to which this holds."""

    def blocks(self, data: bytes, kind: Kind, whole: bool) -> Iterator[tuple[int, RawBlock]]:
        """Ends of the blocks that are complete, and they; `whole`: also the last records."""
        rows = np.cumsum(self.is_row)
        start = before = first = 0
        while first < len(self.ends):
            by_rows = np.searchsorted(rows, before + CHUNK_ROWS)
            last = int(min(by_rows, np.searchsorted(self.ends, start + CHUNK_BYTES)))
            if last == len(self.ends):
                if not whole:
                    return
                last -= 1
            end, count = int(self.ends[last]), int(rows[last]) - before
            if end - start > tables.MOST_FIELD_BYTES:
                return
            blank = last + 1 - first - count
            ends = None if blank or kind != "csv" else self.ends[first : last + 1] - start
            yield end, RawBlock(kind, memoryview(data)[start:end], count, blank, ends)
            start, before, first = end, before + count, last + 1


class RawBlocks:
    """Blocks of a file in order, in bounded memory. Raises Unreadable."""

    def __init__(self, kind: Kind, file: IO[bytes], path: Path | None) -> None:
        """`path` has the bytes of `file` as they are; None where nothing has."""
        self._kind, self._file, self._path = kind, file, path
        self._at = 0
        """Of the file: the first byte that is held."""
        self._data, self._final = b"", False
        self._row = self._line = 0
        """Of the file: those before what is held."""
        self.header: tuple[str, ...] = ()

    def begin(self, has_header: bool) -> None:
        """Read the beginning; of a CSV the header, which it raises Unreadable without."""
        self._read_on()
        if self._data.startswith(BOM):
            self._take(len(BOM), 0)
        if not has_header:
            return
        while (found := self._exact(1, "its header")) is None:
            self._read_on()
        self.header = checked_header(found.last)
        self._take(found.end, found.lines)

    def __iter__(self) -> Iterator[RawBlock]:
        while self._data or not self._final:
            found, size, taken = self._scan(), len(self._data), 0
            whole = self._final and found.known == size
            for end, block in found.blocks(self._data, self._kind, whole):
                yield self._placed(block, taken)
                self._row, taken = self._row + block.rows, end
            self._take(taken, int(np.searchsorted(found.lines, taken)))
            odd = found.known < size or len(self._data) > tables.MOST_FIELD_BYTES
            if odd and self._kind == "csv" and (exact := self._exact_block()):
                yield exact
                self._row += exact.rows
            else:
                self._read_on()

    def _placed(self, block: RawBlock, start: int) -> RawBlock:
        """With its place; it begins so many bytes behind the first that is held."""
        if self._path is None or block.data is None:
            return block
        return replace(block, place=(self._path, self._at + start, len(block.data)))

    def _take(self, end: int, lines: int) -> None:
        self._data = self._data[end:]
        self._at, self._line = self._at + end, self._line + lines

    def _read_on(self) -> None:
        if self._final:
            return
        wanted = max(_READ_BYTES, len(self._data))
        more = self._file.read(wanted)
        self._data, self._final = self._data + more, len(more) < wanted

    def _scan(self) -> _Ends:
        if self._kind == "csv":
            return _csv_ends(self._data, self._final)
        return _line_ends(self._data, self._kind, self._final)

    # --- By Python's own reader ----------------------------------------------------------
    def _exact_block(self) -> RawBlock | None:
        if (found := self._exact(CHUNK_ROWS)) is None:
            return None
        data = memoryview(self._data)[: found.end]
        block = self._placed(RawBlock("csv", data, found.rows, found.blank, regular=False), 0)
        self._take(found.end, found.lines)
        return block

    def _exact(self, most_rows: int, name: str | None = None) -> _Exact | None:
        """Up to so many rows or CHUNK_BYTES; None when they go on behind what is held."""
        lines = _Lines(self._data, self._final)
        reader = csv.reader(lines, strict=True)
        rows = blank = 0
        last: list[str] | None = None
        while rows < most_rows and (name or lines.taken < CHUNK_BYTES):
            try:
                row = next(reader, None)
            except csv.Error as error:
                if lines.ended and not self._final:
                    return None
                where = self._line + reader.line_num
                raise CsvFault(
                    name or f"row {self._row + rows}", str(error), where, at_end=lines.ended
                ) from error
            if row is None:
                if not self._final:
                    return None
                break
            rows, blank, last = rows + bool(row), blank + (not row), row or last
        return _Exact(lines.taken, rows, blank, reader.line_num, last)


@dataclass(frozen=True)
class _Exact:
    end: int
    rows: int
    blank: int
    lines: int
    last: list[str] | None
    """Fields of the last row."""


class _Lines:
    """Lines of bytes as an open CSV file has them; the last only if nothing can follow."""

    def __init__(self, data: bytes, final: bool) -> None:
        self._text = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="")
        self._size, self._final = len(data), final
        self.taken = 0
        """Bytes."""
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(tables.MOST_FIELD_BYTES)
        if len(line) == tables.MOST_FIELD_BYTES:
            raise too_long()
        size = len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
        unsure = not self._final and self.taken + size == self._size and not line.endswith("\n")
        if not line or unsure:
            self.ended = True
            raise StopIteration
        self.taken += size
        return line


def too_long() -> Unreadable:
    return Unreadable(f"a line is longer than {tables.MOST_FIELD_BYTES >> 20} MiB")


# --- By line ends and quotes -------------------------------------------------------------
def _csv_ends(data: bytes, final: bool) -> _Ends:
    raw = np.frombuffer(data, np.uint8)
    ends = lines = np.flatnonzero(raw == _LF)
    quotes = np.flatnonzero(raw == _QUOTE)
    known = _first_irregular(raw, quotes)
    if final and len(quotes) % 2:  # nothing closes it
        known = min(known, int(quotes[-1]))
    if len(quotes):
        ends = lines[np.searchsorted(quotes, lines) % 2 == 0]
    returns = np.count_nonzero(raw == _CR)
    if returns and returns != np.count_nonzero(raw[lines[lines > 0] - 1] == _CR):
        lone = np.flatnonzero(raw == _CR)
        at_end = lone == len(raw) - 1
        lone = lone[np.where(at_end, final, raw[np.minimum(lone + 1, len(raw) - 1)] != _LF)]
        lines = np.sort(np.concatenate([lines, lone]))
        between = lone[np.searchsorted(quotes, lone) % 2 == 0]
        known = min([known, *between[:1].tolist()])
    ends = ends[: np.searchsorted(ends, known)] + 1
    if final and known == len(data) and known > (ends[-1] if len(ends) else 0):
        ends = np.append(ends, known)  # the last record has no line end
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    sizes = ends - starts
    blank = (sizes == 1) & (raw[starts] == _LF) | (sizes == 2) & (raw[starts] == _CR)
    return _Ends(ends, ~blank, lines, known)


def _first_irregular(raw: np.ndarray, quotes: np.ndarray) -> int:
    """Where the first quote is that neither begins nor ends a field, else the end of `raw`."""
    opening, closing = quotes[::2], quotes[1::2]
    good = _BEFORE_QUOTE[raw[opening - 1]] | (opening == 0)
    bad = opening[~good][:1].tolist()
    followed = np.minimum(closing + 1, len(raw) - 1)
    good = _AFTER_QUOTE[raw[followed]] | (closing == len(raw) - 1)
    return min([len(raw), *bad, *closing[~good][:1].tolist()])


def _line_ends(data: bytes, kind: Kind, final: bool) -> _Ends:
    """By line feeds alone: a comment may hold any other mark."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LF) + 1
    last = int(ends[-1]) if len(ends) else 0
    if len(data) >= tables.MOST_FIELD_BYTES:
        sizes = np.diff([0, *ends.tolist(), len(data)])
        if sizes.max() >= tables.MOST_FIELD_BYTES:
            raise too_long()
    if final and last < len(data):
        ends = np.append(ends, len(data))
    is_row = np.ones(len(ends), bool)
    if kind == "json":
        lines = data.split(b"\n")[: len(ends)]
        is_row = np.fromiter((bool(line) and not line.isspace() for line in lines), bool, len(ends))
    return _Ends(ends, is_row, ends - 1, len(data))


# --- Lines that need not be written anew -------------------------------------------------
def lines_as_written(data: bytes, ends: np.ndarray) -> Any:
    """Rows of a regular block without line ends, a column of text; int64 [rows], where they end.

    None when a writer that quotes only what needs it would write one in another way, when their
    line ends are not the same, or when one is not UTF-8.
    """
    raw = np.frombuffer(data, np.uint8)
    returns = np.count_nonzero(raw[ends - 2] == _CR)
    if raw[-1] != _LF or returns not in (0, len(ends)) or not _quotes_are_needed(raw):
        return None
    offsets = pa.py_buffer(np.concatenate([np.zeros(1, np.int64), ends]))
    whole = pa.Array.from_buffers(pa.large_binary(), len(ends), [None, offsets, pa.py_buffer(data)])
    try:
        return pc.binary_slice(whole, 0, -2 if returns else -1).cast(pa.large_string())
    except pa.ArrowInvalid:
        return None


def _quotes_are_needed(raw: np.ndarray) -> bool:
    quotes = np.flatnonzero(raw == _QUOTE)
    if not len(quotes):
        return True
    opening, closing = quotes[::2], quotes[1::2]
    commas = np.flatnonzero(raw == _COMMA)
    needed = np.searchsorted(commas, opening) < np.searchsorted(commas, closing)
    doubled = opening[1:] == closing[:-1] + 1
    needed[1:] |= doubled
    needed[:-1] |= doubled
    if needed.all():
        return True
    opening, closing = opening[~needed], closing[~needed]
    ends = np.flatnonzero((raw == _LF) | (raw == _CR))
    return bool((np.searchsorted(ends, opening) < np.searchsorted(ends, closing)).all())
