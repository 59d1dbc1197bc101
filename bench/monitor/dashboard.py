"""The dashboard with real data: servers behind haproxy, load, the monitor, Prometheus, one picture.

    python -m bench.monitor.dashboard                  # docs/images/dashboard.png, in six minutes
    python -m bench.monitor.dashboard --comments comments.csv.gz --curated sets/

All of it is started here and ends with it. Comments come at a rate that rises and falls, some with
a label a little later, as moderators give them; in the last third only toxic ones come, which the
monitor is to see. Each query of each panel must find something (`monitor.picture`). No measurement:
what is drawn is how the dashboard looks, not how fast anything is.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.monitor.programs import answers, running, running_prometheus
from bench.report.result import LOAD, RESULT, SERVER, begin
from bench.serving.servers import free_ports, serving
from console.options import make_config, run
from contract import HOST, BadInput, ToxicityError
from monitor.picture import Panel, PictureConfig, draw
from monitor.rules import RULES
from serve.app.labels import LabelFile
from serve.client import score_comments
from storage.files import write_atomically
from train.data.load import Comments, load_comments

_SCRAPE_S, _CLIENTS = 2, 4
_MOST_COMMENTS, _CURATED = 8, 400
"""Of a request; of the curated set that is made where none is given."""
_LABELLED = 0.1
"""Share of the comments that somebody labels."""


@dataclass(frozen=True)
class DashboardBenchConfig:
    """Flags of `python -m bench.monitor.dashboard`."""

    repository: Path = Field(
        Path("model_repository"), description="repository that serves", json_schema_extra=SERVER
    )
    comments: str = Field(
        "synthetic:4000", description="labelled comments to send", json_schema_extra=LOAD
    )
    curated: tuple[str, ...] = Field(
        (),
        description="curated sets; else one of the comments, in groups by their lengths",
        json_schema_extra=LOAD,
    )
    rate: float = Field(
        20, gt=0, description="requests a second, in the mean", json_schema_extra=LOAD
    )
    minutes: float = Field(5, gt=0, description="minutes of load", json_schema_extra=LOAD)
    seed: int = Field(0, description="of what is drawn", json_schema_extra=LOAD)
    out: Path = Field(
        Path("docs/images/dashboard.png"), description="picture", json_schema_extra=RESULT
    )


def main() -> None:
    config = begin(DashboardBenchConfig, "bench.monitor.dashboard", "Draw the dashboard at work.")
    pictured(config)
    print(config.out)


def pictured(config: DashboardBenchConfig) -> list[Panel]:
    """Start all, send, draw; what was drawn.

    Raises BadInput without Prometheus, and where a query has no data.
    """
    if not shutil.which("prometheus"):
        raise BadInput(
            "prometheus is not installed, expected it on PATH; run `apt-get install prometheus`"
        )
    comments = load_comments(config.comments)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dashboard-")))
        served = stack.enter_context(serving(lambda _: config.repository, through_door=True))
        http, metrics = served.config.http_port, served.config.metrics_port
        monitor, prometheus = free_ports(2)
        labels = folder / "labels.csv"
        curated = config.curated or (str(_curated(comments, folder)),)
        command = [sys.executable, "-m", "monitor", "--run-dir", served.config.run_dir]
        command += ["--port", monitor, "--every-s", _SCRAPE_S, "--windows-s", 60, 600]
        command += ["--labels", labels, "--curated", *curated, "--curated-every-s", 60]
        command += ["--out", folder / "monitor"]
        stack.enter_context(running(command, folder / "monitor.log"))
        settings = _settings(folder, metrics, monitor)
        address = stack.enter_context(running_prometheus(settings, folder, prometheus))
        answers(f"http://{HOST}:{monitor}/metrics", folder)
        _send(config, comments, f"{HOST}:{http}", LabelFile(labels))
        wanted = {"prometheus": address, "minutes": config.minutes, "scrape_s": _SCRAPE_S}
        return draw(make_config(PictureConfig, {**wanted, "out": config.out}))


def _curated(comments: Comments, folder: Path) -> Path:
    """Some of the comments, the shorter half of them as one group and the longer as another."""
    import pandas as pd

    texts = list(itertools.islice(comments.texts, _CURATED))
    lengths = np.array([len(text) for text in texts])
    groups = np.where(lengths < np.median(lengths), "short", "long")
    table = {"text": texts, "label": comments.labels[: len(texts)], "group": groups}
    path = folder / "lengths.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def _settings(folder: Path, metrics: int, monitor: int) -> Path:
    """The project's example for Prometheus with these ports, and nobody to call."""
    document: dict[str, Any] = yaml.safe_load((RULES.parent / "prometheus.yml").read_text("utf-8"))
    del document["alerting"]
    document["global"] = dict.fromkeys(document["global"], f"{_SCRAPE_S}s")
    document["rule_files"] = [str(RULES)]
    for job in document["scrape_configs"]:
        port = monitor if job["job_name"] == "toxicity-monitor" else metrics
        for block in job["static_configs"]:
            block["targets"] = [f"{HOST}:{port}"]
    path = folder / "prometheus.yml"
    write_atomically(path, yaml.safe_dump(document))
    return path


# --- Load ----------------------------------------------------------------------------------
def _send(config: DashboardBenchConfig, comments: Comments, url: str, labels: LabelFile) -> None:
    """For the minutes, in two waves of the rate; only toxic comments in the last third."""
    rng = np.random.default_rng(config.seed)
    rows = np.arange(len(comments.texts))
    toxic = rows[comments.labels > 0]
    seconds = 60 * config.minutes
    began_s = due_s = time.monotonic()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        while (passed_s := due_s - began_s) < seconds:
            drawn_from = rows if passed_s < 2 / 3 * seconds else toxic
            chosen = rng.choice(drawn_from, rng.integers(1, _MOST_COMMENTS + 1))
            clients.submit(_ask, [comments.texts[row] for row in chosen], url)
            for row in chosen[rng.random(len(chosen)) < _LABELLED]:
                labels.append(comments.texts[row], float(comments.labels[row]))
            wave = 1 + 0.7 * math.sin(4 * math.pi * passed_s / seconds)
            due_s += rng.exponential(1 / (config.rate * wave))
            time.sleep(max(0.0, due_s - time.monotonic()))


def _ask(texts: list[str], url: str) -> None:
    with contextlib.suppress(ToxicityError):  # refused: the dashboard shows it
        score_comments(texts, url=url)


if __name__ == "__main__":
    run(main)
