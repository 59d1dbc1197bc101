"""Comments that were judged, for people who want to see some: only where `--sample` says how many.

    toxicity monitor --labels labels/ --sample 100     # into runs/monitor/sample/comments.json

Of each version a uniform sample of the comments whose text came with a label, with their score and
the label that they had first: algorithm R of J. S. Vitter, "Random sampling with a reservoir", ACM
Transactions on Mathematical Software 11 (1985). What is kept is redacted before it is
(`monitor.redact`), in a file that only its owner can read. Without the flag the file is removed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from contract import BadInput
from monitor.redact import redacted
from storage.files import clear_unfinished, json_text, read_json, write_atomically

FOLDER, FILE = "sample", "comments.json"
MOST = 1000
"""Of a version."""
MOST_VERSIONS = 3
"""As many as a repository has; the newest ones."""
_FORMAT = 1


@dataclass(frozen=True)
class LabelledComment:
    """A comment that was scored and labelled, 0 or 1."""

    version: str
    text: str
    score: float
    label: float


@checked
class _Version:
    since_s: float
    size: int
    offered: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)


class CommentSample:
    """The file in `folder`, whose lock the caller has. A kill loses what was not yet `saved`."""

    def __init__(
        self, folder: Path, size: int, keep_s: float, randomness: random.Random | None = None
    ) -> None:
        """Go on with what is there. Raises BadInput for a file that is no sample.

        `randomness` is the system's unless a test gives another: a seed would draw the same
        places after each start.
        """
        self.path = folder / FOLDER / FILE
        self._size, self._keep_s = size, keep_s
        self._random = randomness or random.SystemRandom()
        self._versions: dict[str, _Version] = {}
        self._changed = False
        if self.path.parent.is_dir():
            clear_unfinished(self.path.parent)
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        remedy = "remove it, and the sample begins anew"
        document = read_json(self.path, remedy)
        try:
            if document["format"] != _FORMAT:
                raise ValueError(document["format"])
            self._versions = {
                str(int(name)): _Version(**one) for name, one in document["versions"].items()
            }
            for one in self._versions.values():
                self._fit(one)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"{self.path} is not a monitor's sample, expected one of this release; {remedy}"
            ) from error

    def _fit(self, one: _Version) -> None:
        """To another size: of a uniform sample a smaller one is drawn, a larger one cannot be."""
        if one.size < self._size and one.offered > one.size:
            one.offered, one.kept = 0, []
        elif len(one.kept) > self._size:
            one.kept = self._random.sample(one.kept, self._size)
        self._changed |= one.size != self._size
        one.size = self._size

    def offer(self, judged: Iterable[LabelledComment], now: float) -> None:
        """Draw from these comments, each once, in whatever order."""
        for comment in judged:
            one = self._versions.setdefault(comment.version, _Version(now, self._size))
            one.offered += 1
            place = len(one.kept)
            if place == one.size:
                place = self._random.randrange(one.offered)
            if place < one.size:
                text = redacted(comment.text)
                row = {"score": comment.score, "label": comment.label, "text": text}
                one.kept[place : place + 1] = [row]
            self._changed = True

    def save(self, now: float) -> None:
        """Write it, if it is another one than before. Raises OSError.

        A version's sample begins anew after `keep_s`, so that no comment is kept for longer.
        """
        newest = sorted(self._versions, key=int)[-MOST_VERSIONS:]
        kept = {
            version: self._versions[version]
            for version in newest
            if now < self._versions[version].since_s + self._keep_s
        }
        self._changed |= len(kept) < len(self._versions)
        self._versions = kept
        if self._changed:
            versions = {version: asdict(one) for version, one in kept.items()}
            text = json_text({"format": _FORMAT, "versions": versions})
            write_atomically(self.path, text, 0o600)
            self._changed = False


def forget(folder: Path) -> None:
    """Remove the sample that an earlier monitor left in `folder`, whose lock the caller has."""
    own = folder / FOLDER
    if own.is_dir():
        clear_unfinished(own)
        (own / FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            own.rmdir()
