"""Haproxy's own answers, in the form of the API that was asked.

A client of Perspective or of a moderation endpoint reads an error as that API writes it, whoever
refuses; all others get one line, as a server gives it. Keywords as in the haproxy 2.6
configuration manual.
"""

from __future__ import annotations

import base64
import json

import contract
from serve.app import settings as app
from serve.app.refusals import Refusal, Shape, moderation_error, perspective_error

NO_SERVER = "no server is ready; try again"
_SHAPES: dict[str, tuple[str, Shape]] = {
    "perspective": (f"path_beg {app.PERSPECTIVE_PATHS}", perspective_error),
    "moderation": (f"path {app.MODERATION_PATH}", moderation_error),
}
"""Variable that says so -> which requests are an API's, and how that writes an error."""
_KINDS = {401: "invalid_api_key", 429: "rate_limit_exceeded", 503: "unavailable"}
"""Words for programs, as moderation endpoints have them."""
_WORDS = "words"


def api_rules() -> list[str]:
    """Tell whose form an error is to have; before all that may refuse."""
    return [
        f"http-request set-var(txn.{name}) bool(true) if {{ {condition} }}"
        for name, (condition, _) in _SHAPES.items()
    ]


def refuse(status: int, words: str, condition: str, *, close: bool = False) -> str:
    """A rule that answers with a status and one line."""
    hangup = " hdr Connection close" if close else ""
    return f"http-request return status {status} {_body(status, words)}{hangup} if {condition}"


def turn_away(status: int, words: str, condition: str) -> str:
    """As `refuse` of what may come again, and haproxy counts it (requests_denied_total)."""
    body = _body(status, words, "overloaded")
    return f"http-request deny status {status} {body} hdr Retry-After 1 if {condition}"


def instead(told: int, status: int, words: str) -> str:
    """A rule that gives this answer in place of a backend's own with the status `told`."""
    return f"http-response return status {status} {_body(status, words)} if {{ status {told} }}"


def refuse_grpc(status: int, words: str, condition: str) -> str:
    """An answer without a message: a status of gRPC's own in the headers (PROTOCOL-HTTP2.md)."""
    return (
        "http-request return status 200 hdr content-type application/grpc "
        f"hdr grpc-status {status} hdr grpc-message {quoted(words)} if {condition}"
    )


def error(status: int, words: str, *, kind: str = "") -> str:
    """A line that sets what haproxy says by itself with a status."""
    return f"http-error status {status} {_body(status, words, kind)}"


def own_errors(*, answer_s: float, no_answer_s: float) -> list[str]:
    """All of those; for how long an answer and a server are waited for, in seconds."""
    words = {
        400: "the request is not HTTP, or has more than "
        f"{contract.MAX_HEADERS} headers; send it otherwise",
        408: f"the request took longer than {contract.HEADER_TIMEOUT_S} s (headers) or "
        f"{contract.BODY_TIMEOUT_S} s (body) to arrive; send it faster",
        500: "the balancer failed; try again",
        502: f"no server answered within {no_answer_s:g} s; try again",
        503: NO_SERVER,
        504: f"no answer within {answer_s:g} s; try again",
    }
    return [error(status, text) for status, text in words.items()]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _body(status: int, words: str, kind: str = "") -> str:
    """Type and text of an answer; a variable that is not set leaves out an API's part of it."""
    before, after = "", ""
    for name, (_, shape) in _SHAPES.items():
        refusal = Refusal(status, _WORDS, kind=kind or _KINDS.get(status, ""))
        document = json.dumps(shape(refusal)["error"]).split(json.dumps(_WORDS))
        parts = [f"%[var(txn.{name}),iif({_encoded(part)},),b64dec]" for part in document]
        before, after = before + parts[0], after + parts[1]
    line = json.dumps(words).replace("%", "%%")
    return f"content-type application/json lf-string '{{\"error\": {before}{line}{after}}}'"


def _encoded(text: str) -> str:
    """Without a sign that the configuration reads as its own."""
    return base64.b64encode(text.encode()).decode()
