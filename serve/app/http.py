"""Plain ASGI for the requests that are asked most: a body in, JSON out, a request id with it.

Routing, request and response objects took as much time as all the rest (docs/compatible.md), so
the scoring endpoints read and answer by themselves; all others are Starlette's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from serve.app.refusals import Refusal, Shape

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Endpoint = Callable[[bytes, Scope], Awaitable[Any]]
"""Body and scope of a request in, the document of its answer out; raises Refusal."""
REQUEST_ID = b"x-request-id"
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_encoder = msgspec.json.Encoder()
_JSON = (b"content-type", b"application/json")


def request_id(scope: Scope) -> bytes:
    """The id that the client gave, if it is one that can stand in a log; else a fresh one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID and _SANE_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(16).encode()


async def body_of(receive: Receive) -> bytes:
    """The whole body; haproxy bounds it. Raises Refusal when the client went away."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise Refusal(400, "the client closed the connection")
    return body


class JsonEndpoint:
    """An ASGI application of one endpoint that takes a body and gives JSON."""

    def __init__(self, endpoint: Endpoint, shape: Shape) -> None:
        self._endpoint = endpoint
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [_JSON, (REQUEST_ID, request_id(scope))]
        try:
            document = await self._endpoint(await body_of(receive), scope)
            status = 200
        except Refusal as refusal:
            document, status = self._shape(refusal), refusal.status
            if refusal.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
        content = _encoder.encode(document)
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})
