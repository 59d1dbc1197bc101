"""Honest clients beside an attack or in a soak: a modest load whose every score is compared.

A process of its own, an open loop: requests are due at random times (Poisson), and a latency counts
from when its request was due. Single comments and small batches, as JSON and as binary tensors,
some of them repeated. What came is written to a file and compared afterwards, by `verify`, with the
offline scores of the version that each answer names.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.hostile.children import Signals, begin
from bench.traffic import arrivals
from bench.traffic.answers import AnswerScores, scores_in
from bench.traffic.bodies import EncodedComments, packed
from contract import HOST, LOGIT, MODEL_VERSION, PROBABILITY, PUBLIC_MODEL, TEXT
from export.scorer import Scorer, probability
from serve.probe import INFER_PATH

OK, REFUSED, LOST = range(3)
"""Scored; refused with 503 because of too much load; anything else."""
_REPEAT_SHARE, _BINARY_SHARE, _BATCH_SHARE = 0.1, 0.2, 0.2
_BATCHES = (2, 3, 5, 8, 16)
_TIMEOUT_S = 60.0
_RECONNECT_S, _RETRY_AFTER_S = 0.05, 0.2


@dataclass(frozen=True)
class HonestPlan:
    """What a process of honest clients is told."""

    port: int
    texts: Path
    """JSON list of comments."""
    record: Path
    """File that it writes at the end."""
    rate: float = 100.0
    """Requests a second, all connections together."""
    connections: int = 8
    seed: int = 0
    retry_within_s: float = 0.0
    """Longest wait for a new connection on which a request that got no answer at all is sent once
    more; 0: it is not."""
    grpc: bool = False


@dataclass
class Record:
    """What a process of honest clients saw; a row of `scores` for each comment."""

    due_s: np.ndarray
    """float64 [requests], monotonic time."""
    latency_ms: np.ndarray
    """float64 [requests], from when it was due."""
    ending: np.ndarray
    """uint8 [requests]: OK, REFUSED or LOST."""
    retried: int
    number: np.ndarray
    """int64 [comments]: which of `arrivals.comment`."""
    logit: np.ndarray
    probability: np.ndarray
    """float32 [comments]."""
    version: np.ndarray
    """int64 [comments], 0 where it is none."""
    answered_s: np.ndarray
    """float64 [comments], monotonic time of the answer."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why requests were lost."""


# --- The process ---------------------------------------------------------------------------
def send_honestly(plan: HonestPlan, signals: Signals) -> None:
    """Send until the end, then write the record."""
    begin()
    clients = _Clients(plan, signals.progress)
    signals.wait_to_begin()
    _hurry()
    (clients.run_grpc if plan.grpc else clients.run_http)(signals.finish)
    clients.write()


