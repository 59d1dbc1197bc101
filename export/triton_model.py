"""The public model as Triton's Python backend loads it: one string a row in, its score out.

`export.repository.publish` copies this file into each version folder as `model.py`, together
with the files that it imports. NumPy, ONNX Runtime and the standard library only.

Each call of `execute` answers its requests by returning, in one message to Triton: a message for
each response took three times the CPU of all the rest. Overload: see `export.admission`.

Repeated comments: each process keeps the logits that it computed last, by their token ids, in as
much memory as the model's configuration says. They end with the process, and a process serves one
version, so a reload starts with none. Triton's own response cache is not used: in release 24.10 it
crashed over gRPC when clients vanished.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_VERSION_FOLDER = Path(__file__).resolve().parent
# The copies of this version come before whatever the environment has under the same names.
sys.path.insert(0, str(_VERSION_FOLDER))

from contract import (  # noqa: E402, I001  the served names, none of the project
    ARTIFACT_FILE,
    CACHE_BYTES,
    LOGIT,
    MAX_BATCH,
    MAX_COMMENT_BYTES,
    MAX_REQUEST_WINDOWS,
    MODEL_VERSION,
    ONNX_FILE,
    PROBABILITY,
    TEXT,
    TOKENIZER_FILE,
    BadInput,
)
from admission import Admission  # type: ignore[import-not-found]  # noqa: E402
from scorer import (  # type: ignore[import-not-found]  # noqa: E402
    LogitCache,
    LongText,
    Scorer,
    probability,
)
from tokenizer import Tokenizer  # type: ignore[import-not-found]  # noqa: E402

_OVERLOADED = "overloaded: more comments wait than can be scored in time; try again"
_PATIENCE_S = 0.05
"""Requests that waited for a call longer than this are asked whether their client is still there,
which is a message to Triton each."""
_PUBLISH_S = 0.05
"""Time between two updates of the metrics port: each counter is a message to Triton."""


class TritonPythonModel:
    """One instance: one process with one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; Triton reports any exception as the reason of a failed load."""
        artifact = json.loads((_VERSION_FOLDER / ARTIFACT_FILE).read_text("utf-8"))
        tokenizer = Tokenizer.from_json((_VERSION_FOLDER / TOKENIZER_FILE).read_text("utf-8"))
        gpu = int(args["model_instance_device_id"])
        parameters = json.loads(args["model_config"])["parameters"]
        cache_bytes = int(parameters[CACHE_BYTES]["string_value"])
        self._cache = LogitCache(cache_bytes) if cache_bytes else None
        self._scorer = Scorer(
            _VERSION_FOLDER / ONNX_FILE,
            tokenizer,
            artifact["device"],
            gpu,
            self._cache,
            int(parameters[MAX_BATCH]["string_value"]),
            LongText.of_artifact(artifact),
        )
        self._scorer.warm_up()
        self._version = args["model_version"]
        self._counters = _Counters(self._version)
        self._admission = Admission()
        self._last_call_s = 0.0

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request: a bad one and one too many are refused on their own."""
        responses: list[Any] = [None] * len(requests)
        waiting: list[tuple[int, list[str]]] = []
        rows: list[int] = []  # of the encoder's batches, by waiting request
        began = time.monotonic()
        for i, request in enumerate(requests):
            if self._last_call_s > _PATIENCE_S and request.is_cancelled():
                responses[i] = _refusal("cancelled by the client", pb_utils.TritonError.CANCELLED)
                self._counters.add(cancelled=1)
                continue
            try:
                raw_B1 = pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy()
                texts = _decode(raw_B1)
                rows.append(self._rows(texts))
                waiting.append((i, texts))
            except BadInput as error:
                responses[i] = _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        comments = sum(len(texts) for _, texts in waiting)
        admitted = self._admission.admit(rows, time.monotonic(), comments)
        for i, _ in waiting[admitted:]:
            responses[i] = _refusal(_OVERLOADED, pb_utils.TritonError.UNAVAILABLE)
        self._counters.add(refused=len(waiting) - admitted)
        if admitted:
            self._answer(requests, waiting[:admitted], sum(rows[:admitted]), responses)
        self._last_call_s = time.monotonic() - began
        return responses

    def finalize(self) -> None:
        """Publish the last counts."""
        self._counters.add(cached_bytes=-self._cached_bytes())  # the gauge sums the processes
        self._counters.close()

    def _rows(self, texts: list[str]) -> int:
        rows: int = self._scorer.windows(texts)
        if rows > MAX_REQUEST_WINDOWS:
            raise BadInput(
                f"the request's {len(texts)} comments are {rows} windows of text, expected at "
                f"most {MAX_REQUEST_WINDOWS}; send fewer comments in a request"
            )
        return rows

    def _answer(
        self,
        requests: list[Any],
        admitted: list[tuple[int, list[str]]],
        rows: int,
        responses: list[Any],
    ) -> None:
        """Score the texts of the `admitted` requests, known by their place in `requests`."""
        began, cached_bytes = time.monotonic(), self._cached_bytes()
        try:
            scores = self._scorer.score([text for _, texts in admitted for text in texts])
        except Exception as error:  # each client gets the reason
            for i, _ in admitted:
                responses[i] = _refusal(f"scoring failed: {error!r}", pb_utils.TritonError.INTERNAL)
            return
        seconds = time.monotonic() - began
        self._admission.observe(rows, seconds)
        self._counters.add(
            batches=1,
            requests=len(admitted),
            comments=len(scores.logit),
            cut=scores.cut,
            windowed=scores.windowed,
            tokens=scores.tokens,
            compute_us=int(1e6 * seconds),
            tokenizer_cpu_us=round(1e6 * scores.tokenizer_cpu_s),
            encoder_cpu_us=round(1e6 * scores.encoder_cpu_s),
            hits=scores.hits,
            misses=len(scores.logit) - scores.hits if self._cache else 0,
            cached_bytes=self._cached_bytes() - cached_bytes,
        )
        row = 0
        for i, texts in admitted:
            logit_B1 = scores.logit[row : row + len(texts), None]
            row += len(texts)
            responses[i] = self._response(logit_B1, requests[i].requested_output_names())

    def _cached_bytes(self) -> int:
        return self._cache.used_bytes if self._cache else 0

    def _response(self, logit_B1: Any, wanted: list[str]) -> Any:
        tensors = []
        if PROBABILITY in wanted:
            tensors.append(pb_utils.Tensor(PROBABILITY, probability(logit_B1)))
        if LOGIT in wanted:
            tensors.append(pb_utils.Tensor(LOGIT, logit_B1))
        if MODEL_VERSION in wanted:
            version_B1 = np.full(logit_B1.shape, self._version.encode(), np.object_)
            tensors.append(pb_utils.Tensor(MODEL_VERSION, version_B1))
        return pb_utils.InferenceResponse(tensors)


