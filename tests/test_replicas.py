"""Real servers behind a real haproxy: a killed one costs nothing, an update mixes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import psutil
import pytest
from clients import Load, loading
from conftest import TinyModel, free_port
from tritonclient.utils import InferenceServerException

import contract
from contract import FP32_LOGIT_ATOL, HOST, LOGIT, MODEL_VERSION, BadInput
from serve import control, door, haproxy, triton
from serve.client import Protocol, connect, infer, score_comments
from serve.probe import INFER_PATH
from serve.supervisor import Supervisor

pytestmark = pytest.mark.slow

PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")
TEXT = "you are a kind person and thanks for your work"


@pytest.fixture(scope="module")
def balanced() -> None:
    try:
        haproxy.executable()
    except BadInput as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def running(
    balanced: None,  # noqa: ARG001
    tiny_model: TinyModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[door.DoorConfig]:
    """Two replicas with version 1 of `tiny_model`."""
    folder = tmp_path_factory.mktemp("replicas")
    tiny_model.publish(folder / "repository")
    config = door.DoorConfig(
        action="start",
        repository=folder / "repository",
        run_dir=folder / "run",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        replicas=2,
        grpc=True,
        stop_timeout_s=8,
    )
    door.start(config)
    yield config
    door.stop(config)


def _url(config: triton.ServeConfig, protocol: Protocol) -> str:
    return f"{HOST}:{config.http_port if protocol == 'http' else config.grpc_port}"


def _server(config: door.DoorConfig, number: int) -> triton.Server:
    balancer = door.running(config.run_dir)
    assert balancer
    return balancer.replicas[number - 1]


def _states(config: door.DoorConfig) -> dict[str, str]:
    return haproxy.states(Supervisor(config.run_dir).program_folder(haproxy.NAME))


def _load(config: door.DoorConfig, *, retries: int) -> contextlib.AbstractContextManager[Load]:
    """Two clients a protocol ask for TEXT again and again on a connection that they keep; their
    answers are version and logit.
    """

    def ask(protocol: Protocol, load: Load, done: threading.Event) -> None:
        with connect(protocol, _url(config, protocol)) as client:
            while not done.is_set():
                for left in reversed(range(retries + 1)):
                    try:
                        answer = infer(client, protocol, [TEXT.encode()])
                    except (InferenceServerException, OSError, HTTPException) as error:
                        (load.retried if left else load.lost).append(f"{protocol}: {error!r}")
                        continue
                    version = answer.as_numpy(MODEL_VERSION).item().decode()
                    load.answers.append((version, answer.as_numpy(LOGIT).item()))
                    break

    return loading(*(partial(ask, protocol) for protocol in PROTOCOLS * 2))


def _scored(server: triton.Server) -> int:
    """Requests that a replica answered, by its own metrics port."""
    lines = _metrics(server).splitlines()
    return sum(
        int(line.split()[-1]) for line in lines if line.startswith("toxicity_requests_total")
    )


def _metrics(server: triton.Server) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def test_requests_reach_both_replicas(
    running: door.DoorConfig, tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [_server(running, number) for number in (1, 2)]
    before = [_scored(server) for server in servers]
    for at in range(20):
        protocol = PROTOCOLS[at % 2]
        logit = score_comments([TEXT], protocol=protocol, url=_url(running, protocol)).logit[0]
        assert logit == pytest.approx(tiny_model.logit(TEXT), abs=FP32_LOGIT_ATOL)
    time.sleep(0.3)  # the counters are a moment behind
    after = [_scored(server) for server in servers]
    assert all(now > then for now, then in zip(after, before, strict=True)), (before, after)
    capsys.readouterr()
    door.status(running)
    shown = capsys.readouterr().out
    for server in servers:
        assert f"scores, version 1, UP for haproxy, process {server.pid} up" in shown
        assert server.metrics_url in shown


def test_killed_replica_loses_no_request_and_rejoins(
    running: door.DoorConfig, tiny_model: TinyModel
) -> None:
    killed, kept = (_server(running, number) for number in (1, 2))
    with _load(running, retries=1) as load:
        psutil.Process(killed.pid).kill()
        deadline = time.monotonic() + 30
        while (found := door.running(running.run_dir)) is None or len(found.replicas) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while _server(running, 1).pid == killed.pid or "DOWN" in _states(running).values():
            assert time.monotonic() < deadline, _states(running)
            time.sleep(0.05)
    assert not load.lost
    logits = [logit for _, logit in load.answers]
    assert logits == pytest.approx([tiny_model.logit(TEXT)] * len(logits), abs=FP32_LOGIT_ATOL)
    assert _server(running, 2) == kept
    assert _states(running) == {"replica-1": "UP", "replica-2": "UP"}


def test_rolling_update_fails_nothing_and_mixes_nothing(
    running: door.DoorConfig, tiny_model: TinyModel, other_model: TinyModel, tmp_path: Path
) -> None:
    truth = {"1": tiny_model.logit(TEXT), "2": other_model.logit(TEXT)}
    assert abs(truth["1"] - truth["2"]) > 0.01
    pids = [_server(running, number).pid for number in (1, 2)]
    with _load(running, retries=0) as load:
        other_model.publish(running.repository)
        door.start(running)
    assert not load.lost
    assert {version for version, _ in load.answers} == {"1", "2"}
    for version, logit in load.answers:
        assert logit == pytest.approx(truth[version], abs=FP32_LOGIT_ATOL)
    assert [_server(running, number).pid for number in (1, 2)] == pids
    folders = [Supervisor(running.run_dir).program_folder(f"replica-{n}") for n in (1, 2)]
    assert [control.version(folder / control.HTTP_SOCKET) for folder in folders] == [2, 2]

    # A version that cannot load goes no further than the first, which answers as before.
    broken = dataclasses.replace(tiny_model, ragged_path=tmp_path / "broken.onnx")
    broken.ragged_path.write_bytes(b"no model")
    broken.publish(running.repository)
    with _load(running, retries=0) as load:
        with pytest.raises(BadInput, match="the old one still answers"):
            door.start(running)
        time.sleep(1)  # several health checks
        assert _states(running) == {"replica-1": "UP", "replica-2": "UP"}
    assert not load.lost
    assert {version for version, _ in load.answers} == {"2"}
    tiny_model.publish(running.repository)
    door.start(running)


def test_the_set_shrinks_and_grows_under_load(running: door.DoorConfig) -> None:
    with _load(running, retries=1) as load:
        door.start(dataclasses.replace(running, replicas=1))
        assert _states(running) == {"replica-1": "UP"}
        door.start(running)
        assert _states(running) == {"replica-1": "UP", "replica-2": "UP"}
    assert not load.lost


def test_stop_finishes_what_is_in_flight_and_leaves_nothing(
    running: door.DoorConfig,
) -> None:
    balancer = door.running(running.run_dir)
    assert balancer
    servers = [_server(running, number) for number in (1, 2)]
    family = [psutil.Process(started.pid) for started in (balancer, *servers)]
    family += [child for process in family for child in process.children(recursive=True)]
    tensor = {"name": contract.TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [TEXT]}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST {INFER_PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n"
    with (
        ThreadPoolExecutor(1) as pool,
        socket.create_connection((HOST, running.http_port), timeout=30) as client,
    ):
        client.sendall(head.encode() + body[:-1])  # it is in flight until the last byte comes
        while 'current_sessions{proxy="http"} 1' not in _metrics(balancer):
            time.sleep(0.05)
        stopping = pool.submit(door.stop, running)
        while _accepts(running.http_port):
            time.sleep(0.05)
        client.sendall(body[-1:])
        answer = HTTPResponse(client)
        answer.begin()
        assert answer.status == 200, answer.read()
        assert json.loads(answer.read())["outputs"]
        stopping.result()
    assert not any(process.is_running() for process in family)
    assert door.running(running.run_dir) is None
    with pytest.raises(BadInput, match=r"no server answers at .*make serve"):
        score_comments([TEXT], url=_url(running, "http"))


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


# --- Refusals ----------------------------------------------------------------------------
def test_missing_haproxy_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(haproxy, "_SBIN", ())
    with pytest.raises(BadInput, match=r"haproxy is not installed.*apt-get install haproxy"):
        haproxy.executable()
