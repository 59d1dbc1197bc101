"""Kept-alive HTTP/1.1 connections over gevent sockets, for Locust.

Does no more than `bench.load` needs, which takes a fraction of the CPU time of a whole client:
the head is made once, and of an answer's head only status and length are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gevent.monkey
import gevent.socket

from bench.traffic.bodies import HEADER_LENGTH

_PIECE = 1 << 16
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_HEADER_LENGTH = re.compile(rb"\r\n" + HEADER_LENGTH.encode() + rb": *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nConnection: *close", re.IGNORECASE)
_poll = gevent.monkey.get_original("select", "poll")
_POLLIN = 1


class RawAnswer(NamedTuple):
    """An answer, or with status 0 the `error` in place of one."""

    status_code: int
    content: bytes | None
    error: str | None = None
    header_length: int | None = None
    """Bytes of JSON before the binary tensors, if there are any."""


class Connections:
    """As many as requests are in flight at a time; each is used again."""

    def __init__(self, url: str, path: str, headers: Mapping[str, str], timeout_s: float) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port or 80)
        self._timeout_s = timeout_s
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
        self._idle: list[tuple[Any, Any]] = []

    def post(self, body: bytes) -> RawAnswer:
        """Send one body; a connection is open before it or is opened."""
        socket = None
        try:
            socket, poll = self._connection()
            request = b"%s%d\r\n\r\n%s" % (self._head, len(body), body)
            sent = socket.send(request)
            if sent < len(request):
                socket.sendall(request[sent:])
            answer, reusable = _read(socket)
        except (OSError, ValueError) as error:
            if socket is not None:
                socket.close()
            return RawAnswer(0, None, str(error) or repr(error))
        except BaseException:  # killed while it waits
            if socket is not None:
                socket.close()
            raise
        if reusable:
            self._idle.append((socket, poll))
        else:
            socket.close()
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[0].close()

    def _connection(self) -> tuple[Any, Any]:
        while self._idle:
            socket, poll = self._idle.pop()
            if not poll.poll(0):
                return socket, poll
            socket.close()  # the server hung up, or said what nobody asked for
        socket = gevent.socket.create_connection(self._address, self._timeout_s)
        socket.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        poll = _poll()
        poll.register(socket.fileno(), _POLLIN)
        return socket, poll


def _read(socket: Any) -> tuple[RawAnswer, bool]:
    """One answer, and whether the connection can be used again. Raises OSError or ValueError."""
    data = _more(socket, b"")
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _more(socket, data)
    head = data[: end + 2]
    length = _LENGTH.search(head)
    if length is None:
        raise ValueError(f"the answer has no Content-Length: {head[:100]!r}")
    body, left = data[end + 4 :], int(length[1]) - (len(data) - end - 4)
    pieces = [body]
    while left > 0:
        pieces.append(_more(socket, data))
        left -= len(pieces[-1])
    if left < 0:
        raise ValueError("the answer is longer than its Content-Length")
    binary = _HEADER_LENGTH.search(head)
    content = body if len(pieces) == 1 else b"".join(pieces)
    answer = RawAnswer(int(head[9:12]), content, None, int(binary[1]) if binary else None)
    return answer, head.startswith(b"HTTP/1.1") and not _CLOSE.search(head)


def _more(socket: Any, before: bytes) -> bytes:
    piece: bytes = socket.recv(_PIECE)
    if not piece:
        raise ConnectionError(f"connection closed {'within' if before else 'before'} the answer")
    return piece
