"""What the routes of the application are given."""

from __future__ import annotations

from dataclasses import dataclass

from serve.app.decisions import Versions
from serve.app.labels import LabelFile
from serve.app.scorer import BatchingScorer
from serve.app.settings import AppSettings


@dataclass(frozen=True)
class Services:
    """One of each, for all requests."""

    settings: AppSettings
    scorer: BatchingScorer
    versions: Versions
    """Thresholds and languages of the versions that answer."""
    labels: LabelFile | None
    """Where corrections go, if anywhere."""
