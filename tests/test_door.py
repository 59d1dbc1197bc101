"""The door of `make serve`: what is open, what is bounded, what comes back. All parts are real."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    RemoteDisconnected,
)
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from app_door import add_key, make_config, serving
from clients import Load, loading
from conftest import TinyModel
from tritonclient.grpc import service_pb2, service_pb2_grpc

from contract import (
    FP32_LOGIT_ATOL,
    HEADER_TIMEOUT_S,
    HOST,
    LARGE_BODY_BYTES,
    LOGIT,
    MAX_HEADER_BYTES,
    MAX_REQUEST_BYTES,
    ORT_FILE,
    PUBLIC_MODEL,
    REQUIRE_SIGNATURE,
    TEXT,
    BadInput,
)
from export.switch import rollback
from serve import control, door, haproxy, keys, request_rules, telling, tritonserver, view
from serve.app.factory import create_app
from serve.app.settings import AppSettings
from serve.client import score_comments
from serve.supervisor import Supervisor

pytestmark = pytest.mark.slow

MODEL = f"/v2/models/{PUBLIC_MODEL}"
INFER, GENERATE = f"{MODEL}/infer", f"{MODEL}/generate"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")


@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    """One replica and a server of gRPC behind haproxy."""
    folder = tmp_path_factory.mktemp("door")
    tiny_model.publish(folder / "repository")
    with serving(make_config(folder / "run", folder / "repository", grpc=True)) as config:
        yield config


def body(*texts: str) -> bytes:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    return json.dumps({"inputs": [tensor]}).encode()


def ask(
    config: door.DoorConfig,
    method: str,
    path: str,
    content: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    connection = HTTPConnection(HOST, config.http_port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, content, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def raw(config: door.DoorConfig, request: bytes, *, timeout_s: float = 30) -> bytes:
    """All that comes back on a connection until it is closed."""
    with socket.create_connection((HOST, config.http_port), timeout=timeout_s) as client:
        client.sendall(request)
        parts = []
        while part := client.recv(65536):
            parts.append(part)
        return b"".join(parts)


# --- 1. What is open ---------------------------------------------------------------------
HTTP_PATTERNS = {
    "/v2",
    "/v2(?:/health/(live|ready))?",
    "/v2/cudasharedmemory(?:/region/([^/]+))?/(status|register|unregister)",
    "/v2/logging",
    "/v2/models/([^/]+)(?:/versions/([0-9]+))?"
    "(?:/(infer|generate|generate_stream|ready|config|stats|trace/setting))?",
    "/v2/models/stats",
    "/v2/repository(?:/([^/]+))?/(index|models/([^/]+)/(load|unload))",
    "/v2/systemsharedmemory(?:/region/([^/]+))?/(status|register|unregister)",
    "/v2/trace/setting",
}
"""Of the server's own router. Each has its endpoints in OPEN or CLOSED."""
OPEN = {
    **{("GET", path): 200 for path in ("/v2", "/v2/health/live", "/v2/health/ready", MODEL)},
    **{("GET", f"{MODEL}{path}"): 200 for path in ("/ready", "/stats", "/config", "/versions/1")},
    **{("GET", f"{MODEL}/versions/1/{path}"): 200 for path in ("ready", "stats", "config")},
    ("GET", "/v2/models/stats"): 200,
    ("POST", INFER): 200,
    ("POST", f"{MODEL}/versions/1/infer"): 200,
    ("POST", f"{MODEL}/generate"): 200,
    ("POST", f"{MODEL}/generate_stream"): 200,
}
APP_OPEN = {
    "/score": ("POST", b'{"text": "fine"}'),
    "/v1/moderations": ("POST", b'{"input": "fine"}'),
    "/v1alpha1/comments:analyze": (
        "POST",
        b'{"comment": {"text": "fine"}, "requestedAttributes": {"TOXICITY": {}}}',
    ),
    "/v1alpha1/comments:suggestscore": ("POST", b"{}"),
    "/app/health": ("GET", None),
    "/openapi.json": ("GET", None),
}
"""Of the application; its pages lie below /ui/."""
CLOSED = [
    *(f"{MODEL}{path}" for path in ("/trace/setting", "/versions/1/trace/setting")),
    "/v2/models/x/config",
    *("/v2/logging", "/v2/trace/setting", "/v2/repository/index", "/v2/repository/x/index"),
    *(
        f"/v2/repository/models/{model}/{verb}"
        for model in (PUBLIC_MODEL, "x")
        for verb in ("load", "unload")
    ),
    *(
        f"/v2/{kind}sharedmemory{region}/{verb}"
        for kind in ("system", "cuda")
        for region in ("", "/region/x")
        for verb in ("status", "register", "unregister")
    ),
]


