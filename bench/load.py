"""Load a running server with Locust, one comment a request.

    locust -f bench/load.py                    # web page on http://localhost:8089, HTTP and gRPC
    locust -f bench/load.py HttpCommentUser    # one protocol only
    make bench                                 # headless, with the server's own counters beside

CLOSED LOOP: a user sends its next comment when the last answer is there. A slow server is thus
sent fewer requests, and the wait of those that were not sent shows nowhere (coordinated
omission). Read the rate as a capacity and the latencies as those at that many users.

`bench.run` reads latencies from `--record`: Locust's own percentiles are of whole ms below
100 ms and of two digits above.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import grpc
import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import FastHttpUser, User, constant, events, task
from locust.exception import CatchResponseError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.comments import default_source, load_pool
from contract import (
    GRPC_PORT,
    HOST,
    HTTP_PORT,
    MODEL_VERSION,
    PROBABILITY,
    PUBLIC_MODEL,
    TEXT,
    ToxicityError,
)

_INFER_PATH = f"/v2/models/{PUBLIC_MODEL}/infer"
_HEADERS = {"Content-Type": "application/json"}
_TIMEOUT_S = 60.0
_SHOWN_CHARS = 200
"""Of an error text: enough to say why, short enough for Locust's table of errors."""
_log = logging.getLogger(__name__)


class _Requests:
    """Every request of one process, made before the test starts: sending must stay cheap."""

    http: list[bytes] = []  # noqa: RUF012  filled once by `make`, before any user starts
    grpc: list[Any] = []  # noqa: RUF012

    @classmethod
    def make(cls, texts: list[str]) -> None:
        cls.http = [_http_body(text) for text in texts]
        cls.grpc = [_grpc_request(text) for text in texts]

    @classmethod
    def rows(cls, user: User, number: int) -> Iterator[int]:
        """Row numbers round and round, from a start of each user's own in every process."""
        process = getattr(user.environment.runner, "worker_index", 0)
        start = int(np.random.default_rng((process, number)).integers(len(cls.http)))
        return ((start + step) % len(cls.http) for step in itertools.count())


def _http_body(text: str) -> bytes:
    tensor = {"name": TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return json.dumps({"inputs": [tensor]}).encode()


def _grpc_request(text: str) -> Any:
    raw = text.encode()
    request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
    request.inputs.add(name=TEXT, shape=[1, 1], datatype="BYTES")
    # KServe v2 binary tensors: each BYTES item after its length, 4 bytes little-endian.
    request.raw_input_contents.append(struct.pack("<I", len(raw)) + raw)
    return request


class _Record:
    """What one process measured, exact; reset when a test starts."""

    began = ended = cpu_s = 0.0
    latencies_ms = array("d")
    errors: Counter[str] = Counter()  # noqa: RUF012


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--comments",
        default=default_source(),
        env_var="COMMENTS",
        include_in_web_ui=False,  # they are read before the page is there
        help="comments to send: a .csv, .csv.gz, .zip or .parquet file, or 'synthetic'",
    )
    parser.add_argument(
        "--grpc-address",
        default=f"{HOST}:{GRPC_PORT}",
        env_var="GRPC_ADDRESS",
        help="where gRPC users connect to",
    )
    parser.add_argument(
        "--record",
        default="",
        include_in_web_ui=False,
        help="folder for one file a process with every latency; used by `make bench`",
    )


@events.init.add_listener
def _load_comments(environment: Any, **_: Any) -> None:
    # Not at the start of the test: the run time counts from there.
    try:
        pool = load_pool(environment.parsed_options.comments)
    except ToxicityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    _Requests.make(pool.texts)
    _log.info("closed loop; %s", pool.summary())
    # gevent counts timers from the time it last looked at the clock: before the loading.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def _start(**_: Any) -> None:
    _Record.latencies_ms = array("d")
    _Record.errors = Counter()
    _Record.cpu_s = -time.process_time()
    _Record.began = time.time()


@events.request.add_listener
def _measured(response_time: float, exception: Any = None, **_: Any) -> None:
    if exception is None:
        _Record.latencies_ms.append(response_time)
    else:
        _Record.errors[str(exception)] += 1


