"""A door of the tests of `serve/app`, and what asks it. All parts are real."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from conftest import free_port

from contract import HOST, PROBABILITY, TEXT
from serve import door
from serve.probe import INFER_PATH

PERSPECTIVE = "/v1alpha1/comments:analyze"
SUGGEST = "/v1alpha1/comments:suggestscore"
MODERATIONS = "/v1/moderations"


def make_config(folder: Path, repository: Path, **more: Any) -> door.DoorConfig:
    return door.DoorConfig(
        action="start",
        repository=repository,
        run_dir=folder,
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        **more,
    )


def add_key(path: Path, name: str, *flags: str) -> str:
    """A new key of a file of keys, as its client gets it."""
    command = [sys.executable, "-m", "serve.keys", "add", "--name", name, "--file", str(path)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


@contextlib.contextmanager
def serving(config: door.DoorConfig) -> Iterator[door.DoorConfig]:
    try:
        door.start(config)
        yield config
    finally:
        door.stop(config)


def ask(
    config: door.DoorConfig,
    path: str,
    content: bytes | object = None,
    headers: dict[str, str] | None = None,
    method: str = "",
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of an answer; what is no bytes is sent as JSON."""
    body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    connection = HTTPConnection(HOST, config.http_port, timeout=60)
    with contextlib.closing(connection):
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        found = json.loads(answer.read() or b"null")
        return answer.status, found, {k.lower(): v for k, v in answer.getheaders()}


def served(config: door.DoorConfig, *texts: str) -> list[float]:
    """Probabilities of the KServe endpoint."""
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    wanted = [{"name": PROBABILITY}]
    status, answer, _ = ask(config, INFER_PATH, {"inputs": [tensor], "outputs": wanted})
    assert status == 200, answer
    return answer["outputs"][0]["data"]
