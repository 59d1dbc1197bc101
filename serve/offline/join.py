"""The parts of a file into its output and its quarantine file, which appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract import ToxicityError
from serve.offline.forms import csv_line, output_names
from serve.offline.job import Job, part_path, read_part
from storage.remote import Place
from storage.system_errors import naming


def join(job: Job, out: Place, bad: Place, chunks: int, schema: Any) -> None:
    """Parts into the output and `bad`, the quarantine file; each under a temporary name at first.

    What goes to S3 is put together in the folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="toxicity-score-") as scratch:
        staged, bad_staged = _staged(out, Path(scratch)), _staged(bad, Path(scratch))
        try:
            _write(job, out, staged, bad_staged, chunks, schema)
            if bad_staged.stat().st_size:
                _put(bad_staged, bad)
            else:
                bad_staged.unlink()
                if bad.is_file():
                    bad.unlink()
            _put(staged, out)
        except BaseException:
            for left in (staged, bad_staged):
                left.unlink(missing_ok=True)
            raise


def _write(job: Job, out: Place, staged: Path, bad_staged: Path, chunks: int, schema: Any) -> None:
    with (
        naming(Path(str(out))),
        staged.open("wb") as file,
        bad_staged.open("w", encoding="utf-8") as quarantine,
    ):
        copy = _copier(job, file, schema)
        for number in range(chunks):
            place = part_path(job.parts, number)
            if (found := read_part(place)) is None:
                raise ToxicityError(
                    f"{place} is damaged, expected the part as it was written; the same command "
                    "scores its rows again"
                )
            part, rows = found
            for entry in part.quarantine:
                quarantine.write(json.dumps(entry, ensure_ascii=False) + "\n")
            copy(rows)
        copy(None)
        for written in (file, quarantine):
            written.flush()
            os.fsync(written.fileno())


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


def _copier(job: Job, file: Any, schema: Any) -> Callable[[bytes | None], None]:
    """What takes the rows of a part, and None at the end."""
    if job.form == "parquet":
        writer = pq.ParquetWriter(file, schema)

        def copy_table(rows: bytes | None) -> None:
            try:
                if rows is None:
                    writer.close()
                else:
                    with pa.ipc.open_stream(rows) as stream:
                        writer.write_table(stream.read_all().cast(schema))
            except BaseException:
                writer.is_open = False  # else it would try again when it is collected
                raise

        return copy_table
    if job.form == "csv":
        file.write(csv_line(output_names(job)).encode())

    def copy(rows: bytes | None) -> None:
        if rows is not None:
            file.write(rows)

    return copy
