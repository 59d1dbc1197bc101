"""Requests of the KServe v2 protocol with binary tensors, and their answers, as bytes.

One comment is four bytes of length, little-endian, and its UTF-8; a probability is four bytes of
float32. So a score is the server's own, bit for bit. Source: Triton's `extension_binary_data.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from contract import ATTRIBUTES, PROBABILITY, TEXT
from serve.canary_backend import STABLE_HEADER
from serve.probe import INFER_PATH

_HEADER_LENGTH = "Inference-Header-Content-Length"
HEADER_LENGTH = _HEADER_LENGTH.lower().encode()
LENGTH_BYTES = 4
_HEAD = (
    f"POST {INFER_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    f"{_HEADER_LENGTH}: %d\r\nContent-Length: %d\r\n%s\r\n"
).encode()
_STABLE = f"{STABLE_HEADER}: 1\r\n".encode()
_DOCUMENT = (
    f'{{"inputs":[{{"name":"{TEXT}","datatype":"BYTES","shape":[%d,1],'
    '"parameters":{"binary_data_size":%d}}],'
    f'"outputs":[{{"name":"{PROBABILITY}","parameters":{{"binary_data":true}}}}%s]}}'
).encode()
_ALSO = f',{{"name":"{ATTRIBUTES}","parameters":{{"binary_data":true}}}}'.encode()


class _Tensor(msgspec.Struct):
    name: str
    datatype: str


class _Answer(msgspec.Struct):
    model_version: str
    outputs: list[_Tensor]
    parameters: dict[str, Any] = {}


class _Refusal(msgspec.Struct):
    error: str


_answers, _refusals = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Refusal)


@dataclass(frozen=True, slots=True)
class ServedScores:
    """Answers in the order of the comments."""

    probability: tuple[float, ...]
    """Each exactly a float32."""
    version: str
    """Of the model that answered."""
    names: tuple[str, ...] = ()
    """Of its attributes, where they were asked for."""
    attributes: tuple[tuple[float, ...], ...] = ()
    """Probabilities of each comment's attributes, each exactly a float32; none without `names`."""

    def part(self, begin: int, end: int) -> ServedScores:
        """Of some of the comments."""
        own = self.attributes[begin:end]
        return ServedScores(self.probability[begin:end], self.version, self.names, own)

    def worst(self) -> ServedScores:
        """Of all comments as one: the largest of each column."""
        own = tuple(map(max, zip(*self.attributes, strict=True)))
        largest = (max(self.probability),)
        return ServedScores(largest, self.version, self.names, (own,) if self.names else ())


def request(comments: Sequence[bytes], *, attributes: bool = False, stable: bool = False) -> bytes:
    """A whole HTTP request for the probabilities of these comments, at least one, in UTF-8.

    With `attributes` also for those of each attribute; a version without any refuses that. With
    `stable` the current version answers it, whatever share a second one has.
    """
    parts: list[bytes] = []
    for comment in comments:
        parts += (len(comment).to_bytes(LENGTH_BYTES, "little"), comment)
    tensor = b"".join(parts)
    document = _DOCUMENT % (len(comments), len(tensor), _ALSO if attributes else b"")
    length = len(document) + len(tensor)
    head = _HEAD % (len(document), length, _STABLE if stable else b"")
    return b"".join((head, document, tensor))


def scores(body: bytes, document_bytes: int, count: int) -> ServedScores:
    """What an answer of status 200 says of `count` comments. Raises ValueError when it does not."""
    try:
        answer = _answers.decode(memoryview(body)[:document_bytes])
    except msgspec.DecodeError as error:
        raise ValueError("an answer that is no JSON") from error
    if any(tensor.datatype != "FP32" for tensor in answer.outputs):
        raise ValueError("an answer of another type")
    tensors = [tensor.name for tensor in answer.outputs]
    if tensors == [PROBABILITY]:
        if len(body) != document_bytes + 4 * count:
            raise ValueError("an answer of another length")
        probability = struct.unpack_from(f"<{count}f", body, document_bytes)
        return ServedScores(probability, answer.model_version)
    if sorted(tensors) != sorted((ATTRIBUTES, PROBABILITY)):
        raise ValueError("an answer that is no probabilities")
    names = tuple(str(answer.parameters.get(ATTRIBUTES)).split(","))
    width = len(names)
    if len(body) != document_bytes + 4 * count * (1 + width):
        raise ValueError("an answer of another length")
    every = struct.unpack_from(f"<{count * (1 + width)}f", body, document_bytes)
    at = count * width if tensors[0] == ATTRIBUTES else 0  # in the order that Triton chose
    probability, others = every[at : at + count], every[:at] + every[at + count :]
    rows = tuple(others[row * width : (row + 1) * width] for row in range(count))
    return ServedScores(probability, answer.model_version, names, rows)


def refusal(body: bytes) -> str:
    """The words of an answer of another status."""
    try:
        return _refusals.decode(body).error.partition("\n")[0]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "the server gave no reason"