def _hurry() -> None:
    """Run before others where that is allowed: what these measure must not be their own wait."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return


class _Clients:
    def __init__(self, plan: HonestPlan, progress: Any) -> None:
        self._plan, self._progress = plan, progress
        self._rng = random.Random(plan.seed)
        texts = json.loads(plan.texts.read_text("utf-8"))
        self._texts: list[str] = texts
        self._hot = arrivals.hot_rows(len(texts), _REPEAT_SHARE)
        self._fresh = itertools.count(self._hot)
        self._requests: list[tuple[float, float, int]] = []
        self._scores: list[tuple[int, float, float, int, float]] = []
        self._reasons: Counter[str] = Counter()
        self._retried = 0

    # --- HTTP ----------------------------------------------------------------------------
    def run_http(self, stop: Any) -> None:
        import gevent

        from bench.traffic.sockets import Connections

        forms = [EncodedComments(self._texts, "json"), EncodedComments(self._texts, "binary")]
        url = f"http://{HOST}:{self._plan.port}"
        pools = [Connections(url, INFER_PATH, form.headers, timeout_s=_TIMEOUT_S) for form in forms]

        def send(numbers: list[int], _again: bool) -> tuple[int, AnswerScores | None, str]:
            which = self._rng.random() < _BINARY_SHARE
            items = [forms[which].item(number, self._hot, 0) for number in numbers]
            answer = pools[which].post(forms[which].body(items))
            if answer.error is not None:
                return 0, None, answer.error
            content = answer.content or b""
            found = scores_in(content, answer.header_length) if answer.status_code == 200 else None
            return answer.status_code, found, content[:200].decode("utf-8", "replace")

        until = _Until(stop)
        sources = [
            gevent.spawn(self._source, send, until, gevent.sleep)
            for _ in range(self._plan.connections)
        ]
        while not stop.is_set():
            gevent.sleep(0.05)
        gevent.joinall(sources, raise_error=True)
        for pool in pools:
            pool.close()

    # --- gRPC ----------------------------------------------------------------------------
    def run_grpc(self, stop: Any) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        with grpc.insecure_channel(f"{HOST}:{self._plan.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            def send(numbers: list[int], again: bool) -> tuple[int, AnswerScores | None, str]:
                texts = [arrivals.comment(self._texts, self._hot, n).encode() for n in numbers]
                request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
                request.inputs.add(name=TEXT, shape=[len(texts), 1], datatype="BYTES")
                request.raw_input_contents.append(packed(texts))
                try:
                    answer = stub.ModelInfer(request, timeout=_TIMEOUT_S, wait_for_ready=again)
                except grpc.RpcError as error:
                    refused = "overloaded" in (error.details() or "")
                    return 503 if refused else 0, None, f"{error.code().name} {error.details()}"
                return 200, _scores_of_grpc(answer), ""

            self._source(send, _Until(stop), time.sleep)

    # --- Both ----------------------------------------------------------------------------
    def _source(
        self,
        send: Callable[[list[int], bool], tuple[int, AnswerScores | None, str]],
        until: _Until,
        sleep: Callable[[float], None],
    ) -> None:
        """Send what is due, one after the other, until the end."""
        each = self._plan.rate if self._plan.grpc else self._plan.rate / self._plan.connections
        due = time.monotonic() + self._rng.expovariate(each)
        while not until.over():
            wait_s = due - time.monotonic()
            if wait_s > 0:
                sleep(min(wait_s, 0.2))
                continue
            self._one(send, sleep, due)
            due += self._rng.expovariate(each)

    def _one(self, send: Any, sleep: Callable[[float], None], due: float) -> None:
        count = self._rng.choice(_BATCHES) if self._rng.random() < _BATCH_SHARE else 1
        numbers = [self._number() for _ in range(count)]
        status, scores, words = send(numbers, False)
        if status == 0 and self._plan.retry_within_s:
            self._wait_for_the_door(sleep)
            self._retried += 1
            status, scores, words = send(numbers, True)
        now = time.monotonic()
        ending = LOST
        if status == 200 and scores and _whole(scores, count):
            ending = OK
            rows = zip(numbers, scores.logit, scores.probability, scores.version, strict=True)
            self._scores += [(n, l_, p, int(v), now) for n, l_, p, v in rows]
        elif status == 503 and "overloaded" in words:
            ending = REFUSED
        else:
            self._reasons[f"{status or 'no answer'}: {words[:120]}"] += 1
        self._requests.append((due, 1e3 * (now - due), ending))
        self._progress.value += 1

    def _wait_for_the_door(self, sleep: Callable[[float], None]) -> None:
        """Until it takes connections, and not at once: what is about to end may still take one."""
        deadline = time.monotonic() + self._plan.retry_within_s
        sleep(_RETRY_AFTER_S)
        while time.monotonic() < deadline:
            try:
                socket.create_connection((HOST, self._plan.port), 0.1).close()
                return
            except OSError:
                sleep(_RECONNECT_S)

    def _number(self) -> int:
        if self._rng.random() < _REPEAT_SHARE:
            return self._rng.randrange(self._hot)
        return next(self._fresh)

    def write(self) -> None:
        requests = np.array(self._requests, np.float64).reshape(-1, 3)
        scores = np.array(self._scores, np.float64).reshape(-1, 5)
        np.savez(
            self._plan.record,
            requests=requests,
            scores=scores,
            retried=self._retried,
            reasons=np.array([*self._reasons.items()], dtype=np.str_).reshape(-1, 2),
        )


class _Until:
    """Whether an event of another process is set; asked rarely, for it is a system call."""

    def __init__(self, stop: Any) -> None:
        self._stop, self._next, self._known = stop, 0.0, False

    def over(self) -> bool:
        now = time.monotonic()
        if not self._known and now >= self._next:
            self._known, self._next = self._stop.is_set(), now + 0.05
        return self._known


def _whole(scores: AnswerScores, count: int) -> bool:
    lists = (scores.logit, scores.probability, scores.version)
    return all(len(one) == count for one in lists) and all(v.isdecimal() for v in scores.version)


def _scores_of_grpc(answer: Any) -> AnswerScores:
    raw = dict(zip([o.name for o in answer.outputs], answer.raw_output_contents, strict=True))
    version, at = [], 0
    while at < len(raw[MODEL_VERSION]):
        length = int.from_bytes(raw[MODEL_VERSION][at : at + 4], "little")
        version.append(raw[MODEL_VERSION][at + 4 : at + 4 + length].decode())
        at += 4 + length
    logit, probability_ = (
        np.frombuffer(raw[name], "<f4").tolist() for name in (LOGIT, PROBABILITY)
    )
    return AnswerScores(logit, probability_, version)


# --- Afterwards ----------------------------------------------------------------------------
def read_record(path: Path) -> Record:
    """What `send_honestly` wrote."""
    with np.load(path, allow_pickle=False) as file:
        requests, scores = file["requests"], file["scores"]
        return Record(
            due_s=requests[:, 0],
            latency_ms=requests[:, 1],
            ending=requests[:, 2].astype(np.uint8),
            retried=int(file["retried"]),
            number=scores[:, 0].astype(np.int64),
            logit=scores[:, 1].astype(np.float32),
            probability=scores[:, 2].astype(np.float32),
            version=scores[:, 3].astype(np.int64),
            answered_s=scores[:, 4],
            reasons=Counter({str(why): int(n) for why, n in file["reasons"]}),
        )


def verify(
    record: Record, texts: Sequence[str], scorers: Mapping[int, Scorer], atol: float
) -> tuple[int, str]:
    """How many comments got another score than the version that their answer names gives offline.

    Also words about the first of them. `scorers` by version; any other version counts as wrong.
    """
    hot = arrivals.hot_rows(len(texts), _REPEAT_SHARE)
    wrong = np.zeros(len(record.number), bool)
    logit = np.full(len(record.number), np.nan, np.float32)
    for version in set(record.version.tolist()) & scorers.keys():
        rows = np.flatnonzero(record.version == version)
        numbers, which = np.unique(record.number[rows], return_inverse=True)
        scored = [arrivals.comment(texts, hot, int(number)) for number in numbers]
        logit[rows] = scorers[version].score(scored).logit[which]
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(record.logit - logit) <= atol)
        wrong |= ~(np.abs(record.probability - probability(logit)) <= atol + 1e-7)
    if not wrong.any():
        return 0, ""
    first = int(np.flatnonzero(wrong)[0])
    return int(wrong.sum()), (
        f"comment {record.number[first]} by version {record.version[first]}: logit "
        f"{record.logit[first]:.6g}, expected {logit[first]:.6g}"
    )
