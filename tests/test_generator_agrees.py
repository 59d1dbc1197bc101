"""Locust and the C++ generator against the same server: same requests, same figures."""

from __future__ import annotations

import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.run import BenchConfig
from bench.traffic import arrivals
from bench.traffic.bodies import HEADER_LENGTH, EncodedComments, Payload, packed
from bench.traffic.comments import SYNTHETIC, load_pool
from bench.traffic.open_loop import drive, find_program, make_bodies
from contract import HOST, TEXT
from serve.probe import INFER_PATH
from tests.test_open_loop import AnsweringServer, whole

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DELAY_S = 0.03
RATE, SECONDS = 50, 3


@pytest.fixture
def answering() -> Iterator[AnsweringServer]:
    server = AnsweringServer()
    yield server
    server.stop()


def locust(server: AnsweringServer, record: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "locust", "-f", "bench/load.py", "HttpCommentUser"]
    command += ["--headless", "--only-summary", "-u", "1", "-t", f"{SECONDS}s"]
    command += ["--stop-timeout", "30", "--arrivals", "constant", "--comments", SYNTHETIC]
    command += ["--host", f"http://{HOST}:{server.port}", "--record", str(record), *flags]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in done.stderr, done.stderr
    (path,) = record.glob("*.npz")
    return dict(np.load(path, allow_pickle=False))


def open_loop(server: AnsweringServer, payload: Payload = "json") -> Any:
    config = BenchConfig(rate=RATE, seconds=SECONDS, comments=SYNTHETIC, payload=payload)
    comments = EncodedComments(load_pool(SYNTHETIC).texts, payload)
    return drive(
        make_bodies(config, comments, first_pass=7),
        port=server.port,
        headers=comments.headers,
        rate=RATE,
        arrivals="constant",
        seconds=SECONDS,
        program=find_program(),
    )


def test_both_measure_the_same_and_one_is_cheaper(
    answering: AnsweringServer, tmp_path: Path
) -> None:
    answering.delay_s = DELAY_S
    other = locust(answering, tmp_path, "--rate", str(RATE))
    one = open_loop(answering)
    assert json.loads(str(other["errors"])) == one.errors == {}
    assert len(one.latencies_ms) == RATE * SECONDS
    assert len(other["latencies_ms"]) == pytest.approx(RATE * SECONDS, rel=0.1)
    medians = [float(np.median(part)) for part in (one.latencies_ms, other["latencies_ms"])]
    assert min(medians) >= 1e3 * DELAY_S
    assert max(medians) < 1.5 * min(medians)
    # A whole Locust beside what it sends; at higher rates both cost less a request.
    other_us = 1e6 * float(other["cpu_s"]) / len(other["latencies_ms"])
    assert one.document["cpu_us_a_request"] < other_us / 2


