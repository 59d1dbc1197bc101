"""Hostile behaviour on a connection: slow, half-open, cut, pipelined, and HTTP/2 frame by frame."""

from __future__ import annotations

import struct

from bench.hostile.draws import MODEL_PATH, Draw, infer_body, uncertain
from bench.hostile.exchange import PATIENCE_S, Exchange
from bench.hostile.http import encodings, framing, headers, paths
from contract import HOST
from serve.probe import INFER_PATH

_SLOW_BYTES = 20
"""Bytes of a slow request, one a second: more than any bound of the door allows."""


# --- Time ----------------------------------------------------------------------------------
def slow(draw: Draw) -> Exchange:
    """Half of a request, a byte a second, nothing at all, and answers that nobody reads."""
    message = draw.post(infer_body([draw.text()]))
    head_end = message.index(b"\r\n\r\n") + 4
    kind = draw.rng.randrange(7)
    if kind == 0:  # a half head
        parts = [(0.0, message[: draw.rng.randrange(1, head_end)])]
    elif kind == 1:  # a half body
        parts = [(0.0, message[: draw.rng.randrange(head_end, len(message))])]
    elif kind == 2:  # a byte a second, in the head
        parts = [(1.0, message[at : at + 1]) for at in range(_SLOW_BYTES)]
    elif kind == 3:  # and in the body
        body = message[head_end : head_end + _SLOW_BYTES]
        parts = [(0.0, message[:head_end])]
        parts += [(1.0, body[at : at + 1]) for at in range(len(body))]
    elif kind == 4:
        chunked = draw.head("POST", INFER_PATH, [("Transfer-Encoding", "chunked")])
        parts = [(0.0, chunked[:-2]), (1.0, b"\r\n1\r\n{\r\n")]
    elif kind == 5:
        parts = [(draw.one(1.0, 3.0), b"")]  # nothing
    else:
        body = infer_body([draw.text()] * 256)
        parts = [(0.0, draw.post(body) * 20)]
        return Exchange("slow", parts, requests=20, expected=20, fresh=True, reads_slowly=True)
    return Exchange("slow", parts, expected=None, fresh=True, patience_s=PATIENCE_S)


def disconnects(draw: Draw) -> Exchange:
    """Clients that go in the middle of a request, or before its answer."""
    if draw.likely(0.7):
        message = draw.legal()
    else:
        message = draw.one(paths, headers, framing, encodings)(draw).sent
    cut = draw.rng.randrange(1, len(message) + 1) if draw.likely(0.7) else len(message)
    parts = [(0.0, message[:cut])]
    if draw.likely(0.2):
        parts = [(0.0, message[: cut // 2]), (draw.rng.random() / 20, message[cut // 2 : cut])]
    if draw.likely(0.1):
        return Exchange("disconnects", parts, half_close=True, fresh=True)
    return Exchange("disconnects", parts, leave=draw.one("close", "reset"), fresh=True)


def pipelined(draw: Draw) -> Exchange:
    """Several requests at once, right and wrong ones, without a wait for answers."""
    count = draw.one(2, 4, 8, 16)
    other = draw.head("GET", draw.one("/v2/health/ready", "/nothing", MODEL_PATH))
    one = draw.legal()
    messages = [draw.one(other, other, other, one) for _ in range(count)]
    return Exchange("pipelined", [(0.0, b"".join(messages))], count, count)


# --- HTTP/2 --------------------------------------------------------------------------------
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS = 1, 4
_MOST_DATA = 2**14
_ODD_FIELDS = (
    *((":path", "/x\r\nX: 1"), ("content-length", "5"), ("X-Upper", "1"), ("connection", "close")),
    *(("transfer-encoding", "chunked"), (":method", "GET"), ("te", "x"), ("x\0", "1"), ("", "1")),
    *((":authority", "a"), ("host", "other"), ("x", "a\r\nb"), ("cookie", "a" * 9000)),
)


def http2(draw: Draw) -> Exchange:
    """HTTP/2 on the port of HTTP/1: right, reset at once, flooded, contradictory, broken."""
    frames = [_PREFACE, _frame(_SETTINGS, 0, 0, b"")]
    kind = draw.rng.randrange(7)
    text = draw.text()
    body = infer_body([text])[:_MOST_DATA]
    if kind == 0:
        frames += _request(draw, 1, body)
    elif kind == 1:  # rapid reset
        for stream in range(1, 2 * draw.size(1, 200), 2):
            frames += _request(draw, stream, body)
            frames.append(_frame(_RST, 0, stream, struct.pack(">I", 8)))
    elif kind == 2:
        frames += [_frame(_PING, 0, 0, b"\0" * 8)] * draw.size(1, 500)
        frames += [_frame(_SETTINGS, 0, 0, b"")] * draw.size(1, 500)
    elif kind == 3:  # a head that never ends
        frames.append(_frame(_HEADERS, 0, 1, _fields(draw, body)))
        frames += [_frame(_CONTINUATION, 0, 1, _field("x", "y" * 100))] * draw.size(1, 300)
    elif kind == 4:
        frames += _request(draw, 1, body, draw.one(*_ODD_FIELDS))
    elif kind == 5:
        frames.append(_frame(draw.rng.randrange(256), draw.rng.randrange(256), 1, draw.noise(40)))
    else:
        size = draw.one(0, 2**14, 2**24 - 1)
        frames += [_frame(_WINDOW, 0, 0, struct.pack(">I", draw.one(0, 1, 2**31 - 1)))] * 3
        frames.append(size.to_bytes(3, "big") + bytes([_HEADERS, 0]) + struct.pack(">I", 1))
    right = (text,) if kind < 2 else ()
    return uncertain("http2", b"".join(frames), http2=right)


def _request(draw: Draw, stream: int, body: bytes, *odd: tuple[str, str]) -> list[bytes]:
    block = _fields(draw, body) + b"".join(_field(*field) for field in odd)
    return [
        _frame(_HEADERS, _END_HEADERS, stream, block),
        _frame(_DATA, _END_STREAM, stream, body),
    ]


def _fields(draw: Draw, body: bytes) -> bytes:
    right = {
        ":method": "POST",
        ":scheme": "http",
        ":authority": f"{HOST}:{draw.port}",
        ":path": INFER_PATH,
        "content-length": str(len(body)),
    }
    return b"".join(_field(name, value) for name, value in right.items())


def _field(name: str, value: str) -> bytes:
    """Literal, neither indexed nor compressed (RFC 7541, 6.2.2)."""
    return b"\0" + _string(name.encode("latin-1")) + _string(value.encode("latin-1"))


def _string(data: bytes) -> bytes:
    """RFC 7541, 5.2 with the integers of 5.1."""
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, out = len(data) - 127, [127]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest]) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + payload
