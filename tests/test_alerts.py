"""Real Prometheus and Alertmanager over the real servers and the monitor: break it, see who calls.

The windows of deploy/prometheus/rules.yml are a sixtieth; everything else is as it is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyModel, free_port

from contract import HOST, ToxicityError
from monitor.rules import RULES, faster
from serve import triton
from serve.client import score_comments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FASTER = 60
PATIENCE_S = 180
STALE = "changes(toxicity_monitor_readings_total[5s])"
WORDS = "you are a kind awful person and the idea is not so bad , thanks for your work".split()
BATCH = 64
"""Comments of a request. There are few requests, so that no alert of latency can come of how busy
the machine of the tests is: those need 300 in a minute, an hour of the true rules."""


@dataclass
class Traffic:
    """What the clients send, until a test changes it."""

    urls: list[str]
    draw: Callable[[np.random.Generator], list[str]]
    done: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        rng = np.random.default_rng(0)
        while not self.done.wait(0.5):
            for url in list(self.urls):
                with contextlib.suppress(ToxicityError):
                    score_comments(self.draw(rng), url=url)


def usual(rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(BATCH)]


@dataclass
class Stack:
    """All that runs."""

    folder: Path
    servers: list[triton.ServeConfig]
    traffic: Traffic
    alertmanager: str
    labels: Path
    notified: list[tuple[str, str]]
    """Path of the webhook and name of the alert."""

    def alerts(self) -> set[str]:
        url = f"{self.alertmanager}/api/v2/alerts?active=true"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return {one["labels"]["alertname"] for one in json.load(answer)}

    def wait_for(self, *names: str) -> None:
        """Until exactly these alerts are there. Any other one on the way fails at once."""
        end = time.monotonic() + PATIENCE_S
        before = self.alerts()
        while (now := self.alerts()) != set(names):
            assert now <= before | set(names), f"{now} on the way to {names}"
            assert time.monotonic() < end, f"{now}, not {names}; {self.last_reading()}"
            time.sleep(0.5)
        time.sleep(5)  # nobody else calls a little later
        assert self.alerts() == set(names)

    def last_reading(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / "monitor" / "monitor.json").read_text("utf-8"))
            return found["alarms"], found["errors"]
        return "no reading"


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield
        assert process.poll() is None, log.read_text("utf-8")
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < end, url
            time.sleep(0.2)


@contextlib.contextmanager
def webhook(notified: list[tuple[str, str]]) -> Iterator[int]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            notified.extend((self.path, one["labels"]["alertname"]) for one in body["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, free_port()), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_configs(folder: Path, stack: dict[str, Any]) -> None:
    """The project's own files, with the addresses and the hurry of this test."""
    rules = faster(RULES.read_text("utf-8"), FASTER)
    # A monitor that shares two cores with all of this may take more than five seconds.
    assert rules.count(STALE) == 1
    (folder / "rules.yml").write_text(rules.replace(STALE, STALE.replace("5s", "60s")))
    own = (RULES.parent / "alertmanager.yml").read_text("utf-8")
    own = own.replace("127.0.0.1:9999", f"{HOST}:{stack['webhook']}")
    own = own.replace("group_wait: 30s", "group_wait: 1s").replace("interval: 5m", "interval: 1s")
    (folder / "alertmanager.yml").write_text(own)
    own = (RULES.parent / "prometheus.yml").read_text("utf-8")
    own = own.replace("15s", "1s").replace("127.0.0.1:9093", f"{HOST}:{stack['alertmanager']}")
    own = own.replace("127.0.0.1:8003", f"{HOST}:{stack['monitor']}")
    replicas = "".join(
        f'      - targets: ["{HOST}:{server.metrics_port}"]\n'
        f"        labels: {{replica: replica-{number}}}\n"
        for number, server in enumerate(stack["servers"], 1)
    )
    block = r"      - targets: \[\"127.0.0.1:8002\"\]\n        labels: .*\n"
    own, found = re.subn(block, replicas, own)
    assert found == 1
    own, found = re.subn(r"  - job_name: toxicity-balancer\n(?:    .*\n)+", "", own)
    assert found == 1
    (folder / "prometheus.yml").write_text(own)


