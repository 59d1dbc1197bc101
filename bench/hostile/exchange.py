"""One client's behaviour on one connection, and how the door took it, over gevent sockets.

What `bench.hostile.families` draws is an `Exchange`; `Caller.perform` does it and says what came
back.
"""

from __future__ import annotations

import socket as plain
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import gevent.socket

from bench.hostile.legality import Texts
from bench.traffic.answers import Answer, take_answer
from contract import HOST

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, no TIME_WAIT is left
_BIND_ADDRESS_NO_PORT = 24  # ip(7); Python 3.12 has a name for it
_PIECE = 1 << 18
_SMALL_BUFFER = 4096
_SLOW_READ_S = 8.0
PATIENCE_S = 75.0
"""Longest wait for an answer or the end of the connection, above every bound of the door."""
BRIEF_S = 0.25
"""The same where the door may rightly wait for more than was sent."""
_MORE_S = 0.05
"""The same for an answer behind one that came."""

Ending = Literal["answered", "closed", "left", "hung", "refused"]
"""All answers came; the door closed the connection; we left it, by plan or because more was
expected of us; the door did neither within PATIENCE_S; it took no connection."""


@dataclass(slots=True)
class Exchange:
    """What is sent on one connection, and what is done then."""

    family: str
    parts: list[tuple[float, bytes]]
    """Seconds to wait before each, in which answers are read, and bytes."""
    requests: int = 1
    """As meant; what they are is `bench.hostile.legality`'s to say."""
    expected: int | None = 1
    """Answers after which it is over; None: when the door closes, or says nothing for a while."""
    bodiless: bool = False
    """The answers have no body: HEAD."""
    leave: Literal["", "close", "reset"] = ""
    """What is done after the last part instead of reading."""
    half_close: bool = False
    """End our side after the last part."""
    patience_s: float = PATIENCE_S
    reads_slowly: bool = False
    fresh: bool = False
    """On a connection of its own, which is closed behind it."""
    http2: Texts | None = None
    """What may be scored in answers of HTTP/2; None: it is HTTP/1."""

    @property
    def sent(self) -> bytes:
        return b"".join(data for _, data in self.parts)


@dataclass(slots=True)
class Outcome:
    """How an exchange ended."""

    ending: Ending
    answers: list[Answer] = field(default_factory=list)
    other: bytes = b""
    """What came and is no HTTP/1."""


class Caller:
    """Connections from some addresses of this machine to one port; used again where they may be."""

    def __init__(self, port: int, sources: list[str]) -> None:
        self._port, self._sources = port, deque(sources)
        self.idle: list[Any] = []
        self.busy: set[Any] = set()
        self.unread: set[Any] = set()
        """Of those, the ones whose answers are hardly read."""

    def perform(self, exchange: Exchange) -> Outcome:
        """Do it. Never raises for what the door does."""
        socket = self.idle.pop() if self.idle and not exchange.fresh else None
        try:
            socket = socket or self._connect(exchange)
        except OSError:
            return Outcome("refused")
        self.busy.add(socket)
        if exchange.reads_slowly:
            self.unread.add(socket)
        outcome = Outcome("closed")
        buffer = bytearray()
        try:
            outcome.ending = self._run(socket, exchange, outcome, buffer)
        except OSError:
            outcome.ending = "closed"
        except ValueError:
            outcome.other = bytes(buffer)
            outcome.ending = "answered" if outcome.answers else "closed"
        # Otherwise it stays in `busy`, open, when this is stopped in the middle.
        self.busy.discard(socket)
        self.unread.discard(socket)
        again = outcome.ending == "answered" and not exchange.fresh and not buffer
        if again and outcome.answers and not outcome.answers[-1].last:
            self.idle.append(socket)
        else:
            _close(socket, reset=exchange.leave != "close")
        return outcome

    def close_idle(self) -> None:
        """Close what the door would close after its idle time alone; half requests stay open."""
        for socket in [*self.idle, *self.unread]:
            _close(socket, reset=True)
        self.busy -= self.unread
        self.idle, self.unread = [], set()

    def close(self) -> None:
        """Close all that is open."""
        for socket in [*self.idle, *self.busy]:
            _close(socket, reset=False)

    # --- Inside --------------------------------------------------------------------------
    def _connect(self, exchange: Exchange) -> Any:
        self._sources.rotate()
        socket = gevent.socket.socket()
        socket.setsockopt(plain.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        socket.setsockopt(plain.IPPROTO_TCP, plain.TCP_NODELAY, 1)
        if exchange.reads_slowly:
            socket.setsockopt(plain.SOL_SOCKET, plain.SO_RCVBUF, _SMALL_BUFFER)
        try:
            socket.bind((self._sources[0], 0))
            socket.settimeout(10)
            socket.connect((HOST, self._port))
        except BaseException:
            socket.close()
            raise
        return socket

    def _run(self, socket: Any, exchange: Exchange, outcome: Outcome, buffer: bytearray) -> Ending:
        socket.settimeout(PATIENCE_S)
        for wait_s, data in exchange.parts:
            if wait_s and not self._listen(socket, exchange, outcome, buffer, wait_s):
                return "closed"
            socket.sendall(data)
        if exchange.leave:
            return "left"
        if exchange.half_close:
            socket.shutdown(plain.SHUT_WR)
        began = time.monotonic()
        while not _over(exchange, outcome):
            if exchange.reads_slowly and time.monotonic() - began > _SLOW_READ_S:
                return "left"
            more_s = _MORE_S if outcome.answers and exchange.expected is None else PATIENCE_S
            socket.settimeout(min(exchange.patience_s, more_s))
            try:
                data = socket.recv(1 if exchange.reads_slowly else _PIECE)
            except TimeoutError:
                answered = outcome.answers and exchange.expected is None
                return "hung" if exchange.patience_s >= PATIENCE_S and not answered else "left"
            if not data:
                return "closed"
            buffer += data
            _take(exchange, outcome, buffer)
            if exchange.reads_slowly:
                gevent.sleep(0.2)
        return "answered"

    @staticmethod
    def _listen(
        socket: Any, exchange: Exchange, outcome: Outcome, buffer: bytearray, seconds: float
    ) -> bool:
        """Read for so long; False when the door closed meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            socket.settimeout(left)
            try:
                data = socket.recv(_PIECE)
            except TimeoutError:
                break
            if not data:
                return False
            buffer += data
            _take(exchange, outcome, buffer)
        socket.settimeout(PATIENCE_S)
        return True


def _over(exchange: Exchange, outcome: Outcome) -> bool:
    if exchange.expected is None:
        return False
    return len(outcome.answers) >= exchange.expected


def _take(exchange: Exchange, outcome: Outcome, buffer: bytearray) -> None:
    if exchange.http2 is not None:
        outcome.other += bytes(buffer)
        buffer.clear()
        return
    while (answer := take_answer(buffer, bodiless=exchange.bodiless)) is not None:
        outcome.answers.append(answer)


def _close(socket: Any, *, reset: bool) -> None:
    if reset:
        socket.setsockopt(plain.SOL_SOCKET, plain.SO_LINGER, _RESET)
    socket.close()
