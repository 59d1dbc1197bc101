"""The public model as Triton's Python backend loads it: one string a row in, its score out.

`export.repository.publish` copies this file into each version folder as `model.py`, together
with the files that it imports. NumPy, ONNX Runtime and the standard library only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_VERSION_FOLDER = Path(__file__).resolve().parent
# The copies of this version come before whatever the environment has under the same names.
sys.path.insert(0, str(_VERSION_FOLDER))

from contract import (  # noqa: E402
    ARTIFACT_FILE,
    LOGIT,
    MAX_COMMENT_BYTES,
    MODEL_VERSION,
    ONNX_FILE,
    PROBABILITY,
    TEXT,
    TOKENIZER_FILE,
    BadInput,
)
from scorer import Scorer, probability  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402


class TritonPythonModel:
    """One instance: one process, one ONNX Runtime session, one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; Triton reports any exception as the reason of a failed load."""
        artifact = json.loads((_VERSION_FOLDER / ARTIFACT_FILE).read_text("utf-8"))
        tokenizer = Tokenizer.from_json((_VERSION_FOLDER / TOKENIZER_FILE).read_text("utf-8"))
        self._scorer = Scorer(_VERSION_FOLDER / ONNX_FILE, tokenizer, artifact["device"])
        self._scorer.warm_up()
        self._version = args["model_version"]
        self._counters = _Counters(self._version)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Score all comments of all requests together; a bad one fails its own request only."""
        texts: list[str] = []
        parts: list[slice | BadInput] = []
        for request in requests:
            try:
                decoded = _decode(pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy())
            except BadInput as error:
                parts.append(error)
            else:
                parts.append(slice(len(texts), len(texts) + len(decoded)))
                texts += decoded
        scores = self._scorer.score(texts)
        self._counters.add(comments=len(texts), cut=scores.cut, tokens=scores.tokens)
        return [self._response(part, scores.logit) for part in parts]

    def _response(self, part: slice | BadInput, logit_B: Any) -> Any:
        if isinstance(part, BadInput):
            error = pb_utils.TritonError(str(part), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        logit_B1 = logit_B[part, None]
        version_B1 = np.full(logit_B1.shape, self._version.encode(), np.object_)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(PROBABILITY, probability(logit_B1)),
                pb_utils.Tensor(LOGIT, logit_B1),
                pb_utils.Tensor(MODEL_VERSION, version_B1),
            ]
        )


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
        ("comments", "toxicity_comments_total", "Comments scored"),
        ("cut", "toxicity_comments_cut_total", "Comments cut at the tokenizer's max_len"),
        ("tokens", "toxicity_tokens_total", "Tokens run through the encoder"),
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
