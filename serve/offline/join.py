"""The parts of a file into its output and its quarantine file, which appear whole or not at all.

They are put together in their order while later ones are still being scored, in a thread: a slow
disk or store holds up neither reading nor scoring.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from contract import ToxicityError
from serve.offline.forms import csv_line, output_names
from serve.offline.job import Job, part_path, read_part
from storage.remote import Place
from storage.system_errors import naming

_TO_DISK_BYTES = 8 << 20
"""After so many the output is flushed to the disk, so that little is left to flush at the end."""


class Output:
    """The output `out` and the quarantine file `bad`, each under a temporary name until `finish`.

    What goes to S3 is put together in the folder for temporary files. Without `finish` nothing
    stays.
    """

    def __init__(self, job: Job, out: Place, bad: Place, schema: Any) -> None:
        self._job, self._out, self._bad, self._schema = job, out, bad, schema
        self._there: set[int] = set()
        """Parts behind one that is not there yet."""
        self._next = 0
        self._taken: deque[Future[None]] = deque()
        self._unflushed = 0
        self._open: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            scratch = tempfile.TemporaryDirectory(prefix="toxicity-score-")
            folder = Path(opened.enter_context(scratch))
            self._staged, self._bad_staged = _staged(self._out, folder), _staged(self._bad, folder)
            for path in (self._staged, self._bad_staged):
                opened.callback(path.unlink, missing_ok=True)
            with naming(Path(str(self._out))):
                self._file = opened.enter_context(self._staged.open("wb"))
                self._rows = _writer(self._job, self._file, self._schema)
            with naming(Path(str(self._bad))):
                self._quarantine = opened.enter_context(
                    self._bad_staged.open("w", encoding="utf-8")
                )
            opened.callback(self._rows.drop)
            self._thread = ThreadPoolExecutor(1, "output")
            opened.callback(self._thread.shutdown, cancel_futures=True)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # of what `finish` has not flushed
            self._open.close()

    def add(self, number: int) -> None:
        """Take a part that is there, once all before it were.

        Raises what went wrong with an earlier one: OSError, or ToxicityError for a damaged part.
        """
        self._there.add(number)
        while self._next in self._there:
            self._there.remove(self._next)
            self._taken.append(self._thread.submit(self._take, self._next))
            self._next += 1
        while self._taken and self._taken[0].done():
            self._taken.popleft().result()

    def finish(self, parts: int) -> None:
        """Let both files appear, once all parts are in them. Raises as `add` does.

        `parts` is how many the file has. Raises ToxicityError, and nothing appears, when another
        number of them came.
        """
        if (self._next, self._there) != (parts, set()):
            raise ToxicityError(
                f"{self._next} parts of {self._out} are in order, expected {parts}; the same "
                "command scores what is missing"
            )
        for taken in self._taken:
            taken.result()
        with naming(Path(str(self._out))):
            self._rows.close()
            for file in (self._file, self._quarantine):
                _flush(file)
                file.close()
        if self._bad_staged.stat().st_size:
            _put(self._bad_staged, self._bad)
        elif self._bad.is_file():
            self._bad.unlink()
        _put(self._staged, self._out)

    def _take(self, number: int) -> None:
        with naming(Path(str(self._out))):
            place = part_path(self._job.parts, number)
            if (found := read_part(place)) is None:
                raise ToxicityError(
                    f"{place} is damaged, expected the part as it was written; the same command "
                    "scores its rows again"
                )
            part, rows = found
            for entry in part.quarantine:
                self._quarantine.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._rows.write(rows)
            self._unflushed += len(rows)
            if self._unflushed >= _TO_DISK_BYTES:
                self._unflushed = 0
                _flush(self._file)


def _staged(place: Place, scratch: Path) -> Path:
    if isinstance(place, Path):
        return place.with_name(f".{place.name}.partial")
    return scratch / place.name


def _put(staged: Path, place: Place) -> None:
    if isinstance(place, Path):
        staged.replace(place)
    else:
        with staged.open("rb") as file:
            place.upload(file)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


# --- Rows of a part, in the output's form --------------------------------------------------
class _LineWriter:
    """CSV with its header, or JSON lines: the parts have them as they are to be."""

    def __init__(self, job: Job, file: IO[bytes]) -> None:
        self._file = file
        if job.form == "csv":
            file.write(csv_line(output_names(job)).encode())

    def write(self, rows: bytes | memoryview) -> None:
        self._file.write(rows)

    def close(self) -> None:
        """Nothing is left to write."""

    drop = close


class _TableWriter:
    """Parquet: a part is a row group."""

    def __init__(self, file: IO[bytes], schema: Any) -> None:
        self._schema, self._writer = schema, pq.ParquetWriter(file, schema)

    def write(self, rows: bytes | memoryview) -> None:
        with pa.ipc.open_stream(rows) as stream:
            self._writer.write_table(stream.read_all().cast(self._schema))

    def close(self) -> None:
        """Write the end of the file."""
        try:
            self._writer.close()
        finally:
            self.drop()

    def drop(self) -> None:
        """Write no more: it would try to when it is collected."""
        self._writer.is_open = False


def _writer(job: Job, file: IO[bytes], schema: Any) -> _LineWriter | _TableWriter:
    return _TableWriter(file, schema) if job.form == "parquet" else _LineWriter(job, file)
