"""Plain ASGI for the requests that are asked most: a body in, JSON out, a request id with it.

Routing, request and response objects took as much time as all the rest (docs/compatible.md), so
the scoring endpoints read and answer by themselves; all others are Starlette's.
"""

from __future__ import annotations

import logging
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from serve.app.refusals import Refusal, Shape

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Endpoint = Callable[[bytes, Scope], Awaitable[Any]]
"""Body and scope of a request in, the document of its answer out, or its bytes; raises Refusal."""
REQUEST_ID = "toxicity.request_id"
"""Where an identified request's id stands in its scope, as bytes."""
_REQUEST_ID = b"x-request-id"
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
INTERNAL = "the application failed; try again, and look into its log"
_encoder = msgspec.json.Encoder()
_JSON = (b"content-type", b"application/json")
_log = logging.getLogger("uvicorn.error")


def identified(scope: Scope) -> bytes:
    """The request's id: the client's, if it is one that can stand in a log; else a fresh one.

    It stands in the scope from then on, under REQUEST_ID.
    """
    for name, value in scope["headers"]:
        if name == _REQUEST_ID and _SANE_ID.fullmatch(value):
            break
    else:
        value = secrets.token_hex(16).encode()
    scope[REQUEST_ID] = value
    return bytes(value)


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
        headers = [_JSON, (_REQUEST_ID, identified(scope))]
        status = 200
        try:
            document = await self._endpoint(await body_of(receive), scope)
        except Exception as error:
            refusal = refusal_of(error, scope)
            document, status = self._shape(refusal), refusal.status
            if refusal.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
        content = document if isinstance(document, bytes) else _encoder.encode(document)
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def refusal_of(error: Exception, scope: Scope) -> Refusal:
    """A refusal as it is; any other error as one, once the log has its place, but no value of it.

    An exception's own words may quote a comment.
    """
    if isinstance(error, Refusal):
        return error
    place = "".join(traceback.format_tb(error.__traceback__))
    identity = scope[REQUEST_ID].decode()
    _log.error("%s in request %s\n%s", type(error).__name__, identity, place)
    return Refusal(500, INTERNAL, kind="INTERNAL")


def with_request_id(scope: Scope, send: Send) -> Send:
    """A `send` that adds the request's id to the headers of the answer."""
    pair = (_REQUEST_ID, identified(scope))

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), pair]
        await send(message)

    return sending
