"""Labels that come late: rows of files that people or programs append to, joined with scores.

    {"id": "c-17", "score": 0.93, "version": 3, "time": "2026-05-01T10:00:00Z"}   when it was scored
    {"id": "c-17", "label": 1}                                                    when it was judged

One row may have both. CSV with the same names as columns is read too, and `text,label`, which
`toxicity serve --labels FILE` writes: such comments are scored anew by the live server, and
only the sha256 of their text is kept; a sample of them, too, where there is one (`monitor.sample`).
Rows are read once, in whatever order and however often they are written; a later label corrects an
earlier one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract import LABEL_THRESHOLD, BadInput
from monitor.sample import CommentSample, LabelledComment
from monitor.state import MonitorState, Position

SUFFIXES = (".csv", ".jsonl")
OUTCOMES = ("joined", "corrected", "duplicate", "waiting", "unreadable")
_MOST_BYTES = 16 << 20
"""Read of a file at once; the rest comes with the next reading."""
_MOST_ROW_BYTES = 1 << 20
"""A row that is longer has a quote that nobody closed."""
_MOST_TEXTS = 2000
"""Comments of a file that are scored anew at once."""
_HEX_DIGITS = 64
_COLUMNS = ("id", "text", "text_sha256", "score", "version", "time", "label")
Score = Callable[[Sequence[str]], Iterable[tuple[float, str]]]
"""Texts -> score and version of each."""


@dataclass
class LabelsRead:
    """What a reading found."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    judged: list[LabelledComment] = field(default_factory=list)
    """Of the last file, the comments whose text came with a label for the first time."""


def files_of(path: Path) -> list[Path]:
    """The file, or the files of the folder that can be read. Raises BadInput when it is missing."""
    if path.is_dir():
        return [one for one in sorted(path.iterdir()) if one.suffix in SUFFIXES and one.is_file()]
    if path.suffix not in SUFFIXES:
        raise BadInput(
            f"--labels is {path}, expected a .csv or .jsonl file or a folder of them; give one"
        )
    return [path] if path.exists() else []  # the first label may still be to come


def read_labels(
    state: MonitorState,
    path: Path,
    now: float,
    score: Score,
    sample: CommentSample | None = None,
) -> LabelsRead:
    """Join the rows that were appended since the last reading.

    `score` is asked for rows that have a text and no score; `sample` is offered the comments that
    came with text and label. Raises what `score` raises; then no row of that file counts as read.
    """
    found = LabelsRead()
    for file in files_of(path):
        found.judged.clear()
        with state.change():
            _read_file(state, file, now, score, found)
        if sample:  # a kill before it is saved leaves these out; none comes twice
            sample.offer(found.judged, now)
    return found


def _read_file(
    state: MonitorState, file: Path, now: float, score: Score, found: LabelsRead
) -> None:
    name = str(file.resolve())
    with file.open("rb") as handle:
        about = os.fstat(handle.fileno())
        before = state.position(name)
        if before is None or before.inode != about.st_ino or before.offset > about.st_size:
            before = Position(about.st_ino, 0, "")  # rows that were there are duplicates then
        handle.seek(before.offset)
        content = handle.read(_MOST_BYTES)
    offset, header = before.offset, before.header
    texts: list[tuple[str, dict[str, Any]]] = []
    for text, end in _rows(content[: content.rfind(b"\n") + 1], quoted=file.suffix == ".csv"):
        if len(texts) >= _MOST_TEXTS:
            break
        offset = before.offset + end
        if file.suffix == ".csv" and not header:
            header = _header(text)
            continue
        row = _read_row(text, header) if text.strip() else None
        if row is None:
            found.outcomes["unreadable"] += bool(text.strip())
        elif row.get("text") and row.get("score") is None:
            texts.append((str(row["text"]), row))
        else:
            _join(state, row, now, found)
    scored = score([text for text, _ in texts]) if texts else ()
    for (text, row), (value, version) in zip(texts, scored, strict=True):
        again = {**row, "text_sha256": sha256_of_text(text), "score": value, "version": version}
        _join(state, again, now, found)
    state.keep_position(name, Position(before.inode, offset, header))


def _rows(whole: bytes, *, quoted: bool) -> Iterator[tuple[str, int]]:
    """Each row and where it ends; a line break within quotes does not end one, if `quoted`."""
    row: list[bytes] = []
    end, start, open_quote = 0, 0, False
    for line in whole.splitlines(keepends=True):
        row.append(line)
        end += len(line)
        open_quote ^= quoted and line.count(b'"') % 2 == 1
        if open_quote and end - start < _MOST_ROW_BYTES:
            continue
        yield b"".join(row).decode("utf-8", "replace"), end
        row, start, open_quote = [], end, False


def _header(text: str) -> str:
    """The columns of a file of CSV as JSON; an unknown one, which may be a comment, has no name."""
    try:
        columns = [column.strip() for column in next(csv.reader([text]), [])]
    except csv.Error:
        columns = []
    return json.dumps([column if column in _COLUMNS else "" for column in columns])


def _read_row(text: str, header: str) -> dict[str, Any] | None:
    """Names and values, empty ones left out; None for a row that cannot be read."""
    try:
        if header:
            (values,) = csv.reader(text.splitlines(keepends=True), strict=True)
            named: Any = dict(zip(json.loads(header), values, strict=True))
        else:
            named = json.loads(text)
    except (ValueError, csv.Error, RecursionError):
        return None
    if not isinstance(named, dict):
        return None
    return {name: value for name, value in named.items() if value not in (None, "")}


def _join(state: MonitorState, row: dict[str, Any], now: float, found: LabelsRead) -> None:
    """Keep what a row says but for its text, and count it.

    A row without anything to keep, or with values that are none, is unreadable.
    """
    try:
        key = _key(row)
        label, score = (_share(row.get(name)) for name in ("label", "score"))
        if label is not None:
            label = float(label >= LABEL_THRESHOLD)
        version = str(int(row["version"])) if "version" in row else None
        time = _time(row["time"]) if "time" in row else now
        if label is None and score is None:
            raise LookupError
    except (LookupError, TypeError, ValueError, OverflowError):
        found.outcomes["unreadable"] += 1
        return
    if (
        "text" in row
        and not (version is None or score is None or label is None)
        and not state.is_joined(key, version)
    ):
        found.judged.append(LabelledComment(version, str(row["text"]), score, label))
    outcome = state.judge(key, min(time, now), version=version, score=score, label=label)
    found.outcomes[outcome] += 1


def _key(row: dict[str, Any]) -> str:
    """What names the comment: its id, or the sha256 of its text."""
    if "id" in row:
        if not isinstance(row["id"], str | int | float):
            raise TypeError(row["id"])
        return f"id {row['id']}"
    digest = str(row["text_sha256"] if "text_sha256" in row else sha256_of_text(row["text"]))
    if len(digest) != _HEX_DIGITS or int(digest, 16) < 0:
        raise ValueError(digest)
    return f"sha256 {digest.lower()}"


def sha256_of_text(text: str) -> str:
    """Hex sha256 of a comment's UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _share(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(value)
    return number


def _time(value: Any) -> float:
    """Seconds since 1970 of a number or of ISO 8601, in UTC where it names no zone."""
    try:
        return float(value)
    except ValueError:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
