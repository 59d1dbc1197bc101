"""What `make serve` asks of a server over its private sockets: a score, its version, a load."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from contract import LOGIT, PUBLIC_MODEL, BadInput
from serve import probe

_TIMEOUT_S, _LOAD_TIMEOUT_S = 10, 300
HTTP_SOCKET, METRICS_SOCKET, GRPC_SOCKET = "http.sock", "metrics.sock", "grpc.sock"
GRPC_PORT = 1
"""gRPC appends a port to a socket's path, so there is one."""


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path, target: str, body: object = None, *, timeout_s: float = _TIMEOUT_S
) -> tuple[int, Any]:
    """Status and JSON of a server's answer; `body`, if any, is sent as JSON. Raises OSError."""
    status, content = read(path, target, body, timeout_s=timeout_s)
    try:
        return status, json.loads(content) if content else None
    except ValueError as error:
        raise OSError(f"{path} gave no answer that can be read: {error}") from error


def read(
    path: Path, target: str, body: object = None, *, timeout_s: float = _TIMEOUT_S
) -> tuple[int, bytes]:
    """`ask`, for an answer that is not JSON."""
    connection = _UnixConnection(path, timeout_s)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request("POST" if data else "GET", target, data)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (HTTPException, ValueError) as error:
        raise OSError(f"{path} gave no answer that can be read: {error}") from error
    finally:
        connection.close()


def scores(path: Path) -> bool:
    """Whether the server at this socket really scores a comment, or is overloaded."""
    try:
        status, answer = ask(path, probe.INFER_PATH, probe.request(LOGIT, text=probe.fresh()))
    except OSError:
        return False
    return probe.works(status, answer)


def version(path: Path) -> int | None:
    """Newest version that answers at this socket, or None when none does."""
    try:
        status, metadata = ask(path, probe.METADATA_PATH)
    except OSError:
        return None
    return probe.newest_version(metadata) if status == 200 else None


def load(path: Path) -> None:
    """Have the server load what its view holds. Raises BadInput; the old version answers then."""
    try:
        status, answer = ask(
            path, f"/v2/repository/models/{PUBLIC_MODEL}/load", {}, timeout_s=_LOAD_TIMEOUT_S
        )
    except OSError as error:
        raise BadInput(f"{path} does not answer ({error}); run `make stop serve`") from error
    if status != 200:
        raise refused_load(answer)


def load_over_grpc(path: Path) -> None:
    """`load` for a server whose HTTP port is closed to it."""
    import tritonclient.grpc  # takes a third of a second
    from tritonclient.utils import InferenceServerException

    try:
        with tritonclient.grpc.InferenceServerClient(f"unix:{path}") as client:
            client.load_model(PUBLIC_MODEL, client_timeout=_LOAD_TIMEOUT_S)
    except InferenceServerException as error:
        raise refused_load({"error": error.message() or ""}) from error


def refused_load(answer: Any) -> BadInput:
    """Why a server did not load a version, by the JSON of its answer."""
    why = answer.get("error") if isinstance(answer, dict) else None
    return BadInput(
        f"the server could not load the new version ({(why or 'no reason given').splitlines()[0]}),"
        " the old one still answers; run `make export` again"
    )
