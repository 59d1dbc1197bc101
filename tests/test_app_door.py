"""The door holds for the application's paths, too, and what ends comes back. All parts are real."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
from app_door import (
    MODERATIONS,
    PERSPECTIVE,
    SUGGEST,
    add_key,
    ask,
    make_config,
    served,
    serving,
)
from conftest import TinyModel

from contract import (
    HOST,
    LARGE_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_REQUEST_BYTES,
    PROBABILITY,
    TEXT,
)
from serve import door, haproxy
from serve.app import scorer
from serve.probe import INFER_PATH
from serve.supervisor import Supervisor

pytestmark = pytest.mark.slow
SCORED = ["/score", MODERATIONS, PERSPECTIVE]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")


@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    folder = tmp_path_factory.mktemp("app")
    tiny_model.publish(folder / "repository")
    with serving(make_config(folder / "run", folder / "repository")) as config:
        yield config


def body(path: str, text: str = "you are kind") -> dict[str, Any]:
    if path == PERSPECTIVE:
        return {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}}
    return {"text": text} if path == "/score" else {"input": text}


def probability(path: str, answer: Any) -> float:
    if path == PERSPECTIVE:
        return answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
    if path == MODERATIONS:
        return answer["results"][0]["category_scores"]["toxicity"]
    return answer["probability"]


# --- What a request may be -----------------------------------------------------------------
REFUSED: dict[str, tuple[int, dict[str, str]]] = {
    "foreign origin": (403, {"Origin": "https://other.example"}),
    "foreign page": (403, {"Sec-Fetch-Site": "cross-site"}),
    "gzip": (415, {"Content-Encoding": "gzip"}),
    "chunked": (411, {"Transfer-Encoding": "chunked"}),
    "headers": (431, {"X-Long": "x" * MAX_HEADER_BYTES}),
}


@pytest.mark.parametrize("path", [*SCORED, SUGGEST])
def test_the_doors_rules_hold(opened: door.DoorConfig, path: str) -> None:
    sent = json.dumps(body(path)).encode()
    for case, (status, headers) in REFUSED.items():
        content = gzip.compress(sent) if case == "gzip" else sent
        content = b"2\r\n{}\r\n0\r\n\r\n" if case == "chunked" else content
        found, answer, _ = ask(opened, path, content, headers)
        assert (found, list(answer)) == (status, ["error"]), case
    assert ask(opened, path, b"")[0] == 400
    assert ask(opened, path, sent, method="PUT")[0] == 405
    assert ask(opened, path, method="DELETE")[0] == 405
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_REQUEST_BYTES + 1}\r\n\r\n"
    with socket.create_connection((HOST, opened.http_port), timeout=30) as client:
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_what_is_off_says_how_to_turn_it_on(opened: door.DoorConfig) -> None:
    status, answer, _ = ask(opened, "/score?text=x")
    assert status == 405 and "--get-score" in answer["error"]
    suggested = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 1}}}}
    status, answer, _ = ask(opened, SUGGEST, body(PERSPECTIVE) | suggested)
    assert status == 403 and "--labels" in answer["error"]["message"]
    assert answer["error"]["status"] == "PERMISSION_DENIED"


@pytest.mark.parametrize("path", SCORED)
@pytest.mark.parametrize("size", [LARGE_BODY_BYTES - 1, LARGE_BODY_BYTES + 1, 260_000])
def test_long_comments_are_scored(opened: door.DoorConfig, path: str, size: int) -> None:
    text = ("you are kind and so on " * (size // 20))[: size - 100]
    status, answer, _ = ask(opened, path, body(path, text))
    assert (status, probability(path, answer)) == (200, served(opened, text)[0])


def test_the_largest_list_is_scored(opened: door.DoorConfig) -> None:
    texts = [f"{n} " + "you are kind 中 " * 200 for n in range(256)]
    content = json.dumps({"input": texts}, ensure_ascii=False).encode()
    assert 800_000 < len(content) < MAX_REQUEST_BYTES
    status, answer, _ = ask(opened, MODERATIONS, content)
    assert status == 200
    found = [result["category_scores"]["toxicity"] for result in answer["results"]]
    assert found[::50] == served(opened, *texts[::50])


# --- Load ------------------------------------------------------------------------------------
@contextlib.contextmanager
def load(
    config: door.DoorConfig, path: str, content: Any, clients: int = 2
) -> Iterator[tuple[list[Any], list[str]]]:
    """What honest clients got, and what they lost."""
    found: list[Any] = []
    lost: list[str] = []
    done = threading.Event()

    def client() -> None:
        connection = HTTPConnection(HOST, config.http_port, timeout=30)

        def send() -> Any:
            connection.request("POST", path, json.dumps(content))
            return connection.getresponse()

        while not done.is_set():
            try:
                try:
                    answer = send()
                except (RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                    # A kept connection may end without a byte (RFC 9112, 9.3.1).
                    connection.close()
                    answer = send()
                said = json.loads(answer.read())
                if answer.status == 200:
                    found.append(said)
                else:
                    lost.append(f"{answer.status} {said}")
            except (OSError, HTTPException, ValueError) as error:
                lost.append(repr(error))
                connection.close()
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            time.sleep(0.3)
            yield found, lost
            time.sleep(0.3)
        finally:
            done.set()
        for one in running:
            one.result()


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def infer_body(text: str) -> dict[str, Any]:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    return {"inputs": [tensor], "outputs": [{"name": PROBABILITY}]}


def test_a_killed_application_is_back_and_nobody_lost_a_request(
    opened: door.DoorConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = Supervisor(opened.run_dir)
    before = supervisor.states()["app"]
    others = {name: one.pid for name, one in supervisor.states().items() if name != "app"}
    with (
        load(opened, INFER_PATH, infer_body("thanks")) as (natives, lost_natives),
        load(opened, MODERATIONS, body(MODERATIONS, "thanks")) as (found, lost),
    ):
        os.kill(before.pid, signal.SIGKILL)
        eventually(lambda: supervisor.states()["app"].pid not in (0, before.pid))
        eventually(lambda: ask(opened, "/app/health")[0] == 200)
    assert natives and not lost_natives
    assert found and not lost
    (expected,) = served(opened, "thanks")
    assert {probability(MODERATIONS, one) for one in found} == {expected}
    after = {name: one.pid for name, one in supervisor.states().items() if name != "app"}
    assert after == others
    capsys.readouterr()
    door.status(opened)
    assert re.search(r"^app: +scores, process \d+ up", capsys.readouterr().out, re.MULTILINE)


def test_a_killed_server_costs_the_application_no_request(opened: door.DoorConfig) -> None:
    supervisor = Supervisor(opened.run_dir)
    pid = supervisor.states()["replica-1"].pid
    with load(opened, "/score", body("/score"), clients=16) as (found, lost):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: supervisor.states()["replica-1"].pid not in (0, pid))
        eventually(lambda: ask(opened, "/v2/health/ready", method="HEAD")[0] == 200)
    assert found and not lost


def test_overload_is_refused_at_once_with_a_time_to_come_back(opened: door.DoorConfig) -> None:
    pid = Supervisor(opened.run_dir).states()["replica-1"].pid

    def send(number: int) -> tuple[int, Any, dict[str, str]]:
        return ask(opened, MODERATIONS, {"input": [f"{number} {n}" for n in range(200)]})

    os.kill(pid, signal.SIGSTOP)
    try:
        clients = 12 + scorer.MAX_CALLS
        with ThreadPoolExecutor(clients) as pool:
            answers = [pool.submit(send, number) for number in range(clients)]
            eventually(lambda: sum(answer.done() for answer in answers) >= 6)
            os.kill(pid, signal.SIGCONT)
            found = [answer.result() for answer in answers]
    finally:
        os.kill(pid, signal.SIGCONT)
    refused = [(answer, headers) for status, answer, headers in found if status == 503]
    assert len(refused) >= 6 and {status for status, _, _ in found} <= {200, 503}
    for answer, headers in refused:
        assert headers["retry-after"] == "1"
        assert answer["error"]["type"] == "server_error"
        assert answer["error"]["code"] in ("overloaded", "unavailable")
    assert any(answer["error"]["code"] == "overloaded" for answer, _ in refused)
    eventually(lambda: ask(opened, MODERATIONS, {"input": "still here"})[0] == 200)


def test_stopped_while_it_answers_it_finishes_what_it_began(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_config(tmp_path / "run", tmp_path / "repository")
    texts = {"input": [f"{n} you are kind" for n in range(256)]}
    with serving(config), load(config, MODERATIONS, texts) as (found, lost):
        door.stop(config)
    assert found and {one.split("(")[0] for one in lost} <= {"ConnectionRefusedError"}, lost
    assert not [path for path in config.run_dir.rglob("*") if path.is_socket()]


# --- Versions and flags -----------------------------------------------------------------------
def test_an_update_and_new_flags_lose_no_request(
    tiny_model: TinyModel, other_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_config(tmp_path / "run", tmp_path / "repository")
    text = "an awful person"
    with serving(config):
        with load(config, MODERATIONS, body(MODERATIONS, text)) as (found, lost):
            (first,) = served(config, text)
            stated = {**other_model.artifact, "thresholds": {"toxicity": 1e-6}}
            other_model.publish(tmp_path / "repository", artifact=stated)
            door.start(config)
            (second,) = served(config, text)
            assert ask(config, "/score", "x")[1]["model_version"] == "2"
        assert not lost
        by_version = {
            one["model"]: (probability(MODERATIONS, one), one["results"][0]["flagged"])
            for one in found
        }
        assert by_version == {"toxicity-1": (first, False), "toxicity-2": (second, True)}
        starts = Supervisor(config.run_dir).states()["app"].starts
        with load(config, MODERATIONS, body(MODERATIONS, text)) as (found, lost):
            door.start(dataclasses.replace(config, get_score=True))
        assert found and not lost
        assert Supervisor(config.run_dir).states()["app"].starts == starts + 1
        assert ask(config, "/score?text=x")[0] == 200
        door.start(config)  # a flag that is left out stays as it is
        assert ask(config, "/score?text=x")[0] == 200


# --- Keys ------------------------------------------------------------------------------------
def test_keys_are_asked_for_as_each_api_sends_them(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path / "repository")
    file = tmp_path / "keys.json"
    alice, bob = add_key(file, "alice"), add_key(file, "bob", "--requests-per-s", "1")
    config = make_config(tmp_path / "run", tmp_path / "repository", keys=file)

    def status(path: str, headers: dict[str, str] | None = None, query: str = "") -> int:
        return ask(config, path + query, body(path), headers)[0]

    with serving(config):
        for path in SCORED:
            assert status(path) == status(path, {"Authorization": "Bearer wrong"}) == 401
            assert status(path, {"Authorization": f"Bearer {alice}"}) == 200
            in_query = status(path, query=f"?key={alice}")
            assert in_query == (200 if path == PERSPECTIVE else 401), path
        assert status(PERSPECTIVE, query="?key=wrong") == 401
        assert status(PERSPECTIVE, {"X-Goog-Api-Key": alice}) == 200
        assert ask(config, "/app/health")[0] == ask(config, "/openapi.json")[0] == 401
        large = body(MODERATIONS, "fine " * (LARGE_BODY_BYTES // 4))
        bearer = {"Authorization": f"Bearer {alice}"}
        assert ask(config, MODERATIONS, large, bearer)[0] == 200
        tried = [status(PERSPECTIVE, query=f"?alt=json&key={bob}") for _ in range(20)]
        assert tried.count(429) >= 9 and tried[0] == 200  # ten in ten seconds
        pattern = r'haproxy_backend_http_responses_total{proxy="key_alice_app",code="2xx"} 5\b'

        def counted() -> bool:
            url = f"http://{HOST}:{config.metrics_port}/balancer/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return re.search(pattern, answer.read().decode()) is not None

        eventually(counted)
        for kept in config.run_dir.rglob("*"):
            if kept.is_file() and "models" not in kept.parts:
                assert alice.encode() not in kept.read_bytes(), kept
