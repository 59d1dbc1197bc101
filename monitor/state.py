"""What the monitor remembers: one SQLite file, each change of it whole or not at all.

Counts, hashes and the ids of labels, no comment's text. A monitor that was killed goes on where it
was: the last totals of every server are there, so what was counted meanwhile is not lost.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract import BadInput
from monitor.series import ByVersion, Counts, summed

STATE_FILE = "state.sqlite"
_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    target TEXT PRIMARY KEY, time REAL NOT NULL, counts TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS added (
    time REAL NOT NULL, version TEXT NOT NULL, own INTEGER NOT NULL, counts TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS added_time ON added (time);
CREATE TABLE IF NOT EXISTS judged (
    key TEXT PRIMARY KEY, version TEXT, score REAL, label REAL, time REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS judged_time ON judged (time);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, inode INTEGER NOT NULL, offset INTEGER NOT NULL, header TEXT NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Position:
    """How far a file of labels was read."""

    inode: int
    offset: int
    header: str


class MonitorState:
    """The file `monitor.state.STATE_FILE` in a folder; one monitor has it at a time."""

    def __init__(self, folder: Path) -> None:
        """Open or make it. Raises BadInput for a file that is none, or that another one has."""
        self.path = folder / STATE_FILE
        folder.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._base = sqlite3.connect(self.path, timeout=5, isolation_level=None)
            self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._base.execute("PRAGMA synchronous = FULL")
            with self.change():
                for statement in _SCHEMA.split(";"):
                    self._base.execute(statement)
            self.path.chmod(0o600)
            if self.remembered("format", _FORMAT) != _FORMAT:
                raise sqlite3.DatabaseError("of another release")
            self.remember("format", _FORMAT)

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise BadInput(
                f"{self.path} cannot be used ({error}), expected the state of one monitor; end "
                "the other monitor, or give another folder with --out"
            ) from error
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"{self.path} is not a monitor's state ({error}), expected one of this release; "
                "remove it, and the monitor begins anew"
            ) from error

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """All that is written within the block is kept, or nothing of it."""
        if self._base.in_transaction:
            yield
            return
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    # --- Small things --------------------------------------------------------------------
    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value by its name."""
        self._base.execute("REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def remembered(self, name: str, default: Any = None) -> Any:
        """The value of a name."""
        row = self._base.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else default

    # --- Counts --------------------------------------------------------------------------
    def last_totals(self, target: str) -> ByVersion | None:
        """What a server had counted when it was read last; None when it never was."""
        row = self._base.execute("SELECT counts FROM totals WHERE target = ?", (target,)).fetchone()
        return json.loads(row[0]) if row else None

    def keep_totals(self, target: str, time: float, totals: ByVersion) -> None:
        """Keep what a server has counted."""
        self._base.execute(
            "REPLACE INTO totals VALUES (?, ?, ?)", (target, time, json.dumps(totals))
        )

    def add(self, time: float, new: ByVersion, *, own: bool) -> None:
        """Keep what was counted until `time`; `own` says that the monitor asked meanwhile."""
        rows = [(time, version, int(own), json.dumps(counts)) for version, counts in new.items()]
        self._base.executemany("INSERT INTO added VALUES (?, ?, ?, ?)", rows)

    def counted(self, since: float, until: float, *, own: bool) -> ByVersion:
        """What was counted after `since` up to `until`, with or without the monitor's own times."""
        rows = self._base.execute(
            "SELECT version, counts FROM added WHERE time > ? AND time <= ? AND own <= ?",
            (since, until, int(own)),
        )
        parts: dict[str, list[Counts]] = {}
        for version, counts in rows:
            parts.setdefault(version, []).append(json.loads(counts))
        return {version: summed(counts) for version, counts in parts.items()}

    def drop_before(self, counts: float, labels: float) -> None:
        """Forget counts and labels that are older than these times."""
        self._base.execute("DELETE FROM added WHERE time <= ?", (counts,))
        self._base.execute("DELETE FROM judged WHERE time <= ?", (labels,))

    # --- Labels --------------------------------------------------------------------------
    def position(self, path: str) -> Position | None:
        """How far a file was read."""
        row = self._base.execute(
            "SELECT inode, offset, header FROM files WHERE path = ?", (path,)
        ).fetchone()
        return Position(*row) if row else None

    def keep_position(self, path: str, position: Position) -> None:
        """Keep how far a file was read."""
        values = (path, position.inode, position.offset, position.header)
        self._base.execute("REPLACE INTO files VALUES (?, ?, ?, ?)", values)

    def judge(
        self,
        key: str,
        time: float,
        *,
        version: str | None = None,
        score: float | None = None,
        label: float | None = None,
    ) -> str:
        """Keep what is known of a comment beside what was; in words what that changed.

        "joined" when score and label are there now, "corrected" when the label is another one,
        "duplicate" when nothing is new, else "waiting".
        """
        row = self._base.execute(
            "SELECT version, score, label, time FROM judged WHERE key = ?", (key,)
        ).fetchone()
        old = row[:3] if row else (None, None, None)
        if score is None and old[0] is not None:
            version = None  # of the label; the score's own says who is judged
        new = tuple(
            given if given is not None else was
            for given, was in zip((version, score, label), old, strict=True)
        )
        if row and new == old:
            return "duplicate"
        kept = row[3] if row else time
        self._base.execute("REPLACE INTO judged VALUES (?, ?, ?, ?, ?)", (key, *new, kept))
        if None in new[1:]:
            return "waiting"
        was_joined = row is not None and None not in old[1:]
        return "corrected" if was_joined and new[2] != old[2] else "joined"

    def is_joined(self, key: str, version: str) -> bool:
        """Whether this version's score of the comment and a label are known."""
        query = (
            "SELECT 1 FROM judged WHERE key = ? AND version = ? AND label IS NOT NULL "
            "AND score IS NOT NULL"
        )
        return self._base.execute(query, (key, version)).fetchone() is not None

    def labelled(self, since: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Version -> labels and scores, float64 [n] each, of comments that have both."""
        rows = self._base.execute(
            "SELECT version, label, score FROM judged WHERE time > ? AND version IS NOT NULL "
            "AND label IS NOT NULL AND score IS NOT NULL ORDER BY key",
            (since,),
        )
        found: dict[str, tuple[list[float], list[float]]] = {}
        for version, label, score in rows:
            labels, scores = found.setdefault(version, ([], []))
            labels.append(label)
            scores.append(score)
        return {v: (np.array(a), np.array(b)) for v, (a, b) in found.items()}

    def waiting(self) -> int:
        """Comments of which only the label or only the score is known."""
        query = (
            "SELECT COUNT(*) FROM judged WHERE label IS NULL OR score IS NULL OR version IS NULL"
        )
        return int(self._base.execute(query).fetchone()[0])
