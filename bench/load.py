"""Load a running server with Locust, one comment a request.

    locust -f bench/load.py                    # web page on http://localhost:8089, HTTP and gRPC
    locust -f bench/load.py HttpCommentUser    # one protocol only
    make bench                                 # headless, with the server's own counters beside

CLOSED LOOP: a user sends its next comment when the last answer is there. A slow server is thus
sent fewer requests, and the wait of those that were not sent shows nowhere (coordinated
omission). Read the rate as a capacity and the latencies as those at that many users.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import grpc
import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import FastHttpUser, User, constant, events, task
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.comments import default_source, load_pool
from contract import (
    GRPC_PORT,
    HOST,
    HTTP_PORT,
    LOGIT,
    MODEL_VERSION,
    PROBABILITY,
    PUBLIC_MODEL,
    TEXT,
    ToxicityError,
)

_INFER_PATH = f"/v2/models/{PUBLIC_MODEL}/infer"
_GRPC_TIMEOUT_S = 60.0
_log = logging.getLogger(__name__)


class _Comments:
    """The pool of one process, every request made beforehand: sending must stay cheap."""

    texts: list[str] = []  # noqa: RUF012  filled once by `load`, before any user starts

    @classmethod
    def load(cls, source: str) -> None:
        pool = load_pool(source)
        cls.texts = pool.texts
        _log.info("%d comments from %s, tokens %s", len(pool.texts), pool.name, pool.lengths)

    @classmethod
    def endless(cls, first: int) -> Iterator[int]:
        """Row numbers from `first` on, round and round."""
        rows = len(cls.texts)
        return ((first + step) % rows for step in itertools.count())


class _Record:
    """What one process measured, exact; Locust itself rounds latencies to whole ms."""

    began = ended = 0.0
    cpu_s = 0.0
    latencies_ms = array("d")
    failures = 0


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--comments",
        default=default_source(),
        env_var="COMMENTS",
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
        help="folder for one file a process with every latency; used by `make bench`",
    )


@events.init.add_listener
def _load_comments(environment: Any, **_: Any) -> None:
    # Not at the start of the test: the run time counts from there.
    try:
        _Comments.load(environment.parsed_options.comments)
    except ToxicityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    # gevent counts timers from the time it last looked at the clock: before the loading.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def _start(**_: Any) -> None:
    _Record.latencies_ms = array("d")
    _Record.failures = 0
    _Record.cpu_s = -time.process_time()
    _Record.began = time.time()


@events.request.add_listener
def _measured(response_time: float, exception: Any = None, **_: Any) -> None:
    if exception is None:
        _Record.latencies_ms.append(response_time)
    else:
        _Record.failures += 1


@events.test_stop.add_listener
def _stop(environment: Any, **_: Any) -> None:
    _Record.ended = time.time()
    _Record.cpu_s += time.process_time()
    folder = environment.parsed_options.record
    if not folder:
        return
    name = Path(folder) / f"{os.getpid()}.npz"
    np.savez(
        name,
        latencies_ms=np.frombuffer(_Record.latencies_ms),
        failures=_Record.failures,
        cpu_s=_Record.cpu_s,
        began=_Record.began,
        ended=_Record.ended,
    )


def _fault(probability: float, version: str) -> str | None:
    """Why an answer cannot be right, or None."""
    if not 0.0 <= probability <= 1.0:
        return f"{PROBABILITY} is {probability}, expected 0 to 1"
    return None if version.isdecimal() else f"{MODEL_VERSION} is {version!r}, expected a number"


class HttpCommentUser(FastHttpUser):
    """Sends comments as JSON over one kept-alive connection, as fast as answers come."""

    host = f"http://{HOST}:{HTTP_PORT}"
    wait_time = constant(0)
    _number = itertools.count()

    def on_start(self) -> None:
        self._rows = _Comments.endless(next(self._number) * 97)
        self._headers = {"Content-Type": "application/json"}

    @task
    def score(self) -> None:
        text = _Comments.texts[next(self._rows)]
        tensor = {"name": TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        body = json.dumps({"inputs": [tensor]})
        with self.client.post(
            _INFER_PATH, data=body, headers=self._headers, name="http", catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {(response.text or '')[:200]}")
                return
            outputs = {o["name"]: o["data"][0] for o in response.json()["outputs"]}
            if fault := _fault(outputs[PROBABILITY], outputs[MODEL_VERSION]):
                response.failure(fault)


class GrpcCommentUser(User):
    """Sends comments over one gRPC channel, as fast as answers come."""

    wait_time = constant(0)
    _number = itertools.count()

    def on_start(self) -> None:
        grpc_gevent.init_gevent()
        address = self.environment.parsed_options.grpc_address
        # Channels with the same options share one connection; the number keeps them apart.
        number = next(self._number)
        self._channel = grpc.insecure_channel(address, options=[("toxicity.user", number)])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._rows = _Comments.endless(number * 97)

    def on_stop(self) -> None:
        self._channel.close()

    @task
    def score(self) -> None:
        raw = _Comments.texts[next(self._rows)].encode()
        request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
        request.inputs.add(name=TEXT, shape=[1, 1], datatype="BYTES")
        # KServe v2 binary tensors: each BYTES item after its length, 4 bytes little-endian.
        request.raw_input_contents.append(len(raw).to_bytes(4, "little") + raw)
        began = time.perf_counter()
        exception: Exception | None = None
        length = 0
        try:
            answer = self._stub.ModelInfer(request, timeout=_GRPC_TIMEOUT_S)
            length = answer.ByteSize()
            exception = self._check(answer)
        except grpc.RpcError as error:
            exception = RuntimeError(f"{error.code().name}: {(error.details() or '')[:200]}")
        self.environment.events.request.fire(
            request_type="gRPC",
            name="grpc",
            response_time=1e3 * (time.perf_counter() - began),
            response_length=length,
            exception=exception,
            context={},
        )
        if exception is not None:
            gevent.sleep(0)  # a refused request must not keep the other users from running

    @staticmethod
    def _check(answer: Any) -> Exception | None:
        names = [output.name for output in answer.outputs]
        raw = dict(zip(names, answer.raw_output_contents, strict=True))
        if missing := {PROBABILITY, LOGIT, MODEL_VERSION} - raw.keys():
            return RuntimeError(f"the answer lacks {sorted(missing)}")
        probability = float(np.frombuffer(raw[PROBABILITY], np.float32)[0])
        fault = _fault(probability, raw[MODEL_VERSION][4:].decode())
        return RuntimeError(fault) if fault else None
