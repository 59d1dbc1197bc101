"""What the application refuses, before it has the shape of one API or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Refusal(Exception):
    """An answer other than 200, by its HTTP status and one line.

    `kind` is the word of Perspective's `errorType` where there is one, `parameter` the field that
    is wrong; `retry_after_s` tells when to try again.
    """

    def __init__(
        self,
        status: int,
        words: str,
        *,
        kind: str = "",
        parameter: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.kind = kind
        self.parameter = parameter
        self.retry_after_s = retry_after_s


Shape = Callable[[Refusal], Any]
"""Makes the document of an error, as one API writes it."""


def plain(refusal: Refusal) -> dict[str, str]:
    """As the server and haproxy write it."""
    return {"error": refusal.words}
