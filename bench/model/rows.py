"""Memory of a training by the rows of its file: `toxicity bench rows`.

    python -m bench.model.rows --rows 1500000 10000000

For each count a Parquet file of as many synthetic comments, no two alike, is made and the real
`train` is started on it. At its first step, when the comments are read, split, tokenized and lie
on the disk, it is interrupted. Memory is what cannot be given back to the disk (anonymous pages),
of all its processes, looked at ten times a second; mapped files are apart. Needs about 1 GB a
million rows in TMPDIR. Prints a table and writes `rows.json`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tqdm import tqdm

from bench.report.result import LOAD, Bars, ResultOptions, at_most, begin, document, report
from bench.report.tables import aligned
from bench.traffic.background import Background
from console.options import run
from contract import TEXT, BadInput, ToxicityError
from train.data.synthetic import generate

_MOST_GROWTH = 1.1
"""Most memory at the most rows over that at the fewest."""
_DIFFERENT = 20_000
"""Synthetic comments that are made; every row is three of them, as long as people's."""
_GROUP_ROWS = 1 << 16
_INTERVAL_S = 0.1
_FIRST_STEP = re.compile(r"\bstep \d+ of \d+")


@pydantic_dataclasses.dataclass(frozen=True)
class RowsBenchConfig(ResultOptions):
    """Flags of `python -m bench.model.rows`."""

    rows: tuple[int, ...] = Field(
        (1_500_000, 10_000_000),
        description="rows of each file, ascending",
        json_schema_extra=LOAD,
    )


@dataclass(frozen=True)
class RowsMeasured:
    """One training until its first step."""

    rows: int
    file_mib: float
    seconds: float
    """From the start of the command to its first step."""
    peak_mib: float
    """Anonymous memory of the command and of what it started."""
    mapped_mib: float
    """Of files, at most at once: the system may take it back."""


class _Memory(Background):
    """Peaks of a process and its children."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak = self.mapped = 0
        super().__init__(_INTERVAL_S)

    def look(self) -> None:
        own = mapped = 0
        with contextlib.suppress(psutil.Error):
            for process in (self._process, *self._process.children(recursive=True)):
                memory = process.memory_info()
                own, mapped = own + memory.rss - memory.shared, mapped + memory.shared
        self.peak, self.mapped = max(self.peak, own), max(self.mapped, mapped)


def main() -> None:
    """Measure, write and print."""
    config = begin(RowsBenchConfig, "bench.model.rows", "Measure a training's memory by rows.")
    if len(config.rows) < 2 or list(config.rows) != sorted(set(config.rows)) or config.rows[0] < 1:
        raise BadInput(
            f"--rows is {' '.join(map(str, config.rows))}, expected two or more counts, ascending; "
            "for instance --rows 1500000 10000000"
        )
    taken = []
    for rows in config.rows:
        taken.append(_train(rows))
        print(_said(taken[-1]), flush=True)
    results = [asdict(one) for one in taken]
    found = document("rows", config, results=results, bars=bars(taken))
    report(config, found, table(results))


def _said(one: RowsMeasured) -> str:
    return f"{one.rows:,} rows: {one.peak_mib:.0f} MiB, {one.seconds:.0f} s to the first step"


def write_comments(path: Path, rows: int) -> None:
    """A Parquet file of comments and labels, in groups of rows, written in constant memory."""
    texts, labels = generate(_DIFFERENT)
    schema = pa.schema([(TEXT, pa.string()), ("toxic", pa.float32())])
    with (
        pq.ParquetWriter(path, schema, use_dictionary=False) as writer,
        tqdm(total=rows, desc=path.name, unit="row", unit_scale=True, disable=None) as progress,
    ):
        for first in range(0, rows, _GROUP_ROWS):
            numbers = range(first, min(rows, first + _GROUP_ROWS))
            places = [_places(number) for number in numbers]
            group = [" ".join(texts[place] for place in of) for of in places]
            marks = [float(labels[list(of)].max()) for of in places]
            writer.write_table(pa.table([group, marks], schema=schema))
            progress.update(len(numbers))


def _places(number: int) -> tuple[int, int, int]:
    """Of a row's three comments; those of no other row below _DIFFERENT**2."""
    turn, first = divmod(number, _DIFFERENT)
    return first, (first + 1 + turn) % _DIFFERENT, (first + 7 * turn) % _DIFFERENT


def _train(rows: int) -> RowsMeasured:
    """Raises ToxicityError when the training ends before its first step."""
    with tempfile.TemporaryDirectory(prefix="rows-") as scratch:
        file = Path(scratch) / f"{rows}.parquet"
        write_comments(file, rows)
        command = [sys.executable, "-m", "train", "--data", str(file)]
        command += ["--out", str(Path(scratch) / "run"), "--device", "cpu"]
        began = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            memory = _Memory(process.pid)
            try:
                said = _until_first_step(process)
                seconds = time.monotonic() - began
            finally:
                memory.stop()
                process.send_signal(signal.SIGINT)
                process.communicate()
        if said is not None:
            raise ToxicityError(f"the training of {rows:,} rows ended before a step: {said}")
        return RowsMeasured(
            rows=rows,
            file_mib=round(file.stat().st_size / 2**20, 1),
            seconds=round(seconds, 1),
            peak_mib=round(memory.peak / 2**20, 1),
            mapped_mib=round(memory.mapped / 2**20, 1),
        )


def _until_first_step(process: subprocess.Popen[str]) -> str | None:
    """Read until the first step; what was said last where there was none."""
    assert process.stdout is not None
    last = ""
    for line in itertools.chain.from_iterable(text.split("\r") for text in process.stdout):
        if _FIRST_STEP.search(line):
            return None
        last = line.strip() or last
    return last


def bars(taken: Sequence[RowsMeasured]) -> Bars:
    """Memory of the most rows over that of the fewest."""
    return {"memory_growth": at_most(taken[-1].peak_mib / taken[0].peak_mib, _MOST_GROWTH)}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """For people."""
    lines = [["rows", "file MiB", "seconds to the first step", "memory MiB", "mapped files MiB"]]
    lines += [
        [
            f"{one['rows']:,}",
            *(f"{one[key]:.0f}" for key in ("file_mib", "seconds", "peak_mib", "mapped_mib")),
        ]
        for one in results
    ]
    return aligned(lines)


if __name__ == "__main__":
    run(main)
