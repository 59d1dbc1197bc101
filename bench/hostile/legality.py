"""Which scores the bytes that a client sent may be answered with: `bench.hostile.attack` judges by
it.

Reads HTTP/1.1 (RFC 9112), the KServe v2 protocol, its binary tensors and the generate extension
from the bytes alone, and shares no code with the servers, the door or what made the bytes. It is
strict where a lenient reading could score what nobody sent, and allows each reading where the
standards leave more than one. A request that it finds no reading for must get no score.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract import (
    LOGIT,
    MAX_COMMENT_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_COMMENTS,
    MODEL_VERSION,
    PROBABILITY,
    PUBLIC_MODEL,
    TEXT,
)

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_START_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +(\S+) +HTTP/1\.([0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*)", re.DOTALL)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_TRAILERS = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n")
_TARGET = re.compile(r"(?:https?://[^/?#]+)?(/[^?#]*)(?:\?[^#]*)?", re.IGNORECASE)
_PATH = re.compile(
    rf"/v2/models/{PUBLIC_MODEL}(?:/versions/([0-9]+))?/(infer|generate(?:_stream)?)"
)
_BY_ADDRESS = re.compile(r"(localhost|(\d{1,3}\.){3}\d{1,3}|\[[\da-f:.]+\])(:\d{1,5})?")
"""A Host at which the door's own page may have been opened."""
_BINARY = b"inference-header-content-length"
_DEEPEST = 10_000
"""Lists in each other that are read; the door lets fewer through."""
_OUTPUTS = {PROBABILITY, LOGIT, MODEL_VERSION}

Texts = tuple[str, ...]


@dataclass(frozen=True)
class ServedVersions:
    """What is served where: what a request has to fit to."""

    origins: frozenset[str]
    """Web pages that may ask, in lower case."""
    versions: frozenset[int]


@dataclass(frozen=True)
class Reading:
    """What one request may be answered with."""

    texts: tuple[Texts, ...] = ()
    """The comments whose scores may come back, once for each way to read it; none: no score."""
    why: str = ""
    """Why no score may come back."""


class _Illegal(Exception):
    """Says why a request must not be scored."""


def read_requests(sent: bytes, served: ServedVersions) -> list[Reading]:
    """The requests that `sent` is, in order; none behind one whose end is not certain."""
    readings: list[Reading] = []
    at: int | None = 0
    while at is not None and sent[at:].lstrip(b"\r\n"):
        while sent[at : at + 1] in (b"\r", b"\n"):  # RFC 9112, 2.2
            at += 1
        reading, at = _read(sent, at, served)
        readings.append(reading)
    return readings


