"""Scores of published versions that do not serve, by the offline core: the served code on their
files, each verified first. One comment batch at a time, in a thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import ToxicityError
from export.repository import current, load_scorer, read_artifact, versions
from serve.app.refusals import Refusal
from serve.app.scorer import encoded

if TYPE_CHECKING:
    from export.scorer import Scorer

_KEPT = 2
"""Versions whose graphs stay in memory."""
_MOST_WAITING = 8
_MOST_LISTED = 50


class OtherVersions:
    """Of the repository from which the servers were filled."""

    def __init__(self, repository: str | None, public_key: str | None) -> None:
        self._repository = Path(repository) if repository else None
        self._public_key = Path(public_key) if public_key else None
        self._scorers: OrderedDict[int, Scorer] = OrderedDict()
        self._one, self._waiting = asyncio.Lock(), 0

    async def listed(self) -> list[dict[str, Any]]:
        """The published versions, newest first; none where the repository cannot be read."""
        return await asyncio.to_thread(self._listed)

    async def score(self, version: int, texts: Sequence[str]) -> list[float]:
        """Probabilities by that version, each exactly a float32. Raises Refusal."""
        encoded(texts)  # refuses what a server would
        if self._waiting >= _MOST_WAITING:
            raise Refusal(503, "too many comparisons wait; try again", retry_after_s=1)
        self._waiting += 1
        try:
            async with self._one:
                return await asyncio.to_thread(self._score, version, texts)
        finally:
            self._waiting -= 1

    def _listed(self) -> list[dict[str, Any]]:
        try:
            if self._repository is None:
                return []
            serves = current(self._repository)
            return [
                {"version": n, "serves": n == serves, **self._about(self._repository, n)}
                for n in reversed(versions(self._repository)[-_MOST_LISTED:])
            ]
        except ToxicityError:
            return []

    @staticmethod
    def _about(repository: Path, version: int) -> dict[str, Any]:
        artifact = read_artifact(repository, version)
        return {name: artifact.get(name) for name in ("precision", "created")}

    def _score(self, version: int, texts: Sequence[str]) -> list[float]:
        from core.binding import probability  # NumPy: only for who compares

        logit = self._scorer(version).score(texts).logit
        return [float(value) for value in probability(logit)]

    def _scorer(self, version: int) -> Scorer:
        if version not in self._scorers:
            if self._repository is None or version not in versions(self._repository):
                raise Refusal(400, f"version {version} is not published, expected one that is")
            try:
                found = load_scorer(self._repository, version, self._public_key)
            except ToxicityError as error:
                raise Refusal(
                    409, f"version {version} cannot be loaded; `make versions` tells why"
                ) from error
            while len(self._scorers) >= _KEPT:
                self._scorers.popitem(last=False)
            self._scorers[version] = found
        self._scorers.move_to_end(version)
        return self._scorers[version]
