"""LitServe's API of bench/serving/peer_app.py, in a module that its worker processes can import.

LitServe reads the annotation of `decode_request` at run time, so here they are no strings.
"""

import os
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from bench.serving.peer_scorer import CHECKPOINT, TorchScorer, answer, texts_of


class Api(litserve.LitAPI):
    """Requests batched by LitServe, then padded to the longest comment."""

    def setup(self, device: str) -> None:
        del device
        self._scorer = TorchScorer(Path(os.environ[CHECKPOINT]))

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        return texts_of(request)

    def predict(self, batch: list[list[str]]) -> list[np.ndarray]:
        logit_B = self._scorer.score([text for texts in batch for text in texts])
        return np.split(logit_B, np.cumsum([len(texts) for texts in batch])[:-1])

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        return output

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return answer(output)