@dataclass(frozen=True)
class _Head:
    method: bytes
    target: bytes
    minor: int
    headers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """Of all lines of that name, cut at commas."""
        lines = self.lines(name)
        return [value.strip(b" \t") for line in lines for value in line.split(b",")]

    def lines(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


# --- HTTP ----------------------------------------------------------------------------------
def _read(sent: bytes, at: int, served: ServedVersions) -> tuple[Reading, int | None]:
    """The request at `at`, and where the next one begins if that is certain."""
    end = _HEAD_END.search(sent, at)
    if not end:
        return Reading(why="the head has no end"), None
    try:
        head = _head(sent[at : end.start()])
        body, behind = _body(sent, end.end(), head)
    except _Illegal as error:
        return Reading(why=str(error)), None
    try:
        reading = Reading(tuple(dict.fromkeys(_texts(head, body, served))))
    except _Illegal as error:
        reading = Reading(why=str(error))
    options = [value.lower() for value in head.values(b"connection")]
    last = b"close" in options or (head.minor == 0 and b"keep-alive" not in options)
    return reading, None if last else behind


def _head(text: bytes) -> _Head:
    first, *rest = re.split(rb"\r?\n", _FOLD.sub(b" ", text))
    start = _START_LINE.fullmatch(first)
    if not start:
        raise _Illegal("the request line is none")
    headers = []
    for line in rest:
        match = _HEADER.fullmatch(line)
        if not match:
            raise _Illegal(f"{line[:40]!r} is no header")
        headers.append((match[1].lower(), match[2].rstrip(b" \t")))
    return _Head(start[1], start[2], int(start[3]), headers)


def _body(sent: bytes, at: int, head: _Head) -> tuple[bytes | None, int]:
    """The body, None when it comes in chunks; and where it ends."""
    coding, lengths = head.values(b"transfer-encoding"), head.values(b"content-length")
    if coding:
        if lengths or head.minor == 0 or [value.lower() for value in coding] != [b"chunked"]:
            raise _Illegal("the body has more lengths than one")
        return None, _chunks_end(sent, at)
    if not lengths:
        return b"", at
    if len(set(lengths)) > 1 or not re.fullmatch(rb"[0-9]{1,19}", lengths[0]):
        raise _Illegal("Content-Length is no number, or several")
    length = int(lengths[0])
    if len(sent) - at < length:
        raise _Illegal("the body is shorter than its length")
    return sent[at : at + length], at + length


def _chunks_end(sent: bytes, at: int) -> int:
    while match := _CHUNK.match(sent, at):
        size = int(match[1], 16)
        at = match.end()
        if size == 0:
            trailers = _TRAILERS.match(sent, at)
            if not trailers:
                break
            return trailers.end()
        if sent[at + size : at + size + 2] != b"\r\n":
            break
        at += size + 2
    raise _Illegal("the chunks have no end")


def _texts(head: _Head, body: bytes | None, served: ServedVersions) -> Iterator[Texts]:
    kind = _endpoint(head, served)
    _check_headers(head, served)
    if body is None:
        raise _Illegal("the body comes in chunks")
    if not head.lines(b"content-length"):
        raise _Illegal("the body has no length")
    if not 1 <= len(body) <= MAX_REQUEST_BYTES:
        raise _Illegal(f"the body has {len(body)} bytes")
    if kind != "infer":
        yield from _of_generate(body)
        return
    sizes = set(head.lines(_BINARY))
    yield from _each(
        [lambda size=size: _of_binary(body, size) for size in sizes] or [lambda: _of_json(body)]
    )


def _endpoint(head: _Head, served: ServedVersions) -> str:
    if head.method != b"POST":
        raise _Illegal("the method is not POST")
    target = _TARGET.fullmatch(head.target.decode("latin-1"))
    path = _PATH.fullmatch(target[1]) if target else None
    if not path:
        raise _Illegal("nothing is scored at this path")
    if path[1] and int(path[1]) not in served.versions:
        raise _Illegal("this version is not served")
    return path[2]


def _check_headers(head: _Head, served: ServedVersions) -> None:
    if head.minor > 0 and len(set(head.lines(b"host"))) != 1:
        raise _Illegal("there is not one Host")  # RFC 9112, 3.2
    if len(head.headers) > MAX_HEADERS:
        raise _Illegal("there are too many headers")
    if sum(len(name) + len(value) + 4 for name, value in head.headers) + 2 > MAX_HEADER_BYTES:
        raise _Illegal("the headers are too long")
    origins = [line.decode("latin-1").lower() for line in head.lines(b"origin")]
    hosts = {line.decode("latin-1").lower() for line in head.lines(b"host")}
    by_address = {f"http://{host}" for host in hosts if _BY_ADDRESS.fullmatch(host)}
    if not set(origins) <= served.origins | by_address:
        raise _Illegal("the web page is not allowed")
    sites = {value.lower() for value in head.values(b"sec-fetch-site")}
    if sites & {b"cross-site", b"same-site"} and not origins:
        raise _Illegal("the web page is one of elsewhere")
    if {value.lower() for value in head.values(b"content-encoding")} - {b"identity", b""}:
        raise _Illegal("the body is compressed")


# --- Bodies --------------------------------------------------------------------------------
def _each(ways: Sequence[Any]) -> Iterator[Texts]:
    """Texts of the ways to read a body. Raises _Illegal when none of them can be gone."""
    found, why = [], _Illegal("there is no way to read it")
    for way in ways:
        try:
            found += list(way())
        except _Illegal as error:
            why = error
    if not found:
        raise why
    yield from found


def _documents(data: bytes) -> list[Any]:
    """What the JSON in `data` is: the first of two members of a name counts, or the last."""
    try:
        # Bytes that are no UTF-8 matter in a comment alone, where `_checked` finds them.
        text = data.decode("utf-8", "surrogateescape")
        with _recursion(_DEEPEST):
            return [
                json.loads(text, object_pairs_hook=hook, parse_constant=_no_number)
                for hook in (lambda pairs: dict(reversed(pairs)), dict)
            ]
    except (ValueError, RecursionError) as error:
        raise _Illegal(f"the body is no JSON: {str(error)[:60]}") from error


@contextlib.contextmanager
def _recursion(depth: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, depth))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _of_json(body: bytes) -> Iterator[Texts]:
    yield from _each([lambda d=d: _of_infer(d, b"") for d in _documents(body)])


