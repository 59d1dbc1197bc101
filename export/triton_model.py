"""The public model as Triton's Python backend loads it: one string a row in, its score out.

`export.repository.publish` copies this file into each version folder as `model.py`, together
with the files that it imports. NumPy, ONNX Runtime and the standard library only.

Overload. Triton's own queue has no bound, and in release 24.10 setting one (`max_queue_size`)
made requests wait about 500 ms in a closed loop (measured in deploy/README.md). So `execute`
only hands requests over to a queue in this process, which is bounded: a request that finds no
room is refused at once, and one thread scores the others in batches of what waited.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_VERSION_FOLDER = Path(__file__).resolve().parent
# The copies of this version come before whatever the environment has under the same names.
sys.path.insert(0, str(_VERSION_FOLDER))

from contract import (  # noqa: E402, I001  the served names, none of the project
    ARTIFACT_FILE,
    LOGIT,
    MAX_BATCH_SIZE,
    MAX_COMMENT_BYTES,
    MAX_QUEUED_COMMENTS,
    MODEL_VERSION,
    ONNX_FILE,
    PROBABILITY,
    TEXT,
    TOKENIZER_FILE,
    BadInput,
)
from scorer import Scorer, probability  # type: ignore[import-not-found]  # noqa: E402
from tokenizer import Tokenizer  # type: ignore[import-not-found]  # noqa: E402

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_SWITCH_INTERVAL_S = 0.0005
"""How long one of the two threads may keep the other from Python; the default is 5 ms."""


@dataclass(frozen=True)
class _Waiting:
    texts: list[str]
    sender: Any
    since: float


class TritonPythonModel:
    """One instance: one process, one bounded queue, one scoring thread with one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; Triton reports any exception as the reason of a failed load."""
        artifact = json.loads((_VERSION_FOLDER / ARTIFACT_FILE).read_text("utf-8"))
        tokenizer = Tokenizer.from_json((_VERSION_FOLDER / TOKENIZER_FILE).read_text("utf-8"))
        gpu = int(args["model_instance_device_id"])
        self._scorer = Scorer(_VERSION_FOLDER / ONNX_FILE, tokenizer, artifact["device"], gpu)
        self._scorer.warm_up()
        self._version = args["model_version"]
        self._counters = _Counters(self._version)
        self._queue: deque[_Waiting] = deque()
        self._queued_comments = 0
        self._closing = False
        self._changed = threading.Condition()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._thread = threading.Thread(target=self._score_until_closed, name="scorer")
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request, or refuse it: a bad one and one too many fail on their own."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                texts = _decode(pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy())
            except BadInput as error:
                _refuse(sender, str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            with self._changed:
                full = self._queued_comments + len(texts) > MAX_QUEUED_COMMENTS
                if not full:
                    self._queue.append(_Waiting(texts, sender, time.monotonic()))
                    self._queued_comments += len(texts)
                    self._changed.notify()
            if full:
                self._counters.add(refused=1)
                _refuse(
                    sender,
                    f"overloaded: {MAX_QUEUED_COMMENTS} comments are waiting already; try again",
                    pb_utils.TritonError.UNAVAILABLE,
                )

    def finalize(self) -> None:
        """Answer what still waits, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _score_until_closed(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except Exception as error:  # the thread must live on: each client gets the reason
                for waiting in batch:
                    _refuse(waiting.sender, f"scoring failed: {error!r}", None)

    def _next_batch(self) -> list[_Waiting]:
        """Waits for requests; takes those that fit one batch. Empty when the model closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            batch: list[_Waiting] = []
            room = MAX_BATCH_SIZE
            while self._queue and len(self._queue[0].texts) <= room:
                batch.append(self._queue.popleft())
                room -= len(batch[-1].texts)
            self._queued_comments -= MAX_BATCH_SIZE - room
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        scores = self._scorer.score([text for waiting in batch for text in waiting.texts])
        self._counters.add(  # first, so that whoever has an answer finds it counted
            batches=1,
            requests=len(batch),
            comments=len(scores.logit),
            cut=scores.cut,
            tokens=scores.tokens,
            queue_us=int(1e6 * sum(began - waiting.since for waiting in batch)),
            compute_us=int(1e6 * (time.monotonic() - began)),
        )
        row = 0
        for waiting in batch:
            logit_B1 = scores.logit[row : row + len(waiting.texts), None]
            row += len(waiting.texts)
            waiting.sender.send(self._response(logit_B1), flags=_FINAL)

    def _response(self, logit_B1: Any) -> Any:
        version_B1 = np.full(logit_B1.shape, self._version.encode(), np.object_)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(PROBABILITY, probability(logit_B1)),
                pb_utils.Tensor(LOGIT, logit_B1),
                pb_utils.Tensor(MODEL_VERSION, version_B1),
            ]
        )


def _refuse(sender: Any, reason: str, code: Any) -> None:
    code = pb_utils.TritonError.INTERNAL if code is None else code
    error = pb_utils.TritonError(reason, code)
    sender.send(pb_utils.InferenceResponse(error=error), flags=_FINAL)


def _decode(raw_B1: Any) -> list[str]:
    texts = []
    for row, raw in enumerate(raw_B1.reshape(-1)):
        if len(raw) > MAX_COMMENT_BYTES:
            raise BadInput(
                f"comment {row} is {len(raw)} bytes long, expected at most {MAX_COMMENT_BYTES}; "
                "cut it before sending"
            )
        try:
            texts.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadInput(
                f"comment {row} is not valid UTF-8 (byte 0x{raw[error.start]:02x} at "
                f"{error.start}), expected UTF-8 text; encode it as UTF-8 before sending"
            ) from error
    return texts


class _Counters:
    """Counters on Triton's metrics port, one set a version."""

    _HELP = (
        ("requests", "toxicity_requests_total", "Requests scored"),
        ("refused", "toxicity_requests_refused_total", "Requests refused for want of room"),
        ("comments", "toxicity_comments_total", "Comments scored"),
        ("cut", "toxicity_comments_cut_total", "Comments cut at the tokenizer's max_len"),
        ("tokens", "toxicity_tokens_total", "Tokens run through the encoder"),
        ("batches", "toxicity_batches_total", "Batches of comments scored together"),
        ("queue_us", "toxicity_queue_us_total", "Microseconds that requests waited, summed"),
        ("compute_us", "toxicity_compute_us_total", "Microseconds of scoring, summed by batch"),
    )

    def __init__(self, version: str) -> None:
        self._metrics = {}
        self._families = []  # a family must outlive its metrics
        for key, name, description in self._HELP:
            family = pb_utils.MetricFamily(
                name=name, description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            self._families.append(family)
            self._metrics[key] = family.Metric(labels={"version": version})

    def add(self, **amounts: int) -> None:
        for key, amount in amounts.items():
            if amount:
                self._metrics[key].increment(amount)
