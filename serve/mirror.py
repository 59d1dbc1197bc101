"""The program that compares two versions: each request that it is told of is asked of the other.

    python -m serve.mirror FOLDER/mirror.json

haproxy sends it a request and its answer as one datagram (serve/canary_backend.py); what does not
fit into its bounded queue is dropped and counted. It asks the version that did not answer, and
keeps counts and sums. It is nobody's way to a score: it may be slow, or end. Its metrics are at
/mirror/metrics of the port of metrics, its findings as JSON at /comparison of its private socket.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import math
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tritonclient.http import InferResult

from contract import LOGIT, PROBABILITY
from serve.app.decisions import Versions
from serve.app.refusals import Refusal
from serve.app.upstream import Upstream
from serve.canary_backend import LINE_BYTES, LINE_WORD, SERVER
from serve.comparison import PairComparison, Role
from serve.metrics_door import BALANCER_METRICS
from serve.mirror_metrics import ComparisonMetrics
from serve.mirror_settings import COMPARISON_PATH, MirrorSettings, read_mirror_settings
from serve.probe import INFER_PATH

_MOST_WAITING, _AT_ONCE = 256, 2
"""Requests that wait to be compared; how many are asked at once."""
_TIMEOUT_S = 5.0
_RECEIVE_BYTES = 4 << 20
_LOOK_S = 1.0
_LOST = re.compile(rb"^haproxy_process_dropped_logs_total (\d+)", re.MULTILINE)
_ASK_LOST = f"GET {BALANCER_METRICS}?scope=global HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@dataclass(frozen=True)
class DrawnRequest:
    """A request as haproxy tells it, and its answer."""

    server: str
    status: int
    """200, or 4xx of the canary: another answer proves nothing."""
    took_s: float
    length: int | None
    """Of the JSON before binary tensors, by the request's header."""
    body: bytes
    answer_length: int | None
    answer: bytes


def read_line(line: bytes) -> DrawnRequest | str:
    """What a line says, or why it says nothing; "" for one of no request that was drawn."""
    word, *fields = line.decode("ascii", "replace").split() or [""]
    if word != LINE_WORD:
        return ""
    if len(fields) != 7:
        return "unreadable"
    server, status, took_us, length, answer_length, body, answer = fields
    failed = server == SERVER and status >= "500"
    if took_us == "-":  # haproxy's own words, of a server that did not answer or of a connection
        return "failed" if failed else ""
    if failed or (server != SERVER and status != "200"):
        return "failed" if failed else "refused"
    if body == "-" or (status == "200" and answer == "-"):
        return "long"
    try:
        return DrawnRequest(
            server=server,
            status=int(status),
            took_s=int(took_us) / 1e6,
            length=None if length == "-" else int(length),
            body=base64.b64decode(body, validate=True),
            answer_length=None if answer_length == "-" else int(answer_length),
            answer=b"" if answer == "-" else base64.b64decode(answer, validate=True),
        )
    except (ValueError, binascii.Error):
        return "unreadable"


def probabilities(body: bytes, length: int | None) -> tuple[list[float], str]:
    """Probabilities in an answer and the version that gave them. Raises ValueError without."""
    try:
        result = InferResult.from_response_body(body, header_length=length)
        version = str(result.get_response()["model_version"])
        found = result.as_numpy(PROBABILITY)
        if found is None:  # the client asked for logits alone
            logits = result.as_numpy(LOGIT)
            return [1 / (1 + math.exp(-float(row[0]))) for row in logits], version
        return [float(row[0]) for row in found], version
    except Exception as error:  # of whatever kind the client's parser finds
        raise ValueError(f"an answer that cannot be read: {type(error).__name__}") from None