def _of_binary(body: bytes, size: bytes) -> Iterator[Texts]:
    """With JSON of `size` bytes before the tensor; of none, the body is one comment (raw form)."""
    if not re.fullmatch(rb"[0-9]{1,9}", size) or int(size) > len(body):
        raise _Illegal("the length of the JSON is none")
    if int(size) == 0:
        yield _checked((_utf8(body),))
        return
    documents = _documents(body[: int(size)])
    yield from _each([lambda d=d: _of_infer(d, body[int(size) :]) for d in documents])


def _of_infer(document: Any, tail: bytes) -> Iterator[Texts]:
    inputs = _member(document, "inputs", list)
    if len(inputs) != 1:
        raise _Illegal("there is not one input")
    tensor = inputs[0]
    if _member(tensor, "name", str) != TEXT or _member(tensor, "datatype", str) != "BYTES":
        raise _Illegal("the tensor is another than the model's")
    shape = _member(tensor, "shape", list)
    whole = all(type(size) is int for size in shape)
    if not whole or len(shape) != 2 or shape[1] != 1 or not 1 <= shape[0] <= MAX_REQUEST_COMMENTS:
        raise _Illegal("the shape is not [B, 1]")
    _check_outputs(document)
    parameters = tensor.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if "shared_memory_region" in parameters:
        raise _Illegal("the tensor lies in shared memory")
    if "binary_data_size" in parameters:
        if parameters["binary_data_size"] != len(tail):
            raise _Illegal("the size of the tensor is not that of what was sent")
        texts = tuple(_unpacked(tail, shape[0]))
    elif tail:
        raise _Illegal("there is more than the JSON")
    else:
        texts = tuple(_flat(_member(tensor, "data", list)))
        if len(texts) != shape[0]:
            raise _Illegal("the shape has another number of comments")
    yield _checked(texts)


def _check_outputs(document: Mapping[str, Any]) -> None:
    outputs = document.get("outputs", [])
    if not isinstance(outputs, list):
        raise _Illegal("the outputs are no list")
    if {_member(output, "name", str) for output in outputs} - _OUTPUTS:
        raise _Illegal("the model has no such output")


def _of_generate(body: bytes) -> Iterator[Texts]:
    for document in _documents(body):
        if not isinstance(document, dict) or TEXT not in document:
            raise _Illegal("there is no comment")
        found = document[TEXT]
        yield _checked(tuple(_flat(found if isinstance(found, list) else [found])))


def _flat(data: list[Any]) -> Iterator[str]:
    left = [iter(data)]  # not by recursion: it may be thousands deep
    while left:
        item = next(left[-1], left)
        if item is left:
            left.pop()
        elif isinstance(item, list):
            left.append(iter(item))
        elif isinstance(item, str):
            yield item
        else:
            raise _Illegal("a comment is no text")


def _unpacked(data: bytes, count: int) -> Iterator[str]:
    """Comments after their lengths, 4 bytes little-endian."""
    at = 0
    for _ in range(count):
        if len(data) < at + 4:
            raise _Illegal("a comment is missing")
        (length,) = struct.unpack_from("<I", data, at)
        if len(data) < at + 4 + length:
            raise _Illegal("a comment is cut")
        yield _utf8(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(data):
        raise _Illegal("there is more than the comments")


def _checked(texts: Texts) -> Texts:
    if not 1 <= len(texts) <= MAX_REQUEST_COMMENTS:
        raise _Illegal("there are no comments, or too many")
    for text in texts:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise _Illegal("a comment has half a surrogate pair") from error
        if size > MAX_COMMENT_BYTES:
            raise _Illegal("a comment is too long")
    return texts


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Illegal("a comment is no UTF-8") from error


def _member(document: Any, name: str, kind: type) -> Any:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, kind):
        raise _Illegal(f"{name} is not there, or something else")
    return found