def test_both_report_the_same_failures(answering: AnsweringServer, tmp_path: Path) -> None:
    refusal = whole("503 Service Unavailable", b'{"error": "busy"}', "Connection: close\r\n")
    answering.answer = lambda n: refusal if n % 2 else whole()
    other = locust(answering, tmp_path, "--rate", str(RATE))
    sent = len(answering.bodies)
    one = open_loop(answering)
    (reason,) = one.errors
    assert json.loads(str(other["errors"])) == {reason: sent // 2}
    assert reason == '503: {"error": "busy"}'
    assert one.errors[reason] == pytest.approx(one.document["sent"] / 2, abs=1)


def test_locust_tells_a_closed_connection(answering: AnsweringServer, tmp_path: Path) -> None:
    answering.answer = lambda n: b"" if n % 2 else whole()
    part = locust(answering, tmp_path, "--rate", str(RATE))
    assert json.loads(str(part["errors"])) == {
        "0: connection closed before the answer": len(answering.bodies) // 2
    }
    assert len(part["latencies_ms"]) + len(part["failed_ms"]) == len(answering.bodies)


@pytest.mark.parametrize("payload", ["json", "binary"])
def test_both_send_the_same_form(
    payload: Payload, answering: AnsweringServer, tmp_path: Path
) -> None:
    locust(answering, tmp_path, "--rate", str(RATE), "--payload", payload)
    by_locust = len(answering.bodies)
    open_loop(answering, payload)
    headers, forms = set(), set()
    for head, body in zip(answering.heads, answering.bodies, strict=True):
        lines = head.decode().strip().split("\r\n")
        assert lines[0] == f"POST {INFER_PATH} HTTP/1.1"
        fields = dict(line.split(": ", 1) for line in lines[1:])
        length = int(fields.get(HEADER_LENGTH, len(body)))
        (tensor,) = json.loads(body[:length])["inputs"]
        data = tensor.pop("data", None)
        parameters = tensor.pop("parameters", {})
        assert tensor == {"name": TEXT, "shape": [1, 1], "datatype": "BYTES"}
        if payload == "json":
            assert len(data) == 1
        else:
            assert parameters["binary_data_size"] == len(body) - length
            assert struct.unpack_from("<I", body, length) == (len(body) - length - 4,)
        fields.pop("Content-Length")
        headers.add(tuple(sorted(fields.items())))
        forms.add(tuple(sorted(json.loads(body[:length]))))
    assert len(headers) == len(forms) == 1
    assert 0 < by_locust < len(answering.bodies)


# --- The bodies ---------------------------------------------------------------------------
TEXTS = [
    *load_pool(SYNTHETIC, size=60).texts,
    "",
    " \n",
    'a "quoted" \\ word',
    "é\u2028 😀",
    "\0 x",
]


@pytest.mark.parametrize("hot", [0, 20])
@pytest.mark.parametrize("first_pass", [0, 7])
def test_encoded_comments_are_those_of_arrivals(hot: int, first_pass: int) -> None:
    as_json, as_binary = EncodedComments(TEXTS, "json"), EncodedComments(TEXTS, "binary")
    for number in range(5 * len(TEXTS)):
        text = arrivals.comment(TEXTS, hot, number, first_pass)
        assert as_binary.item(number, hot, first_pass) == text.encode()
        assert as_json.item(number, hot, first_pass) == json.dumps(text)[1:-1].encode()


def test_a_body_is_what_a_json_encoder_makes() -> None:
    comments = EncodedComments(TEXTS, "json")
    items = [comments.item(number, 0, 3) for number in range(len(TEXTS))]
    texts = [arrivals.comment(TEXTS, 0, number, 3) for number in range(len(TEXTS))]
    tensor = {"name": TEXT, "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    assert comments.body(items) == json.dumps({"inputs": [tensor]}).encode()


def test_a_binary_body_has_a_head_of_one_length() -> None:
    comments = EncodedComments(TEXTS, "binary")
    for count in (1, 2, 64):
        items = [comments.item(number, 0, 0) for number in range(count)]
        body = comments.body(items)
        length = int(comments.headers[HEADER_LENGTH])
        document = json.loads(body[:length])
        assert document["parameters"] == {"binary_data_output": True}
        assert document["inputs"][0]["parameters"]["binary_data_size"] == len(body) - length
        assert body[length:] == packed(items)


def test_no_body_of_a_run_repeats_another() -> None:
    config = BenchConfig(rate=500, seconds=4, comments=SYNTHETIC)
    comments = EncodedComments(load_pool(SYNTHETIC).texts, "json")
    first = list(make_bodies(config, comments, first_pass=11))
    second = list(make_bodies(config, comments, first_pass=12))
    assert len(first) > 2000
    # To so small a vocabulary some comments are alike.
    assert len(set(first)) > 0.99 * len(first)
    assert len(set(first) & set(second)) < 0.02 * len(first)
    batches = itertools.islice(
        make_bodies(BenchConfig(rate=500, seconds=4, batch=3), comments, first_pass=1), 5
    )
    assert all(len(json.loads(body)["inputs"][0]["data"]) == 3 for body in batches)
