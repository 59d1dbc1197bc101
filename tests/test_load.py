"""The open loop: latencies from the intended time, a fair split of the rate, a check of itself."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.traffic.arrivals import HOT_COMMENTS, comment, hot_rows, rows, self_check, send_times
from bench.traffic.comments import SYNTHETIC
from contract import HOST, MODEL_VERSION, PROBABILITY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STALL_S = 0.2
ANSWER = json.dumps(
    {"outputs": [{"name": PROBABILITY, "data": [0.5]}, {"name": MODEL_VERSION, "data": ["1"]}]}
).encode()


class StallingServer(ThreadingHTTPServer):
    """Answers at once, but for one stall of all requests a second after the first."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.lock = threading.Lock()
        self.stall_at = 0.0
        self.stalled = False
        self.bodies: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StallingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.stall_at = self.server.stall_at or time.monotonic() + 1
            if not self.server.stalled and time.monotonic() > self.server.stall_at:
                self.server.stalled = True
                time.sleep(STALL_S)
        # One write: two would wait for each other's acknowledgement.
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
        self.wfile.write(head.encode() + ANSWER)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stalling() -> Iterator[StallingServer]:
    with StallingServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def load(server: StallingServer, record: Path, *flags: str) -> list[dict[str, Any]]:
    """What each Locust process that sent something measured, in 3 s."""
    command = [sys.executable, "-m", "locust", "-f", "bench/load.py", "HttpCommentUser"]
    command += ["--headless", "--only-summary", "-t", "3s", "--stop-timeout", "30"]
    command += ["--host", f"http://{HOST}:{server.server_port}", "--comments", SYNTHETIC]
    done = subprocess.run(
        [*command, "--record", str(record), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in done.stderr, done.stderr
    parts = [dict(np.load(path, allow_pickle=False)) for path in record.glob("*.npz")]
    return [part for part in parts if len(part["latencies_ms"]) + len(part["failed_ms"])]


def test_open_loop_reports_a_stall_for_every_send_in_it(
    stalling: StallingServer, tmp_path: Path
) -> None:
    (part,) = load(stalling, tmp_path, "-u", "1", "--rate", "100", "--arrivals", "constant")
    assert stalling.stalled
    assert json.loads(str(part["errors"])) == {}
    # 20 were due in the stall of 200 ms; the wait of the k-th is 200 - 10 k ms.
    assert (part["latencies_ms"] > 50).sum() >= 14
    assert (part["latencies_ms"] > 100).sum() >= 9
    assert 270 <= len(part["latencies_ms"]) <= 301
    # Nowhere rounded: whole ms, or hundredths of them, would collide.
    assert len(np.unique(part["latencies_ms"])) > 0.99 * len(part["latencies_ms"])
    assert len({bytes(body) for body in stalling.bodies}) == len(stalling.bodies)


def test_closed_loop_reports_a_stall_once_a_user(stalling: StallingServer, tmp_path: Path) -> None:
    (part,) = load(stalling, tmp_path, "-u", "1")
    assert stalling.stalled
    assert 1 <= (part["latencies_ms"] > 100).sum() <= 3
    assert len(part["lags_ms"]) == 0


def test_rate_is_split_over_workers(stalling: StallingServer, tmp_path: Path) -> None:
    flags = ["-u", "2", "--rate", "60", "--arrivals", "constant", "--processes", "2", "-r", "2"]
    parts = load(stalling, tmp_path, *flags)
    assert len(parts) == 2
    for part in parts:
        intended = np.sort(part["sent_at_s"])
        assert np.isclose(np.median(np.diff(intended)), 1 / 30, rtol=0.05)
    assert len(set(stalling.bodies)) == len(stalling.bodies)  # no comment sent by both


def test_an_impossible_rate_is_invalid(stalling: StallingServer, tmp_path: Path) -> None:
    flags = ["-u", "1", "--rate", "200000", "--max-in-flight", "50"]
    (part,) = load(stalling, tmp_path, *flags)
    errors = json.loads(str(part["errors"]))
    assert errors["generator full"] == (len(part["failed_ms"])) > 0
    busy = float(part["cpu_s"] / (part["ended"] - part["began"]))
    check = self_check(part["lags_ms"], busy, int(part["missed"]), errors["generator full"])
    assert check["missed"] > 0
    assert any("lag" in reason for reason in check["invalid"])
    assert any("generator full" in reason for reason in check["invalid"])


@pytest.mark.parametrize(
    ("lag_ms", "busy", "missed", "full", "valid"),
    [
        (1, 0.5, 0, 0, True),
        (6, 0.5, 0, 0, False),
        (1, 0.95, 0, 0, False),
        (1, 0.5, 50, 0, False),
        (1, 0.5, 0, 1, False),
    ],
)
def test_self_check(lag_ms: float, busy: float, missed: int, full: int, valid: bool) -> None:
    assert (not self_check(np.full(1000, lag_ms), busy, missed, full)["invalid"]) is valid


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_share_of_repeated_comments(share: float) -> None:
    rng = np.random.default_rng(0)
    sent = list(itertools.islice(rows(5000, 0, 1, share, rng), 4000))
    counts = Counter(sent)
    hot = [row for row in sent if row < HOT_COMMENTS] if share else []
    assert abs(len(hot) / len(sent) - share) < 0.03
    assert all(count == 1 for row, count in counts.items() if not share or row >= HOT_COMMENTS)
    if share:  # Zipf: the first twice as often as the second, within the noise
        assert 1.5 < counts[0] / counts[1] < 2.7


def test_sources_share_no_comment_and_a_second_pass_repeats_none() -> None:
    rng = np.random.default_rng(0)
    sent = [list(itertools.islice(rows(900, k, 3, 0.0, rng), 900)) for k in range(3)]
    assert sorted(itertools.chain(*sent)) == list(range(2700))
    texts = [" ".join(f"{n}-{i}" for n in range(1 + i % 40)) for i in range(900)]
    numbers = itertools.islice(rows(900, 0, 1, 0.5, rng), 9000)
    hot = hot_rows(900, 0.5)
    fresh = [comment(texts, hot, number) for number in numbers if number >= hot]
    assert len(fresh) > 4000
    assert len(set(fresh)) > 0.99 * len(fresh)
    assert np.isclose(np.mean([len(t.split()) for t in fresh]), 20.5, atol=1)
    later = {comment(texts, 0, number, first_pass=7) for number in range(900)}
    assert len(later & set(texts)) < 0.1 * len(later)


def test_send_times_have_the_rate() -> None:
    rng = np.random.default_rng(0)
    constant = np.array(list(itertools.islice(send_times(50, "constant", rng, 7.0), 100)))
    assert np.allclose(np.diff(constant), 0.02)
    assert 7.0 <= constant[0] < 7.02
    gaps = np.diff(list(itertools.islice(send_times(50, "poisson", rng, 7.0), 20000)))
    assert np.isclose(gaps.mean(), 0.02, rtol=0.05)
    assert np.isclose(gaps.std(), 0.02, rtol=0.05)
