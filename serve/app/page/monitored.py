"""What a monitor of these servers found last, for the page's charts: the file that it writes."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from contract import ToxicityError
from serve.app.settings import AppSettings
from storage.files import read_json

_MISSED = 2.5
"""So many readings may fail to come before no monitor is said to run."""
_GRACE_S = 30.0
"""A reading itself takes time: curated comments are sent slowly."""


class Monitored:
    """Of one door."""

    def __init__(self, settings: AppSettings) -> None:
        self._path = Path(settings.monitor) if settings.monitor else None

    async def document(self) -> dict[str, Any]:
        """`running`, and with it what the file says, if there is one that can be read."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> dict[str, Any]:
        if self._path is None or not self._path.is_file():
            return {"running": False}
        try:
            found: dict[str, Any] = read_json(self._path, "run `make monitor`")
            age_s = time.time() - datetime.fromisoformat(found["time"]).timestamp()
            every_s = found["every_s"]
        except (ToxicityError, LookupError, TypeError, ValueError):
            return {"running": False}
        running = every_s is not None and age_s <= _MISSED * every_s + _GRACE_S
        return {"running": running, **found}
