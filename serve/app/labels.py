"""The file of corrections: comments with the label that a person gave, as `train` reads them.

Lines of CSV, `text,label`, appended one by one under a lock; only the user can read the file, for
it holds comments. It exists only where `make serve` is told of one (`--labels`).
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
from pathlib import Path

from serve.app.refusals import Refusal

MAX_BYTES = 64 << 20
"""Largest file: what writes to it may be anybody who can ask for a score."""
_HEADER = ("text", "label")


class LabelFile:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, text: str, label: float) -> None:
        """Add one comment; `label` is from 0 to 1. Raises Refusal when it cannot be kept."""
        try:
            descriptor = os.open(
                self._path,
                os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
            try:
                self._append(descriptor, text, label)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Refusal(507, f"the file of labels cannot be written: {error.strerror}") from error

    def _append(self, descriptor: int, text: str, label: float) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # until it is closed
        size = os.fstat(descriptor).st_size
        rows = [(text, f"{label:g}")] if size else [_HEADER, (text, f"{label:g}")]
        line = _csv(rows)
        if size + len(line) > MAX_BYTES:
            raise Refusal(507, f"the file of labels has {MAX_BYTES} bytes; move it away")
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(28, "no space left")
        except OSError:
            os.ftruncate(descriptor, size)  # whole or not at all
            raise


def _csv(rows: list[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