@pytest.fixture
def stack(
    tmp_path: Path,
    tiny_model: TinyModel,
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> Iterator[Stack]:
    """Two servers with a repository each, load, monitor, Prometheus, Alertmanager."""
    for tool in ("prometheus", "prometheus-alertmanager"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    servers = []
    for number in (1, 2):
        tiny_model.publish(tmp_path / f"repository-{number}")
        servers.append(make_server_config(tmp_path / f"repository-{number}"))
        triton.start(servers[-1])
    urls = [f"{HOST}:{server.http_port}" for server in servers]
    traffic = Traffic(urls, usual)
    labels = tmp_path / "labels.jsonl"
    labels.touch()
    notified: list[tuple[str, str]] = []
    ports = {name: free_port() for name in ("prometheus", "alertmanager", "monitor")}
    with contextlib.ExitStack() as running_now:
        ports["webhook"] = running_now.enter_context(webhook(notified))
        write_configs(tmp_path, {**ports, "servers": servers})
        sender = threading.Thread(target=traffic.send)
        sender.start()
        running_now.callback(sender.join)
        running_now.callback(traffic.done.set)
        start = lambda name, *command: running_now.enter_context(  # noqa: E731
            running(list(command), tmp_path / f"{name}.log")
        )
        start(
            *("monitor", sys.executable, "-m", "monitor", "--port", str(ports["monitor"])),
            *("--metrics-url", *(f"http://{HOST}:{one.metrics_port}/metrics" for one in servers)),
            *("--url", urls[0], "--repository", str(servers[0].repository), "--every-s", "1"),
            *("--windows-s", "15", "--reference", "traffic", "--reference-comments", "1500"),
            *(
                "--least-comments",
                "400",
                "--labels",
                str(labels),
                "--out",
                str(tmp_path / "monitor"),
            ),
        )
        answers(f"http://{HOST}:{ports['monitor']}/metrics")
        start(
            *("alertmanager", "prometheus-alertmanager", "--cluster.listen-address="),
            *("--config.file", str(tmp_path / "alertmanager.yml")),
            *("--storage.path", str(tmp_path / "alertmanager")),
            *("--web.listen-address", f"{HOST}:{ports['alertmanager']}"),
        )
        start(
            *("prometheus", "prometheus", "--config.file", str(tmp_path / "prometheus.yml")),
            *("--storage.tsdb.path", str(tmp_path / "prometheus")),
            *("--web.listen-address", f"{HOST}:{ports['prometheus']}"),
        )
        alertmanager = f"http://{HOST}:{ports['alertmanager']}"
        answers(f"{alertmanager}/-/ready")
        answers(f"http://{HOST}:{ports['prometheus']}/-/ready")
        yield Stack(tmp_path, servers, traffic, alertmanager, labels, notified)


def labelled(toxic: Callable[[float], int]) -> str:
    scores = np.linspace(0.05, 0.95, 400).round(3).tolist()
    rows = [
        {"id": row, "score": score, "version": 1, "label": toxic(score)}
        for row, score in enumerate(scores)
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.timeout(900)
def test_what_breaks_calls_the_right_one_and_nobody_else(
    stack: Stack, other_model: TinyModel
) -> None:
    rng = np.random.default_rng(0)
    time.sleep(15)  # of usual traffic
    stack.wait_for()

    with stack.labels.open("a") as file:  # labels that disagree, then are corrected
        file.write(labelled(lambda score: int(score < 0.5)))
    stack.wait_for("ToxicityMiscalibrated")
    with stack.labels.open("a") as file:
        file.write(labelled(lambda score: int(rng.random() < score)))
    stack.wait_for()

    _, second = stack.servers  # a version that only one replica took
    other_model.publish(second.repository)
    triton.start(second)
    stack.wait_for("ToxicityVersionsDiffer")

    server = triton.running(second)
    assert server is not None
    stack.traffic.urls.pop()
    os.kill(server.pid, signal.SIGKILL)
    stack.wait_for("ToxicityReplicaDown")
    assert set(stack.notified) == {
        ("/ticket", "ToxicityMiscalibrated"),
        ("/ticket", "ToxicityVersionsDiffer"),
        ("/page", "ToxicityReplicaDown"),
    }


@pytest.mark.timeout(600)
def test_shifted_traffic_is_told(stack: Stack) -> None:
    """The same words and lengths as before, but the comments that score highest."""
    url = stack.traffic.urls[0]
    with urllib.request.urlopen(f"http://{HOST}:{stack.servers[0].metrics_port}/metrics") as answer:
        if "toxicity_score_bucket" not in answer.read().decode():
            pytest.skip("the server counts no scores yet")
    time.sleep(20)
    stack.wait_for()
    rng = np.random.default_rng(1)
    texts = [text for _ in range(10) for text in usual(rng)]
    order = np.argsort(score_comments(texts, url=url).probability)
    highest = [texts[row] for row in order[-BATCH:]]
    stack.traffic.draw = lambda _: highest
    stack.wait_for("ToxicityScoreDrift")
    stack.traffic.draw = usual
    stack.wait_for()
