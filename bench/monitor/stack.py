"""A server behind haproxy with the monitor and Prometheus over it, and comments that people send.

For the picture of the dashboard (`bench.monitor.dashboard`) and the healthy hour
(`bench.monitor.healthy`).
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from bench.monitor.programs import answers, running, running_prometheus
from bench.serving.servers import free_ports, serving
from contract import HOST, BadInput
from monitor.rules import RULES
from serve.app.labels import LabelFile
from storage.files import write_atomically

Asked = TypeVar("Asked")
Labelled = tuple[Sequence[str], np.ndarray]
"""Comments, and float32 [n], 1 for a toxic one."""
_CLIENTS, _CURATED = 4, 400
"""Requests at once; comments of the curated set that is made where none is given."""
_LABELLED = 0.1
"""Share of the comments that somebody labels."""


@dataclass(frozen=True)
class WatchedServer:
    """What runs, and where."""

    url: str
    """HOST:PORT that scores."""
    prometheus: str
    labels: LabelFile
    """The monitor's."""
    monitor_folder: Path


@contextlib.contextmanager
def watched_server(
    repository: Path,
    comments: Labelled,
    curated: Sequence[str],
    *monitor: object,
    scrape_s: float | None = None,
) -> Iterator[WatchedServer]:
    """All of it until the end of the block; `monitor` are flags.

    Without curated sets there is one of the comments. Prometheus has the rules as they are
    installed, and reads every `scrape_s` seconds, or as often as its example does.
    Raises BadInput without Prometheus, ToxicityError when a part does not start.
    """
    if not shutil.which("prometheus"):
        raise BadInput(
            "prometheus is not installed, expected it on PATH; run `apt-get install prometheus`"
        )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="watched-")))
        served = stack.enter_context(serving(lambda _: repository, through_door=True))
        monitor_port, prometheus_port = free_ports(2)
        labels = folder / "labels.csv"
        command = [sys.executable, "-m", "monitor", "--run-dir", served.config.run_dir]
        command += ["--port", monitor_port, "--labels", labels, "--out", folder / "monitor"]
        command += ["--curated", *(curated or (_by_length(comments, folder),)), *monitor]
        stack.enter_context(running(command, folder / "monitor.log"))
        settings = _settings(folder, served.config.metrics_port, monitor_port, scrape_s)
        address = stack.enter_context(running_prometheus(settings, folder, prometheus_port))
        answers(f"http://{HOST}:{monitor_port}/metrics", folder)
        url = f"{HOST}:{served.config.http_port}"
        yield WatchedServer(url, address, LabelFile(labels), folder / "monitor")


def _by_length(comments: Labelled, folder: Path) -> Path:
    """Some of the comments, the shorter half of them as one group and the longer as another."""
    import pandas as pd

    texts, labels = (part[:_CURATED] for part in comments)
    lengths = np.array([len(text) for text in texts])
    groups = np.where(lengths < np.median(lengths), "short", "long")
    table = {"text": texts, "label": labels, "group": groups}
    path = folder / "lengths.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def _settings(folder: Path, metrics: int, monitor: int, scrape_s: float | None) -> Path:
    """The project's example for Prometheus with these ports, and nobody to call."""
    document = _example()
    del document["alerting"]
    if scrape_s is not None:
        document["global"] = dict.fromkeys(document["global"], f"{scrape_s:g}s")
    document["rule_files"] = [str(RULES)]
    for job in document["scrape_configs"]:
        port = monitor if job["job_name"] == "toxicity-monitor" else metrics
        for block in job["static_configs"]:
            block["targets"] = [f"{HOST}:{port}"]
    path = folder / "prometheus.yml"
    write_atomically(path, yaml.safe_dump(document))
    return path


def evaluation_s() -> float:
    """Seconds from one evaluation of the rules to the next, in the project's example."""
    return float(_example()["global"]["evaluation_interval"].removesuffix("s"))


def _example() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((RULES.parent / "prometheus.yml").read_text("utf-8"))
    return document


def wave(rate: float, progress: float) -> float:
    """A rate that rises and falls twice; `rate` in the mean, `progress` from 0 to 1."""
    return rate * (1 + 0.7 * math.sin(4 * math.pi * progress))


def send_comments(
    server: WatchedServer,
    comments: Labelled,
    seconds: float,
    rate: Callable[[float], float],
    draw: Callable[[np.random.Generator, float], np.ndarray],
    ask: Callable[[list[str]], Asked],
    seed: int,
) -> list[Asked]:
    """Requests in a Poisson process, some of their comments with a label a little later.

    `rate` is requests a second and `draw` the rows of a request, both of the seconds passed; `ask`
    sends one, in a thread. What it gave for each; raises what it raises.
    """
    asked: list[Future[Asked]] = []
    texts, labels = comments
    rng = np.random.default_rng(seed)
    began_s = due_s = time.monotonic()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        while (passed_s := due_s - began_s) < seconds:
            chosen = draw(rng, passed_s)
            asked.append(clients.submit(ask, [texts[row] for row in chosen]))
            for row in chosen[rng.random(len(chosen)) < _LABELLED]:
                server.labels.append(texts[row], float(labels[row]))
            due_s += rng.exponential(1 / rate(passed_s))
            time.sleep(max(0.0, due_s - time.monotonic()))
    return [one.result() for one in asked]
