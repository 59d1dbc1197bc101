"""The load test against the real server: it counts every answer, and says when one failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
import pytest
from conftest import free_port
from tritonclient.grpc import service_pb2

from bench.run import Result, bars, table
from bench.traffic.comments import REAL_COMMENTS, SYNTHETIC, load_pool
from contract import HOST, MAX_COMMENT_BYTES, MODEL_VERSION, PROBABILITY, BadInput
from serve import triton

ROOT = Path(__file__).parent.parent


def bench(config: triton.ServeConfig, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", "--run-dir", str(config.run_dir)]
    return subprocess.run(
        [*command, "--out", str(out), "--seconds", "3", "--users", "2", "--json", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_json(stdout: str) -> dict[str, Any]:
    document = json.loads(stdout.strip().splitlines()[-1])
    assert isinstance(document, dict)
    return document


def test_every_answer_is_counted_on_both_sides(served: triton.ServeConfig, tmp_path: Path) -> None:
    """Those of both Locust processes, added up."""
    # Of so quick a model, two users of gRPC keep one Locust process too busy to be believed.
    done = bench(served, tmp_path, "--comments", SYNTHETIC, "--processes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    document = last_json(done.stdout)
    assert document["closed_loop"] is True
    assert [result["protocol"] for result in document["results"]] == ["http", "grpc"]
    for result in document["results"]:
        assert result["requests"] == result["server_requests"] > 0
        assert result["failures"] == result["refused"] == 0
        latency = result["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
        assert result["mean_batch"] >= 1
        assert latency["mean"] >= result["queue_ms"] + result["compute_ms"] / 2 > 0
        assert all(value > 0 for value in result["cpu_us"].values())
        # One run came after another; to so small a vocabulary some comments are alike.
        assert result["cache_hit_share"] < 0.6
        assert result["requests"] / result["rate_rps"] > 2  # of 3 s
    assert all(bar["holds"] for bar in document["bars"].values())
    assert document["artifact"]["precision"] == "fp32"
    assert len(document["artifact"]["onnx_sha256"]) == 64
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["protocol"] for row in rows] == ["http", "grpc"]
    assert "req/s" in done.stdout


def test_failed_requests_turn_the_bar_red(served: triton.ServeConfig, tmp_path: Path) -> None:
    some = tmp_path / "some.csv"
    long = "a" * (MAX_COMMENT_BYTES + 1)
    some.write_text(f"comment_text,target\n{long},1\nfine,0\nfine too,0\n")
    done = bench(served, tmp_path, "--comments", str(some), "--protocols", "http", "--check")
    assert done.returncode == 1, done.stdout + done.stderr
    document = last_json(done.stdout)
    (result,) = document["results"]
    assert 0 < result["failures"] < result["requests"]
    assert result["server_requests"] == result["requests"] - result["failures"]
    for reason in result["errors"]:
        assert reason.startswith("400: ")
        assert f"expected at most {MAX_COMMENT_BYTES}" in reason
    assert document["bars"]["failed_share"]["holds"] is False
    assert "failed_share is 0." in done.stderr and "--check" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("user", ["HttpCommentUser", "GrpcCommentUser"])
def test_an_unreachable_server_fails_every_request(user: str, tmp_path: Path) -> None:
    address = f"{HOST}:{free_port()}"
    done = locust(
        *[user, "--headless", "-u", "1", "-t", "1s", "--record", str(tmp_path)],
        *["--host", f"http://{address}", "--grpc-address", address],
    )
    assert done.returncode == 1, done.stderr
    (record,) = [np.load(path, allow_pickle=False) for path in tmp_path.glob("*.npz")]
    assert len(record["latencies_ms"]) == 0
    errors = json.loads(str(record["errors"]))
    assert errors
    assert all("refused" in reason for reason in errors), errors


def test_unreadable_comments_end_locust_with_one_line() -> None:
    done = locust("--headless", "-t", "1s", "--comments", "nowhere.csv")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no file at nowhere.csv")


def locust(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "bench/load.py", "--only-summary"]
    comments = [] if "--comments" in flags else ["--comments", SYNTHETIC]
    return subprocess.run(
        [*command, *comments, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_web_page_starts_a_test_of_both_protocols(served: triton.ServeConfig) -> None:
    server = triton.running(served)
    assert server
    page = f"http://{HOST}:{free_port()}"
    command = [sys.executable, "-m", "locust", "-f", "bench/load.py", "--comments", SYNTHETIC]
    command += ["--web-host", HOST, "--web-port", page.rpartition(":")[2]]
    command += ["--grpc-address", f"{HOST}:{server.grpc_port}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    form = {"user_count": 2, "spawn_rate": 2, "host": server.http_url}
    try:
        started = eventually(lambda: fetch(f"{page}/swarm", urlencode(form).encode()))
        assert json.loads(started)["success"] is True
        # Counted by protocol: the page sums up whatever was answered.
        eventually(lambda: {"http", "grpc"} <= answered(f"{page}/stats/requests"))
    finally:
        process.terminate()
        process.wait(timeout=60)


def answered(url: str) -> set[str]:
    """Names under which at least one request was answered and none failed."""
    stats = json.loads(fetch(url))["stats"]
    return {s["name"] for s in stats if s["num_requests"] and not s["num_failures"]}


def fetch(url: str, form: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data=form, timeout=30) as answer:
        body = answer.read()
    assert isinstance(body, bytes)
    return body


def eventually(attempt: Callable[[], Any]) -> Any:
    """The first true answer of `attempt`; its last failure when there is none in a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if answer := attempt():
                return answer
        except OSError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.2)


