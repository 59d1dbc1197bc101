"""A canary whose attributes or thresholds are not the current version's; all parts are real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_door import ask, make_config, serving
from conftest import ATTRIBUTE_NAMES, TinyModel

from console.options import make_config as checked
from contract import ATTRIBUTES, HOST, MODEL_VERSION, PROBABILITY, PUBLIC_MODEL, TEXT, THRESHOLD
from export.switch import serve_version
from monitor.targets import Watched, send
from serve import canary, door, haproxy
from serve.canary import CanaryConfig
from serve.client import score_comments
from serve.probe import INFER_PATH

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed"),
]
COMMENT = "you are a kind person and thanks for your work"
PLAIN, STRICT = 2, 3
"""Versions beside version 1, which has attributes: without them, and with another threshold."""


@pytest.fixture(scope="module")
def running(
    tiny_model: TinyModel, named_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    folder = tmp_path_factory.mktemp("second")
    repository = folder / "repository"
    for model, threshold in ((named_model, 0.5), (tiny_model, 0.5), (named_model, 0.9375)):
        artifact = {**model.artifact, "thresholds": {PUBLIC_MODEL: threshold}}
        model.publish(repository, artifact=artifact)
    serve_version(repository, 1)
    config = make_config(folder / "run", repository, stop_timeout_s=8)
    with serving(config):
        yield config


def begin(config: door.DoorConfig, version: int, **more: Any) -> None:
    values = {"run_dir": config.run_dir, "repository": config.repository, "version": version}
    canary.begin(checked(CanaryConfig, {**values, "share": 1.0, **more}))


def end(config: door.DoorConfig) -> None:
    canary.end(checked(CanaryConfig, {"run_dir": config.run_dir, "end": True}))


def body(*outputs: str) -> bytes:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [COMMENT]}
    named = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    return json.dumps({"inputs": [tensor], **named}).encode()


def test_who_asks_for_attributes_is_answered_by_the_version_that_has_them(
    running: door.DoorConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(running, PLAIN)
    assert "the versions' attributes differ: only requests that" in capsys.readouterr().out
    spelled = body(ATTRIBUTES).replace(b"attr", b"\\u0061ttr")
    for asked in (body(), body(PROBABILITY, ATTRIBUTES), spelled):
        status, answer, _ = ask(running, INFER_PATH, asked)
        assert status == 200 and answer["model_version"] == "1"
        assert answer["parameters"][ATTRIBUTES] == ",".join(ATTRIBUTE_NAMES)
    status, answer, _ = ask(running, INFER_PATH, body(PROBABILITY))
    assert status == 200 and answer["model_version"] == str(PLAIN), "it is drawn"
    for _ in range(3):  # by way of the application, which asks first without them
        status, answer, _ = ask(running, "/score", {"text": COMMENT})
        assert status == 200 and answer[MODEL_VERSION] == "1"
        assert set(answer[ATTRIBUTES]) == set(ATTRIBUTE_NAMES)
    assert set(score_comments([COMMENT], url=_url(running)).attributes[0]) == set(ATTRIBUTE_NAMES)
    end(running)


def test_an_answer_is_decided_by_the_threshold_of_its_version(running: door.DoorConfig) -> None:
    begin(running, STRICT)
    command = [sys.executable, "-m", "serve.score", "--json", "--url", _url(running), COMMENT]
    root = Path(__file__).parent.parent
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    row = json.loads(said.stdout)
    assert row[MODEL_VERSION] == str(STRICT) and row[THRESHOLD] == 0.9375
    _, answer, _ = ask(running, "/score", {"text": COMMENT, "decide": True})
    assert answer[MODEL_VERSION] == str(STRICT) and answer[THRESHOLD] == 0.9375

    # The monitor's own requests are nobody's traffic.
    where = Watched((), running.repository, _url(running))
    assert [version for _, version in send(where, [COMMENT] * 3, rate=1000)] == ["1"] * 3
    end(running)


def _url(config: door.DoorConfig) -> str:
    return f"{HOST}:{config.http_port}"
