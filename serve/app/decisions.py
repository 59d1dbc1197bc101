"""What a served version decides by: thresholds and languages of its manifest, artifact.json.

The manifest lies in the folder of what a server loads: it is that of the version that answered. It
may say `"thresholds": {"toxicity": 0.7}` and `"languages": ["en"]`; where it does not, the
threshold is the one of training and evaluation, and no language is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from contract import ARTIFACT_FILE, DECISION_THRESHOLD, PUBLIC_MODEL
from serve.app.refusals import NO_SERVER, Refusal


class Decisions(msgspec.Struct, frozen=True):
    """Of one version."""

    thresholds: dict[str, float] = {}
    """By output; chosen by `train.operating`, or absent from an older version."""
    languages: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    @property
    def threshold(self) -> float:
        """Probability from which a comment is flagged."""
        return self.threshold_of(PUBLIC_MODEL)

    def threshold_of(self, name: str) -> float:
        """Probability from which a comment is so, by "toxicity" or an attribute's name."""
        return self.thresholds.get(name, DECISION_THRESHOLD)


class Versions:
    """Decisions by version, each read once from the folders `views`."""

    def __init__(self, views: Sequence[str], beside: Sequence[str] = ()) -> None:
        """`beside` are the folders of a canary, whose version is not the current one."""
        self._current = [Path(view) / PUBLIC_MODEL for view in views]
        self._views = [*self._current, *(Path(view) / PUBLIC_MODEL for view in beside)]
        self._known: dict[str, Decisions] = {}

    def of(self, version: str) -> Decisions:
        """Raises Refusal for a version that has just gone: it answered for the last time."""
        known = self._known.get(version)
        if known is None:
            known = self._known[version] = self._read(version)
        return known

    def has_attributes(self, version: str) -> bool:
        """Whether who asks for attributes gets some, where this version answered another request.

        A canary's has no say in it: the current one answers where theirs differ.
        """
        try:
            current = any((view / version).is_dir() for view in self._current)
            return bool((self.of(version) if current else self.current()).attributes)
        except Refusal:  # it has just gone
            return False

    def current(self) -> Decisions:
        """Of the newest version that a server of the current one holds, not one of a canary.

        Raises Refusal when none does.
        """
        numbers = [
            int(folder.name)
            for view in self._current
            for folder in (view.iterdir() if view.is_dir() else ())
            if folder.name.isdecimal()
        ]
        return self.of(str(max(numbers, default=0)))

    def _read(self, version: str) -> Decisions:
        for view in self._views:
            try:
                document = (view / version / ARTIFACT_FILE).read_bytes()
                return msgspec.json.decode(document, type=Decisions)
            except OSError:
                continue
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Refusal(500, f"{ARTIFACT_FILE} of version {version} is not valid") from error
        raise Refusal(503, NO_SERVER, retry_after_s=1)