GOOD = {PROBABILITY: 0.5, MODEL_VERSION: "1"}
BAD = [
    {**GOOD, PROBABILITY: 1.5},
    {**GOOD, PROBABILITY: float("nan")},
    {**GOOD, MODEL_VERSION: "x"},
    {MODEL_VERSION: "1"},
    {PROBABILITY: 0.5},
    {},
]


def http_answer(outputs: dict[str, Any]) -> str:
    return json.dumps({"outputs": [{"name": k, "data": [v]} for k, v in outputs.items()]})


def grpc_answer(outputs: dict[str, Any]) -> Any:
    answer = service_pb2.ModelInferResponse()
    for name, value in outputs.items():
        answer.outputs.add(name=name)
        text = str(value).encode()
        is_text = name == MODEL_VERSION
        raw = struct.pack("<I", len(text)) + text if is_text else struct.pack("<f", value)
        answer.raw_output_contents.append(raw)
    return answer


# In a process of its own: Locust patches the standard library for gevent.
JUDGE = """
import json, sys
from types import SimpleNamespace
from tritonclient.grpc import service_pb2
from bench.traffic.faults import grpc_fault, http_fault
given = json.load(sys.stdin)
http = [
    SimpleNamespace(status_code=status, content=body and body.encode(), error=error)
    for status, body, error in given["http"]
]
grpc = [service_pb2.ModelInferResponse.FromString(bytes.fromhex(raw)) for raw in given["grpc"]]
print(json.dumps([[http_fault(a) for a in http], [grpc_fault(a) for a in grpc]]))
"""


def test_an_answer_that_cannot_be_right_is_a_failure() -> None:
    http = [(200, http_answer(outputs), None) for outputs in [GOOD, *BAD]]
    http += [(200, "not JSON", None), (200, None, None), (0, None, "connection refused")]
    torn = grpc_answer(GOOD)
    torn.raw_output_contents.pop()
    grpc = [*(grpc_answer(outputs) for outputs in [GOOD, *BAD]), torn]
    given = {"http": http, "grpc": [answer.SerializeToString().hex() for answer in grpc]}
    done = subprocess.run(
        [sys.executable, "-c", JUDGE],
        cwd=ROOT,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for right, *wrong in json.loads(done.stdout.splitlines()[-1]):
        assert right is None
        assert all(isinstance(fault, str) for fault in wrong), wrong


RESULT = Result(
    protocol="http",
    requests=100,
    failures=0,
    rate_rps=10.0,
    latency_ms={"mean": 1.0, "p50": 1.0, "p90": 1, "p95": 1, "p99": 1, "p99.9": 1, "max": 1},
    server_requests=100,
    errors={},
    refused=0,
    mean_batch=1.0,
    queue_ms=0.1,
    compute_ms=0.5,
    tokens=50.0,
    cache_hit_share=0.0,
    cpu_us={"generator": 10.0, "front_end": 20.0, "backend": 5.0, "encoder": 50.0},
    check={"lag_p99_ms": 1.0, "invalid": []},
    comments_per_s=10.0,
    failed_p50_ms=None,
    last_send=0.0,
    generator_busy=0.5,
)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, set()),
        ({"failures": 1, "server_requests": 99}, {"failed_share"}),
        ({"server_requests": 99}, {"answers_counted_by_server"}),
        ({"generator_busy": 0.95}, {"generator_busy"}),
        ({"check": {"lag_p99_ms": 9.0, "invalid": ["behind"]}}, {"invalid_runs"}),
    ],
)
def test_bars(change: dict[str, Any], broken: set[str]) -> None:
    result = replace(RESULT, **change)
    assert {name for name, bar in bars([result]).items() if not bar["holds"]} == broken
    assert len(table([result, result]).splitlines()) == 3


@pytest.mark.slow
def test_no_server_is_one_line_and_status_2(tmp_path: Path) -> None:
    config = triton.ServeConfig(action="status", run_dir=tmp_path)
    done = bench(config, tmp_path / "out", "--comments", SYNTHETIC)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: no server runs from {tmp_path}, expected one; run `make serve`\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_no_process_and_no_result(
    how: signal.Signals, served: triton.ServeConfig, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "bench.run", "--run-dir", str(served.run_dir)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path), "--seconds", "60", "--comments", SYNTHETIC],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(how)
    assert process.wait(timeout=60) == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not (tmp_path / "bench.json").exists()


def test_pool_is_the_same_for_a_seed_and_has_the_real_length_mix() -> None:
    pool = load_pool(SYNTHETIC, size=2000)
    assert pool == load_pool(SYNTHETIC, size=2000)
    assert pool.sha256 != load_pool(SYNTHETIC, size=2000, seed=1).sha256
    assert "SYNTHETIC" in pool.name
    # FACTS of real comments: mean 59, median 43 tokens.
    assert 50 <= pool.lengths.mean <= 68
    assert 36 <= pool.lengths.median <= 50


def test_real_comments_are_the_default_pool_when_they_are_there() -> None:
    if not REAL_COMMENTS.is_file():
        pytest.skip(f"{REAL_COMMENTS.name} is not beside this checkout")
    pool = load_pool(str(REAL_COMMENTS))
    assert pool.name == REAL_COMMENTS.name
    assert len(pool.texts) == 5000
    assert 60 <= pool.lengths.mean <= 110


def test_unreadable_comments_are_refused() -> None:
    with pytest.raises(BadInput, match=r"no file at nowhere.csv"):
        load_pool("nowhere.csv")