def test_every_endpoint_of_the_server_is_known() -> None:
    binary = (tritonserver.wheel() / "bin" / "tritonserver").read_bytes()
    found = {match.decode() for match in re.findall(rb"(?<=\0)/v2[!-~]*(?=\0)", binary)}
    assert found == HTTP_PATTERNS
    for path in [path for _, path in OPEN] + CLOSED:
        assert any(re.fullmatch(pattern, path) for pattern in HTTP_PATTERNS), path


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_open_endpoint_answers(opened: door.DoorConfig, method: str, path: str) -> None:
    content = None
    if method == "POST":
        content = body("fine") if "infer" in path else b'{"text": "fine"}'
    status, answer = ask(opened, method, path, content)
    assert status == OPEN[method, path], answer
    wrong, _ = ask(opened, "GET" if method == "POST" else "DELETE", path)
    assert wrong == (200 if "ready" in path else 405)


def test_every_endpoint_of_the_application_is_known(tmp_path: Path) -> None:
    sockets = {name: str(tmp_path / name) for name in ("socket", "servers", "large")}
    app = create_app(AppSettings(**sockets))
    routed = {getattr(route, "path", "") for route in app.rest.routes}
    paths = {path for _, path in app.endpoints} | routed
    assert {path for path in paths if not path.startswith("/ui")} == APP_OPEN.keys()


@pytest.mark.parametrize("path", APP_OPEN)
def test_open_endpoint_of_the_application_answers(opened: door.DoorConfig, path: str) -> None:
    method, content = APP_OPEN[path]
    status, answer = ask(opened, method, path, content)
    assert status == (400 if path.endswith("suggestscore") else 200), answer
    assert ask(opened, "DELETE", path)[0] == 405
    if path != "/score":  # whose GET is off
        assert ask(opened, "GET" if method == "POST" else "POST", path, content or b"{}")[0] in (
            400,
            405,
        )
    for near in (f"{path}/", f"{path}x", path.upper(), f"/x{path}", path.replace("/", "//", 1)):
        assert ask(opened, method, near, content)[0] == 404, near


@pytest.mark.parametrize("path", CLOSED)
def test_control_plane_is_closed(opened: door.DoorConfig, path: str) -> None:
    for method, content in (("GET", None), ("POST", b"{}"), ("PUT", b"{}")):
        assert ask(opened, method, path, content)[0] == 403, method
    for odd in (path.replace("/v2", "//v2"), f"/.{path}", path.replace("v2", "%76%32")):
        assert ask(opened, "POST", odd, b"{}")[0] in (403, 404), odd


def test_grpc_methods(opened: door.DoorConfig) -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    open_ = {*request_rules.GRPC_OPEN}
    assert open_ < {method.name for method in service.methods}
    with grpc.insecure_channel(f"{HOST}:{opened.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for method in service.methods:
            request = getattr(service_pb2, method.input_type.name)()
            if hasattr(request, "name"):
                request.name = PUBLIC_MODEL
            call = getattr(stub, method.name)
            try:
                if method.client_streaming:
                    list(call(iter([request]), timeout=10))
                else:
                    call(request, timeout=10)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            if method.name in open_:
                # An empty inference has no model.
                assert code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), (method.name, code)
            else:
                # Of a stream haproxy cancels what it does not read.
                refused = ("CANCELLED",) if method.client_streaming else ()
                assert code in ("PERMISSION_DENIED", *refused), (method.name, code)


def test_ports_are_haproxys_alone(opened: door.DoorConfig) -> None:
    supervisor = Supervisor(opened.run_dir)
    family = {supervisor.pid()}
    family |= {child.pid for child in psutil.Process(supervisor.pid()).children(recursive=True)}
    listening = {
        connection.laddr.port: psutil.Process(connection.pid).name()
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in family
    }
    ports = {opened.http_port, opened.grpc_port, opened.metrics_port}
    assert listening == dict.fromkeys(ports, "haproxy")
    assert stat.S_IMODE(opened.run_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://{own}", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_web_pages_of_elsewhere_are_refused(
    opened: door.DoorConfig, headers: dict[str, str], status: int
) -> None:
    own = f"{HOST}:{opened.http_port}"
    headers = {name: value.format(own=own) for name, value in headers.items()}
    sent = {"Content-Type": "text/plain", **headers}
    assert ask(opened, "POST", INFER, body("fine"), sent)[0] == status


