"""Comments that do not fit in memory: their bytes lie in an unnamed file, mapped when read."""

from __future__ import annotations

import itertools
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train.data.tables import CSV_SUFFIXES, PARQUET_SUFFIX, csv_column, explained, texts_of

LARGE_BYTES = 512 << 20
"""Unpacked size of a Parquet or CSV file from which on its comments stay on the disk."""
_BATCH_ROWS = 1 << 11
_UNPACKED = 3
"""Bytes of comments that a byte of a packed file is taken for."""


class StoredTexts(Sequence[str]):
    """Texts as a list gives them, 16 bytes of each in memory; made by `store_texts`.

    The file is in the folder for temporary files (TMPDIR) and goes with the process.
    """

    def __init__(self, data: Any, starts: np.ndarray, ends: np.ndarray) -> None:
        self._data, self._starts, self._ends = data, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        return self._data[self._starts[row] : self._ends[row]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def take(self, rows: np.ndarray) -> StoredTexts:
        """Those of `rows`, int64 [m]; the file is shared."""
        return StoredTexts(self._data, self._starts[rows], self._ends[rows])


def store_texts(texts: Iterable[str]) -> StoredTexts:
    """Write texts to the disk as they come. Raises OSError where there is no room for them."""
    ends = array("q")
    with tempfile.TemporaryFile(prefix="toxicity-texts-", buffering=1 << 20) as file:
        size = 0
        for text in texts:
            size += file.write(text.encode("utf-8", "surrogatepass"))
            ends.append(size)
        file.flush()
        data: Any = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    after = np.frombuffer(ends, np.int64) if ends else np.zeros(0, np.int64)
    return StoredTexts(
        data, np.concatenate([[0], after[:-1]]).astype(np.int64)[: len(after)], after
    )


def is_large(source: str) -> bool:
    """Whether a source is a Parquet or CSV file whose comments are better left on the disk."""
    path, name = Path(source), source.lower()
    if not name.endswith((PARQUET_SUFFIX, *CSV_SUFFIXES)) or not path.is_file():
        return False
    if name.endswith(CSV_SUFFIXES):
        unpacked = 1 if name.endswith(".csv") else _UNPACKED
        return unpacked * path.stat().st_size >= LARGE_BYTES
    with explained(source), pq.ParquetFile(path) as file:
        groups = range(file.metadata.num_row_groups)
        return sum(file.metadata.row_group(at).total_byte_size for at in groups) >= LARGE_BYTES


def stored_type(source: str, name: str) -> Any:
    """Arrow type of a column of a Parquet or CSV file."""
    if source.lower().endswith(PARQUET_SUFFIX):
        return pq.read_schema(source).field(name).type
    return pa.large_string()


def stored_column(source: str, name: str) -> tuple[StoredTexts, np.ndarray]:
    """Texts of a column of a Parquet or CSV file, and which of them say something: bool [n].

    A few rows at a time are read. Raises Unreadable as `texts_of` and `csv_column` do.
    """
    has_text = bytearray()

    def texts() -> Iterator[str]:
        parquet = source.lower().endswith(PARQUET_SUFFIX)
        for text in _of_parquet(source, name) if parquet else csv_column(Path(source), name):
            has_text.append(bool(text and text.strip()))
            yield text or ""

    stored = store_texts(texts())
    return stored, np.frombuffer(bytes(has_text), bool)


def _of_parquet(source: str, name: str) -> Iterator[str | None]:
    """One row group after the other."""
    first = 0
    with pq.ParquetFile(source) as file:
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name]):
                yield from texts_of(batch.column(0), name, first)
                first += batch.num_rows


def chosen(texts: Sequence[str], rows: np.ndarray) -> Sequence[str]:
    """Those of `rows`, int64 [m]; on the disk where they are there."""
    return texts.take(rows) if isinstance(texts, StoredTexts) else [texts[row] for row in rows]


def joined(*texts: Sequence[str]) -> Sequence[str]:
    """All, one behind the other; on the disk where some are."""
    some = [part for part in texts if part]
    if not any(isinstance(part, StoredTexts) for part in some):
        return list(itertools.chain.from_iterable(some))
    return some[0] if len(some) == 1 else store_texts(itertools.chain.from_iterable(some))
