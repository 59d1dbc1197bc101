"""One worker process of `score --file`: opens the scorer, scores chunks, writes their parts.

Light to import: a worker starts without PyTorch. A part is a file of one line, the JSON object
that `Part` describes, and then the chunk's rows in the form of the output. It appears whole or not
at all, and once it is there it will stay.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from console.options import unexpected
from contract import (
    ARTIFACT_FILE,
    LOGIT,
    MAX_BATCH_SIZE,
    MAX_COMMENT_BYTES,
    MODEL_VERSION,
    ONNX_FILE,
    ORT_FILE,
    PROBABILITY,
    TOKENIZER_FILE,
    ToxicityError,
)
from core.binding import NativeScorer, NativeTokenizer, probability
from serve.offline_rows import Chunk, Rows
from storage.files import write_atomically
from train.data.tables import as_bytes, not_utf8

Form = Literal["csv", "parquet", "jsonl"]
ROW = "row"
SCORES = (PROBABILITY, LOGIT, MODEL_VERSION)
_needs_quotes = re.compile('[",\r\n]').search


@dataclass(frozen=True)
class Job:
    """What holds for all chunks of a file."""

    version_folder: Path
    parts: Path
    form: Form
    names: tuple[str, ...]
    """Columns of the input."""
    text_column: str
    keep: tuple[str, ...] | None
    """Those that go into the output; None for the row's number in their place."""


@dataclass(frozen=True)
class Part:
    """What the first line of a part says."""

    first_row: int
    rows: int
    tokens: int
    cut: int
    windowed: int
    escaped: int
    """Fields of other columns that were not UTF-8: their bytes stand as \\xNN."""
    quarantine: tuple[dict[str, Any], ...]
    """Rows without a score, each with its number and the reason."""


@dataclass(frozen=True)
class Done:
    """Answer for a chunk: CPU seconds of the worker, and what the core had of them."""

    number: int
    part: Part
    cpu_s: float
    tokenizer_cpu_s: float
    encoder_cpu_s: float


def open_scorer(folder: Path) -> NativeScorer:
    """Scorer of a version's folder: what the server opens there, on one thread, without a cache.

    Without, because a logit that is looked up may differ in the last bit of a float from one that
    is computed in other company (FP32, see FP32_INVARIANCE_ATOL), and so would the file.
    """
    artifact = json.loads((folder / ARTIFACT_FILE).read_text("utf-8"))
    library = folder / ORT_FILE
    return NativeScorer(
        folder / ONNX_FILE,
        NativeTokenizer((folder / TOKENIZER_FILE).read_text("utf-8")),
        gpu=0 if artifact["device"] == "cuda" else None,
        **artifact.get("long_text", {}),
        max_batch=MAX_BATCH_SIZE,
        ort_library=library if library.is_file() else None,
    )