# --- 3, 4. What a request may be ---------------------------------------------------------
_DEEP = b'{"inputs":[{"name":"text","datatype":"BYTES","shape":[1,1],"data":%s"x"%s}]}' % (
    b"[" * 400_000,
    b"]" * 400_000,
)
_PARAMETERS = (
    b'{"parameters":{' + b",".join(b'"p%d":1' % i for i in range(80_000)) + b"}," + body("x")[1:]
)
_ENDS_THE_SERVER = (
    body("x")[:-1] + b',"outputs":[{"name":"model_version","parameters":{"classification":1}}]}'
)
_BINARY_SIZE = "Inference-Header-Content-Length"
REFUSED: dict[str, tuple[int, bytes | None, dict[str, str], str]] = {
    "empty": (400, b"", {}, "the body is empty"),
    "gzip": (415, gzip.compress(body("x")), {"Content-Encoding": "gzip"}, "compressed"),
    "not gzip": (415, body("x"), {"Content-Encoding": "gzip"}, "compressed"),
    "deflate": (415, body("x"), {"Content-Encoding": "deflate"}, "compressed"),
    "chunked": (411, b"2\r\n{}\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}, "Content-Length"),
    "nested": (400, _DEEP, {}, "KServe v2"),
    "parameters": (400, _PARAMETERS, {}, "KServe v2"),
    "no JSON": (400, b"x" * 5000, {}, "KServe v2"),
    "cut": (400, body("x" * 5000)[:-1], {}, "KServe v2"),
    "malformed": (400, b"{", {}, "parse"),
    "classification": (400, _ENDS_THE_SERVER, {}, "classification"),
    "classification, escaped": (
        400,
        _ENDS_THE_SERVER.replace(b'"class', rb'"\u0063lass').replace(b'ion"', rb'io\u006E"'),
        {},
        "classification",
    ),
    "classification, binary": (
        400,
        _ENDS_THE_SERVER,
        {_BINARY_SIZE: str(len(_ENDS_THE_SERVER))},
        "KServe v2",
    ),
    "size of a tensor": (400, body("x"), {_BINARY_SIZE: "x"}, _BINARY_SIZE),
    "no parameters": (400, body("x")[:-1] + b',"parameters":[1]}', {}, "attempt"),
    "wrong type": (400, b'{"inputs": 3}', {}, "parse"),
    "null": (400, body("?").replace(b'"?"', b"null"), {}, "parse"),
    "lone surrogate": (400, body("\ud800"), {}, ""),
    "headers": (431, body("x"), {"X-Long": "x" * MAX_HEADER_BYTES}, "headers"),
    "too many comments": (400, body(*["x"] * 257), {}, "batch-size"),
}


_LISTS = b"[" * 1900 + b'"x"' + b"]" * 1900
NESTED: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "few bytes": (INFER, body("?").replace(b'"?"', _LISTS), {}),
    "objects": (INFER, body("x")[:-1] + b',"id":' + b'{"a":' * 700, {}),
    "generate": (GENERATE, b'{"text":%s}' % (b"[" * 400_000), {}),
    # A size of 0 says that the body is no JSON; `generate` reads it as JSON all the same.
    "generate, binary": (GENERATE, b'{"text":%s}' % (b"[" * 400_000), {_BINARY_SIZE: "0"}),
    "generate, few bytes": (GENERATE, b'{"text":%s}' % _LISTS, {_BINARY_SIZE: "0"}),
}


@pytest.mark.parametrize("case", NESTED)
def test_lists_in_each_other_do_not_reach_the_server(opened: door.DoorConfig, case: str) -> None:
    """It reads them by calls in each other, and its threads keep the stack that they once took."""
    path, content, headers = NESTED[case]
    status, answer = ask(opened, "POST", path, content, headers)
    assert (status, "KServe v2" in json.loads(answer)["error"]) == (400, True), answer


