"""A bounded attack on a real door; and that the verdict goes red when it must."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import TinyModel

from bench.hostile.attack import AttackMeasured, Honest, bars
from bench.hostile.draws import GENERATE_PATH, generate_body, infer_body, single
from bench.hostile.exchange import Outcome
from bench.hostile.families import FAMILIES, draw_all
from bench.hostile.legality import ServedVersions, read_requests
from bench.hostile.tally import FamilyTally, Tally, merged, table
from bench.traffic.answers import Answer, Oracle, scores_in, take_answer
from bench.traffic.bodies import HEADER_LENGTH
from bench.traffic.comments import SYNTHETIC
from contract import HOST, LOGIT, MAX_HEADERS, MAX_REQUEST_BYTES, PUBLIC_MODEL, TEXT
from serve import haproxy
from serve.probe import INFER_PATH

ROOT = Path(__file__).parent.parent
SERVED = ServedVersions(frozenset({"http://127.0.0.1:80"}), frozenset({1}))


@pytest.fixture(scope="module")
def repository(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attack") / "repository"
    tiny_model.publish(path)
    return path


# --- The run -------------------------------------------------------------------------------
def command(repository: Path, out: Path, *flags: str) -> list[str]:
    fixed = ["--repository", str(repository), "--out", str(out), "--comments", SYNTHETIC]
    return [sys.executable, "-m", "bench.hostile.attack", *fixed, *flags]


@pytest.mark.slow
def test_a_bounded_attack_holds_every_bar_that_is_no_time(repository: Path, tmp_path: Path) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    size = "--requests 4000 --examples 60 --calm-s 1 --slow 16 --rate 50 --no-leave-idle".split()
    done = subprocess.run(
        command(repository, tmp_path, *size, "--json"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert document == json.loads((tmp_path / "attack.json").read_text("utf-8"))
    missed = {name for name, bar in document["bars"].items() if not bar["holds"]}
    assert missed <= {"honest_p99_ms"}, done.stdout
    assert document["sent"] >= 4000
    assert document["honest"]["requests"] > 50
    families = document["families"]
    assert set(FAMILIES) - {"most"} < set(families)
    assert families["pipelined"]["answers"]["200"] and families["paths"]["answers"]["403"]


@pytest.mark.slow
def test_nothing_is_left_when_it_is_told_to_end(repository: Path, tmp_path: Path) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    before = {process.pid for process in psutil.process_iter()}
    process = subprocess.Popen(
        command(repository, tmp_path, "--examples", "0", "--no-grpc"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def left() -> list[str]:
        found = []
        for one in psutil.process_iter(["pid", "name", "cmdline"]):
            words = " ".join(one.info["cmdline"] or [])
            if one.pid not in before and (
                "bench-server-" in words or "bench.hostile.attack" in words
            ):
                found.append(words)
        return found

    deadline = time.monotonic() + 60
    while not any("haproxy" in words for words in left()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    deadline = time.monotonic() + 10
    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.05)


# --- The verdict ---------------------------------------------------------------------------
CALM = {"p50": 1.0, "p99": 2.0, "max": 9.0}
GOOD = AttackMeasured(
    families={"paths": FamilyTally(sent=100_000, answers=Counter({"404": 100_000}))},
    honest=Honest(100, 0, 0, 0, "", {}, CALM, CALM),
    starts={"replica-1": 1, "haproxy": 1, "haproxy-large": 1, "grpc": 7},
    memory_growth=1.01,
    memory_mib={},
    left_open=3,
    open_at_end=0,
    closed_after_s=1.0,
    seconds=10.0,
    scores=True,
)
RED: dict[str, dict[str, Any]] = {
    "server_deaths": {"starts": {"replica-1": 2, "haproxy": 1, "haproxy-large": 1}},
    "haproxy_deaths": {"starts": {"replica-1": 1, "haproxy": 1, "haproxy-large": 2}},
    "wrong_answers": {"families": {"paths": FamilyTally(100_000, wrong=1)}},
    "unexpected_statuses": {"families": {"paths": FamilyTally(100_000, unexpected=1)}},
    "hung": {"families": {"slow": FamilyTally(100_000, hung=1)}},
    "honest_lost": {"honest": dataclasses.replace(GOOD.honest, lost=1)},
    "honest_wrong": {"honest": dataclasses.replace(GOOD.honest, wrong=1)},
    "honest_p99_ms": {
        "honest": dataclasses.replace(GOOD.honest, attacked_ms={**CALM, "p99": 51.0})
    },
    "memory_growth": {"memory_growth": 1.06},
    "open_at_end": {"open_at_end": 1},
    "scores_no_more": {"scores": False},
}


def test_a_good_run_holds_every_bar() -> None:
    judged = bars(GOOD)
    assert set(judged) == set(RED)
    assert all(bar["holds"] for bar in judged.values())


@pytest.mark.parametrize("name", RED)
def test_a_bar_is_missed(name: str) -> None:
    judged = bars(dataclasses.replace(GOOD, **RED[name]))
    assert [bar for bar, verdict in judged.items() if not verdict["holds"]] == [name]


@pytest.fixture(scope="module")
def tally(repository: Path) -> Tally:
    return Tally(Oracle(repository, 1), SERVED)


def post(body: bytes, *lines: str, path: str = INFER_PATH) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def answer(logit: float, version: str = "1") -> Answer:
    data = {
        "outputs": [
            {"name": LOGIT, "shape": [1, 1], "data": [logit]},
            {"name": "model_version", "shape": [1, 1], "data": [version]},
        ]
    }
    return Answer(200, b"HTTP/1.1 200 OK\r\n", json.dumps(data).encode())


def test_scores_are_judged(tally: Tally, tiny_model: TinyModel) -> None:
    right = tiny_model.logit("you are kind")
    legal = post(infer_body(["you are kind"]))

    def fault(message: bytes, *answers: Answer) -> str:
        return tally.count(single("paths", message), Outcome("answered", list(answers)))

    assert not fault(legal, answer(right))
    assert "off by" in fault(legal, answer(right + 0.01))
    assert "version" in fault(legal, answer(right, version="2"))
    assert "shorter" in fault(legal[:-1], answer(right))
    assert "behind the last" in fault(legal, answer(right), answer(right))
    assert not fault(legal, Answer(400, b"HTTP/1.1 400 Bad\r\n", b"{}"))
    assert "502" in fault(legal, Answer(502, b"HTTP/1.1 502 Bad\r\n", b"{}"))
    assert not fault(legal, Answer(503, b"HTTP/1.1 503 x\r\n", b'{"error":"overloaded: x"}'))
    family = merged([tally.families, {}])["paths"]
    assert (family.wrong, family.unexpected) == (4, 1)
    assert family.faults and "paths" in table({"paths": family})


_BODY = infer_body(["a", "b"])
_RAW = b"\1\0\0\0a"
_BINARY = json.dumps(
    {
        "inputs": [
            {
                "name": TEXT,
                "datatype": "BYTES",
                "shape": [1, 1],
                "parameters": {"binary_data_size": len(_RAW)},
            }
        ]
    }
).encode()
LEGAL: dict[str, tuple[bytes, tuple[tuple[str, ...], ...]]] = {
    "JSON": (post(_BODY), (("a", "b"),)),
    "absolute": (post(_BODY, path=f"http://x{INFER_PATH}"), (("a", "b"),)),
    "version": (post(_BODY, path=f"/v2/models/{PUBLIC_MODEL}/versions/1/infer"), (("a", "b"),)),
    "own page": (post(_BODY, "Origin: http://127.0.0.1:80"), (("a", "b"),)),
    "own page by another address": (
        post(_BODY, "Origin: http://10.0.0.1:9").replace(b"Host: x", b"Host: 10.0.0.1:9"),
        (("a", "b"),),
    ),
    "same length twice": (post(_BODY, f"Content-Length: {len(_BODY)}"), (("a", "b"),)),
    "folded": (post(_BODY, "X: a\r\n b"), (("a", "b"),)),
    "generate": (post(generate_body("a"), path=GENERATE_PATH), (("a",),)),
    "binary": (post(_BINARY + _RAW, f"{HEADER_LENGTH}: {len(_BINARY)}"), (("a",),)),
    "raw": (post(b"ab", f"{HEADER_LENGTH}: 0"), (("ab",),)),
    "members twice": (post(_BODY[:-1] + b',"inputs":3}'), (("a", "b"),)),
}
ILLEGAL = {
    "method": post(_BODY).replace(b"POST", b"GET"),
    "path": post(_BODY, path="/v2/repository/index"),
    "encoded path": post(_BODY, path=INFER_PATH.replace("i", "%69")),
    "other version": post(_BODY, path=f"/v2/models/{PUBLIC_MODEL}/versions/2/infer"),
    "no Host": post(_BODY).replace(b"Host: x\r\n", b""),
    "two Hosts": post(_BODY, "Host: y"),
    "other page": post(_BODY, "Origin: https://other.example"),
    "page by a name": post(_BODY, "Origin: http://x"),
    "two pages": post(_BODY, "Origin: http://127.0.0.1:80, https://other.example"),
    "cross-site": post(_BODY, "Sec-Fetch-Site: cross-site"),
    "many headers": post(_BODY, *["X: 1"] * MAX_HEADERS),
    "long headers": post(_BODY, "X: " + "x" * 9000),
    "NUL": post(_BODY, "X: \0"),
    "space before colon": post(_BODY, "X : 1"),
    "chunks": post(_BODY, "Transfer-Encoding: chunked"),
    "lengths": post(_BODY, "Content-Length: 1"),
    "signed length": post(_BODY).replace(b"Length: ", b"Length: +"),
    "no length": post(_BODY).replace(b"Content-Length", b"X"),
    "cut": post(_BODY)[:-1],
    "gzip": post(_BODY, "Content-Encoding: gzip"),
    "identity and gzip": post(_BODY, "Content-Encoding: identity, gzip"),
    "large": post(_BODY.ljust(MAX_REQUEST_BYTES + 1)),
    "empty": post(b""),
    "no JSON": post(_BODY[:-1]),
    "two documents": post(_BODY * 2),
    "no UTF-8": post(_BODY.replace(b'"a"', b'"\xff"')),
    "half a surrogate": post(infer_body(["\ud800", "b"])),
    "null": post(infer_body([None, "b"])),
    "shape": post(_BODY.replace(b"[2, 1]", b"[1, 1]")),
    "type": post(_BODY.replace(b"BYTES", b"FP32")),
    "output": post(_BODY[:-1] + b',"outputs":[{"name":"x"}]}'),
    "no comment": post(generate_body(5), path=GENERATE_PATH),
    "behind the tensor": post(_BINARY + _RAW + b"x", f"{HEADER_LENGTH}: {len(_BINARY)}"),
    "inner length": post(_BINARY + b"\2" + _RAW[1:], f"{HEADER_LENGTH}: {len(_BINARY)}"),
    "JSON beyond the body": post(_BODY, f"{HEADER_LENGTH}: {len(_BODY) + 1}"),
}


@pytest.mark.parametrize("case", LEGAL)
def test_what_may_be_scored(case: str) -> None:
    message, texts = LEGAL[case]
    first, second = read_requests(message * 2, SERVED)
    assert first.texts == second.texts == texts, first.why


@pytest.mark.parametrize("case", ILLEGAL)
def test_what_may_not_be_scored(case: str) -> None:
    for reading in read_requests(ILLEGAL[case], SERVED):
        assert not reading.texts and reading.why


def test_the_same_seed_draws_the_same() -> None:
    def drawn(seed: int) -> list[Any]:
        return [
            (exchange.family, exchange.sent)
            for slow in (False, True)
            for exchange in itertools.islice(draw_all(seed, 80, ["a", "b c"], slow=slow), 500)
        ]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {family for family, _ in drawn(1)} >= set(FAMILIES) - {"most"}


def test_answers_are_taken_from_the_stream() -> None:
    first = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
    second = b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1;x\r\nb\r\n0\r\n\r\n"
    buffer, found = bytearray(), []
    for byte in first + second:
        buffer.append(byte)
        if taken := take_answer(buffer):
            found.append((taken.status, taken.body))
    assert found == [(200, b"ab"), (404, b"ab")]
    with pytest.raises(ValueError, match="HTTP/1"):
        take_answer(bytearray(b"\0\0\x12\4\0\0\0\0\0\0\0\0\0"))


def test_binary_scores_are_read() -> None:
    tensor = {"name": LOGIT, "shape": [2, 1], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"outputs": [tensor]}).encode()
    scores = scores_in(head + np.array([1, -2], "<f4").tobytes(), len(head))
    assert scores and scores.logit == [1.0, -2.0]
    assert scores_in(b'{"name":"toxicity","model_version":"1"}') is None
    assert HOST == "127.0.0.1"
