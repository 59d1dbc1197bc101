"""The served model for Triton's Python backend, as a peer: `bench.serving.road` puts it into a
repository.

Text -> score by the same core on the same files, called from Python: what the native backend saves
is the way through another process and its objects. NumPy < 2 and a `python3` on PATH that has this
project's packages are needed, which the server's own release asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from contract import LOGIT, MODEL_VERSION, ORT_FILE, PROBABILITY, TEXT
from core.binding import probability
from export.scorer import LongText, Scorer
from train.data.tokenizer import Tokenizer


class TritonPythonModel:
    """One instance: one process with one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the published files that lie beside this one."""
        folder = Path(args["model_repository"]) / args["model_version"]
        artifact = json.loads((folder / "artifact.json").read_text("utf-8"))
        self._scorer = Scorer(
            folder / "model.onnx",
            Tokenizer.from_json((folder / "tokenizer.json").read_text("utf-8")),
            long_text=LongText.of_artifact(artifact),
            ort_library=folder / ORT_FILE,
        )
        self._scorer.warm_up()
        self._version = args["model_version"].encode()

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request, all scored together."""
        raw = [pb_utils.get_input_tensor_by_name(r, TEXT).as_numpy().reshape(-1) for r in requests]
        logit = self._scorer.score([text.decode() for texts in raw for text in texts]).logit
        responses, row = [], 0
        for request, texts in zip(requests, raw, strict=True):
            logit_B1 = logit[row : row + len(texts), None]
            row += len(texts)
            made = {
                PROBABILITY: probability,
                LOGIT: lambda x: x,
                MODEL_VERSION: lambda x: np.full(x.shape, self._version, np.object_),
            }
            wanted = request.requested_output_names()
            tensors = [
                pb_utils.Tensor(name, make(logit_B1))  # type: ignore[no-untyped-call]
                for name, make in made.items()
                if name in wanted
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
