"""One worker process of `score --file`: opens the scorer, scores chunks, writes their parts.

Light to import: a worker starts without PyTorch. A part is a file of one line, a checksum and the
JSON object that `Part` describes, and then the chunk's rows in the form of the output. It appears
whole or not at all, and once it is there it will stay.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa

from console.options import unexpected
from contract import (
    ARTIFACT_FILE,
    MAX_BATCH_SIZE,
    MAX_COMMENT_BYTES,
    ONNX_FILE,
    ORT_FILE,
    TOKENIZER_FILE,
    ToxicityError,
)
from core.binding import NativeScorer, NativeTokenizer, probability
from serve.offline.columns import Read, read_chunk
from serve.offline.forms import ROW, ScoreColumns, escaped_text, written
from serve.offline.job import Done, Job, Part, packed, write_part
from serve.offline.rows import Chunk, receive_chunk
from train.data.tables import as_bytes, not_utf8


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


class _WithoutPandas(MetaPathFinder):
    """Arrow imports it, which takes a second, to see whether a list is one of its series."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        """Nothing of any other module. Raises ModuleNotFoundError for this one."""
        if fullname == "pandas":
            raise ModuleNotFoundError("no pandas in a worker", name=fullname)


def work(connection: Connection, job: Job) -> None:
    """Answer every chunk with `Done`, or with an error, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's to deal with
    sys.meta_path.insert(0, _WithoutPandas())
    try:
        scorer = open_scorer(job.version_folder)
        connection.send(None)
        chunks: SimpleQueue[Chunk | Exception] = SimpleQueue()
        Thread(target=_receive, args=(connection, chunks), daemon=True).start()
        while not isinstance(chunk := chunks.get(), Exception):
            connection.send(score_chunk(scorer, chunk, job))
        raise chunk
    except (EOFError, ConnectionError):  # the command ended, or was killed
        return
    except (ToxicityError, OSError) as error:
        connection.send(error)
    except Exception as error:  # to be told by the command, in its one line
        connection.send(ToxicityError(f"a worker failed: {unexpected(error)}"))


def _receive(connection: Connection, chunks: SimpleQueue[Chunk | Exception]) -> None:
    """Chunks while another is scored, so that the sender need not wait; at last what ended it."""
    try:
        while True:
            chunks.put(receive_chunk(connection))
    except Exception as error:
        chunks.put(error)


def score_chunk(scorer: NativeScorer, chunk: Chunk, job: Job) -> Done:
    """Score a chunk and write its part."""
    began = time.process_time()
    done, data = scored_part(scorer, chunk, job)
    write_part(job.parts, chunk.number, data)
    return dataclasses.replace(done, cpu_s=time.process_time() - began)


def scored_part(scorer: NativeScorer, chunk: Chunk, job: Job) -> tuple[Done, bytes]:
    """Score a chunk: what is to be said of it, and the bytes of its part."""
    began = time.process_time()
    read = read_chunk(chunk, job)
    texts, reasons = _texts(read, job)
    found = scorer.score_joined(*texts) if isinstance(texts, tuple) else scorer.score(texts)
    logit, chance = found.logit, probability(found.logit)
    if reasons:
        scored = [row for row in range(chunk.rows) if row not in reasons]
        whole = np.zeros((2, chunk.rows), np.float32)
        whole[:, scored] = logit, chance
        logit, chance = whole
    scores = ScoreColumns(chance, logit, job.version_folder.name, reasons.keys(), job.threshold)
    escaped, data = written(chunk, read, job, scores)
    quarantine: list[dict[str, Any]] = []
    for row, reason in sorted(reasons.items()):
        entry: dict[str, Any] = {ROW: chunk.first_row + row, "reason": reason}
        if read.rows is not None and row not in read.reasons:
            fields = read.rows[row]
            if len(fields) != len(job.names):
                entry["fields"] = list(map(escaped_text, fields))
        quarantine.append(entry)
    counts = found.tokens, found.cut, found.windowed, escaped
    part = Part(chunk.first_row, chunk.rows, *counts, tuple(quarantine))
    packed_part = packed(part, data)
    cpu_s = time.process_time() - began
    done = Done(chunk.number, part, cpu_s, found.tokenizer_cpu_s, found.encoder_cpu_s)
    return done, packed_part


# --- Texts, or why a row has none --------------------------------------------------------
Joined = tuple[np.ndarray, np.ndarray]
"""Bytes of all texts, one behind the other, and the end of each: uint8 [bytes], int64 [texts]."""


def texts_of(chunk: Chunk, job: Job) -> list[str]:
    """Texts of the rows that get a score."""
    read = read_chunk(chunk, job)
    if read.rows is not None:
        return _texts_of_rows(read, job)[0]
    return _texts_of_column(as_bytes(read.batch.column(job.text_column)))[0]


def _texts(read: Read, job: Job) -> tuple[Joined | list[str], dict[int, str]]:
    if read.rows is not None:
        return _texts_of_rows(read, job)
    column = as_bytes(read.batch.column(job.text_column))
    joined = _joined(column)
    return (joined, {}) if joined else _texts_of_column(column)


def _joined(column: Any) -> Joined | None:
    """The texts as they lie there; None when a row gets no score."""
    if column.null_count or not len(column):
        return None
    try:
        column.cast(pa.large_string())
    except pa.ArrowInvalid:
        return None
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    if np.diff(ends).max() > MAX_COMMENT_BYTES:
        return None
    raw = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    return raw, ends[1:] - ends[0]


def _texts_of_rows(read: Read, job: Job) -> tuple[list[str], dict[int, str]]:
    at, width = job.names.index(job.text_column), len(job.names)
    texts, reasons = [], {}
    for number, row in enumerate(read.rows or ()):
        if number in read.reasons:
            reasons[number] = read.reasons[number]
        elif len(row) != width:
            reasons[number] = f"the row has {len(row)} fields, expected {width}"
        elif not isinstance(row[at], str):
            reasons[number] = _no_text(row[at])
        elif reason := _unreadable(row[at]):
            reasons[number] = reason
        else:
            texts.append(row[at])
    return texts, reasons


def _no_text(value: Any) -> str:
    if value is None:
        return "the comment is missing (null)"
    return f"the comment is a {type(value).__name__}, expected text"


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
    for number, raw in enumerate(column.to_pylist()):
        if raw is None:
            reasons[number] = _no_text(None)
        elif reason := _malformed(raw) or _too_long(len(raw)):
            reasons[number] = reason
        else:
            texts.append(raw.decode())
    return texts, reasons
