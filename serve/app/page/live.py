"""What the page's charts show: totals of haproxy and the servers, the application's last minute.

Read at most once a second, however many pages ask; differences between readings are the page's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from contract import PUBLIC_MODEL
from serve.app.recent import Recent
from serve.app.settings import AppSettings
from serve.app.upstream import Upstream
from serve.control import METRICS_SOCKET
from serve.metrics_door import BALANCER_METRICS, DOOR, TURNED_AWAY

_FRESH_S = 1.0
_TIMEOUT_S = 2.0
_GET = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
_ANSWERS = "haproxy_frontend_http_responses_total"
_OF_SERVER = {
    f"{PUBLIC_MODEL}_comments_total": "comments",
    f"{PUBLIC_MODEL}_requests_refused_total": "refused",
    "nv_inference_request_success": "calls",
    "nv_inference_request_success_total": "calls",
    "nv_inference_request_duration_us": "call_us",
    "nv_inference_request_duration_us_total": "call_us",
}


class Live:
    """Of one door."""

    def __init__(self, settings: AppSettings, recent: Recent) -> None:
        # The metrics' socket lies beside the folder of what the server loads.
        self._servers = [
            Upstream(str(Path(view).parent / METRICS_SOCKET), _TIMEOUT_S) for view in settings.views
        ]
        self._door = Upstream(settings.metrics, _TIMEOUT_S) if settings.metrics else None
        self._recent = recent
        self._one = asyncio.Lock()
        self._known: dict[str, Any] = {}
        self._until_s = 0.0

    async def document(self) -> dict[str, Any]:
        """Totals since the start; `servers` says how many of them could be read."""
        async with self._one:
            if time.monotonic() >= self._until_s:
                self._known = await self._read()
                self._until_s = time.monotonic() + _FRESH_S
        return self._known

    async def _read(self) -> dict[str, Any]:
        texts = await asyncio.gather(*(_text(server, "/metrics") for server in self._servers))
        totals = dict.fromkeys(_OF_SERVER.values(), 0.0)
        for text in filter(None, texts):
            _add(totals, text, _OF_SERVER)
        path = f"{BALANCER_METRICS}?scope=frontend"
        answers, turned_away = _of_door(await _text(self._door, path) if self._door else "")
        return {
            "at_s": time.time(),
            "servers": sum(map(bool, texts)),
            "of_servers": len(texts),
            "totals": totals,
            "answers": answers,
            "turned_away": turned_away,
            "application": self._recent.document(),
        }


async def _text(upstream: Upstream, path: str) -> str:
    """A page of metrics; empty when it cannot be had."""
    try:
        answer = await upstream.ask(_GET.format(path).encode())
    except OSError:
        return ""
    return answer.body.decode("utf-8", "replace") if answer.status == 200 else ""


def _add(totals: dict[str, float], text: str, names: Mapping[str, str]) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in names and sample.labels.get("model") in (None, PUBLIC_MODEL):
                totals[names[sample.name]] += sample.value


def _of_door(text: str) -> tuple[dict[str, float], float]:
    """Answers to clients by class of status, and how many of them were turned away in overload."""
    answers: dict[str, float] = {}
    turned_away = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("proxy") != DOOR:
                continue
            if sample.name == _ANSWERS:
                code = sample.labels["code"]
                answers[code] = answers.get(code, 0.0) + sample.value
            elif sample.name == TURNED_AWAY:
                turned_away += sample.value
    return answers, turned_away
