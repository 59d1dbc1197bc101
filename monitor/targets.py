"""Which servers are watched, how their metrics are read, and how comments are sent to them."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from contract import HOST, MODEL_VERSION, PROBABILITY, TEXT, BadInput, ToxicityError
from monitor.config import MonitorConfig
from monitor.series import ByVersion, door_totals_of, totals_of
from serve import control, probe
from serve.canary_backend import MONITOR_HEADER
from serve.client import requests_of, score_comments
from serve.metrics_door import BALANCER_METRICS
from serve.settings import MONITOR_FILE, Settings, read_settings, server_names
from serve.supervisor import Supervisor

_TIMEOUT_S = 10
_MOST_BYTES = 32 << 20
_BURST = 32
"""Comments of one request of the monitor's."""


@dataclass(frozen=True)
class MetricsTarget:
    """A server behind the door, or the door itself."""

    name: str
    url: str
    """Of its metrics."""


@dataclass(frozen=True)
class Watched:
    """What `toxicity monitor` looks at."""

    targets: tuple[MetricsTarget, ...]
    repository: Path
    url: str | None
    """HOST:PORT that scores."""
    sockets: tuple[Path, ...] = ()
    """Of the servers themselves, where the door asks for a key or speaks TLS."""
    page: Path | None = None
    """File that the page of these servers shows; None where their run folder is not known."""
    doors: tuple[MetricsTarget, ...] = ()
    """In front of the servers: each turns requests away in overload, which no server counts."""


def watched(config: MonitorConfig) -> Watched:
    """By the flags, and for those left out by what serves from the run folder.

    Raises BadInput when neither says where the metrics are.
    """
    settings = read_settings(config.run_dir)
    if config.metrics_url:
        parts = {url: _parts(url) for url in config.metrics_url}
        targets = tuple(_target(url, its) for url, its in parts.items())
        names = [target.name for target in targets]
        if len(set(names)) < len(names):
            targets = tuple(MetricsTarget(target.url, target.url) for target in targets)
        doors = {f"{its.scheme}://{its.netloc}" for its in parts.values() if _behind_door(its)}
        repository = config.repository or Path("model_repository")
        return Watched(targets, repository, config.url, doors=tuple(map(_door, sorted(doors))))
    if settings is None:
        raise BadInput(
            f"{config.run_dir} has no running server, expected the run folder of one; run "
            "`make serve`, or give --run-dir or --metrics-url"
        )
    base = f"http://{HOST}:{settings.metrics_port}"
    path = "/{}/metrics" if settings.balanced else "/metrics"
    return Watched(
        tuple(MetricsTarget(name, base + path.format(name)) for name in server_names(settings)),
        config.repository or Path(settings.repository),
        config.url or f"{HOST}:{settings.http_port}",
        () if config.url else _sockets(config.run_dir, settings),
        config.run_dir / MONITOR_FILE,
        (_door(base),) if settings.balanced else (),
    )


def _door(base: str) -> MetricsTarget:
    """The door whose metrics are on a port."""
    return MetricsTarget(urlsplit(base).netloc, f"{base}{BALANCER_METRICS}?scope=frontend")


def _parts(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(
            f"--metrics-url is {url!r}, expected such as http://{HOST}:8002/replica-1/metrics; "
            "give the address of a server's metrics"
        )
    return parts


def _behind_door(parts: SplitResult) -> re.Match[str] | None:
    """Its replica's name: a server of its own has its metrics at /metrics (serve.metrics_door)."""
    return re.fullmatch(r"/([\w-]+)/metrics", parts.path)


def _target(url: str, parts: SplitResult) -> MetricsTarget:
    replica = _behind_door(parts)
    return MetricsTarget(replica[1] if replica else parts.netloc, url)


def _sockets(run_dir: Path, settings: Settings) -> tuple[Path, ...]:
    """Of a door that asks for a key or speaks TLS: what the monitor sends needs neither."""
    if not settings.balanced or not (settings.keys or settings.tls_certificate):
        return ()
    supervisor = Supervisor(run_dir)
    folders = map(supervisor.program_folder, server_names(settings))
    return tuple(folder / control.HTTP_SOCKET for folder in folders)


def read_metrics(target: MetricsTarget) -> ByVersion:
    """Totals of a server now. Raises OSError when it gives none."""
    return _read(target, totals_of)


def read_door(target: MetricsTarget) -> ByVersion:
    """Totals of a door now. Raises OSError when it gives none."""
    return _read(target, door_totals_of)


def _read(target: MetricsTarget, totals: Callable[[str], ByVersion]) -> ByVersion:
    try:
        with urllib.request.urlopen(target.url, timeout=_TIMEOUT_S) as answer:
            return totals(answer.read(_MOST_BYTES).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        raise OSError(f"{target.url} answers with status {error.code}") from error
    except (HTTPException, ValueError) as error:
        raise OSError(f"{target.url} gives no metrics that can be read") from error


# --- Comments through the live server ----------------------------------------------------
def send(where: Watched, texts: Sequence[str], rate: float) -> Iterator[tuple[float, str]]:
    """Score and version of each comment in its order, at most `rate` comments a second.

    Raises ToxicityError when the server is not there or refuses.
    """
    burst = max(1, min(_BURST, int(rate)))
    sockets = cycle(where.sockets)
    due = time.monotonic()
    for first in range(0, len(texts), burst):
        time.sleep(max(0.0, due - time.monotonic()))
        part = texts[first : first + burst]
        due = time.monotonic() + len(part) / rate
        if where.sockets:
            yield from _by_socket(next(sockets), part)
        else:
            answer = score_comments(part, url=where.url, headers={MONITOR_HEADER: "1"})
            yield from zip(answer.probability.tolist(), answer.model_version, strict=True)


def _by_socket(path: Path, texts: Sequence[str]) -> Iterator[tuple[float, str]]:
    for batch in requests_of([text.encode("utf-8", "replace") for text in texts]):
        data = [raw.decode() for raw in batch]
        tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(data), 1], "data": data}
        try:
            status, answer = control.ask(path, probe.INFER_PATH, {"inputs": [tensor]})
        except OSError as error:
            raise ToxicityError(f"the server at {path} does not answer ({error})") from error
        if status != 200:
            raise ToxicityError(f"the server at {path} refused with status {status}")
        outputs: dict[str, Any] = {one["name"]: one["data"] for one in answer["outputs"]}
        scores = np.asarray(outputs[PROBABILITY], np.float64).tolist()
        yield from zip(scores, map(str, outputs[MODEL_VERSION]), strict=True)
