"""Load a running server with Locust.

    locust -f bench/load.py                    # web page on http://localhost:8089
    locust -f bench/load.py HttpCommentUser --rate 300 -u 1
    make bench                                 # headless, with the server's own counters beside

OPEN LOOP, with `--rate`: requests are sent at that rate, all users together, whatever the server
does, and a latency counts from the moment at which the request was *meant* to be sent. A user is
then a source of requests, not a person: one for each process is enough. What the generator itself
did late, did not send, or could not keep up with is recorded beside the latencies.

CLOSED LOOP, without: a user sends its next request when the last answer is there. A slow server
is thus sent fewer requests, and the wait of those that were not sent shows nowhere (coordinated
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
import gevent.pool
import grpc
import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import FastHttpUser, User, constant, events, task
from locust.exception import CatchResponseError
from locust.runners import WorkerRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

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
_HEADER_LENGTH = "Inference-Header-Content-Length"
_TIMEOUT_S = 60.0
_MOST_IN_FLIGHT = 1000
"""Requests of one open-loop user that wait for an answer; one more is not sent, and fails."""
_PASSES_A_PROCESS = 1000
_SHOWN_CHARS = 200
"""Of an error text: enough to say why, short enough for Locust's table of errors."""
_log = logging.getLogger(__name__)


class _Comments:
    """What one process sends. Its users share it."""

    def __init__(self, texts: list[str], *, batch: int, repeats: float, hot: int) -> None:
        self._texts, self._batch, self._repeats = texts, batch, repeats
        self._hot = texts[:hot]
        rank = np.arange(1, len(self._hot) + 1)
        self._chance = np.cumsum(1 / rank) / np.sum(1 / rank)
        self.start(0)

    def start(self, process: int) -> None:
        """Begin again, with comments that no other process sends."""
        self._random = np.random.default_rng(process)
        self._fresh = self._once(process * _PASSES_A_PROCESS)

    def __next__(self) -> list[str]:
        return [self._one() for _ in range(self._batch)]

    def _one(self) -> str:
        if self._repeats and self._random.random() < self._repeats:
            return self._hot[int(np.searchsorted(self._chance, self._random.random()))]
        return next(self._fresh)

    def _once(self, passes: int) -> Iterator[str]:
        """Every comment but the hot ones once; then again with the number of the pass in front."""
        cold = self._texts[len(self._hot) :] if self._repeats else self._texts
        for number in itertools.count(passes):
            for text in cold:
                yield f"{number} {text}" if number else text


def _http_body(texts: list[str]) -> bytes:
    tensor = {"name": TEXT, "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    return json.dumps({"inputs": [tensor]}).encode()


def _binary_body(texts: list[str]) -> tuple[bytes, int]:
    """Body with the texts as bytes behind a JSON header, and the length of that header."""
    tensor = InferInput(TEXT, [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], np.object_))
    outputs = [InferRequestedOutput(name) for name in (PROBABILITY, MODEL_VERSION)]
    body, header_length = InferenceServerClient.generate_request_body([tensor], outputs=outputs)
    return body, header_length


def _grpc_request(texts: list[str]) -> Any:
    request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
    request.inputs.add(name=TEXT, shape=[len(texts), 1], datatype="BYTES")
    raws = [text.encode() for text in texts]
    # KServe v2 binary tensors: each BYTES item after its length, 4 bytes little-endian.
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(raw)) + raw for raw in raws))
    return request


class _Record:
    """What one process measured, exact; reset when a test starts."""

    began = ended = cpu_s = 0.0
    latencies_ms = array("d")
    lags_ms = array("d")
    """How late each request of an open loop was sent."""
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
        "--rate",
        type=float,
        default=0.0,
        help="open loop: requests a second of all users together; 0 is the closed loop",
    )
    parser.add_argument(
        "--arrivals",
        choices=["poisson", "constant"],
        default="poisson",
        help="open loop: random times between requests, or all the same",
    )
    parser.add_argument("--batch", type=int, default=1, help="comments of one request")
    parser.add_argument(
        "--repeats",
        type=float,
        default=0.0,
        include_in_web_ui=False,
        help="share of comments drawn from --hot ones by Zipf's law; the others come once",
    )
    parser.add_argument(
        "--hot", type=int, default=100, include_in_web_ui=False, help="repeated comments"
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
    options = environment.parsed_options
    CommentUser.comments = _Comments(
        pool.texts, batch=options.batch, repeats=options.repeats, hot=options.hot
    )
    _log.info(pool.summary())
    # gevent counts timers from the time it last looked at the clock: before the loading.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def _start(environment: Any, **_: Any) -> None:
    CommentUser.comments.start(getattr(environment.runner, "worker_index", 0))
    _Record.latencies_ms, _Record.lags_ms = array("d"), array("d")
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
            lags_ms=np.frombuffer(_Record.lags_ms),
            errors=json.dumps(_Record.errors),
            cpu_s=_Record.cpu_s,
            began=_Record.began,
            ended=_Record.ended,
        )


