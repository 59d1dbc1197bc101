"""Real Prometheus and Alertmanager for tests: what looks at servers, and whom it calls.

The windows of deploy/prometheus/rules.yml are a sixtieth; everything else is as it is installed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

from bench.monitor.programs import answers, running
from contract import HOST
from monitor.prometheus import ask_prometheus
from monitor.rules import RULES, faster

PATIENCE_S = 180
WORDS = "you are a kind awful person and the idea is not so bad , thanks for your work".split()
_FASTER = 60
_STALE = "changes(toxicity_monitor_readings_total[5s])"


@dataclass
class Alerting:
    """What looks at servers and calls."""

    folder: Path
    prometheus: str
    alertmanager: str
    notified: list[tuple[str, str]]
    """Path of the webhook and name of the alert."""
    monitor: int
    """Process."""

    def alerts(self) -> set[str]:
        """Without those of which a page has told already."""
        url = f"{self.alertmanager}/api/v2/alerts?active=true&inhibited=false"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return {one["labels"]["alertname"] for one in json.load(answer)}

    def pages(self) -> set[str]:
        """What woke somebody up to now."""
        return {name for path, name in self.notified if path == "/page"}

    def value(self, expression: str) -> float:
        """Of the first sample of a query; 0 where there is none."""
        found = ask_prometheus(self.prometheus, "query", expression)
        return float(found[0]["value"][1]) if found else 0.0

    def wait_for(self, *names: str, perhaps: tuple[str, ...] = ()) -> None:
        """Until exactly these alerts are there. Any other one but `perhaps` fails at once."""
        end = time.monotonic() + PATIENCE_S
        may = {*names, *perhaps}
        before = self.alerts()
        while not set(names) <= (now := self.alerts()) <= may:
            assert now <= before | may, f"{now} on the way to {names}; {self.last_reading()}"
            assert time.monotonic() < end, f"{now}, not {names}; {self.last_reading()}"
            time.sleep(0.5)
        time.sleep(5)  # nobody else calls a little later
        assert set(names) <= self.alerts() <= may

    def last_reading(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / "monitor" / "monitor.json").read_text("utf-8"))
            return found["alarms"], found["errors"]
        return "no reading"


def until(condition: Callable[[], bool]) -> None:
    """Wait; fails after `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


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
    rules = faster(RULES.read_text("utf-8"), _FASTER)
    # A monitor that shares two cores with all of this may take more than five seconds.
    patient = {_STALE: _STALE.replace("5s", "60s"), "for: 5s": "for: 60s"}
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
        monitor_pid = start(
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
        yield Alerting(folder, urls["prometheus"], urls["alertmanager"], notified, monitor_pid)
