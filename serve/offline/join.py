"""The parts of a file into its output and its quarantine file, which appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.offline.forms import csv_line, output_names
from serve.offline.job import Job, part_path
from serve.offline.parts import beside
from storage.system_errors import naming


def join(job: Job, out: Path, chunks: int, schema: Any) -> None:
    """Parts into the output and the quarantine file, each under a temporary name at first."""
    staged = out.with_name(f".{out.name}.partial")
    bad, bad_staged = (beside(path, ".quarantine.jsonl") for path in (out, staged))
    paths = [part_path(job.parts, number) for number in range(chunks)]
    try:
        with (
            naming(out),
            staged.open("wb") as file,
            bad_staged.open("w", encoding="utf-8") as quarantine,
        ):
            copy = _copier(job, file, schema)
            for path in paths:
                with path.open("rb") as part:
                    for entry in json.loads(part.readline())["quarantine"]:
                        quarantine.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    copy(part)
            copy(None)
            for written in (file, quarantine):
                written.flush()
                os.fsync(written.fileno())
        if bad_staged.stat().st_size:
            bad_staged.replace(bad)
        else:
            bad_staged.unlink()
            bad.unlink(missing_ok=True)
        staged.replace(out)
    except BaseException:
        for left in (staged, bad_staged):
            left.unlink(missing_ok=True)
        raise


def _copier(job: Job, file: Any, schema: Any) -> Callable[[Any], None]:
    """What takes an open part behind its first line, and None at the end."""
    if job.form == "parquet":
        writer = pq.ParquetWriter(file, schema)

        def copy_table(part: Any) -> None:
            try:
                if part is None:
                    writer.close()
                else:
                    writer.write_table(pq.read_table(pa.BufferReader(part.read())).cast(schema))
            except BaseException:
                writer.is_open = False  # else it would try again when it is collected
                raise

        return copy_table
    if job.form == "csv":
        file.write(csv_line(output_names(job)).encode())

    def copy(part: Any) -> None:
        if part is not None:
            shutil.copyfileobj(part, file)

    return copy
