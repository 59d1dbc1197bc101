"""The load test against the real server: it counts every answer, and says when one failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.comments import REAL_COMMENTS, SYNTHETIC, load_pool
from bench.run import Result, bars, table
from contract import MAX_COMMENT_BYTES, BadInput
from serve import triton

ROOT = Path(__file__).parent.parent


def bench(config: triton.ServeConfig, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", "--run-dir", str(config.run_dir)]
    return subprocess.run(
        [*command, "--out", str(out), "--seconds", "3", "--users", "4", *flags],
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
    done = bench(served, tmp_path, "--comments", SYNTHETIC)
    assert done.returncode == 0, done.stdout + done.stderr
    document = last_json(done.stdout)
    assert document["closed_loop"] is True
    assert [result["protocol"] for result in document["results"]] == ["http", "grpc"]
    for result in document["results"]:
        assert result["requests"] == result["server_requests"] > 50
        assert result["failures"] == result["refused"] == 0
        latency = result["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
        assert result["mean_batch"] >= 1
        assert latency["mean"] >= result["queue_ms"] + result["compute_ms"] / 2 > 0
        assert all(value > 0 for value in result["cpu_us"].values())
        assert result["requests"] / result["rate_rps"] > 2.5  # of 3 s
    assert all(bar["holds"] for bar in document["bars"].values())
    assert document["artifact"]["precision"] == "fp32"
    assert len(document["artifact"]["onnx_sha256"]) == 64
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["protocol"] for row in rows] == ["http", "grpc"]
    assert "req/s" in done.stdout


def test_several_locust_processes_are_added_up(served: triton.ServeConfig, tmp_path: Path) -> None:
    flags = ["--comments", SYNTHETIC, "--processes", "2", "--protocols", "http"]
    done = bench(served, tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    result = last_json(done.stdout)["results"][0]
    assert result["requests"] == result["server_requests"] > 50


def test_failed_requests_turn_the_bar_red(served: triton.ServeConfig, tmp_path: Path) -> None:
    too_long = tmp_path / "some.csv"
    long = "a" * (MAX_COMMENT_BYTES + 1)
    too_long.write_text("comment_text,target\n" + f"{long},1\nfine,0\nfine too,0\n" * 3)
    command = [sys.executable, "-m", "locust", "-f", "bench/load.py", "HttpCommentUser"]
    server = triton.running(served)
    assert server
    command += ["--headless", "-u", "1", "-t", "3s", "--only-summary", "--record", str(tmp_path)]
    done = subprocess.run(
        [*command, "--comments", str(too_long), "--host", server.http_url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert f"expected at most {MAX_COMMENT_BYTES}" in done.stdout + done.stderr
    assert list(tmp_path.glob("*.npz"))


RESULT = Result(
    protocol="http",
    requests=100,
    failures=0,
    rate_rps=10.0,
    latency_ms={"mean": 1.0, "p50": 1.0, "p90": 1, "p95": 1, "p99": 1, "p99.9": 1, "max": 1},
    server_requests=100,
    refused=0,
    mean_batch=1.0,
    queue_ms=0.1,
    compute_ms=0.5,
    tokens=50.0,
    cpu_us={"generator": 10.0, "front_end": 20.0, "model": 50.0},
)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, set()),
        ({"failures": 1, "server_requests": 99}, {"failed_share"}),
        ({"server_requests": 99}, {"answers_counted_by_server"}),
        (
            {"cpu_us": {"generator": 90.0, "front_end": 20.0, "model": 50.0}},
            {"generator_share_of_cpu"},
        ),
    ],
)
def test_bars(change: dict[str, Any], broken: set[str]) -> None:
    result = replace(RESULT, **change)
    assert {name for name, bar in bars([result]).items() if not bar["holds"]} == broken
    assert len(table([result, result]).splitlines()) == 3


def test_no_server_is_one_line_and_status_2(tmp_path: Path) -> None:
    config = triton.ServeConfig(action="status", run_dir=tmp_path)
    done = bench(config, tmp_path / "out", "--comments", SYNTHETIC)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: no server runs from {tmp_path}, expected one; run `make serve`\n"
    )
    assert not (tmp_path / "out").exists()


def test_interrupt_leaves_no_process_and_no_result(
    served: triton.ServeConfig, tmp_path: Path
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
    process.send_signal(signal.SIGINT)
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
