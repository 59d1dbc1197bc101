"""Answers as they come on a connection, the scores in them, and what these must be.

`Oracle` scores with the published files, without a server; `AnswerScores.differ` compares.
"""

from __future__ import annotations

import functools
import json
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import contract
from bench.hostile.legality import Reading
from contract import LOGIT, MODEL_VERSION, PROBABILITY
from export.repository import load_scorer, read_artifact, versions
from export.scorer import Scorer, probability

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CODING = re.compile(rb"\r\ncontent-encoding: *(\w+)", re.IGNORECASE)
_JSON_BYTES = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d) ")
ATOL = {
    "fp32": contract.SERVING_LOGIT_ATOL,
    "fp16": contract.FP16_INVARIANCE_ATOL,
    "int8": contract.INT8_INVARIANCE_ATOL,
}
"""How far a served logit may be from that of the same files here, whoever shares its batch."""
_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, its body without the framing."""

    status: int
    head: bytes
    body: bytes

    @property
    def last(self) -> bool:
        """Whether the connection ends with it."""
        return bool(_CLOSE.search(self.head)) or self.head.startswith(b"HTTP/1.0")


@dataclass
class AnswerScores:
    """What an answer says of its comments, by output; what it does not say is empty."""

    logit: list[float] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    version: list[str] = field(default_factory=list)

    def differ(self, logit: np.ndarray, atol: float) -> str:
        """Why these are not the scores of comments with `logit` float32 [B]; empty if they are."""
        wanted = {LOGIT: logit, PROBABILITY: probability(logit)}
        for name, found in ((LOGIT, self.logit), (PROBABILITY, self.probability)):
            if found and len(found) != len(logit):
                return f"{len(found)} scores, expected {len(logit)}"
            gap = np.abs(np.asarray(found, np.float32) - wanted[name]) if found else np.zeros(1)
            if not (gap <= atol + (name == PROBABILITY) * 1e-7).all():
                return f"{name} {found[int(gap.argmax())]}, off by {gap.max():.3g}"
        return ""


# --- From bytes ----------------------------------------------------------------------------
def take_answer(buffer: bytearray, *, bodiless: bool = False) -> Answer | None:
    """Take the answer at the front of `buffer`, None while it is not whole.

    `bodiless`: it is one to HEAD. Raises ValueError when it is no HTTP/1.
    """
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > 12 and not _STATUS.match(buffer):
                raise ValueError(f"no answer of HTTP/1: {bytes(buffer[:40])!r}")
            return None
        head = bytes(buffer[: end + 2])
        match = _STATUS.match(head)
        if not match:
            raise ValueError(f"no answer of HTTP/1: {head[:40]!r}")
        status = int(match[1])
        if status >= 200:
            break
        del buffer[: end + 4]  # 100 Continue
    body: bytes | None
    if bodiless or status in (204, 304):
        body, behind = b"", end + 4
    elif _CHUNKED.search(head):
        body, behind = _unchunked(buffer, end + 4)
    else:
        length = _LENGTH.search(head)
        behind = end + 4 + (int(length[1]) if length else 0)
        body = bytes(buffer[end + 4 : behind]) if len(buffer) >= behind else None
    if body is None:
        return None
    del buffer[:behind]
    return Answer(status, head, body)


def _unchunked(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    pieces: list[bytes] = []
    while (end := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:end].split(b";")[0], 16)
        at = end + 2
        if len(buffer) < at + size + 2:
            break
        if size == 0:
            return b"".join(pieces), at + 2
        pieces.append(bytes(buffer[at : at + size]))
        at += size + 2
    return None, at


def scores_of(answer: Answer) -> AnswerScores | None:
    """The scores in an answer, None when it has none."""
    if answer.status != 200 or not answer.body:
        return None
    body = answer.body
    if _CODING.search(answer.head):
        body = zlib.decompressobj(47).decompress(body)  # zlib's or gzip's header, as it comes
    size = _JSON_BYTES.search(answer.head)
    return scores_in(body, int(size[1]) if size else None)


def scores_in(body: bytes, json_bytes: int | None = None) -> AnswerScores | None:
    """The scores in a body whose first `json_bytes` are JSON, all of it by default."""
    scores, json_bytes = AnswerScores(), len(body) if json_bytes is None else json_bytes
    try:
        if body.startswith(b"data: "):  # generate_stream
            for event in body.split(b"\n\n"):
                if event.startswith(b"data: "):
                    _add_flat(scores, json.loads(event[6:]))
        else:
            document = json.loads(body[:json_bytes])
            if not isinstance(document, dict):
                return None
            if "outputs" in document:
                _add_tensors(scores, document["outputs"], body[json_bytes:])
            else:
                _add_flat(scores, document)
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None  # of a score that cannot be read nobody takes another's
    return scores if scores.logit or scores.probability else None


def scores_over_http2(received: bytes) -> list[AnswerScores]:
    """The scores in frames of HTTP/2, by stream."""
    bodies: dict[int, bytes] = {}
    at = 0
    while len(received) >= at + 9:
        size, kind = int.from_bytes(received[at : at + 3], "big"), received[at + 3]
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        if kind == 0:
            bodies[stream] = bodies.get(stream, b"") + received[at + 9 : at + 9 + size]
        at += 9 + size
    found = [scores_in(body) for body in bodies.values()]
    return [scores for scores in found if scores]


def _add_flat(scores: AnswerScores, document: dict[str, Any]) -> None:
    for name, into in ((LOGIT, scores.logit), (PROBABILITY, scores.probability)):
        found = document.get(name, [])
        into += map(float, found if isinstance(found, list) else [found])
    if scores.logit or scores.probability:  # the metadata of a version, too, has its number
        scores.version.append(str(document[MODEL_VERSION]))


def _add_tensors(scores: AnswerScores, tensors: Any, tail: bytes) -> None:
    for tensor in tensors:
        name, count = tensor["name"], int(np.prod(tensor["shape"]))
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = tensor["data"]
        elif name == MODEL_VERSION:
            data, at = [], 0
            while at < size:
                (length,) = struct.unpack_from("<I", tail, at)
                data.append(tail[at + 4 : at + 4 + length].decode())
                at += 4 + length
        else:
            data = np.frombuffer(tail, "<f4", count).tolist()
        tail = tail[size or 0 :]
        if name == MODEL_VERSION:
            scores.version += map(str, data)
        elif name in (LOGIT, PROBABILITY):
            values = [float(value) for value in data]
            (scores.logit if name == LOGIT else scores.probability).extend(values)


# --- What they must be ---------------------------------------------------------------------
class Oracle:
    """Scores of published versions without a server; a comment that repeats is scored once."""

    def __init__(self, repository: Path, version: int | None = None) -> None:
        """Of one version, or of all that are published when an answer names them.

        Raises BadInput for a missing or damaged version.
        """
        self._repository, self._version = repository, version
        self._atol = ATOL[read_artifact(repository, version)["precision"]]
        self._scorers: dict[int, Scorer] = {}
        self._logit = functools.lru_cache(_KNOWN)(self._score)

    def fault(self, scores: AnswerScores, reading: Reading) -> str:
        """Why these must not come back for what may be read so; empty when they may."""
        if not reading.texts:
            return f"a score, though {reading.why}"
        known = [self._version] if self._version else versions(self._repository)
        named = {int(text) if text.isdecimal() else text for text in scores.version}
        if not named <= {*known} or len(named) > 1:
            return f"version {scores.version[0]!r}"
        faults = [
            scores.differ(
                np.array([self._logit(version, text) for text in texts], np.float32), self._atol
            )
            for version in (named or known)
            for texts in reading.texts
        ]
        return "" if "" in faults else faults[0]

    def _score(self, version: int, text: str) -> float:
        if version not in self._scorers:
            self._scorers[version] = load_scorer(self._repository, version)
        return float(self._scorers[version].score([text]).logit[0])


def fault_of(
    oracle: Oracle, scores: Sequence[AnswerScores | None], readings: Sequence[Reading]
) -> str:
    """The first fault of the scores in the answers on one connection to what was sent there.

    `scores` has an entry for each answer, None where it is without.
    """
    behind = Reading(why="nothing behind the last request counts")
    for number, found in enumerate(scores):
        reading = readings[number] if number < len(readings) else behind
        if found and (fault := oracle.fault(found, reading)):
            return fault
    return ""