@pytest.mark.parametrize("text", ["[" * 3000, '{"a":[' * 500, "[x](y) " * 60])
@pytest.mark.parametrize("headers", [{}, {_BINARY_SIZE: "0"}])
def test_brackets_in_a_comment_are_scored(
    opened: door.DoorConfig, text: str, headers: dict[str, str]
) -> None:
    alone = ask(opened, "POST", INFER, body(text))
    assert alone[0] == 200, alone
    logit = json.loads(alone[1])["outputs"][0]["data"]
    found = ask(opened, "POST", GENERATE, json.dumps({"text": text}).encode(), headers)
    assert found[0] == 200, found
    assert [json.loads(found[1])["logit"]] == logit


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_4xx_and_say_which(opened: door.DoorConfig, case: str) -> None:
    status, content, headers, words = REFUSED[case]
    found, answer = ask(opened, "POST", INFER, content, headers)
    error = json.loads(answer)["error"]
    assert (found, words in error) == (status, True), (found, error)
    assert "\n" not in error
    assert ask(opened, "POST", INFER, body("still here"))[0] == 200


_OWN = "Origin: http://127.0.0.1:{port}"
MALFORMED = {
    "no Host": (400, [], "HTTP/1.1"),
    "two Hosts": (400, ["Host: x", "Host: y"], "HTTP/1.1"),
    "no such version": (400, ["Host: x"], "HTTP/1.2"),
    "HTTP/2 that is none": (400, ["Host: x"], "HTTP/2.0"),
    "NUL": (400, ["Host: x", "X: a\0b"], "HTTP/1.1"),
    "control character": (400, ["Host: x", "X: a\x0bb"], "HTTP/1.1"),
    "two origins": (403, ["Host: x", _OWN, "Origin: https://other.example"], "HTTP/1.1"),
    "origins in a line": (403, ["Host: x", _OWN + ", https://other.example"], "HTTP/1.1"),
    "gzip and identity": (
        415,
        ["Host: x", "Content-Encoding: gzip", "Content-Encoding: identity"],
        "HTTP/1.1",
    ),
    "identity, gzip": (415, ["Host: x", "Content-Encoding: identity, gzip"], "HTTP/1.1"),
}


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"http://localhost{INFER}", 200),  # RFC 9112, 3.2.2: the absolute form must be taken
        (f"https://{INFER}", 400),
        (f"HTTP://{INFER}", 400),
        (f"x-y://{INFER}", 400),
        (f"ftp://localhost{INFER}", 400),
        (f"HTTPS://localhost{INFER}", 200),
    ],
)
def test_an_address_of_another_scheme_or_without_a_host_is_refused(
    opened: door.DoorConfig, target: str, status: int
) -> None:
    content = body("x")
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    request = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + content
    answer = raw(opened, request)
    assert answer.split()[1] == str(status).encode(), answer


@pytest.mark.parametrize("case", MALFORMED)
def test_headers_that_mean_two_things_are_refused(opened: door.DoorConfig, case: str) -> None:
    status, lines, version = MALFORMED[case]
    content = gzip.compress(body("x")) if status == 415 else body("x")
    every = [f"POST {INFER} {version}", *lines, f"Content-Length: {len(content)}", "", ""]
    head = "\r\n".join(every).format(port=opened.http_port).encode("latin-1")
    assert raw(opened, head + content).startswith(b"HTTP/1.1 %d " % status)


