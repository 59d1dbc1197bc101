"""The open loop: a stall counts for every request due in it, and nothing is lost quietly."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.comments import SYNTHETIC
from contract import HOST, MODEL_VERSION, PROBABILITY
from serve import triton
from tests.test_bench import ROOT, bench, last_json, locust

STALL_S = 1.0
ANSWER = json.dumps(
    {"outputs": [{"name": PROBABILITY, "data": [0.5]}, {"name": MODEL_VERSION, "data": ["1"]}]}
).encode()


class Stalling(BaseHTTPRequestHandler):
    """Answers at once, but for one stall: requests of that time all wait for its end."""

    protocol_version = "HTTP/1.1"
    asked = 0
    running = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Stalling.asked += 1
        if Stalling.asked == 20:
            self.running.clear()
            threading.Timer(STALL_S, self.running.set).start()
        self.running.wait()
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 500


@pytest.fixture
def stalling() -> Iterator[str]:
    server = Server((HOST, 0), Stalling)
    Stalling.asked = 0
    Stalling.running.set()
    threading.Thread(target=server.serve_forever).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


def records(folder: Path, *flags: str) -> list[Any]:
    done = locust("--headless", "--record", str(folder), "--stop-timeout", "20", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return [np.load(path, allow_pickle=False) for path in folder.glob("*.npz")]


def test_a_stall_counts_for_every_request_that_was_due_in_it(stalling: str, tmp_path: Path) -> None:
    flags = ["HttpCommentUser", "-u", "1", "-t", "4s", "--host", stalling]
    (record,) = records(tmp_path, *flags, "--rate", "50", "--arrivals", "constant")
    latencies_s = record["latencies_ms"] / 1e3
    assert len(latencies_s) == len(record["lags_ms"]) == Stalling.asked
    # 50 were due in the stall; a closed loop of one user shows the one that met it.
    assert (latencies_s > STALL_S / 10).sum() >= 40
    assert latencies_s.max() >= STALL_S * 0.9


def test_the_closed_loop_hides_that_stall(stalling: str, tmp_path: Path) -> None:
    flags = ["HttpCommentUser", "-u", "1", "-t", "4s", "--host", stalling]
    (record,) = records(tmp_path, *flags)
    assert (record["latencies_ms"] / 1e3 >= STALL_S * 0.9).sum() == 1
    assert len(record["lags_ms"]) == 0


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_processes_share_the_rate(stalling: str, tmp_path: Path, arrivals: str) -> None:
    flags = ["HttpCommentUser", "-u", "2", "--processes", "2", "-t", "5s", "--host", stalling]
    parts = records(tmp_path, *flags, "--rate", "60", "--arrivals", arrivals)
    sent = [len(part["lags_ms"]) for part in parts if len(part["lags_ms"])]
    assert len(sent) == 2
    assert sum(sent) == Stalling.asked
    assert 200 <= sum(sent) <= 420  # 300 are due


def test_requests_beyond_those_in_flight_fail_and_are_counted(
    stalling: str, tmp_path: Path
) -> None:
    flags = ["HttpCommentUser", "-u", "1", "-t", "4s", "--host", stalling, "--rate", "3000"]
    done = locust("--headless", "--record", str(tmp_path), "--stop-timeout", "20", *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    (record,) = [np.load(path, allow_pickle=False) for path in tmp_path.glob("*.npz")]
    errors = json.loads(str(record["errors"]))
    assert any(reason.startswith("not sent: 1000 requests wait") for reason in errors), errors
    assert len(record["latencies_ms"]) + sum(errors.values()) == len(record["lags_ms"])


def test_every_protocol_against_the_real_server(served: triton.ServeConfig, tmp_path: Path) -> None:
    flags = ["--comments", SYNTHETIC, "--rate", "30", "--batch", "3", "--repeats", "0.5"]
    done = bench(served, tmp_path, *flags, "--protocols", "http", "http-binary", "grpc")
    document = last_json(done.stdout)
    assert document["closed_loop"] is False
    protocols = [result["protocol"] for result in document["results"]]
    assert protocols == ["http", "http-binary", "grpc"]
    for result in document["results"]:
        assert result["failures"] == 0, result["errors"]
        assert result["requests"] == result["server_requests"] > 0
        assert result["comments_per_s"] == pytest.approx(3 * result["rate_rps"], rel=0.01)
        assert result["latency_ms"]["max"] >= result["lag_ms"]["p50"] > 0


def test_a_generator_that_falls_behind_makes_the_run_invalid(
    served: triton.ServeConfig, tmp_path: Path
) -> None:
    flags = ["--comments", SYNTHETIC, "--rate", "30000", "--protocols", "http"]
    done = bench(served, tmp_path, *flags)
    assert done.returncode == 1
    broken = {name for name, bar in last_json(done.stdout)["bars"].items() if not bar["holds"]}
    assert "generator_lag_p99_ms" in broken


# In a process of its own: Locust patches the standard library for gevent.
DRAW = """
import json
from bench.load import _Comments
texts = [str(i) for i in range(1000)]
comments = _Comments(texts, batch=4, repeats=0.5, hot=100)
drawn = [next(comments) for _ in range(1000)]
comments.start(1)
print(json.dumps([drawn, [next(comments) for _ in range(100)]]))
"""


def test_repeats_come_from_the_hot_ones_and_the_others_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRAW], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, other = json.loads(done.stdout.splitlines()[-1])
    assert {len(batch) for batch in first} == {4}
    drawn = [text for batch in first for text in batch]
    hot = [text for text in drawn if text.isdigit() and int(text) < 100]
    cold = [text for text in drawn if text not in set(hot)]
    assert len(hot) / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert len(set(cold)) == len(cold)
    counts = sorted((hot.count(str(i)) for i in range(100)), reverse=True)
    assert hot.count("0") == counts[0] == pytest.approx(len(hot) / 5.19, rel=0.2)  # 1 / H(100)
    # Another process sends none of the same, but for the hot ones.
    assert not {text for batch in other for text in batch} & set(cold)