def _refusal(reason: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))


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
    """Counters on Triton's metrics port, one set a version, brought up to date by a thread."""

    _HELP = (
        ("requests", "toxicity_requests_total", "Requests scored"),
        ("refused", "toxicity_requests_refused_total", "Requests refused for want of room"),
        ("cancelled", "toxicity_requests_cancelled_total", "Requests dropped, their clients gone"),
        ("comments", "toxicity_comments_total", "Comments scored"),
        ("cut", "toxicity_comments_cut_total", "Comments cut at the end of what is read"),
        ("windowed", "toxicity_comments_windowed_total", "Comments read in several windows"),
        ("tokens", "toxicity_tokens_total", "Tokens run through the encoder"),
        ("batches", "toxicity_batches_total", "Batches of comments scored together"),
        ("compute_us", "toxicity_compute_us_total", "Microseconds of scoring, summed by batch"),
        ("tokenizer_cpu_us", "toxicity_tokenizer_cpu_us_total", "CPU time of texts to ids"),
        ("encoder_cpu_us", "toxicity_encoder_cpu_us_total", "CPU time of ids to logits"),
        ("hits", "toxicity_cache_hits_total", "Comments that the encoder had no need to run"),
        ("misses", "toxicity_cache_misses_total", "Comments that the cache did not know"),
        ("cached_bytes", "toxicity_cache_bytes", "Memory of the cached logits, all processes"),
    )

    def __init__(self, version: str) -> None:
        self._metrics = {}
        self._families = []  # a family must outlive its metrics
        for key, name, description in self._HELP:
            kind = "COUNTER" if name.endswith("_total") else "GAUGE"
            family = pb_utils.MetricFamily(
                name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind)
            )
            self._families.append(family)
            self._metrics[key] = family.Metric(labels={"version": version})

        self._unpublished: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._publish_until_closed, name="counters")
        self._thread.start()

    def add(self, **amounts: int) -> None:
        with self._lock:
            self._unpublished.update(amounts)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _publish_until_closed(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(_PUBLISH_S)
            with self._lock:
                amounts, self._unpublished = self._unpublished, Counter()
            for key, amount in amounts.items():
                if amount:
                    self._metrics[key].increment(amount)
