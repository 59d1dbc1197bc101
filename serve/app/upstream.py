"""Kept HTTP connections to a Unix socket, one request at a time on each; httptools reads answers.

haproxy is at the other end: it chooses the server, sends again what no answer came to and holds
what finds no server for a while, as for every other client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from serve.app import kserve


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """Of one request."""

    status: int
    body: bytes
    document_bytes: int
    """How much of the body is JSON, where a binary tensor follows; else 0."""


class Upstream:
    """Connections to the socket at `path`, as many as requests are under way."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []

    async def ask(self, request: bytes) -> UpstreamAnswer:
        """The answer to an HTTP request. Raises OSError, TimeoutError among them, without one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                try:
                    return await connection.ask(request)
                except ConnectionResetError:
                    # It was closed while it lay idle; a fresh one tells whether anybody listens.
                    break
        loop = asyncio.get_running_loop()
        _, fresh = await loop.create_unix_connection(
            lambda: _Connection(self._timeout_s, self._idle.append), self._path
        )
        return await fresh.ask(request)

    def close(self) -> None:
        """End the idle connections."""
        while self._idle:
            self._idle.pop().close()


class _Connection(asyncio.Protocol):
    def __init__(self, timeout_s: float, free: Callable[[_Connection], None]) -> None:
        self._timeout_s = timeout_s
        self._free = free
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[UpstreamAnswer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._document_bytes = 0

    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[UpstreamAnswer]:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        self._timer = loop.call_later(self._timeout_s, self._late)
        assert self._transport
        self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def _late(self) -> None:
        self._end(TimeoutError("the server took too long"))

    def _end(self, error: Exception) -> None:
        """Give up: what is asked gets the error, and the connection is not used again."""
        if self._timer:
            self._timer.cancel()
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(error)
        self._waiting = None
        self.close()

    # --- What asyncio calls ----------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own kind of it

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionAbortedError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        del error
        begun = bool(self._parts)
        self._end(
            ConnectionAbortedError("closed in an answer")
            if begun
            else ConnectionResetError("closed without an answer")
        )
        self._transport = None

    # --- What httptools calls --------------------------------------------------------------
    def on_message_begin(self) -> None:
        self._parts.clear()
        self._document_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == kserve.HEADER_LENGTH:
            self._document_bytes = int(value)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        body = b"".join(self._parts)
        self._parts.clear()
        waiting, self._waiting = self._waiting, None
        if self._timer:
            self._timer.cancel()
        if waiting is None:
            self.close()  # an answer that nobody asked for
            return
        if not waiting.done():
            status = self._parser.get_status_code()
            waiting.set_result(UpstreamAnswer(status, body, self._document_bytes))
        if self._parser.should_keep_alive():
            self._free(self)
        else:
            self.close()
