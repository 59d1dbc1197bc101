"""Scores from the servers: what arrives together goes to them together, in one KServe request.

A comment that finds no call under way leaves at once, with those that came in the same turn of the
event loop. Where some are under way it waits until one comes back, `ENOUGH_COMMENTS` wait, or
`LINGER_S` are over, and leaves with the others: the busier, the larger the calls, and the less each
comment costs. What waits is bounded; what is beyond the bound is refused at once.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract import ATTRIBUTES, LARGE_BODY_BYTES, MAX_COMMENT_BYTES, MAX_REQUEST_BYTES
from serve import probe
from serve.app import kserve
from serve.app.kserve import ServedScores
from serve.app.recent import Recent
from serve.app.refusals import NO_SERVER, OVERLOADED_KIND, Refusal
from serve.app.settings import OVERLOADED
from serve.app.tracing import STAGES, StageTimes
from serve.app.upstream import Upstream, UpstreamAnswer

MAX_CALL_COMMENTS = 64
"""Most comments of one call."""
MAX_CALLS = max(2, os.cpu_count() or 1)
"""Most calls under way: a server runs one on one core."""
ENOUGH_COMMENTS, LINGER_S = MAX_CALL_COMMENTS // 2, 0.002
"""So many make another call worth its cost, or so long a wait, while one is under way."""
MAX_WAITING_COMMENTS, MAX_WAITING_BYTES = 1024, 8 << 20
"""Most that waits for a call to come back."""
MAX_WAIT_S = 0.25
"""What waited longer, beyond the time of the call that it waited for, is refused. That call may be
long: while a server starts anew, haproxy holds it, and nobody behind it is lost."""
MAX_TEXTS = 256
"""Most comments of one request, as for a server."""
_CALL_BYTES = LARGE_BODY_BYTES - 512
"""Of comments in a call, which haproxy holds whole; a single comment may be longer."""
_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Waiting:
    comments: Sequence[bytes]
    size: int
    since_s: float
    answer: asyncio.Future[ServedScores]
    counted: bool
    stable: bool
    """Whether the current version is to answer: it is a part of a request, whose parts are to be
    of one version, or a probe."""
    stages: StageTimes | None
    """Where a traced request's times go."""


