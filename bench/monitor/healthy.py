"""An hour in which nothing is wrong: who calls? The real rules and monitor, at their own windows.

    python -m bench.monitor.healthy                        # an hour
    python -m bench.monitor.healthy --training runs/best/student --minutes 120

Servers behind haproxy, the monitor with its defaults, Prometheus with its example's settings, all
started here. Comments come at a rate that rises and falls, in requests of one to many, with labels
as moderators give them; some requests are mistakes, which the server refuses. The comments are the
training's own test split: others than the version was validated on are drift, and to be told, and
of those that it was trained on it knows more words. Every alert and alarm is a false one. A check
that never had enough to judge is not counted as silent. Prints a table; writes `healthy.json`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tqdm import tqdm

from bench.monitor.stack import WatchedServer, evaluation_s, send_comments, watched_server, wave
from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    begin,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from console.options import run
from contract import ToxicityError
from monitor.judge import CHECKS
from monitor.prometheus import ask_prometheus
from monitor.rules import RULES
from serve.client import score_comments
from serve.probe import INFER_PATH
from train.data.split import comments_of_run
from train.data.stored_texts import chosen

_SIZES = (1, 1, 1, 2, 4, 8, 32)
"""Comments of a request, each as often."""
_MISTAKES = 0.02
"""Share of the requests that are none."""
_LAST_READING_S = 130
"""Two readings of the monitor and one of Prometheus."""


@pydantic_dataclasses.dataclass(frozen=True)
class HealthyConfig(ResultOptions):
    """Flags of `python -m bench.monitor.healthy`."""

    repository: Path = Field(
        Path("model_repository"), description="repository that serves", json_schema_extra=SERVER
    )
    training: Path = Field(
        Path("runs/model"),
        description="run of the version that serves; its test split is sent",
        json_schema_extra=LOAD,
    )
    rate: float = Field(
        20, gt=0, description="requests a second, in the mean", json_schema_extra=LOAD
    )
    minutes: float = Field(60, gt=0, description="minutes of load", json_schema_extra=RUNS)
    seed: int = Field(0, description="of what is drawn", json_schema_extra=RUNS)


def main() -> None:
    config = begin(HealthyConfig, "bench.monitor.healthy", "False alarms of a healthy hour.")
    found = measure(config)
    report(config, found, table(found))


def measure(config: HealthyConfig) -> dict[str, Any]:
    """Watch it; the JSON document. Raises as `watched_server` does."""
    comments, split = comments_of_run(config.training)
    texts, labels = list(chosen(comments.texts, split.test)), comments.labels[split.test]
    seconds = 60 * config.minutes

    def rate(passed_s: float) -> float:
        progress.update(min(seconds, passed_s) - progress.n)
        return wave(config.rate, passed_s / seconds)

    def draw(rng: np.random.Generator, _: float) -> np.ndarray:
        if rng.random() < _MISTAKES:
            return np.empty(0, np.int64)
        return rng.integers(len(texts), size=rng.choice(_SIZES))

    with (
        tqdm(total=seconds, desc="healthy", unit="s") as progress,
        watched_server(config.repository, (texts, labels), ()) as server,
    ):
        ask = partial(_answer, server)
        answers = Counter(
            send_comments(server, (texts, labels), seconds, rate, draw, ask, config.seed)
        )
        time.sleep(min(_LAST_READING_S, seconds))
        watched_s = seconds + min(_LAST_READING_S, seconds)
        found = _told(server, watched_s)
    return document(
        "healthy",
        config,
        comments={**comments.source, "test_split": len(texts)},
        requests=dict(answers),
        **found,
        bars=bars(found, answers),
    )


def _answer(server: WatchedServer, texts: list[str]) -> str:
    """How a request ended; one without a comment is a mistake."""
    try:
        if texts:
            score_comments(texts, url=server.url)
            return "scored"
        connection = http.client.HTTPConnection(server.url, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", INFER_PATH, b'{"inputs": [')
            return "mistake refused" if connection.getresponse().status == 400 else "failed"
    except (ToxicityError, OSError, http.client.HTTPException):
        return "failed"


def _told(server: WatchedServer, seconds: float) -> dict[str, Any]:
    """Seconds that each alert was pending and firing, how often each check was an alarm."""
    rules = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    names = [rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule]
    window = f"[{seconds:.0f}s]"
    counted = _query(server, f"sum by (alertname, alertstate) (count_over_time(ALERTS{window}))")
    alerts = {name: {"pending": 0.0, "firing": 0.0} for name in names}
    interval_s = evaluation_s()
    for labels, value in counted:
        alerts[labels["alertname"]][labels["alertstate"]] = value * interval_s  # a sample each
    states = json.loads((server.monitor_folder / "monitor.json").read_text("utf-8"))
    worst = _query(server, f"max by (check) (max_over_time(toxicity_monitor_alarm{window}))")
    alarmed = {labels["check"]: bool(value) for labels, value in worst}
    checks: dict[str, str] = dict.fromkeys(CHECKS, "not judged")
    for one in states["checks"]:
        if one["state"] != "few":
            checks[one["check"]] = "silent"
    checks.update({check: "alarm" for check, alarm in alarmed.items() if alarm})
    late = _query(server, f"max_over_time(toxicity:late_requests:ratio_rate5m{window})")
    refused = _query(server, f"max_over_time(toxicity:refused_requests:ratio_rate5m{window})")
    return {
        "seconds": seconds,
        "evaluations": int(seconds / interval_s),
        "alerts_s": alerts,
        "checks": checks,
        "most_late_in_5m": _most(late),
        "most_refused_in_5m": _most(refused),
        "monitor_errors": states["errors"],
        "monitor_alarms": states["alarms"],
    }


def _query(server: WatchedServer, expression: str) -> list[tuple[Mapping[str, str], float]]:
    found = ask_prometheus(server.prometheus, "query", expression)
    return [(one["metric"], float(one["value"][1])) for one in found]


def _most(samples: list[tuple[Mapping[str, str], float]]) -> float | None:
    """None where there was no request."""
    return max((value for _, value in samples if math.isfinite(value)), default=None)


def bars(found: Mapping[str, Any], answers: Mapping[str, int]) -> Bars:
    """No alert, no alarm, nothing that was not judged, no request that went wrong."""
    checks = list(found["checks"].values())
    return {
        "alerts_fired": exactly(sum(one["firing"] > 0 for one in found["alerts_s"].values()), 0),
        "alarms_of_the_monitor": exactly(checks.count("alarm"), 0),
        "checks_not_judged": exactly(checks.count("not judged"), 0),
        "errors_of_the_monitor": exactly(len(found["monitor_errors"]), 0),
        "requests_failed": exactly(answers.get("failed", 0), 0),
    }


def table(document: Mapping[str, Any]) -> str:
    """For people."""
    lines = [["alert", "pending in s", "firing in s"]]
    for name, state in document["alerts_s"].items():
        lines.append([name, f"{state['pending']:.0f}", f"{state['firing']:.0f}"])
    checks = [["check of the monitor", ""], *map(list, document["checks"].items())]
    requests = ", ".join(f"{count:,} {how}" for how, count in document["requests"].items())
    return f"{aligned(lines)}\n\n{aligned(checks)}\n\nrequests: {requests}"


if __name__ == "__main__":
    run(main)
