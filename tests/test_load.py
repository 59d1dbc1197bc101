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

import msgpack
import numpy as np
import pytest
from conftest import free_port

from bench.traffic import records
from bench.traffic.arrivals import HOT_COMMENTS, comment, hot_rows, rows, self_check, send_times
from bench.traffic.comments import SYNTHETIC
from bench.traffic.counters import server_counters, settled
from contract import HOST, MODEL_VERSION, PROBABILITY
from serve import triton

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


def workers_apart(host: str, folder: Path, *flags: str) -> tuple[list[records.Record], str]:
    """Records of a master and two workers in folders of their own, and what the master said."""
    locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "bench/load.py"), "HttpCommentUser"]
    locust += ["--host", host, "--comments", SYNTHETIC]
    port = str(free_port())
    master = [*locust, "--master", "--master-bind-port", port, "--expect-workers", "2"]
    master += ["--headless", "--only-summary", "-t", "3s", "--stop-timeout", "30", "-u", "2"]
    master += ["-r", "2", "--record", str(folder), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = []
    try:
        for name in ("one", "other"):
            (folder / name).mkdir()
            worker = [*locust, "--worker", "--master-host", HOST, "--master-port", port]
            workers.append(subprocess.Popen(worker, cwd=folder / name, env=environment))
        done = subprocess.run(
            master, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
        )
        assert [worker.wait(60) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert "Traceback" not in done.stderr, done.stderr
    assert not [*(folder / "one").iterdir(), *(folder / "other").iterdir()]
    return records.read(folder), done.stderr


def test_a_master_says_what_its_workers_measured(stalling: StallingServer, tmp_path: Path) -> None:
    """Workers of their own folders, as on other machines; counts are those of the server."""
    host = f"http://{HOST}:{stalling.server_port}"
    found, stderr = workers_apart(host, tmp_path, "--rate", "60", "--arrivals", "constant")
    senders = [one for one in found if one["sends"]]
    assert (len(found), len(senders)) == (3, 2) and all(len(one["lags_ms"]) for one in senders)
    latencies_ms = records.joined(found, "latencies_ms")
    assert len(latencies_ms) == len(stalling.bodies) == len(set(stalling.bodies))
    assert len(records.joined(found, "lags_ms")) == len(latencies_ms)
    # Both stalled: what was due in the 200 ms is in the merged times of the two.
    assert all((one["latencies_ms"] > 50).sum() >= 2 for one in senders)
    said = next(line for line in stderr.splitlines() if "2 processes: " in line)
    assert records.told(found, 2) in said
    assert f"{len(latencies_ms)} answered, 0 failed, p50 " in said
    assert ("INVALID" in said) == bool(records.check(found, 2)["invalid"])


def test_workers_apart_count_what_tritonserver_counts(
    served: triton.ServeConfig, tmp_path: Path
) -> None:
    server = triton.running(served)
    assert server
    before = settled(server_counters, server)
    found, stderr = workers_apart(server.http_url, tmp_path, "--rate", "60")
    counted = settled(server_counters, server)["requests"] - before["requests"]
    answered = len(records.joined(found, "latencies_ms"))
    assert counted == answered > 50 and not len(records.joined(found, "failed_ms"))
    assert f"{answered} answered, 0 failed, p50 " in stderr


def record(lag_ms: float = 0.1, sends: int = 1000, **changed: Any) -> records.Record:
    times = {name: np.full(sends, 2.0) for name in records.ARRAYS}
    whole = {**times, "lags_ms": np.full(sends, lag_ms), "failed_ms": np.empty(0)}
    whole |= {"errors": "{}", "missed": 0, "cpu_s": 1.0, "began": 10.0, "ended": 20.0}
    return {**whole, "sends": True, **changed}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"lags_ms": np.repeat([0.1, 50.0], [970, 30])}, "one process: schedule lag p99 50.0 ms"),
        ({"cpu_s": 9.5}, "generator busy 95% > 90%"),
        ({"missed": 11}, "11 due sends missed"),
        ({"errors": json.dumps({records.FULL: 3})}, "3 sends given up"),
    ],
)
def test_one_process_of_ten_that_falls_behind_makes_the_run_invalid(
    changed: dict[str, Any], reason: str | None
) -> None:
    found = records.check([record() for _ in range(9)] + [record(**changed)], 10)
    assert [reason in one for one in found["invalid"]] == [True] * bool(reason)


def test_a_process_that_is_lost_makes_the_run_invalid() -> None:
    found = records.check([record(), record(sends=0) | {"sends": False}], 2)
    assert found["invalid"] == ["1 of 2 processes are lost"]


def test_a_record_outlasts_a_message_and_a_file(tmp_path: Path) -> None:
    message = msgpack.loads(msgpack.dumps(records.packed(record(sends=3))))
    records.write(tmp_path, {"a/b": records.unpacked(message)})
    (found,) = records.read(tmp_path)
    assert found["lags_ms"].tolist() == [0.1] * 3 and bool(found["sends"])
    assert (
        records.told([found], 1)
        == "1 process: 3 answered, 0 failed, p50 2.0 ms, p99 2.0 ms; kept up"
    )


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
