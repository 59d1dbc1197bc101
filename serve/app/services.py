"""What the routes of the application are given."""

from __future__ import annotations

from dataclasses import dataclass

from serve.app.scorer import Scorer
from serve.app.settings import AppSettings


@dataclass(frozen=True)
class Services:
    """One of each, for all requests."""

    settings: AppSettings
    scorer: Scorer
