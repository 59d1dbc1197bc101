"""What the application refuses, before it has the shape of one API or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NO_SERVER = "no server is ready; try again"


OVERLOADED_KIND = "OVERLOADED"


class Refusal(Exception):
    """An answer other than 200, by its HTTP status and one line.

    `kind` is a word for programs (`COMMENT_EMPTY`, `overloaded`), `parameter` the field that is
    wrong, `details` what Perspective's API says beside; `retry_after_s` tells when to try again.
    """

    def __init__(
        self,
        status: int,
        words: str,
        *,
        kind: str = "",
        parameter: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.kind = kind
        self.parameter = parameter
        self.details = details or {}
        self.retry_after_s = retry_after_s


Shape = Callable[[Refusal], Any]
"""Makes the document of an error, as one API writes it."""


def plain(refusal: Refusal) -> dict[str, str]:
    """As the server and haproxy write it."""
    return {"error": refusal.words}


def moderation_error(refusal: Refusal) -> dict[str, Any]:
    """An error as that API writes it."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.words,
            "type": kind,
            "param": refusal.parameter,
            "code": refusal.kind.lower() or None,
        }
    }


_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}
"""HTTP's statuses as google.rpc.Code has them; the others of the client are its argument's."""


def perspective_error(refusal: Refusal) -> dict[str, Any]:
    """An error as that API writes it."""
    error: dict[str, Any] = {
        "code": refusal.status,
        "message": refusal.words,
        "status": _STATUS.get(
            refusal.status, "INVALID_ARGUMENT" if refusal.status < 500 else "INTERNAL"
        ),
    }
    if refusal.kind and refusal.status == 400:
        kind = {
            "@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error",
            "errorType": refusal.kind,
        }
        error["details"] = [{**kind, **refusal.details}]
    return {"error": error}
