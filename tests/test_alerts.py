"""Real Prometheus and Alertmanager over the real servers and the monitor: break it, see who calls.

The windows of deploy/prometheus/rules.yml are a sixtieth, and behind haproxy a request is late from
half a second on; everything else is as it is installed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_door import ask, make_config, serving
from conftest import TinyModel, free_port, make_tiny_model

from bench.monitor.programs import answers, running
from contract import HOST, TEXT, ToxicityError
from monitor.rules import RULES, faster
from serve import door, haproxy, triton
from serve.client import score_comments
from serve.metrics_door import TURNED_AWAY
from serve.probe import INFER_PATH

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
class Alerting:
    """What looks at servers and calls."""

    folder: Path
    prometheus: str
    alertmanager: str
    notified: list[tuple[str, str]]
    """Path of the webhook and name of the alert."""

    def alerts(self) -> set[str]:
        """Without those of which a page has told already."""
        url = f"{self.alertmanager}/api/v2/alerts?active=true&inhibited=false"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return {one["labels"]["alertname"] for one in json.load(answer)}

    def pages(self) -> set[str]:
        """What woke somebody up to now."""
        return {name for path, name in self.notified if path == "/page"}

    def value(self, query: str) -> float:
        """Of the first sample of a query; 0 where there is none."""
        asked = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{self.prometheus}/api/v1/query?{asked}") as answer:
            found = json.load(answer)["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def wait_for(self, *names: str, perhaps: str = "") -> None:
        """Until exactly these alerts are there. Any other one but `perhaps` fails at once."""
        end = time.monotonic() + PATIENCE_S
        may = {*names, *filter(None, [perhaps])}
        before = self.alerts()
        while not set(names) <= (now := self.alerts()) <= may:
            assert now <= before | may, f"{now} on the way to {names}"
            assert time.monotonic() < end, f"{now}, not {names}; {self.last_reading()}"
            time.sleep(0.5)
        time.sleep(5)  # nobody else calls a little later
        assert set(names) <= self.alerts() <= may

    def last_reading(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / "monitor" / "monitor.json").read_text("utf-8"))
            return found["alarms"], found["errors"]
        return "no reading"


@dataclass
class Stack(Alerting):
    """All that runs."""

    servers: list[triton.ServeConfig]
    traffic: Traffic
    labels: Path


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


def write_configs(
    folder: Path, ports: dict[str, int], late: str, replicas: Callable[[str], str]
) -> None:
    """The project's own files, with the addresses and the hurry of this test."""
    rules = faster(RULES.read_text("utf-8"), FASTER)
    # A monitor that shares two cores with all of this may take more than five seconds.
    patient = {STALE: STALE.replace("5s", "60s"), "for: 5s": "for: 60s"}
    assert all(rules.count(hasty) == 1 for hasty in patient) and rules.count('le="0.05"') == 4
    for hasty, words in {**patient, 'le="0.05"': f'le="{late}"'}.items():
        rules = rules.replace(hasty, words)
    (folder / "rules.yml").write_text(rules)
    own = (RULES.parent / "alertmanager.yml").read_text("utf-8")
    own = own.replace("127.0.0.1:9999", f"{HOST}:{ports['webhook']}")
    own = own.replace("group_wait: 30s", "group_wait: 1s").replace("interval: 5m", "interval: 1s")
    (folder / "alertmanager.yml").write_text(own)
    own = (RULES.parent / "prometheus.yml").read_text("utf-8")
    own = own.replace("15s", "1s").replace("127.0.0.1:9093", f"{HOST}:{ports['alertmanager']}")
    own = own.replace("127.0.0.1:8003", f"{HOST}:{ports['monitor']}")
    (folder / "prometheus.yml").write_text(replicas(own))


