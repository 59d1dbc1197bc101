"""What the application refuses, before it has the shape of one API or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NO_SERVER = "no server is ready; try again"


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
