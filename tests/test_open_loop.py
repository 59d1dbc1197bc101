"""The C++ generator against a real server: rate, intended times, failures, bodies, its own faults.

Bounds are ratios that hold on a busy machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import free_port

from bench.run import BenchConfig
from bench.traffic.arrivals import self_check
from bench.traffic.comments import SYNTHETIC
from bench.traffic.counters import process_counters
from bench.traffic.open_loop import (
    bodies_needed,
    drive,
    find_program,
    load,
    read_record,
    write_bodies,
)
from contract import HOST, MODEL_VERSION, PROBABILITY, BadInput, ToxicityError
from serve.triton import Server

OUTPUTS = [{"name": PROBABILITY, "data": [0.5]}, {"name": MODEL_VERSION, "data": ["1"]}]
ANSWER = json.dumps({"outputs": OUTPUTS}).encode()


def whole(status: str = "200 OK", body: bytes = ANSWER, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def in_chunks(body: bytes) -> bytes:
    parts = (body[:7], body[7:])
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


class AnsweringServer:
    """Answers each request with the bytes of `answer(n)`, n from 0, after `delay_s`.

    b"" closes the connection, None never answers; an answer with `Connection: close` or of a wrong
    length closes behind it. With `stall_s` the whole server stands still once, a second after the
    first request.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int], bytes | None] = lambda _: whole()
        self.delay_s = self.stall_s = 0.0
        self.piece = 0
        """Bytes of an answer that are sent at a time; 0 for all."""
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.connections = 0
        self._stall_at = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.start_server(self._serve, HOST, 0, limit=1 << 20, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(started, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        async def cancel() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        number = len(self.bodies)
        self.heads.append(head)
        self.bodies.append(body)
        self._stall_at = self._stall_at or time.monotonic() + 1
        if self.stall_s and time.monotonic() > self._stall_at:
            stall_s, self.stall_s = self.stall_s, 0.0
            time.sleep(stall_s)  # all of the server stands still
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        answer = self.answer(number)
        if answer is None:
            await asyncio.sleep(60)
        if not answer:
            return False
        step = self.piece or len(answer)
        for at in range(0, len(answer), step):
            writer.write(answer[at : at + step])
            await writer.drain()
            if self.piece:
                await asyncio.sleep(0.005)
        return answer in (whole(), in_chunks(ANSWER)) or answer.startswith(b"HTTP/1.1 500")


@pytest.fixture
def answering() -> Iterator[AnsweringServer]:
    server = AnsweringServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def program() -> Path:
    return find_program()


def some_bodies(count: int) -> list[bytes]:
    return [b'{"n": %d}' % n for n in range(count)]


# --- When it sends ------------------------------------------------------------------------
def test_constant_arrivals_have_the_rate_and_no_body_comes_twice(
    answering: AnsweringServer, program: Path
) -> None:
    bodies = some_bodies(500)
    run = drive(
        bodies, port=answering.port, rate=200, arrivals="constant", seconds=2, program=program
    )
    assert run.document["scheduled"] == len(run.latencies_ms) == 400
    assert run.document["failed"] == run.document["missed"] == 0
    intended = np.sort(run.sent_at_s)
    assert np.allclose(np.diff(intended), 1 / 200, atol=1e-6)
    assert 0 <= intended[0] < 1 / 200
    assert sorted(answering.bodies) == sorted(bodies[:400])
    assert 0.1 < run.document["cpu_us_a_request"] < 2000
    assert len(run.lags_ms) == len(run.waits_ms) == 400
    assert (run.lags_ms >= 0).all()
    assert np.isclose(np.percentile(run.lags_ms, 99), run.document["lag_ms"]["p99"])
    assert run.document["connects"] == answering.connections <= run.document["max_in_flight"]
    assert answering.connections < 100  # they are used again


@pytest.mark.slow
def test_poisson_arrivals_are_the_same_for_a_seed(
    answering: AnsweringServer, program: Path
) -> None:
    def gaps(seed: int) -> np.ndarray:
        run = drive(
            some_bodies(1500), port=answering.port, rate=500, seed=seed, seconds=2, program=program
        )
        assert run.document["failed"] == 0
        return np.diff(np.sort(run.sent_at_s))

    first = gaps(1)
    assert abs(len(first) - 1000) < 5 * np.sqrt(1000)
    assert np.isclose(first.mean(), 0.002, rtol=0.2)
    assert np.isclose(first.std(), first.mean(), rtol=0.2)  # of an exponential distribution
    assert np.array_equal(first, gaps(1))
    assert not np.array_equal(first[:100], gaps(2)[:100])


@pytest.mark.parametrize("connections", [1000, 2])
def test_a_stall_is_reported_for_every_send_in_it(
    connections: int, answering: AnsweringServer, program: Path
) -> None:
    answering.stall_s = 0.3
    run = drive(
        some_bodies(500),
        port=answering.port,
        rate=200,
        arrivals="constant",
        seconds=2,
        connections=connections,
        program=program,
    )
    assert run.document["answered"] == 400
    # 60 were due in the stall of 300 ms; the wait of the k-th is 300 - 5 k ms.
    assert (run.latencies_ms > 50).sum() >= 45
    assert (run.latencies_ms > 150).sum() >= 27
    assert np.median(run.latencies_ms) < 100
    reasons = " ".join(run.check()["invalid"])
    if connections == 2:  # sent late by the generator, as the check says
        assert "wait for a connection" in reasons
        assert run.document["max_in_flight"] == 2
    else:
        assert "wait for a connection" not in reasons
        assert run.document["max_in_flight"] >= 45


def test_closed_loop_sends_when_the_answer_is_there(
    answering: AnsweringServer, program: Path
) -> None:
    answering.delay_s = 0.02
    run = drive(some_bodies(5000), port=answering.port, seconds=1, connections=4, program=program)
    assert run.document["max_in_flight"] == answering.connections == 4
    assert 20 <= run.document["answered"] <= 4 * 50
    assert run.latencies_ms.min() >= 20
    assert len(run.lags_ms) == run.document["failed"] == 0
    assert not run.document["ran_out"]


def test_closed_loop_ends_when_the_bodies_are_used_up(
    answering: AnsweringServer, program: Path
) -> None:
    bodies = some_bodies(50)
    run = drive(bodies, port=answering.port, seconds=30, connections=4, program=program)
    assert run.document["ran_out"]
    assert run.document["seconds"] < 15
    assert sorted(answering.bodies) == sorted(bodies)


# --- What it sends and takes ---------------------------------------------------------------
def test_bodies_arrive_as_they_are(answering: AnsweringServer, program: Path) -> None:
    rng = np.random.default_rng(0)
    bodies = [rng.bytes(size) for size in (0, 1, 17, 1000, 300_000, 900_000)]
    run = drive(
        bodies,
        port=answering.port,
        path="/v2/score",
        headers={"Content-Type": "a/b", "X-Other": "1"},
        seconds=30,
        connections=2,
        program=program,
    )
    assert run.document["answered"] == len(bodies)
    assert sorted(answering.bodies) == sorted(bodies)
    for head in answering.heads:
        lines = head.decode().split("\r\n")
        assert lines[0] == "POST /v2/score HTTP/1.1"
        assert {f"Host: {HOST}:{answering.port}", "Content-Type: a/b", "X-Other: 1"} < set(lines)


@pytest.mark.parametrize("answer", [whole(), in_chunks(ANSWER)], ids=["length", "chunks"])
def test_an_answer_may_come_in_pieces(
    answer: bytes, answering: AnsweringServer, program: Path
) -> None:
    answering.answer = lambda _: answer
    answering.piece = 11
    run = drive(some_bodies(12), port=answering.port, seconds=30, connections=4, program=program)
    assert run.document["answered"] == 12
    assert answering.connections == 4


FAULTS: list[tuple[bytes | None, str]] = [
    (whole("500 Internal Server Error", b'{"error": "no \xff"}'), '500: {"error": "no \ufffd"}'),
    (whole("503 Busy", b"busy", "Connection: close\r\n"), "503: busy"),
    (b"", "connection closed before the answer"),
    (whole()[:-5], "connection closed within the answer"),
    (whole(body=b"{}"), f'the answer does not contain "{PROBABILITY}"'),
    (whole() + b"x", "the answer is longer than its Content-Length"),
    (b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER, "the answer has neither Content-Length nor chunks"),
    (b"SSH-2.0\r\n\r\n", "the answer is not HTTP/1.1"),
    (in_chunks(ANSWER).replace(b"\r\n0\r\n", b"\r\nz\r\n"), "the answer has chunks that cannot"),
    (None, "no answer within --timeout-s"),
]


@pytest.mark.parametrize(("answer", "reason"), FAULTS, ids=[reason for _, reason in FAULTS])
def test_a_fault_is_counted_by_its_reason(
    answer: bytes | None, reason: str, answering: AnsweringServer, program: Path
) -> None:
    answering.answer = lambda n: answer if n % 4 == 3 else whole()
    run = drive(
        some_bodies(200),
        port=answering.port,
        rate=40,
        arrivals="constant",
        seconds=1,
        timeout_s=0.7,
        program=program,
    )
    assert run.document["sent"] == len(answering.bodies) == 40
    assert run.document["answered"] == len(run.latencies_ms) == 30
    ((told, count),) = run.errors.items()
    assert told.startswith(reason)
    assert count == len(run.failed_ms) == len(run.failed_at_s) == 10
    if answer is None:
        assert run.failed_ms.min() >= 700


def test_a_server_that_is_not_there_fails_every_request(program: Path) -> None:
    for rate in (100.0, 0.0):
        run = drive(some_bodies(200), port=free_port(), rate=rate, seconds=0.5, program=program)
        assert run.document["answered"] == 0
        assert run.document["failed"] > 0
        assert set(run.errors) == {"cannot connect: Connection refused"}


def test_what_is_in_flight_at_the_end_is_waited_for(
    answering: AnsweringServer, program: Path
) -> None:
    answering.answer = lambda n: None if n == 0 else whole()
    answering.delay_s = 0.5
    run = drive(
        some_bodies(50),
        port=answering.port,
        rate=20,
        arrivals="constant",
        seconds=1,
        drain_s=1.5,
        program=program,
    )
    assert run.document["answered"] == 19
    assert run.errors == Counter({"not answered in time": 1})
    assert run.document["sending_s"] < run.document["ended"] - run.document["began"]


# --- What it says of itself ----------------------------------------------------------------
def start(program: Path, server: AnsweringServer, folder: Path) -> subprocess.Popen[str]:
    """A run of 20 s at 200/s, which has begun to send."""
    write_bodies(folder / "bodies", some_bodies(5000))
    flags = f"--port {server.port} --rate 200 --arrivals constant --seconds 20 --connections 500"
    process = subprocess.Popen(
        [program, "--bodies", folder / "bodies", "--record", folder / "record", *flags.split()],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while len(server.bodies) < 50:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_early_with_a_result(
    how: signal.Signals, answering: AnsweringServer, program: Path, tmp_path: Path
) -> None:
    process = start(program, answering, tmp_path)
    process.send_signal(how)
    stdout, _ = process.communicate(timeout=10)
    document = json.loads(stdout)
    assert process.returncode == 0
    assert document["interrupted"]
    assert document["answered"] == document["sent"] == len(answering.bodies) < 4000
    assert len(read_record(tmp_path / "record")["latencies_ms"]) == document["answered"]


def test_a_generator_that_was_late_says_so(
    answering: AnsweringServer, program: Path, tmp_path: Path
) -> None:
    process = start(program, answering, tmp_path)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    record = read_record(tmp_path / "record")
    # 100 were due meanwhile; the lag of the k-th is 500 - 5 k ms.
    assert (record["lags_ms"] > 50).sum() >= 80
    assert (record["latencies_ms"] > 50).sum() >= 80
    (reason,) = self_check(record["lags_ms"], 0.1, 0, 0)["invalid"]
    assert reason.startswith("schedule lag")


@pytest.mark.slow
def test_more_than_the_server_can_take_is_invalid(
    answering: AnsweringServer, program: Path
) -> None:
    answering.delay_s = 0.1
    run = drive(
        some_bodies(500), port=answering.port, rate=200, seconds=2, connections=4, program=program
    )
    assert run.document["missed"] > 100
    reasons = " ".join(run.check()["invalid"])
    assert "due sends missed" in reasons
    assert "wait for a connection" in reasons
    assert run.latencies_ms.max() > 2000  # they were sent after all, and their wait counts


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("", "--bodies is missing"),
        ("--bodies nowhere", "--bodies nowhere cannot be read: No such file"),
        ("--bodies GOOD --rate x", "--rate is 'x', expected a number"),
        ("--bodies GOOD --rate -1", "--rate is '-1', expected a number"),
        ("--bodies GOOD --port 0", "--port is '0', expected 1 to 65535"),
        ("--bodies GOOD --arrivals now", "--arrivals is 'now', expected poisson or constant"),
        ("--bodies GOOD --header x", "--header is 'x', expected 'Name: value'"),
        ("--bodies GOOD --rate", "'--rate' is not a flag with a value"),
        ("--bodies GOOD --rats 1", "there is no flag '--rats'"),
        ("--bodies GOOD --rate 10000", "--bodies has 3 bodies, expected the "),
        ("--bodies GOOD --record /nowhere/x", "--record /nowhere/x cannot be written"),
        ("--bodies GOOD --host no.invalid", "--host no.invalid has no address"),
        ("--bodies CUT", "has another length than its 3 bodies say"),
        ("--bodies LONG", "has another length than its 3 bodies say"),
        ("--bodies EMPTY", "is empty, expected a body"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    flags: str, told: str, program: Path, tmp_path: Path
) -> None:
    good = tmp_path / "GOOD"
    assert write_bodies(good, some_bodies(3)) == 3
    (tmp_path / "CUT").write_bytes(good.read_bytes()[:-1])
    (tmp_path / "LONG").write_bytes(good.read_bytes() + b"x")
    write_bodies(tmp_path / "EMPTY", [])
    done = subprocess.run(
        [program, *flags.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_drive_tells_why_the_generator_refused(program: Path) -> None:
    with pytest.raises(ToxicityError, match="ended with 2: --port is '0', expected"):
        drive(some_bodies(1), port=0, program=program)


# --- As the benches call it -----------------------------------------------------------------
@pytest.fixture
def described(answering: AnsweringServer) -> Server:
    """The process of the tests as a server; what it counts is its CPU time."""
    return Server(os.getpid(), 0.0, "", answering.port, 0, 0)


def config_of(**changes: Any) -> BenchConfig:
    return BenchConfig(**{"seconds": 2, "comments": SYNTHETIC, "users": 3, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("rate", [50.0, 0.0])
def test_load_gives_the_result_of_bench_run(
    rate: float, answering: AnsweringServer, described: Server, program: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OPEN_LOOP", str(program))
    answering.delay_s = 0.01
    config = config_of(rate=rate, skip_s=0.5)
    result = load(config, "http", described, process_counters)
    assert result.requests == len(answering.bodies) > 0
    assert result.failures == 0
    assert result.latency_ms["p50"] >= 10
    assert result.cpu_us["generator"] > 0
    assert result.check["invalid"] == [] or result.latency_ms["p99"] > 20  # a busy machine
    if rate:
        assert result.rate_rps == pytest.approx(50, rel=0.4)
    texts = [json.loads(body)["inputs"][0]["data"][0] for body in answering.bodies]
    load(config, "http", described, process_counters)
    again = [json.loads(body)["inputs"][0]["data"][0] for body in answering.bodies[len(texts) :]]
    # To so small a vocabulary some comments are alike.
    assert len(set(again) - set(texts)) > 0.9 * len(again)


@pytest.mark.slow
def test_load_repeats_the_share_that_is_asked_for(
    answering: AnsweringServer, described: Server, program: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OPEN_LOOP", str(program))
    result = load(config_of(rate=300, repeat_share=0.5), "http", described, process_counters)
    assert result.requests == len(answering.bodies)
    counts = Counter(answering.bodies)
    repeated = sum(count for count in counts.values() if count > 1)
    assert 0.3 < repeated / len(answering.bodies) < 0.6


def test_load_raises_when_nothing_was_answered(
    answering: AnsweringServer, described: Server, program: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OPEN_LOOP", str(program))
    answering.answer = lambda _: whole("500 No", b"no")
    with pytest.raises(ToxicityError, match=r"none was answered .*500: no"):
        load(config_of(seconds=1, rate=20), "http", described, process_counters)
    with pytest.raises(BadInput, match="protocol is grpc, expected http"):
        load(config_of(), "grpc", described, process_counters)


def test_bodies_needed_are_more_than_a_schedule_has() -> None:
    rng = np.random.default_rng(0)
    for rate, seconds in ((1, 1), (50, 2), (5000, 20)):
        assert bodies_needed(rate, seconds) > rng.poisson(rate * seconds, 100_000).max()
