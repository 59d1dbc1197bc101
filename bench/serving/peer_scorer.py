"""What both servers of `bench.serving.peer_app` share: PyTorch and the JSON that they speak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from contract import LOGIT, MODEL_VERSION, PROBABILITY, PUBLIC_MODEL
from export.gates.parity import Comment, run_batch, torch_runner
from train.artifacts import load_checkpoint
from train.validation import probability_of

INFER_PATH = f"/v2/models/{PUBLIC_MODEL}/infer"
CHECKPOINT = "TOXICITY_CHECKPOINT"
"""Environment variable that tells worker processes what to load."""


class TorchScorer:
    """PyTorch in eager mode on one thread."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        checkpoint = load_checkpoint(folder)
        self._tokenizer, self._run = checkpoint.tokenizer, torch_runner(checkpoint.model)

    def score(self, texts: list[str]) -> np.ndarray:
        """Logits float32 [n], all in one batch padded to the longest."""
        return run_batch(self._run, [Comment("", self._tokenizer.encode(text)) for text in texts])


def texts_of(body: dict[str, Any]) -> list[str]:
    texts = body["inputs"][0]["data"]
    assert isinstance(texts, list)
    return texts


def answer(logit_B: np.ndarray) -> dict[str, Any]:
    values = {
        PROBABILITY: ("FP32", probability_of(logit_B).tolist()),
        LOGIT: ("FP32", logit_B.tolist()),
        MODEL_VERSION: ("BYTES", ["1"] * len(logit_B)),
    }
    shape = [len(logit_B), 1]
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, data) in values.items()
    ]
    return {"model_name": PUBLIC_MODEL, "model_version": "1", "outputs": outputs}