class CommentUser(User):
    """Sends comments one after the other, or on a schedule with `--rate`."""

    abstract = True
    wait_time = constant(0)
    comments: _Comments
    protocol: str
    _number = itertools.count()

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self._in_flight = gevent.pool.Pool(_MOST_IN_FLIGHT)
        self._random = np.random.default_rng((os.getpid(), next(self._number)))
        self._rate, self._constant = options.rate, options.arrivals == "constant"
        if self._rate:
            runner = self.environment.runner  # a worker knows its own users only
            distributed = isinstance(runner, WorkerRunner)
            self._rate /= options.num_users if distributed else runner.target_user_count
            self._due = time.perf_counter() + self._random.random() / self._rate

    def on_stop(self) -> None:
        self._in_flight.join(timeout=_TIMEOUT_S)

    @task
    def score(self) -> None:
        if not self._rate:
            self.send(next(self.comments), time.perf_counter())
            return
        due = self._due
        self._due += (1.0 if self._constant else self._random.exponential()) / self._rate
        texts = next(self.comments)
        gevent.sleep(max(0.0, due - time.perf_counter()))
        _Record.lags_ms.append(1e3 * (time.perf_counter() - due))
        if self._in_flight.full():
            self.report(due, 0, f"not sent: {_MOST_IN_FLIGHT} requests wait for an answer")
        else:
            self._in_flight.spawn(self.send, texts, due)

    def send(self, texts: list[str], due: float) -> None:
        """Send one request; `due` is when it was meant to go, of `time.perf_counter`."""
        raise NotImplementedError

    def report(self, due: float, length: int, fault: str | None) -> None:
        self.environment.events.request.fire(
            request_type=self.protocol.upper(),
            name=self.protocol,
            response_time=1e3 * (time.perf_counter() - due),
            response_length=length,
            exception=CatchResponseError(fault) if fault else None,
            context={},
        )


class HttpCommentUser(CommentUser, FastHttpUser):
    """JSON over kept-alive connections."""

    host = f"http://{HOST}:{HTTP_PORT}"
    connection_timeout = network_timeout = _TIMEOUT_S
    concurrency = _MOST_IN_FLIGHT
    protocol = "http"

    def send(self, texts: list[str], due: float) -> None:
        self._post(_http_body(texts), _HEADERS, due)

    def _post(self, body: bytes, headers: dict[str, str], due: float) -> None:
        with self.client.post(
            _INFER_PATH, data=body, headers=headers, name=self.protocol, catch_response=True
        ) as response:
            response.request_meta["response_time"] = 1e3 * (time.perf_counter() - due)
            if fault := http_fault(response):
                response.failure(fault)


class HttpBinaryCommentUser(HttpCommentUser):
    """Triton's binary tensors over kept-alive connections."""

    protocol = "http-binary"

    def send(self, texts: list[str], due: float) -> None:
        body, header_length = _binary_body(texts)
        self._post(body, {_HEADER_LENGTH: str(header_length)}, due)


class GrpcCommentUser(CommentUser):
    """One gRPC channel a user."""

    protocol = "grpc"

    def on_start(self) -> None:
        super().on_start()
        grpc_gevent.init_gevent()  # once a process; later calls change nothing
        # Channels with the same options share one connection; the number keeps them apart.
        self._channel = grpc.insecure_channel(
            self.environment.parsed_options.grpc_address,
            options=[("toxicity.user", next(self._number))],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def on_stop(self) -> None:
        super().on_stop()
        self._channel.close()

    def send(self, texts: list[str], due: float) -> None:
        length = 0
        try:
            answer = self._stub.ModelInfer(_grpc_request(texts), timeout=_TIMEOUT_S)
            length, fault = answer.ByteSize(), grpc_fault(answer)
        except grpc.RpcError as error:
            fault = f"{error.code().name}: {(error.details() or '')[:_SHOWN_CHARS]}"
        self.report(due, length, fault)


def http_fault(response: Any) -> str | None:
    """Why an HTTP response (`status_code`, `content`, `error`) counts as failed, or None."""
    if response.status_code != 200:
        body = (response.content or b"").decode("utf-8", "replace")
        return f"{response.status_code}: {body or response.error}"[:_SHOWN_CHARS]
    try:
        if header_length := response.headers.get(_HEADER_LENGTH):
            result = InferenceServerClient.parse_response_body(
                response.content, header_length=int(header_length)
            )
            version = result.as_numpy(MODEL_VERSION)[0, 0].decode()
            return _fault(float(result.as_numpy(PROBABILITY)[0, 0]), version)
        outputs = {o["name"]: o["data"][0] for o in json.loads(response.content)["outputs"]}
        return _fault(float(outputs[PROBABILITY]), str(outputs[MODEL_VERSION]))
    except (ValueError, TypeError, LookupError) as error:
        return f"the answer cannot be read: {error!r}"[:_SHOWN_CHARS]


def grpc_fault(answer: Any) -> str | None:
    """Why a ModelInferResponse counts as failed, or None."""
    names = [output.name for output in answer.outputs]
    try:
        raw = dict(zip(names, answer.raw_output_contents, strict=True))
        (probability,) = struct.unpack_from("<f", raw[PROBABILITY])
        (length,) = struct.unpack_from("<I", raw[MODEL_VERSION])
        return _fault(probability, raw[MODEL_VERSION][4 : 4 + length].decode())
    except (ValueError, LookupError, struct.error) as error:
        return f"the answer cannot be read: {error!r}"[:_SHOWN_CHARS]


def _fault(probability: float, version: str) -> str | None:
    if not 0.0 <= probability <= 1.0:
        return f"{PROBABILITY} is {probability}, expected 0 to 1"
    return None if version.isdecimal() else f"{MODEL_VERSION} is {version!r}, expected a number"