def work(connection: Connection, job: Job) -> None:
    """Answer every chunk with `Done`, or with an error, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's to deal with
    try:
        scorer = open_scorer(job.version_folder)
        connection.send(None)
        while True:
            connection.send(score_chunk(scorer, connection.recv(), job))
    except (EOFError, ConnectionError):  # the command ended, or was killed
        return
    except (ToxicityError, OSError) as error:
        connection.send(error)
    except Exception as error:  # to be told by the command, in its one line
        connection.send(ToxicityError(f"a worker failed: {unexpected(error)}"))


def score_chunk(scorer: NativeScorer, chunk: Chunk, job: Job) -> Done:
    """Score a chunk and write its part."""
    began = time.process_time()
    lines: Rows | None = None
    batch: Any = None
    if isinstance(chunk.payload, list):
        lines = chunk.payload
        texts, reasons = _texts_of_rows(lines, job)
    else:
        batch = _read_ipc(chunk.payload)
        texts, reasons = _texts_of_column(batch.column(job.text_column))
    found = scorer.score(texts)
    scored = [row for row in range(chunk.rows) if row not in reasons]
    logit, chance = np.zeros(chunk.rows, np.float32), np.zeros(chunk.rows, np.float32)
    logit[scored], chance[scored] = found.logit, probability(found.logit)
    scores = _Scores(chance, logit, job.version_folder.name, reasons.keys())
    escaped, data = _written(chunk, batch, job, scores)
    quarantine: list[dict[str, Any]] = []
    for row, reason in sorted(reasons.items()):
        entry: dict[str, Any] = {ROW: chunk.first_row + row, "reason": reason}
        if lines is not None and len(lines[row]) != len(job.names):
            entry["fields"] = list(map(_escaped, lines[row]))
        quarantine.append(entry)
    part = Part(
        chunk.first_row,
        chunk.rows,
        found.tokens,
        found.cut,
        found.windowed,
        escaped,
        tuple(quarantine),
    )
    head = json.dumps(dataclasses.asdict(part), ensure_ascii=True).encode() + b"\n"
    write_durably(part_path(job.parts, chunk.number), (head, data))
    cpu_s = time.process_time() - began
    return Done(chunk.number, part, cpu_s, found.tokenizer_cpu_s, found.encoder_cpu_s)


# --- Texts, or why a row has none --------------------------------------------------------
def _texts_of_rows(rows: Rows, job: Job) -> tuple[list[str], dict[int, str]]:
    at, width = job.names.index(job.text_column), len(job.names)
    texts, reasons = [], {}
    for number, row in enumerate(rows):
        if len(row) != width:
            reasons[number] = f"the row has {len(row)} fields, expected {width}"
        elif reason := _unreadable(row[at]):
            reasons[number] = reason
        else:
            texts.append(row[at])
    return texts, reasons


def _unreadable(text: str) -> str | None:
    if text.isascii():
        size = len(text)
    else:
        raw = text.encode("utf-8", "surrogateescape")
        size = len(raw)
        if reason := _malformed(raw):
            return reason
    return _too_long(size)


def _malformed(raw: bytes) -> str | None:
    reason = not_utf8(raw)
    return f"the comment is not valid UTF-8 {reason}" if reason else None


def _too_long(size: int) -> str | None:
    if size <= MAX_COMMENT_BYTES:
        return None
    return f"the comment is {size} bytes long, expected at most {MAX_COMMENT_BYTES}"


def _texts_of_column(column: Any) -> tuple[list[str], dict[int, str]]:
    texts, reasons = [], {}
    for number, raw in enumerate(as_bytes(column).to_pylist()):
        if raw is None:
            reasons[number] = "the comment is missing (null)"
        elif reason := _malformed(raw) or _too_long(len(raw)):
            reasons[number] = reason
        else:
            texts.append(raw.decode())
    return texts, reasons


# --- The output's forms ------------------------------------------------------------------
@dataclass(frozen=True)
class _Scores:
    probability: np.ndarray
    """float32 [rows], as is `logit`."""
    logit: np.ndarray
    version: str
    missing: Iterable[int]

    def columns(self) -> list[list[Any]]:
        """Values of SCORES: a float as the double that it is, as JSON from the server has it."""
        found: list[list[Any]] = [self.probability.tolist(), self.logit.tolist()]
        found.append([self.version] * len(self.logit))
        for row in self.missing:
            for column in found:
                column[row] = None
        return found


def _written(chunk: Chunk, batch: Any, job: Job, scores: _Scores) -> tuple[int, bytes]:
    """How many fields were escaped, and the rows in the output's form."""
    if job.form == "parquet" and batch is not None and job.keep is not None:
        return 0, _parquet([batch.column(name) for name in job.keep], job, scores)
    escaped, columns = _kept(chunk, batch, job)
    if job.form == "parquet":
        kind = pa.int64() if job.keep is None else pa.string()
        return escaped, _parquet([pa.array(column, kind) for column in columns], job, scores)
    rows = zip(*columns, *scores.columns(), strict=True)
    if job.form == "csv":
        return escaped, "".join(map(csv_line, rows)).encode()
    names = output_names(job.keep)
    lines = (json.dumps(dict(zip(names, row, strict=True)), **_JSON) + "\n" for row in rows)
    return escaped, "".join(lines).encode()


_JSON: dict[str, Any] = {"ensure_ascii": False, "default": str, "allow_nan": False}


def output_names(keep: tuple[str, ...] | None) -> tuple[str, ...]:
    """Columns of the output."""
    return (*((ROW,) if keep is None else keep), *SCORES)


def csv_line(values: Iterable[Any]) -> str:
    """A line of CSV. Python's own writer leaves a lone return without quotes before 3.13."""
    fields = []
    for value in values:
        field = value if isinstance(value, str) else _as_text(value)
        if _needs_quotes(field):
            field = '"' + field.replace('"', '""') + '"'
        fields.append(field)
    return ",".join(fields) + "\n"


def _as_text(value: Any) -> str:
    if value is None:
        return ""
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
        columns = [[row[at] for row in rows] for at in places]
    escaped = 0
    for at, column in enumerate(columns):
        bad = [row for row, value in enumerate(column) if _is_malformed(value)]
        if bad:
            values = list(column)
            for row in bad:
                values[row] = _escaped(values[row])
            columns[at] = values
            escaped += len(bad) * (job.keep[at] != job.text_column)
    return escaped, columns


def _escaped(text: str) -> str:
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
    kinds = (pa.float32(), pa.float32(), pa.string())
    return pa.schema([*fields, *map(pa.field, SCORES, kinds)])


def _parquet(columns: list[Any], job: Job, scores: _Scores) -> bytes:
    valid = np.ones(len(scores.logit), bool)
    valid[list(scores.missing)] = False
    version = pa.array([scores.version if ok else None for ok in valid], pa.string())
    floats = [pa.array(values, mask=~valid) for values in (scores.probability, scores.logit)]
    table = pa.table([*columns, *floats, version], names=list(output_names(job.keep)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _read_ipc(payload: Any) -> Any:
    with pa.ipc.open_stream(payload) as stream:
        return stream.read_next_batch()


# --- Parts -------------------------------------------------------------------------------
def part_path(parts: Path, number: int) -> Path:
    """Where a chunk's part lies once it is done."""
    return parts / f"{number:08}"


def write_durably(path: Path, blocks: Iterable[bytes]) -> None:
    """`write_atomically`, and fsync the folder: what is there will stay."""
    write_atomically(path, b"".join(blocks))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