class Mirror:
    """Of one event loop."""

    def __init__(self, settings: MirrorSettings) -> None:
        self._canary = Upstream(settings.canary, _TIMEOUT_S)
        self._stable = itertools.cycle([Upstream(path, _TIMEOUT_S) for path in settings.stable])
        self._versions = Versions(settings.views)
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_MOST_WAITING)
        self._balancer = Upstream(settings.balancer, _TIMEOUT_S)
        self._lost: int | None = None
        self.found = PairComparison()

    async def count_lost(self) -> None:
        """Count what haproxy drops as this socket is full, by its own counter, for ever."""
        while True:
            with contextlib.suppress(OSError):  # it is reloaded
                answer = await self._balancer.ask(_ASK_LOST)
                if said := _LOST.search(answer.body):
                    self.note_lost(int(said[1]))
            await asyncio.sleep(_LOOK_S)

    def note_lost(self, now: int) -> None:
        """The counter of haproxy, which begins anew when that is reloaded; first as it was."""
        before = now if self._lost is None else self._lost
        self.found.drop("lost", now - before if now >= before else now)
        self._lost = now

    def receive(self, sock: socket.socket) -> None:
        """Take what the socket holds."""
        with contextlib.suppress(BlockingIOError):
            while True:
                line = sock.recv(LINE_BYTES + 1)
                try:
                    self._queue.put_nowait(line)
                except asyncio.QueueFull:
                    self.found.drop("behind")

    async def work(self) -> None:
        """Compare what comes, for ever."""
        while True:
            line = await self._queue.get()
            try:
                if reason := await self._compare(line):
                    self.found.drop(reason)
            except Refusal:  # its version is gone
                self.found.drop("unanswered")
            except ValueError:
                self.found.drop("unreadable")

    async def _compare(self, line: bytes) -> str | None:
        first = read_line(line)
        if isinstance(first, str):
            return first
        by_canary = first.server == SERVER
        upstream = next(self._stable) if by_canary else self._canary
        missing = "unanswered" if by_canary else "failed"
        began_s = time.monotonic()
        try:
            answer = await upstream.ask(_request(first.body, first.length))
        except OSError:
            return missing
        took_s = time.monotonic() - began_s
        if first.status != 200:  # of the canary alone, or of the client's own mistake
            return "failed" if answer.status == 200 else "refused"
        if answer.status != 200:
            return missing
        own = probabilities(first.answer, first.answer_length)
        other = probabilities(answer.body, answer.document_bytes or None)
        if len(own[0]) != len(other[0]):
            return "unreadable"
        roles: Sequence[Role] = ("canary", "stable") if by_canary else ("stable", "canary")
        pair = dict(zip(roles, (own, other), strict=True))
        self.found.add(
            scores={role: scores for role, (scores, _) in pair.items()},
            thresholds={role: self._versions.of(v).threshold for role, (_, v) in pair.items()},
            versions={role: version for role, (_, version) in pair.items()},
            seconds=dict(zip(roles, (first.took_s, took_s), strict=True)),
        )
        return None


def _request(body: bytes, length: int | None) -> bytes:
    header = "" if length is None else f"Inference-Header-Content-Length: {length}\r\n"
    head = (
        f"POST {INFER_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{header}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def create_mirror(settings: MirrorSettings) -> Starlette:
    """The program as an ASGI application, whose life is that of the mirror."""
    mirror = Mirror(settings)
    registry = CollectorRegistry()
    registry.register(ComparisonMetrics(mirror.found, settings.share, settings.shadow))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def comparison(_: Request) -> JSONResponse:
        return JSONResponse(mirror.found.document())

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with _lines_socket(settings.lines) as sock:
            loop.add_reader(sock, mirror.receive, sock)
            workers = [asyncio.create_task(mirror.work()) for _ in range(_AT_ONCE)]
            workers.append(asyncio.create_task(mirror.count_lost()))
            yield
            loop.remove_reader(sock)
            for worker in workers:
                worker.cancel()

    routes = [Route("/metrics", metrics), Route(COMPARISON_PATH, comparison)]
    return Starlette(routes=routes, lifespan=lifespan)


def _lines_socket(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    sock.setblocking(False)
    with _private():
        sock.bind(path)
    return sock


@contextlib.contextmanager
def _private() -> Iterator[None]:
    before = os.umask(0o177)  # a socket is the user's alone
    try:
        yield
    finally:
        os.umask(before)


def main(path: Path) -> None:
    """Compare until SIGTERM."""
    settings = read_mirror_settings(path)
    app = create_mirror(settings)
    config = uvicorn.Config(
        app, loop="asyncio", ws="none", lifespan="on", access_log=False, log_level="warning"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        with _private():
            listener.bind(settings.http)
        listener.listen()
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