@events.test_stop.add_listener
def _stop(environment: Any, **_: Any) -> None:
    _Record.ended = time.time()
    _Record.cpu_s += time.process_time()
    if environment.parsed_options.record:
        np.savez(
            Path(environment.parsed_options.record) / f"{os.getpid()}.npz",
            latencies_ms=np.frombuffer(_Record.latencies_ms),
            errors=json.dumps(_Record.errors),
            cpu_s=_Record.cpu_s,
            began=_Record.began,
            ended=_Record.ended,
        )


class HttpCommentUser(FastHttpUser):
    """Sends comments as JSON over one kept-alive connection, as fast as answers come."""

    host = f"http://{HOST}:{HTTP_PORT}"
    wait_time = constant(0)
    connection_timeout = network_timeout = _TIMEOUT_S
    _number = itertools.count()

    def on_start(self) -> None:
        self._rows = _Requests.rows(self, next(self._number))

    @task
    def score(self) -> None:
        body = _Requests.http[next(self._rows)]
        with self.client.post(
            _INFER_PATH, data=body, headers=_HEADERS, name="http", catch_response=True
        ) as response:
            if fault := http_fault(response):
                response.failure(fault)


class GrpcCommentUser(User):
    """Sends comments over one gRPC channel, as fast as answers come."""

    wait_time = constant(0)
    _number = itertools.count()

    def on_start(self) -> None:
        grpc_gevent.init_gevent()  # once a process; later calls change nothing
        number = next(self._number)
        # Channels with the same options share one connection; the number keeps them apart.
        self._channel = grpc.insecure_channel(
            self.environment.parsed_options.grpc_address, options=[("toxicity.user", number)]
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._rows = _Requests.rows(self, number)

    def on_stop(self) -> None:
        self._channel.close()

    @task
    def score(self) -> None:
        request = _Requests.grpc[next(self._rows)]
        length = 0
        began = time.perf_counter()
        try:
            answer = self._stub.ModelInfer(request, timeout=_TIMEOUT_S)
            response_time = 1e3 * (time.perf_counter() - began)
            length, fault = answer.ByteSize(), grpc_fault(answer)
        except grpc.RpcError as error:
            response_time = 1e3 * (time.perf_counter() - began)
            fault = f"{error.code().name}: {(error.details() or '')[:_SHOWN_CHARS]}"
        self.environment.events.request.fire(
            request_type="gRPC",
            name="grpc",
            response_time=response_time,
            response_length=length,
            exception=CatchResponseError(fault) if fault else None,
            context={},
        )


def http_fault(response: Any) -> str | None:
    """Why an HTTP response (`status_code`, `content`, `error`) counts as failed, or None."""
    if response.status_code != 200:
        body = (response.content or b"").decode("utf-8", "replace")
        return f"{response.status_code}: {body or response.error}"[:_SHOWN_CHARS]
    try:
        outputs = {o["name"]: o["data"][0] for o in json.loads(response.content)["outputs"]}
        return _fault(float(outputs[PROBABILITY]), str(outputs[MODEL_VERSION]))
    except (ValueError, TypeError, LookupError) as error:
        return f"the answer cannot be read: {error!r}"[:_SHOWN_CHARS]


def grpc_fault(answer: Any) -> str | None:
    """Why a ModelInferResponse counts as failed, or None."""
    names = [output.name for output in answer.outputs]
    try:
        raw = dict(zip(names, answer.raw_output_contents, strict=True))
        (probability,) = struct.unpack("<f", raw[PROBABILITY])
        return _fault(probability, raw[MODEL_VERSION][4:].decode())
    except (ValueError, LookupError, struct.error) as error:
        return f"the answer cannot be read: {error!r}"[:_SHOWN_CHARS]


def _fault(probability: float, version: str) -> str | None:
    if not 0.0 <= probability <= 1.0:
        return f"{PROBABILITY} is {probability}, expected 0 to 1"
    return None if version.isdecimal() else f"{MODEL_VERSION} is {version!r}, expected a number"
