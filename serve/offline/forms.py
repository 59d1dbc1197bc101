"""The rows of a chunk in the output's form: CSV, Parquet or JSON lines, with their scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contract import FLAGGED, LOGIT, MODEL_VERSION, PROBABILITY
from serve.offline.job import Job
from serve.offline.rows import Chunk
from train.data.tables import as_bytes

ROW = "row"
SCORES = (PROBABILITY, LOGIT, MODEL_VERSION)
_needs_quotes = re.compile('[",\r\n]').search


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

    def columns(self) -> list[list[Any]]:
        """Values of SCORES, and of FLAGGED where it is asked for.

        A float is the double that it is, as JSON from the server has it.
        """
        found: list[list[Any]] = [self.probability.tolist(), self.logit.tolist()]
        found.append([self.version] * len(self.logit))
        if self.threshold is not None:
            found.append(self.flagged.tolist())
        for row in self.missing:
            for column in found:
                column[row] = None
        return found


def written(chunk: Chunk, batch: Any, job: Job, scores: ScoreColumns) -> tuple[int, bytes]:
    """How many fields were escaped, and the rows in the output's form."""
    if job.form == "parquet" and batch is not None and job.keep is not None:
        return 0, _parquet([batch.column(name) for name in job.keep], job, scores)
    escaped, columns = _kept(chunk, batch, job)
    if job.form == "parquet":
        if job.keep is None:
            return 0, _parquet([pa.array(columns[0], pa.int64())], job, scores)
        return escaped, _parquet([_text_array(column) for column in columns], job, scores)
    rows = zip(*columns, *scores.columns(), strict=True)
    if job.form == "csv":
        return escaped, "".join(map(csv_line, rows)).encode()
    names = output_names(job)
    lines = (json.dumps(dict(zip(names, row, strict=True)), **_JSON) + "\n" for row in rows)
    return escaped, "".join(lines).encode()


_JSON: dict[str, Any] = {"ensure_ascii": False, "default": str, "allow_nan": False}


def output_names(job: Job) -> tuple[str, ...]:
    """Columns of the output."""
    decided = () if job.threshold is None else (FLAGGED,)
    return (*((ROW,) if job.keep is None else job.keep), *SCORES, *decided)


def csv_line(values: Iterable[Any]) -> str:
    """A line of CSV. Python's own writer leaves a lone return without quotes before 3.13."""
    fields = []
    for value in values:
        field = value if isinstance(value, str) else _as_text(value)
        if _needs_quotes(field):
            field = '"' + field.replace('"', '""') + '"'
        fields.append(field)
    return ",".join(fields) + "\n"


def _text_array(values: Iterable[Any]) -> Any:
    texts = [v if v is None or isinstance(v, str) else _as_text(v) for v in values]
    return pa.array(texts, pa.string())


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, **_JSON)
    return str(value)


def _kept(chunk: Chunk, batch: Any, job: Job) -> tuple[int, list[Sequence[Any]]]:
    """Fields escaped, and the values of the kept columns, all of them valid text or numbers."""
    if job.keep is None:
        return 0, [range(chunk.first_row, chunk.first_row + chunk.rows)]
    columns: list[Sequence[Any]]
    if not isinstance(chunk.payload, list):
        columns = [_values(batch.column(name)) for name in job.keep]
    else:
        width = len(job.names)
        places = [job.names.index(name) for name in job.keep]
        # A row of another width is in quarantine; what it has stays where it stands.
        rows = [row if len(row) == width else (row + [""] * width)[:width] for row in chunk.payload]
        for number in chunk.reasons:
            rows[number] = [None] * width
        columns = [[_plain(row[at]) for row in rows] for at in places]
    escaped = 0
    for at, column in enumerate(columns):
        bad = [row for row, value in enumerate(column) if _is_malformed(value)]
        if bad:
            values = list(column)
            for row in bad:
                values[row] = escaped_text(values[row])
            columns[at] = values
            escaped += len(bad) * (job.keep[at] != job.text_column)
    return escaped, columns


def escaped_text(text: str) -> str:
    """A text in which each byte that is not UTF-8 stands as a backslash, "x" and its digits."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_malformed(value: Any) -> bool:
    if not isinstance(value, str) or value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _values(column: Any) -> list[Any]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        raws = as_bytes(column).to_pylist()
        return [raw if raw is None else raw.decode("utf-8", "surrogateescape") for raw in raws]
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    """A value that JSON has: no NaN, no bytes."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def parquet_schema(job: Job, types: dict[str, Any] | None) -> Any:
    """Arrow schema of the output; `types` by the input's column, None where all are text."""
    if job.keep is None:
        fields = [pa.field(ROW, pa.int64())]
    else:
        fields = [pa.field(name, types[name] if types else pa.string()) for name in job.keep]
    kinds = (pa.float32(), pa.float32(), pa.string(), pa.bool_())
    names = output_names(job)[len(fields) :]
    return pa.schema([*fields, *map(pa.field, names, kinds)])


def _parquet(columns: list[Any], job: Job, scores: ScoreColumns) -> bytes:
    valid = np.ones(len(scores.logit), bool)
    valid[list(scores.missing)] = False
    version = pa.array([scores.version if ok else None for ok in valid], pa.string())
    floats = [pa.array(values, mask=~valid) for values in (scores.probability, scores.logit)]
    decided = [] if scores.threshold is None else [pa.array(scores.flagged, mask=~valid)]
    table = pa.table([*columns, *floats, version, *decided], names=list(output_names(job)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