def test_http2_is_not_spoken_to_http_clients(opened: door.DoorConfig) -> None:
    assert raw(opened, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_body_without_a_length_gets_no_score(opened: door.DoorConfig) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    answer = raw(opened, head)
    assert answer.startswith(b"HTTP/1.1 411 ") and b"Content-Length" in answer


def test_body_above_the_bound_is_refused_before_it_is_read(opened: door.DoorConfig) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_REQUEST_BYTES + 1}\r\n\r\n"
    assert raw(opened, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_a_comment_may_name_what_ends_the_server(opened: door.DoorConfig) -> None:
    for text in ("classification", '"classification": 1', '\\"classification":'):
        assert ask(opened, "POST", INFER, body(text))[0] == 200
        url = f"{HOST}:{opened.http_port}"
        assert len(score_comments([text], url=url).logit) == 1
        url = f"{HOST}:{opened.grpc_port}"
        assert len(score_comments([text], url=url, protocol="grpc").logit) == 1


def test_what_ends_the_server_is_refused_over_grpc(opened: door.DoorConfig) -> None:
    starts = Supervisor(opened.run_dir).states()["grpc"].starts
    for long in (False, True):
        request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
        request.inputs.add(name=TEXT, shape=[1, 1], datatype="BYTES")
        request.inputs[0].contents.bytes_contents.append(b"x" * (700_000 if long else 1))
        request.outputs.add(name="model_version").parameters["classification"].int64_param = 1
        with grpc.insecure_channel(f"{HOST}:{opened.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="classification is not open"):
                stub.ModelInfer(request, timeout=10)
            with pytest.raises(grpc.RpcError, match="compressed"):
                stub.ModelInfer(request, timeout=10, compression=grpc.Compression.Gzip)
    assert Supervisor(opened.run_dir).states()["grpc"].starts == starts


@pytest.mark.parametrize("pretty", [False, True])
def test_largest_requests_pass(opened: door.DoorConfig, pretty: bool) -> None:
    text = 'wörd "quoted\\" [[[[ {{{{ \u4e2d\U0001f600 ' * 50
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [256, 1], "data": [[text]] * 256}
    wanted = [{"name": LOGIT, "parameters": {"binary_data": False}}]
    document = {"id": "7", "inputs": [tensor], "outputs": wanted, "parameters": {"a": 1, "b": "c"}}
    content = json.dumps(document, ensure_ascii=not pretty, indent=1 if pretty else None).encode()
    assert 400_000 < len(content) <= MAX_REQUEST_BYTES
    status, answer = ask(opened, "POST", INFER, content)
    assert status == 200, answer[:200]
    assert len(json.loads(answer)["outputs"][0]["data"]) == 256
    longest = "\u4e2d" * ((256 << 10) // 3)
    assert ask(opened, "POST", INFER, body(longest))[0] == 200
    url = f"{HOST}:{opened.http_port}"
    assert len(score_comments([longest] * 5 + ["x " * 2000] * 600, url=url).logit) == 605


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_body_about_the_size_from_which_it_is_large_scores(
    opened: door.DoorConfig, tiny_model: TinyModel, more: int
) -> None:
    """With as many headers as there may be, so that no buffer is too small."""
    text = "you are kind"
    content = body(text)
    content += b" " * (LARGE_BODY_BYTES + more - len(content))
    headers = {f"x-{number}": "v" * 100 for number in range(55)}
    status, answer = ask(opened, "POST", INFER, content, headers)
    assert status == 200, answer
    outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
    assert outputs[LOGIT][0] == pytest.approx(tiny_model.logit(text), abs=FP32_LOGIT_ATOL)


def test_half_sent_requests_are_closed(opened: door.DoorConfig) -> None:
    began = time.monotonic()
    half = [
        b"POST ",
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode(),
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode(),
    ]
    with ThreadPoolExecutor(len(half)) as pool:
        answers = list(pool.map(lambda request: raw(opened, request, timeout_s=60), half))
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers), answers
    assert time.monotonic() - began >= HEADER_TIMEOUT_S / 2


# --- 2, 5. What ends comes back ----------------------------------------------------------
def load(config: door.DoorConfig) -> contextlib.AbstractContextManager[Load]:
    """Two honest HTTP clients; their answers are logits. Each tries once, but sends again what a
    kept connection was closed on without a byte, as HTTP clients do (RFC 9112, 9.3.1).
    """

    def client(found: Load, done: threading.Event) -> None:
        connection = HTTPConnection(HOST, config.http_port, timeout=30)

        def send() -> HTTPResponse:
            connection.request("POST", INFER, body("you are kind"))
            return connection.getresponse()

        while not done.is_set():
            try:
                try:
                    answer = send()
                except RemoteDisconnected:
                    connection.close()
                    answer = send()
                content = json.loads(answer.read())
                if answer.status == 200:
                    outputs = {output["name"]: output["data"] for output in content["outputs"]}
                    found.answers.append(outputs[LOGIT][0])
                else:
                    found.lost.append(f"{answer.status} {content}")
            except (OSError, HTTPException, ValueError) as error:
                found.lost.append(repr(error))
                connection.close()
        connection.close()

    return loading(client, client)


def eventually(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_server_is_back_and_no_request_is_lost(
    opened: door.DoorConfig, tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = Supervisor(opened.run_dir)
    before = supervisor.states()["replica-1"]
    sock = supervisor.program_folder("replica-1") / control.HTTP_SOCKET
    with load(opened) as found:
        os.kill(before.pid, signal.SIGKILL)
        eventually(lambda: supervisor.states()["replica-1"].pid not in (0, before.pid))
        eventually(lambda: control.scores(sock))
    assert not found.lost
    assert found.answers == pytest.approx(
        [tiny_model.logit("you are kind")] * len(found.answers), abs=FP32_LOGIT_ATOL
    )
    url = f"http://{HOST}:{opened.metrics_port}/replica-1/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        starts = before.starts + 1
        assert f'toxicity_server_starts{{version="1"}} {starts}'.encode() in answer.read()
    capsys.readouterr()
    door.status(opened)
    assert f"started {starts} times" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["master", "worker"])
def test_a_killed_balancer_is_back(opened: door.DoorConfig, which: str) -> None:
    supervisor = Supervisor(opened.run_dir)
    before = psutil.Process(supervisor.states()[haproxy.NAME].pid)
    (worker,) = before.children()
    (before if which == "master" else worker).kill()
    eventually(lambda: supervisor.states()[haproxy.NAME].pid not in (0, before.pid))

    def answers() -> bool:
        with contextlib.suppress(OSError, HTTPException):
            return ask(opened, "POST", INFER, body("fine"))[0] == 200
        return False

    eventually(answers)
    eventually(lambda: not worker.is_running())


def test_without_the_balancer_of_large_bodies_small_ones_score(opened: door.DoorConfig) -> None:
    supervisor = Supervisor(opened.run_dir)
    before = psutil.Process(supervisor.states()[haproxy.LARGE_NAME].pid)
    large = body(*["you are kind " * 100] * 100)
    assert len(large) > LARGE_BODY_BYTES
    with load(opened) as found:
        family = [before, *before.children()]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=10)
        eventually(lambda: ask(opened, "POST", INFER, large)[0] == 200)
    assert found.answers and not found.lost
    assert supervisor.states()[haproxy.LARGE_NAME].pid != before.pid
    url = f"http://{HOST}:{opened.metrics_port}/balancer/large/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert b'haproxy_frontend_http_requests_total{proxy="http"}' in answer.read()


def test_grpc_clients_that_give_up_cost_http_clients_nothing(opened: door.DoorConfig) -> None:
    address = f"{HOST}:{opened.grpc_port}"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(root / "tests" / "giving_up.py"), address]
    http = Supervisor(opened.run_dir).states()["replica-1"].pid
    clients = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        readable, _, _ = select.select([clients.stdout], [], [], 60)
        assert readable and clients.poll() is None, "they do not begin"
        with load(opened) as found:
            time.sleep(5)
        assert clients.poll() is None
    finally:
        clients.kill()
        clients.communicate()
    assert found.answers and not found.lost
    assert Supervisor(opened.run_dir).states()["replica-1"].pid == http

    def grpc_answers() -> bool:
        score = ["-m", "serve.score", "kind", "--protocol", "grpc", "--url", address]
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(
                [sys.executable, *score], env=environment, capture_output=True, timeout=30
            )
            return asked.returncode == 0
        return False

    eventually(grpc_answers, 60)


