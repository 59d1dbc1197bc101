"""A second version beside the first, behind the real haproxy: nobody notices but the comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest
from app_door import ask, make_config, serving
from clients import Load, loading
from conftest import TinyModel
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import binomtest

from console.options import make_config as checked
from contract import FP32_LOGIT_ATOL, HOST, LOGIT, TEXT, BadInput, GateFailed
from export.repository import current
from serve import canary, door, haproxy, mirror
from serve.canary import CanaryConfig
from serve.canary_backend import SERVER
from serve.comparison import BINS, PairComparison, percentile, psi
from serve.probe import INFER_PATH
from serve.promotion import Bounds, judged
from serve.settings import CANARY, MIRROR
from serve.supervisor import Supervisor
from serve.telling import comparison

needs_haproxy = pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
COMMENT = "you are a kind person and thanks for your work"


@pytest.fixture(scope="module")
def running(
    tiny_model: TinyModel, other_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    """Version 1 of `tiny_model` serves; version 2 of `other_model` is published."""
    folder = tmp_path_factory.mktemp("canary")
    tiny_model.publish(folder / "repository")
    config = make_config(folder / "run", folder / "repository", stop_timeout_s=8)
    with serving(config):
        other_model.publish(folder / "repository")
        checked_version(config, 1)
        yield config


def checked_version(config: door.DoorConfig, number: int) -> None:
    from export.switch import serve_version

    serve_version(config.repository, number)


def flags(config: door.DoorConfig, **more: Any) -> CanaryConfig:
    return checked(
        CanaryConfig, {"run_dir": config.run_dir, "repository": config.repository, **more}
    )


def body(*texts: str) -> bytes:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    return json.dumps({"inputs": [tensor]}).encode()


@contextlib.contextmanager
def asking(config: door.DoorConfig, clients: int = 2) -> Iterator[Load]:
    """Clients that ask for COMMENT on kept connections and never again for the same answer."""

    def client(load: Load, done: threading.Event) -> None:
        connection = HTTPConnection(HOST, config.http_port, timeout=30)
        while not done.is_set():
            try:
                connection.request("POST", INFER_PATH, body(COMMENT))
                answer = connection.getresponse()
                found = json.loads(answer.read())
            except (OSError, HTTPException, ValueError) as error:
                load.lost.append(repr(error))
                connection.close()
                continue
            if answer.status != 200:
                load.lost.append(f"{answer.status} {found}")
                continue
            logit = next(one["data"][0] for one in found["outputs"] if one["name"] == LOGIT)
            load.answers.append((found["model_version"], logit))
        connection.close()

    with loading(*[client] * clients) as load:
        yield load


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def compared(config: door.DoorConfig) -> dict[str, Any]:
    return comparison(Supervisor(config.run_dir)) or {}


# --- The real door -----------------------------------------------------------------------
@needs_haproxy
@pytest.mark.slow
def test_a_share_is_drawn_a_kill_costs_nothing_and_the_end_neither(
    running: door.DoorConfig,
    tiny_model: TinyModel,
    other_model: TinyModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth = {"1": tiny_model.logit(COMMENT), "2": other_model.logit(COMMENT)}
    supervisor = Supervisor(running.run_dir)
    before = {name: state.pid for name, state in supervisor.states().items()}
    with asking(running) as load:
        canary.begin(flags(running, version=2, share=0.3))
    assert not load.lost
    assert {version for version, _ in load.answers} == {"1", "2"}  # once it was there
    for version, logit in load.answers:
        assert logit == pytest.approx(truth[version], abs=FP32_LOGIT_ATOL)

    drawn = Counter(ask_version(running) for _ in range(600))
    assert binomtest(drawn["2"], 600, 0.3).pvalue > 1e-6, drawn
    until(lambda: compared(running)["comments"] > 0)
    capsys.readouterr()
    door.status(running)
    assert "canary:        answers 0.3 of requests, scores, version 2" in capsys.readouterr().out

    with asking(running) as load:
        pid = supervisor.states()[CANARY].pid
        psutil.Process(pid).kill()
        until(lambda: supervisor.states()[CANARY].pid not in (0, pid))
        until(lambda: haproxy.states(running.metrics_port)[SERVER] == "UP")
        mirror_pid = supervisor.states()[MIRROR].pid
        psutil.Process(mirror_pid).kill()
        until(lambda: supervisor.states()[MIRROR].pid not in (0, mirror_pid))
    assert not load.lost

    with asking(running) as load:
        canary.end(flags(running, end=True))
    assert not load.lost
    assert {ask_version(running) for _ in range(30)} == {"1"}
    after = {name: state.pid for name, state in supervisor.states().items()}
    assert after == before, "nothing else was started again"


def ask_version(config: door.DoorConfig) -> str:
    with urllib.request.urlopen(
        f"http://{HOST}:{config.http_port}{INFER_PATH}", data=body(COMMENT), timeout=30
    ) as answer:
        return str(json.load(answer)["model_version"])
