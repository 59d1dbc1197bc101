"""The rows of a chunk in the output's form: CSV, Parquet or JSON lines, with their scores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract import FLAGGED, LOGIT, MODEL_VERSION, PROBABILITY
from serve.offline.columns import Read
from serve.offline.encode import (
    TEXT_TYPE,
    csv_fields,
    csv_text,
    float_texts,
    json_values,
    lines,
    plain,
    scalar,
    values_of,
)
from serve.offline.job import Job
from serve.offline.rows import Chunk, ipc_bytes
from train.data.tables import as_bytes, is_text, malformed

ROW = "row"
SCORES = (PROBABILITY, LOGIT, MODEL_VERSION)


@dataclass(frozen=True)
class ScoreColumns:
    """Scores of a chunk's rows, and which rows have none."""

    probability: np.ndarray
    """float32 [rows], as is `logit`."""
    logit: np.ndarray
    version: str
    missing: Iterable[int]
    threshold: float | None = None
    """Probability from which a row is flagged; None for no such column."""

    @property
    def flagged(self) -> np.ndarray:
        """Bool [rows], by the doubles that the server's JSON has."""
        threshold = np.inf if self.threshold is None else self.threshold
        return self.probability.astype(np.float64) >= threshold

    @property
    def unscored(self) -> np.ndarray:
        """Bool [rows]."""
        found = np.zeros(len(self.logit), bool)
        found[list(self.missing)] = True
        return found

    def texts(self, nothing: str, quote: str) -> list[Any]:
        """Fields of SCORES, and of FLAGGED where it is asked for; `nothing` where there is none.

        A float is the double that it is, as JSON from the server has it.
        """
        found = [float_texts(v.astype(np.float64)) for v in (self.probability, self.logit)]
        found.append(scalar(f"{quote}{self.version}{quote}"))
        if self.threshold is not None:
            found.append(pa.array(self.flagged).cast(TEXT_TYPE))
        if (unscored := self.unscored).any():
            found = [pc.if_else(pa.array(unscored), scalar(nothing), field) for field in found]
        return found


def written(
    chunk: Chunk, read: Read, job: Job, scores: ScoreColumns
) -> tuple[int, bytes | memoryview]:
    """How many fields were escaped, and the rows in the output's form; of Parquet as Arrow IPC."""
    if job.form == "parquet" and read.typed and job.keep is not None:
        return 0, _table([read.batch.column(name) for name in job.keep], job, scores)
    if read.lines is not None:
        return 0, lines([read.lines, *scores.texts("", "")], ",")
    escaped, columns = _kept(chunk, read, job)
    if job.form == "parquet":
        if job.keep is None:
            return 0, _table(columns, job, scores)
        return escaped, _table([_text_array(column) for column in columns], job, scores)
    if job.form == "csv":
        fields = [*map(csv_fields, columns), *scores.texts("", "")]
        return escaped, lines(fields, ",")
    values = [*map(json_values, columns), *scores.texts("null", '"')]
    parts: list[Any] = []
    for name, value in dict(zip(output_names(job), values, strict=True)).items():
        key = json.dumps(name, ensure_ascii=False)
        parts += [scalar(f"{', ' if parts else '{'}{key}: "), value]
    return escaped, lines([*parts, scalar("}")], "")


def output_names(job: Job) -> tuple[str, ...]:
    """Columns of the output."""
    decided = () if job.threshold is None else (FLAGGED,)
    return (*((ROW,) if job.keep is None else job.keep), *SCORES, *decided)


def csv_line(values: Iterable[Any]) -> str:
    """A line of CSV. Python's own writer leaves a lone return without quotes before 3.13."""
    return bytes(lines([csv_fields([value]) for value in values], ",")).decode()


def _text_array(column: Any) -> Any:
    if not isinstance(column, list):
        return column.cast(pa.string())
    return pa.array([v if v is None else csv_text(v) for v in column], pa.string())


# --- The columns that are kept -----------------------------------------------------------
def _kept(chunk: Chunk, read: Read, job: Job) -> tuple[int, list[Any]]:
    """Fields escaped, and the columns, for `serve.offline.encode`; all text in them is UTF-8."""
    if job.keep is None:
        return 0, [pa.array(np.arange(chunk.first_row, chunk.first_row + chunk.rows))]
    if read.rows is None:
        found = [_valid(read.batch.column(name)) for name in job.keep]
    else:
        width = len(job.names)
        places = [job.names.index(name) for name in job.keep]
        # A row of another width is in quarantine; what it has stays where it stands.
        rows = [row if len(row) == width else (row + [""] * width)[:width] for row in read.rows]
        for number in read.reasons:
            rows[number] = [None] * width
        found = [_valid_list([plain(row[at]) for row in rows]) for at in places]
    of_others = (
        count for (count, _), name in zip(found, job.keep, strict=True) if name != job.text_column
    )
    return sum(of_others), [column for _, column in found]


def _valid(column: Any) -> tuple[int, Any]:
    """How many values were escaped, and the column."""
    if not is_text(column.type):
        return 0, values_of(column)
    column = as_bytes(column)
    try:
        return 0, column.cast(TEXT_TYPE)
    except pa.ArrowInvalid:
        raws = column.to_pylist()
    texts = [raw if raw is None else raw.decode("utf-8", "surrogateescape") for raw in raws]
    return _valid_list(texts)


def _valid_list(values: list[Any]) -> tuple[int, Any]:
    bad = [row for row, value in enumerate(values) if isinstance(value, str) and malformed(value)]
    for row in bad:
        values[row] = escaped_text(values[row])
    if all(value is None or isinstance(value, str) for value in values):
        return len(bad), pa.array(values, TEXT_TYPE)
    return len(bad), values


def escaped_text(text: str) -> str:
    """A text in which each byte that is not UTF-8 stands as a backslash, "x" and its digits."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- Parquet -----------------------------------------------------------------------------
def parquet_schema(job: Job, types: dict[str, Any] | None) -> Any:
    """Arrow schema of the output; `types` by the input's column, None where all are text."""
    if job.keep is None:
        fields = [pa.field(ROW, pa.int64())]
    else:
        fields = [pa.field(name, types[name] if types else pa.string()) for name in job.keep]
    kinds = (pa.float32(), pa.float32(), pa.string(), pa.bool_())
    names = output_names(job)[len(fields) :]
    return pa.schema([*fields, *map(pa.field, names, kinds)])


def _table(columns: list[Any], job: Job, scores: ScoreColumns) -> bytes:
    unscored = scores.unscored
    version = pa.array(np.full(len(unscored), scores.version), pa.string(), mask=unscored)
    floats = [pa.array(values, mask=unscored) for values in (scores.probability, scores.logit)]
    decided = [] if scores.threshold is None else [pa.array(scores.flagged, mask=unscored)]
    batch = pa.record_batch([*columns, *floats, version, *decided], names=list(output_names(job)))
    return ipc_bytes(batch)