def test_status_names_the_newest_version_beside_the_one_that_serves(
    opened: door.DoorConfig,
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the repository that is served, wherever it is asked from."""
    settings = door.read_settings(opened.run_dir)
    assert settings
    for _ in range(2):
        tiny_model.publish(tmp_path / "repository")
    rollback(tmp_path / "repository")
    settings = dataclasses.replace(settings, repository=str(tmp_path / "repository"))
    telling.print_addresses(opened, settings, example=False)
    said = capsys.readouterr().out
    assert f"version 1 is current in {tmp_path}/repository; the newest is version 2" in said
    telling.print_addresses(opened, dataclasses.replace(settings, repository="gone"), example=False)
    assert "repository  gone: " in capsys.readouterr().out


def test_readiness_is_the_truth(opened: door.DoorConfig) -> None:
    pid = Supervisor(opened.run_dir).states()["replica-1"].pid
    os.kill(pid, signal.SIGSTOP)  # it lives and does not score
    try:
        eventually(lambda: ask(opened, "GET", "/v2/health/ready")[0] == 503, 60)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: ask(opened, "GET", "/v2/health/ready")[0] == 200)


# --- 6, 8. Flags, paths, what is staged --------------------------------------------------
def test_a_flag_is_obeyed_or_refused(opened: door.DoorConfig) -> None:
    for change in ({"http_port": opened.http_port + 1}, {"address": "0.0.0.0"}):
        with pytest.raises(BadInput, match=r"expected .*make stop"):
            door.start(dataclasses.replace(opened, **change))
    other = dataclasses.replace(opened, repository=opened.repository.parent)
    with pytest.raises(BadInput):
        door.start(other)
    assert ask(opened, "POST", INFER, body("fine"))[0] == 200


def test_any_path_works(tiny_model: TinyModel, tmp_path: Path) -> None:
    odd = tmp_path / "a b'c;touch x$(y)%s ü"
    tiny_model.publish(odd / "repository")
    with serving(make_config(odd / "run", odd / "repository")) as config:
        assert ask(config, "POST", INFER, body("fine"))[0] == 200
    assert not list(tmp_path.glob("x*"))
    left = [path for path in (odd / "run").rglob("*") if path.is_socket()]
    assert not left


def test_versions_of_a_server_share_one_runtime(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A server never unmaps the library: by ten versions of its own it grew by 300 MB."""
    repository, folder = tmp_path / "repository", tmp_path / "models"
    tiny_model.publish(repository)
    view.stage(repository, folder)
    first = (folder / PUBLIC_MODEL / "1" / ORT_FILE).stat().st_ino
    tiny_model.publish(repository)
    with view.changed(repository, folder):
        assert (folder / PUBLIC_MODEL / "2" / ORT_FILE).stat().st_ino == first
        assert (repository / PUBLIC_MODEL / "2" / ORT_FILE).stat().st_ino != first


def test_what_changes_after_staging_is_not_started_again(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path / "repository")
    with serving(make_config(tmp_path / "run", tmp_path / "repository")) as config:
        supervisor = Supervisor(config.run_dir)
        folder = supervisor.program_folder("replica-1")
        staged = folder / "models" / PUBLIC_MODEL / "config.pbtxt"
        staged.write_text(staged.read_text("utf-8") + "\n", "utf-8")
        os.kill(supervisor.states()["replica-1"].pid, signal.SIGKILL)
        log = folder / tritonserver.LOG_FILE
        eventually(lambda: "is not what was staged" in log.read_text("utf-8", "replace"))
        assert not control.scores(folder / control.HTTP_SOCKET)


def test_a_start_or_stop_that_was_killed_is_followed_by_one_that_works(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_config(tmp_path / "run", tmp_path / "repository")
    with serving(config):
        # As after a kill before serve.json was written, or while the balancer was stopped.
        (config.run_dir / "serve.json").unlink()
        door.start(config)
        assert ask(config, "POST", INFER, body("fine"))[0] == 200
        Supervisor(config.run_dir).stop(haproxy.NAME)
        door.start(config)
        assert ask(config, "POST", INFER, body("fine"))[0] == 200
        # As after a kill between the new version's files and its load.
        tiny_model.publish(config.repository)
        with view.changed(config.repository, config.run_dir / "replica-1" / view.FOLDER):
            pass
        door.start(config)
        assert control.version(config.run_dir / "replica-1" / control.HTTP_SOCKET) == 2


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_works(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_config(tmp_path / "run", tmp_path / "repository")
    with serving(config):
        supervisor = psutil.Process(Supervisor(config.run_dir).pid())
        family = supervisor.children(recursive=True)
        supervisor.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        door.status(config)  # says so, and does not fail
        door.start(config)
        assert ask(config, "POST", INFER, body("fine"))[0] == 200


def test_only_what_is_signed_is_served(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.signing import make_keys
    from export.switch import serve_version

    monkeypatch.delenv(REQUIRE_SIGNATURE, raising=False)
    tiny_model.publish(tmp_path / "repository")
    make_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    config = make_config(
        tmp_path / "run", tmp_path / "repository", require_signature=tmp_path / "public.pem"
    )
    with pytest.raises(BadInput, match="is not signed"):
        door.start(config)
    assert not Supervisor(config.run_dir).running()
    serve_version(tmp_path / "repository", 1, sign_key=tmp_path / "private.pem")
    with serving(config):
        assert ask(config, "POST", INFER, body("fine"))[0] == 200
        tiny_model.publish(tmp_path / "repository")  # not signed
        with pytest.raises(BadInput, match="is not signed"):
            door.start(dataclasses.replace(config, require_signature=None))
        url = f"{HOST}:{config.http_port}"
        assert score_comments(["fine"], url=url).model_version == ["1"]


# --- Without haproxy ---------------------------------------------------------------------
def test_without_haproxy_the_control_plane_is_closed_all_the_same(
    tiny_model: TinyModel,
    other_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_config(tmp_path / "run", tmp_path / "repository", haproxy=False)
    with serving(config):
        said = capsys.readouterr().out
        assert "not bounded" in said and "/v1/moderations" in said
        assert "app" not in Supervisor(config.run_dir).states()
        for path in APP_OPEN:
            assert ask(config, *APP_OPEN[path][:1], path, APP_OPEN[path][1])[0] == 404
        assert ask(config, "POST", INFER, body("fine"))[0] == 200
        for path in CLOSED:
            for method in ("GET", "POST"):
                status, _ = ask(config, method, path, b"{}" if method == "POST" else None)
                assert status in (403, 404, 405), (path, status)
        other_model.publish(tmp_path / "repository")
        door.start(config)
        assert score_comments(["x"], url=f"{HOST}:{config.http_port}").model_version == ["2"]
    for needs in ({"address": "0.0.0.0"}, {"replicas": 2}, {"grpc": True}):
        with pytest.raises(BadInput, match="haproxy"):
            door.start(dataclasses.replace(config, **needs))


# --- TLS and keys ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of localhost, in one PEM file."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split(),
            *("-addext", f"subjectAltName=DNS:localhost,IP:{HOST}"),
            *("-keyout", str(key), "-out", str(pem)),
        ],
        check=True,
        capture_output=True,
    )
    pem.write_bytes(pem.read_bytes() + key.read_bytes())
    return pem


def test_tls_and_keys(tiny_model: TinyModel, tmp_path: Path, certificate: Path) -> None:
    import ssl

    tiny_model.publish(tmp_path / "repository")
    file = tmp_path / "keys.json"
    alice, bob = add_key(file, "alice"), add_key(file, "bob", "--requests-per-s", "1")
    assert alice not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    config = make_config(
        tmp_path / "run", tmp_path / "repository", tls_certificate=certificate, keys=file, grpc=True
    )
    trust = ssl.create_default_context(cafile=str(certificate))

    def send(key: str | None, content: bytes = body("fine")) -> int:
        connection = HTTPSConnection("localhost", config.http_port, context=trust, timeout=30)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            connection.request("POST", INFER, content, headers)
            return connection.getresponse().status

    def as_page(origin: str, host: str) -> int:
        connection = HTTPSConnection("localhost", config.http_port, context=trust, timeout=30)
        with contextlib.closing(connection):
            named = {"Authorization": f"Bearer {alice}", "Origin": origin, "Host": host}
            connection.request("POST", "/score", b'"fine"', named)
            return connection.getresponse().status

    with serving(config):
        # The browser has found the certificate good for the name that it shows as the Host.
        pages = [("https://a.example", "a.example"), ("http://a.example", "a.example")]
        assert [as_page(*page) for page in [*pages, ("https://a.example", "b.example")]] == [
            *(200, 403, 403)
        ]
        assert [send(key) for key in (alice, bob, None, "wrong", "")] == [200, 200, 401, 401, 401]
        assert [send(bob) for _ in range(20)].count(429) >= 9  # ten in ten seconds
        large = body("fine " * (LARGE_BODY_BYTES // 4))
        assert send(alice, large) == 200
        assert send(alice) == 200
        answered = r'haproxy_backend_http_responses_total{proxy="key_alice",code="2xx"} 2\b'

        def counted() -> bool:
            url = f"http://{HOST}:{config.metrics_port}/balancer/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return re.search(answered, answer.read().decode()) is not None

        eventually(counted)
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{config.grpc_port}", credentials) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            live = service_pb2.ServerLiveRequest()
            assert stub.ServerLive(
                live, timeout=10, metadata=[("authorization", f"Bearer {alice}")]
            ).live
            with pytest.raises(grpc.RpcError) as caught:
                stub.ServerLive(live, timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises((HTTPException, OSError)):
            ask(config, "GET", "/v2/health/live")  # not in the clear
    assert keys.read(file)[0].name == "alice"
