"""What haproxy refuses has the form of the API that was asked; the real haproxy, no server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from conftest import free_port

from contract import HOST, MAX_REQUEST_BYTES
from serve import balancer, haproxy, keys
from serve.app.settings import ANALYZE_PATH, MODERATION_PATH, SCORE_PATH, SUGGEST_PATH
from serve.probe import INFER_PATH

PERSPECTIVE = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    405: "INVALID_ARGUMENT",
    411: "INVALID_ARGUMENT",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    503: "UNAVAILABLE",
}
KEY = {"Authorization": "Bearer secret"}
LARGE = {"Content-Length": str(MAX_REQUEST_BYTES + 1)}
REFUSED: list[tuple[int, str, dict[str, str], bytes | None]] = [
    (400, "POST", {"Content-Length": "0"}, None),
    (403, "POST", {"Origin": "https://elsewhere.example"}, b"{}"),
    (405, "PUT", {}, b"{}"),
    (411, "POST", {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n"),
    (413, "POST", LARGE, None),
    (415, "POST", {"Content-Encoding": "gzip"}, b"{}"),
    (503, "POST", {}, b"{}"),
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a front end that asks for a key, and behind which nothing is."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder, port = tmp_path_factory.mktemp("front"), free_port()
    known = [keys.Key("client", hashlib.sha256(b"secret").hexdigest())]
    keys.write_map(folder / "keys.map", known)
    door = balancer.Door(
        address=HOST,
        http_port=port,
        grpc_port=free_port(),
        metrics_port=free_port(),
        replicas=[balancer.Replica("replica-1", str(folder / "a"), str(folder / "b"))],
        front_folder=folder,
        large_folder=folder,
        app_socket=str(folder / "c"),
        keys=known,
        keys_file=folder / "keys.map",
    )
    file = folder / haproxy.CONFIG_FILE
    file.write_text(balancer.front(door), "utf-8")
    checked = subprocess.run(
        [haproxy.executable(), "-c", "-f", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0 and "WARNING" not in checked.stderr, checked.stderr
    with subprocess.Popen([haproxy.executable(), "-f", file], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not _listens(port) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
        return True
    return False


def _ask(port: int, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Any:
    """Status and JSON of the answer."""
    connection = HTTPConnection(HOST, port, timeout=60)
    try:
        connection.putrequest(method, path)
        sized = {name.lower() for name in headers} & {"content-length", "transfer-encoding"}
        own = {} if sized or body is None else {"Content-Length": str(len(body))}
        for name, value in {**headers, **own}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("status", "method", "headers", "body"),
    [(401, "POST", {"Authorization": "Bearer wrong"}, b"{}"), *REFUSED],
)
def test_a_refusal_has_the_form_of_the_api(
    port: int, status: int, method: str, headers: dict[str, str], body: bytes | None
) -> None:
    sent = {**KEY, **headers}
    for path in (ANALYZE_PATH, SUGGEST_PATH):
        found, answer = _ask(port, method, path, sent, body)
        error = answer["error"]
        assert (found, list(answer), list(error)) == (
            status,
            ["error"],
            ["code", "message", "status"],
        )
        assert (error["code"], error["status"]) == (status, PERSPECTIVE[status])
    found, answer = _ask(port, method, MODERATION_PATH, sent, body)
    assert found == status and [*answer["error"]] == ["message", "type", "param", "code"]
    assert answer["error"]["message"] == error["message"]
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = {401: "invalid_api_key", 503: "unavailable"}.get(status)
    assert (answer["error"]["type"], answer["error"]["code"]) == (kind, code)
    for path in (SCORE_PATH, INFER_PATH):
        found, answer = _ask(port, method, path, sent, body)
        assert found == status and isinstance(answer["error"], str), path