class BatchingScorer:
    """Of one event loop."""

    def __init__(
        self,
        servers: str,
        large: str,
        has_attributes: Callable[[str], bool] = lambda _version: False,
        *,
        traced: bool = False,
    ) -> None:
        """Sockets as in `AppSettings`; `has_attributes` knows it of a version's number.

        With `traced` each call's stages are kept for its spans.
        """
        self._traced = traced
        self._servers = Upstream(servers, _TIMEOUT_S)
        self._large = Upstream(large, _TIMEOUT_S)
        self._queue: deque[_Waiting] = deque()
        self._comments = self._bytes = self._calls = 0
        self._flushing: asyncio.Handle | None = None
        self._at_once = False
        self._has_attributes, self._attributes = has_attributes, False
        self.recent = Recent()
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(self, texts: Sequence[str]) -> ServedScores:
        """Probabilities of at least one text, bit for bit the server's. Raises Refusal."""
        comments = encoded(texts)
        if len(comments) == 1:
            return await self._submit(comments, len(comments[0]) + kserve.LENGTH_BYTES)
        calls = list(_cut(comments))
        self._refuse_beyond(len(comments), sum(size for _, size in calls))
        waiting = [self._submit(part, size, stable=len(calls) > 1) for part, size in calls]
        answers = await asyncio.gather(*waiting)
        if len({answer.version for answer in answers}) > 1:  # an update fell between two calls
            return await self.score(texts)
        if len({answer.names for answer in answers}) > 1:  # the first call of a version
            return await self.score(texts)
        every = tuple(value for answer in answers for value in answer.probability)
        others = tuple(row for answer in answers for row in answer.attributes)
        return ServedScores(every, answers[0].version, answers[0].names, others)

    async def probe(self) -> ServedScores:
        """`score` of a fresh comment that nobody counts, nor a canary gets. Raises Refusal."""
        fresh = probe.fresh().encode()
        size = len(fresh) + kserve.LENGTH_BYTES
        return await self._submit([fresh], size, counted=False, stable=True)

    def close(self) -> None:
        """End the connections."""
        self._servers.close()
        self._large.close()

    # --- The queue -------------------------------------------------------------------------
    def _refuse_beyond(self, comments: int, size: int) -> None:
        if (
            self._comments + comments > MAX_WAITING_COMMENTS
            or self._bytes + size > MAX_WAITING_BYTES
        ):
            raise _overloaded()

    def _submit(
        self,
        comments: Sequence[bytes],
        size: int,
        *,
        counted: bool = True,
        stable: bool = False,
    ) -> asyncio.Future[ServedScores]:
        self._refuse_beyond(len(comments), size)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ServedScores] = loop.create_future()
        stages = STAGES.get() if self._traced else None
        waiting = _Waiting(comments, size, loop.time(), answer, counted, stable, stages)
        self._queue.append(waiting)
        self._comments += len(comments)
        self._bytes += size
        if self._calls < MAX_CALLS:
            self._flush_soon(loop)
        return waiting.answer

    def _flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have what waits sent in this turn of the loop, or a little later."""
        now = not self._calls or self._comments >= ENOUGH_COMMENTS
        if self._flushing and (self._at_once or not now):
            return
        if self._flushing:
            self._flushing.cancel()
        self._at_once = now
        self._flushing = (
            loop.call_soon(self._flush, MAX_WAIT_S)
            if now
            else loop.call_later(LINGER_S, self._flush, MAX_WAIT_S)
        )

    def _flush(self, patience_s: float) -> None:
        """Send what waits no longer than that, as far as calls are free."""
        if self._flushing:
            self._flushing.cancel()
            self._flushing = None
        earliest_s = asyncio.get_running_loop().time() - patience_s
        while self._queue and self._calls < MAX_CALLS:
            call = self._next_call(earliest_s)
            if call:
                self._calls += 1
                task = asyncio.create_task(self._call(call))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next_call(self, earliest_s: float) -> list[_Waiting]:
        call: list[_Waiting] = []
        comments = size = 0
        while self._queue:
            first = self._queue[0]
            comments += len(first.comments)
            size += first.size
            if call and (comments > MAX_CALL_COMMENTS or size > _CALL_BYTES):
                break
            self._queue.popleft()
            self._comments -= len(first.comments)
            self._bytes -= first.size
            if first.answer.done():  # its client is gone
                comments, size = comments - len(first.comments), size - first.size
            elif first.since_s < earliest_s:
                comments, size = comments - len(first.comments), size - first.size
                first.answer.set_exception(_overloaded())
            else:
                call.append(first)
        return call

    # --- A call ----------------------------------------------------------------------------
    async def _call(self, call: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            await self._answer(call)
        finally:
            self._calls -= 1
            self._flush(MAX_WAIT_S + loop.time() - began_s)

    async def _answer(self, call: list[_Waiting]) -> None:
        comments = [comment for one in call for comment in one.comments]
        began_s = asyncio.get_running_loop().time()
        try:
            found = await self._ask(comments, stable=any(one.stable for one in call))
        except Refusal as refusal:
            if refusal.status < 500 and len(call) > 1:
                for one in call:  # one of them is at fault: the others have nothing to do with it
                    await self._answer([one])
                return
            _fail(call, refusal)
            return
        except Exception as error:
            _fail(call, error)
            raise
        now_s = asyncio.get_running_loop().time()
        at = 0
        for one in call:
            end = at + len(one.comments)
            part = found.part(at, end)
            if one.stages is not None:
                one.stages.append(("queue", 0, one.since_s, began_s))
                one.stages.append(("scoring", len(comments), began_s, now_s))
            if one.counted:
                self.recent.add(one.since_s, now_s, part.probability)
            if not one.answer.done():
                one.answer.set_result(part)
            at = end

    async def _ask(self, comments: Sequence[bytes], *, stable: bool) -> ServedScores:
        """With attributes where the version has them, which its first answer tells."""
        if self._attributes:
            try:
                return await self._ask_for(comments, attributes=True, stable=stable)
            except Refusal as refusal:
                if not _has_no_attributes(refusal):
                    raise
                self._attributes = False  # the version that had them is gone
        found = await self._ask_for(comments, attributes=False, stable=stable)
        if self._has_attributes(found.version):
            self._attributes = True
            try:
                return await self._ask_for(comments, attributes=True, stable=stable)
            except Refusal as refusal:  # of several servers one has another version yet
                if not _has_no_attributes(refusal):
                    raise
        return found

    async def _ask_for(
        self, comments: Sequence[bytes], *, attributes: bool, stable: bool
    ) -> ServedScores:
        request = kserve.request(comments, attributes=attributes, stable=stable)
        upstream = self._servers if len(request) <= LARGE_BODY_BYTES else self._large
        try:
            try:
                answer = await upstream.ask(request)
            except ConnectionError:  # the front ends, and waits for what this answers
                answer = await self._large.ask(request)
            if answer.status == 200:
                return kserve.scores(answer.body, answer.document_bytes, len(comments))
        except (OSError, ValueError) as error:
            raise Refusal(503, NO_SERVER, kind="UNAVAILABLE", retry_after_s=1) from error
        raise _refused(answer)


def _fail(call: list[_Waiting], error: Exception) -> None:
    for one in call:
        if not one.answer.done():
            one.answer.set_exception(error)


def encoded(texts: Sequence[str]) -> list[bytes]:
    """UTF-8 of comments that a server takes. Raises Refusal."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise Refusal(
            400, f"the request has {len(texts)} comments, expected 1 to {MAX_TEXTS}; send fewer"
        )
    comments = []
    for row, text in enumerate(texts):
        try:
            comments.append(text.encode())
        except UnicodeEncodeError as error:
            raise Refusal(
                400, f"comment {row} holds a lone surrogate, expected text that UTF-8 can encode"
            ) from error
        if len(comments[-1]) > MAX_COMMENT_BYTES:
            raise Refusal(
                400,
                f"comment {row} is {len(comments[-1])} bytes long, expected at most "
                f"{MAX_COMMENT_BYTES}; cut it",
                kind="COMMENT_TOO_LONG",
            )
    if sum(map(len, comments)) > MAX_REQUEST_BYTES:
        raise Refusal(400, f"the comments have more than {MAX_REQUEST_BYTES} bytes; send fewer")
    return comments


def _cut(comments: Sequence[bytes]) -> list[tuple[list[bytes], int]]:
    """Comments in parts that fit into a call, each with its size."""
    parts: list[tuple[list[bytes], int]] = []
    part: list[bytes] = []
    size = 0
    for comment in comments:
        own = kserve.LENGTH_BYTES + len(comment)
        if part and (len(part) == MAX_CALL_COMMENTS or size + own > _CALL_BYTES):
            parts.append((part, size))
            part, size = [], 0
        part.append(comment)
        size += own
    parts.append((part, size))
    return parts


def _refused(answer: UpstreamAnswer) -> Refusal:
    words = kserve.refusal(answer.body)
    if answer.status in (503, 504, 502, 500):
        kind = OVERLOADED_KIND if words.startswith(probe.OVERLOADED) else "UNAVAILABLE"
        return Refusal(503, words, kind=kind, retry_after_s=1)
    return Refusal(answer.status, words)


def _has_no_attributes(refusal: Refusal) -> bool:
    """Whether a server refused an output that its version has not."""
    return refusal.status == 400 and f"'{ATTRIBUTES}'" in refusal.words


def _overloaded() -> Refusal:
    return Refusal(503, OVERLOADED, kind=OVERLOADED_KIND, retry_after_s=1)