@contextlib.contextmanager
def alerting(
    folder: Path, replicas: Callable[[str], str], *monitor: str, late: str = "0.05"
) -> Iterator[Alerting]:
    """Monitor, Alertmanager and Prometheus.

    `replicas` writes the addresses of the servers into the example of Prometheus' file, `monitor`
    are flags, and a request is late from `late` seconds on.
    """
    for tool in ("prometheus", "prometheus-alertmanager"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    notified: list[tuple[str, str]] = []
    ports = {name: free_port() for name in ("prometheus", "alertmanager", "monitor")}
    urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    with contextlib.ExitStack() as running_now:
        ports["webhook"] = running_now.enter_context(webhook(notified))
        write_configs(folder, ports, late, replicas)
        start = lambda name, *command: running_now.enter_context(  # noqa: E731
            running(command, folder / f"{name}.log")
        )
        wait_for = lambda name, path, words="": answers(  # noqa: E731
            urls[name] + path, folder, words, PATIENCE_S
        )
        start(
            *("monitor", sys.executable, "-m", "monitor", "--port", str(ports["monitor"])),
            *("--every-s", "1", "--reference", "traffic", "--out", str(folder / "monitor")),
            *monitor,
        )
        wait_for("monitor", "/metrics", "toxicity_monitor_readings_total")
        start(
            *("alertmanager", "prometheus-alertmanager", "--cluster.listen-address="),
            *("--config.file", str(folder / "alertmanager.yml")),
            *("--storage.path", str(folder / "alertmanager")),
            *("--web.listen-address", urls["alertmanager"].removeprefix("http://")),
        )
        start(
            *("prometheus", "prometheus", "--config.file", str(folder / "prometheus.yml")),
            *("--storage.tsdb.path", str(folder / "prometheus")),
            *("--web.listen-address", urls["prometheus"].removeprefix("http://")),
        )
        wait_for("alertmanager", "/-/ready")
        wait_for("prometheus", "/-/ready")
        yield Alerting(folder, urls["prometheus"], urls["alertmanager"], notified)


@pytest.fixture
def stack(
    tmp_path: Path,
    tiny_model: TinyModel,
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> Iterator[Stack]:
    """Two servers with a repository each, load, monitor, Prometheus, Alertmanager."""
    servers = []
    for number in (1, 2):
        tiny_model.publish(tmp_path / f"repository-{number}")
        servers.append(make_server_config(tmp_path / f"repository-{number}"))
        triton.start(servers[-1])

    def replicas(example: str) -> str:
        """Servers of their own, with no haproxy in front."""
        blocks = "".join(
            f'      - targets: ["{HOST}:{server.metrics_port}"]\n'
            f"        labels: {{replica: replica-{number}}}\n"
            for number, server in enumerate(servers, 1)
        )
        block = r"      - targets: \[\"127.0.0.1:8002\"\]\n        labels: .*\n"
        example, found = re.subn(block, blocks, example)
        assert found == 1
        example, found = re.subn(r"  - job_name: toxicity-balancer\n(?:    .*\n)+", "", example)
        assert found == 1
        return example

    urls = [f"{HOST}:{server.http_port}" for server in servers]
    traffic = Traffic(urls, usual)
    labels = tmp_path / "labels.jsonl"
    labels.touch()
    monitor = (
        *("--metrics-url", *(f"http://{HOST}:{one.metrics_port}/metrics" for one in servers)),
        *("--url", urls[0], "--repository", str(servers[0].repository), "--windows-s", "15"),
        *("--reference-comments", "1500", "--least-comments", "400", "--labels", str(labels)),
    )
    with contextlib.ExitStack() as running_now:
        sender = threading.Thread(target=traffic.send)
        sender.start()
        running_now.callback(sender.join)
        running_now.callback(traffic.done.set)
        found = running_now.enter_context(alerting(tmp_path, replicas, *monitor))
        yield Stack(**vars(found), servers=servers, traffic=traffic, labels=labels)


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


# --- Behind haproxy ----------------------------------------------------------------------
LATE_S, PULSE_S = 0.5, 0.7
"""From when on a request is late here: on a busy machine those of a server that is well may take
more than 50 ms. And for how long the server of a slow version stands still."""
FEW, MANY, EACH = 20, 192, 4
"""Clients at once: what the server scores at once, and many more; requests of each of those."""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[door.DoorConfig]:
    """A door before a model that long comments keep busy."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("alerts")
    model = make_tiny_model(folder / "model", seed=0, d_model=128, n_layers=2, max_len=256)
    model.publish(folder / "repository")
    with serving(make_config(folder / "run", folder / "repository")) as config:
        yield config


@pytest.fixture
def watched(opened: door.DoorConfig, tmp_path: Path) -> Iterator[Alerting]:
    """What looks at it, by the example's own jobs."""

    def replicas(example: str) -> str:
        assert example.count("127.0.0.1:8002") == 2
        return example.replace("127.0.0.1:8002", f"{HOST}:{opened.metrics_port}")

    monitor = ("--run-dir", str(opened.run_dir), "--windows-s", "60", "--least-comments", "300")
    with alerting(tmp_path, replicas, *monitor, late=f"{LATE_S:g}") as found:
        yield found


def statuses(
    config: door.DoorConfig, clients: int, comments: int, words: str = "", each: int = 1
) -> set[int]:
    """What clients at once get, of comments that no cache knows: their first words differ."""

    def comment() -> str:
        return " ".join(WORDS[int(digit)] for digit in f"{next(_numbers):06}") + words

    def status(_: int) -> int:
        texts = [comment() for _ in range(comments)]
        tensor = {"name": TEXT, "datatype": "BYTES", "shape": [comments, 1], "data": texts}
        return ask(config, INFER_PATH, {"inputs": [tensor]})[0]

    with ThreadPoolExecutor(clients) as pool:
        return set(pool.map(status, range(clients * each)))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


@contextlib.contextmanager
def repeated(act: Callable[[], object]) -> Iterator[None]:
    """Again and again meanwhile; what it raises is raised at the end."""
    done = threading.Event()

    def act_on() -> None:
        while not done.wait(0.2):
            act()

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act_on)
        try:
            yield
        finally:
            done.set()
        acting.result()


@pytest.mark.timeout(600)
def test_a_slow_version_calls_and_a_quick_one_does_not(
    opened: door.DoorConfig, watched: Alerting
) -> None:
    def asked() -> None:
        assert statuses(opened, FEW, 1) == {200}

    server = door.running(opened.run_dir)
    assert server is not None
    (replica,) = server.replicas

    def asked_while_it_stands_still() -> None:
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            goes_on = threading.Timer(PULSE_S, os.kill, (replica.pid, signal.SIGCONT))
            goes_on.start()
            asked()
            goes_on.join()
        finally:
            os.kill(replica.pid, signal.SIGCONT)

    with repeated(asked):
        until(lambda: watched.value("toxicity:requests:increase1h") > 300)  # enough to be judged
        watched.wait_for()
    with repeated(asked_while_it_stands_still):
        watched.wait_for("ToxicityLatencyBurnsFast")
    assert watched.pages() == {"ToxicityLatencyBurnsFast"}


@pytest.mark.timeout(600)
def test_what_the_door_turns_away_calls(opened: door.DoorConfig, watched: Alerting) -> None:
    """No server counts it. What is scored meanwhile may well be late."""

    def asked() -> None:
        assert statuses(opened, MANY, 24, " you" * 250, EACH) <= {200, 503}

    def most_of_it() -> bool:
        turned_away = watched.value(f'{TURNED_AWAY}{{proxy="http"}}')
        refused = watched.value("sum(toxicity_requests_refused_total)")
        return turned_away > refused

    watched.wait_for()
    late = "ToxicityLatencyBurnsFast"
    with repeated(asked):
        watched.wait_for("ToxicityRefusalsBurnFast", perhaps=late)
        until(most_of_it)
        until(lambda: watched.value('toxicity_monitor_alarm{check="refusals",version=""}') == 1)
    assert watched.value("toxicity_monitor_turned_away_requests") > 0
    assert {"ToxicityRefusalsBurnFast"} <= watched.pages() <= {"ToxicityRefusalsBurnFast", late}
