"""Load a running server with Locust.

    locust -f bench/load.py                         # web page on http://localhost:8089
    locust -f bench/load.py HttpCommentUser         # one protocol only
    locust -f bench/load.py --rate 500              # open loop, 500 requests/s in all
    make bench                                      # headless, with the server's counters beside

OPEN LOOP (`--rate`): each user is a source of its equal part of the rate, and sends when a request
is due whatever the server does; a latency counts from the INTENDED send time.

CLOSED LOOP (the default): a user sends its next comment when the last answer is there. A slow
server is thus sent fewer requests, and the wait of those that were not sent shows nowhere
(coordinated omission). Read the rate as a capacity and the latencies as those at that many users.

Locust's own percentiles are of whole ms below 100 ms and of two digits above. So a master, or a
lone process, says at the end what all processes measured and whether the open loop kept up, and
writes every time to `--record`, a file a process; workers send it theirs and need no such folder.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
import gevent.pool
import grpc
import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import User, constant, events, task
from locust.exception import CatchResponseError
from locust.runners import STATE_CLEANUP, STATE_STOPPED, MasterRunner, WorkerRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.traffic import arrivals, records
from bench.traffic.bodies import EncodedComments, Payload, packed
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.faults import SHOWN_CHARS, grpc_fault, http_fault
from bench.traffic.sockets import Connections
from console.ending import tell
from contract import GRPC_PORT, HOST, HTTP_PORT, PUBLIC_MODEL, TEXT, ToxicityError
from serve.door import read_settings
from serve.probe import INFER_PATH

RUN_DIR = Path("runs/serve")
_TIMEOUT_S = 60.0
_LOADED, _LOADING_S = "comments loaded", 120.0
"""Message of a worker to the master, and how long that waits for one of each."""
_DRAIN_S = 20.0
"""Wait for answers at the end of an open loop; what is then in flight counts as failed."""
_END, _RECORD, _RECORD_S = "end of the test", "record", 20.0
"""Messages of the master, and of a worker with what it measured; wait for it beyond the drain."""
_log = logging.getLogger(__name__)


class _Pool:
    """The comments, encoded before the first is due: sending must stay cheap."""

    texts: list[str] = []  # noqa: RUF012  filled once, before any user starts
    encoded: dict[str, EncodedComments] = {}  # noqa: RUF012  by payload
    sources = itertools.count()

    @classmethod
    def comments(cls, payload: Payload) -> EncodedComments:
        if payload not in cls.encoded:
            cls.encoded[payload] = EncodedComments(cls.texts, payload)
        return cls.encoded[payload]


class _Record:
    """What one process measured, exact; reset when a test starts."""

    began = ended = cpu_s = 0.0
    latencies_ms = array("d")
    sent_at_s = array("d")
    failed_ms = array("d")
    failed_at_s = array("d")
    lags_ms = array("d")
    missed = 0
    errors: Counter[str] = Counter()  # noqa: RUF012
    received: dict[str, records.Record] = {}  # noqa: RUF012
    """Of a master: what each worker measured."""


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--comments",
        default=AUTO,
        env_var="COMMENTS",
        include_in_web_ui=False,  # they are read before the page is there
        help=COMMENTS_HELP,
    )
    parser.set_defaults(web_host=HOST)  # the page starts load for whoever can reach it
    parser.add_argument(
        "--grpc-address",
        default="",
        env_var="GRPC_ADDRESS",
        help="where gRPC users connect to; left out: where the server of this checkout does, if "
        "it serves gRPC",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        help="requests a second of all users together, an open loop; 0 for a closed loop",
    )
    parser.add_argument(
        "--arrivals", choices=["poisson", "constant"], default="poisson", help="of the open loop"
    )
    parser.add_argument(
        "--max-in-flight", type=int, default=1000, help="of one user in the open loop"
    )
    parser.add_argument(
        "--repeat-share",
        type=float,
        default=0.0,
        help=f"share of comments from {arrivals.HOT_COMMENTS} that repeat, Zipf-ranked",
    )
    parser.add_argument("--batch", type=int, default=1, help="comments a request")
    parser.add_argument(
        "--payload", choices=["json", "binary"], default="json", help="form of HTTP tensors"
    )
    parser.add_argument(
        "--record",
        default="",
        include_in_web_ui=False,
        help="folder for one file a process with every latency, written by the master if there is "
        "one; used by `make bench`",
    )


@events.init.add_listener
def _load_comments(environment: Any, **_: Any) -> None:
    # Not at the start of the test: the run time counts from there.
    try:
        pool = load_pool(environment.parsed_options.comments or AUTO)
    except (ToxicityError, OSError) as error:  # Locust would show a traceback and go on
        sys.exit(tell(error))
    _Pool.texts = pool.texts
    _Pool.comments("json")
    _find_server(environment)
    _log.info("%s", pool.summary())
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(_END, _end, concurrent=True)
        runner.send_message(_LOADED)
    if isinstance(runner, MasterRunner):
        runner.register_message(_RECORD, _receive)
    if isinstance(runner, MasterRunner) and environment.parsed_options.headless:
        _wait_for_workers(runner, environment.parsed_options.expect_workers)
    # gevent counts timers from the time it last looked at the clock: before the loading.
    gevent.get_hub().loop.update_now()


def _find_server(environment: Any) -> None:
    """Point users at the server of this checkout, as far as nobody said where to."""
    served = read_settings(RUN_DIR)
    if served:
        HttpCommentUser.host = f"http://{HOST}:{served.http_port}"
    options = environment.parsed_options
    if not options.grpc_address and served and not served.grpc:
        _log.info("no gRPC users: the server has no gRPC, see `make serve GRPC=1`")
        environment.user_classes = [
            user for user in environment.user_classes if user is not GrpcCommentUser
        ]
    options.grpc_address = (
        options.grpc_address or f"{HOST}:{served.grpc_port if served else GRPC_PORT}"
    )


def _wait_for_workers(runner: MasterRunner, workers: int) -> None:
    """Otherwise the test may be over before they have read the comments."""
    loaded: list[Any] = []
    runner.register_message(_LOADED, lambda msg, **_: loaded.append(msg))
    deadline = time.monotonic() + _LOADING_S
    while len(loaded) < workers and time.monotonic() < deadline:
        gevent.sleep(0.05)


@events.test_start.add_listener
def _start(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    # The master and a lone process know it; workers get it with the master's other options.
    if not isinstance(environment.runner, WorkerRunner):
        options.sources = max(1, environment.runner.target_user_count)
        options.workers = max(1, len(getattr(environment.runner, "clients", ())))
        # A run does not repeat what the one before it sent, which the server's cache would know.
        options.first_pass = int(time.time())
    loop = f"open loop, {options.rate:g} requests/s" if options.rate else "closed loop"
    _log.info("%s, %d users", loop, options.sources)
    for name in records.ARRAYS:
        setattr(_Record, name, array("d"))
    _Record.received = {}
    _Record.missed = 0
    _Record.errors = Counter()
    _Pool.sources = itertools.count()
    _Record.cpu_s = -time.process_time()
    _Record.began = time.time()


@events.test_stop.add_listener
def _stop(environment: Any, **_: Any) -> None:
    _Record.ended = time.time()
    _Record.cpu_s += time.process_time()
    options, runner = environment.parsed_options, environment.runner
    own: records.Record = {
        **{name: np.array(getattr(_Record, name)) for name in records.ARRAYS},
        "errors": json.dumps(_Record.errors),
        "missed": _Record.missed,
        "cpu_s": _Record.cpu_s,
        "began": _Record.began,
        "ended": _Record.ended,
        "sends": not isinstance(runner, MasterRunner),
    }
    if isinstance(runner, WorkerRunner):
        runner.send_message(_RECORD, records.packed(own))
        return
    if isinstance(runner, MasterRunner):
        _wait_for_records(runner, options.workers)
    found = {**_Record.received, f"{os.uname().nodename}-{os.getpid()}": own}
    _log.info("%s", records.told([*found.values()], options.workers))
    if options.record:
        records.write(Path(options.record), found)


def _wait_for_records(runner: MasterRunner, workers: int) -> None:
    """A worker waits for its last answers first; one that is lost sends nothing."""
    runner.send_message(_END)  # Locust itself ends its workers only once the master's test is over
    deadline = time.monotonic() + _DRAIN_S + _RECORD_S
    while time.monotonic() < deadline:
        if len(_Record.received) + len(runner.clients.missing) >= workers:
            return
        gevent.sleep(0.05)


def _end(environment: Any, **_: Any) -> None:
    if environment.runner.state not in (STATE_CLEANUP, STATE_STOPPED):
        environment.runner.stop()


def _receive(msg: Any, **_: Any) -> None:
    _Record.received[msg.node_id] = records.unpacked(msg.data)


class _CommentUser(User):
    """Sends comments; a protocol says how by `_payload` and `_exchange`."""

    abstract = True
    wait_time = constant(0)
    kind, name = "", ""

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self._comments = _Pool.comments(self._payload())
        runner = self.environment.runner
        worker = max(0, getattr(runner, "worker_index", 0))
        # Numbers of different workers differ by `workers`, so that no two sources share one.
        self._source = worker + options.workers * next(_Pool.sources)
        stride = options.workers * -(-options.sources // options.workers)
        rng = np.random.default_rng(self._source)
        self._rows = arrivals.rows(
            len(_Pool.texts), self._source, stride, options.repeat_share, rng
        )
        self._hot = arrivals.hot_rows(len(_Pool.texts), options.repeat_share)
        self._in_flight = gevent.pool.Pool(options.max_in_flight)
        if options.rate:
            self._rate = options.rate / options.sources
            now = time.perf_counter()
            self._due = arrivals.send_times(self._rate, options.arrivals, rng, now)
            self._next = next(self._due)
        self._connect()

    def on_stop(self) -> None:
        if self.environment.parsed_options.rate:
            behind_s = time.perf_counter() - self._next
            _Record.missed += max(0, int(behind_s * self._rate))
            self._in_flight.join(timeout=_DRAIN_S)
            for _ in range(len(self._in_flight)):
                self._report(time.perf_counter() - _DRAIN_S, 0, "not answered in time")
            self._in_flight.kill()
        self._disconnect()

    @task
    def score(self) -> None:
        """Send until the user stops: a task for each request would cost as much as sending it."""
        if not self.environment.parsed_options.rate:
            while self._state != "stopping":
                self._send(time.perf_counter())
                gevent.sleep(0)
            return
        while True:
            gevent.sleep(max(0.0, self._next - time.perf_counter()))
            if self._state == "stopping":
                return
            if (lag_s := time.perf_counter() - self._next) < 0:
                continue
            intended, self._next = self._next, next(self._due)
            _Record.lags_ms.append(1e3 * lag_s)
            if self._in_flight.full():
                self._report(intended, 0, records.FULL)
            else:
                self._in_flight.spawn(self._send, intended)

    def _send(self, intended: float) -> None:
        """Send one request and report it; its latency counts from `intended`."""
        options = self.environment.parsed_options
        items = [
            self._comments.item(next(self._rows), self._hot, options.first_pass)
            for _ in range(options.batch)
        ]
        self._report(intended, *self._exchange(items))

    def _report(self, intended: float, length: int, fault: str | None) -> None:
        now = time.perf_counter()
        response_time = 1e3 * (now - intended)
        at_s = time.time() - (now - intended) - _Record.began
        if fault is None:
            _Record.latencies_ms.append(response_time)
            _Record.sent_at_s.append(at_s)
        else:
            _Record.errors[fault] += 1
            _Record.failed_ms.append(response_time)
            _Record.failed_at_s.append(at_s)
        self.environment.events.request.fire(
            request_type=self.kind,
            name=self.name,
            response_time=response_time,
            response_length=length,
            exception=CatchResponseError(fault) if fault else None,
            context={},
        )


class HttpCommentUser(_CommentUser):
    """Sends comments over kept-alive HTTP connections, as JSON or as binary tensors."""

    host = f"http://{HOST}:{HTTP_PORT}"
    kind, name = "POST", "http"

    def _payload(self) -> Payload:
        return self.environment.parsed_options.payload

    def _connect(self) -> None:
        self._connections = Connections(self.host, INFER_PATH, self._comments.headers, _TIMEOUT_S)

    def _disconnect(self) -> None:
        self._connections.close()

    def _exchange(self, items: list[bytes]) -> tuple[int, str | None]:
        answer = self._connections.post(self._comments.body(items))
        return len(answer.content or b""), http_fault(answer)


class GrpcCommentUser(_CommentUser):
    """Sends comments over one gRPC channel."""

    kind, name = "gRPC", "grpc"

    def _payload(self) -> Payload:
        return "binary"

    def _connect(self) -> None:
        grpc_gevent.init_gevent()  # once a process; later calls change nothing
        # Channels with the same options share one connection; the number keeps them apart.
        self._channel = grpc.insecure_channel(
            self.environment.parsed_options.grpc_address,
            options=[("toxicity.user", self._source)],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def _disconnect(self) -> None:
        self._channel.close()

    def _exchange(self, items: list[bytes]) -> tuple[int, str | None]:
        request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
        request.inputs.add(name=TEXT, shape=[len(items), 1], datatype="BYTES")
        request.raw_input_contents.append(packed(items))
        try:
            answer = self._stub.ModelInfer(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return 0, f"{error.code().name}: {(error.details() or '')[:SHOWN_CHARS]}"
        return answer.ByteSize(), grpc_fault(answer)
