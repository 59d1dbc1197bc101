"""Texts -> logits with a published ONNX graph: the code that the server runs, usable without it.

`export.repository.publish` copies this file beside every published model; parity tests and
offline scoring import it from here. NumPy, ONNX Runtime and the standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from contract import ATTENTION_MASK, INPUT_IDS, LOGIT, MAX_BATCH_SIZE, PAD_ID, BadInput

if TYPE_CHECKING:  # served beside this file as `tokenizer`, hence handed in and not imported
    from train.tokenizer import Tokenizer

_WARM_UP_WORD = "don't "
"""Three tokens."""


def open_session(
    onnx_path: Path,
    device: str = "cpu",
    device_id: int = 0,
    options: ort.SessionOptions | None = None,
) -> Any:
    """ONNX Runtime session of one thread on `device`, "cpu" or "cuda" (GPU number `device_id`).

    Raises BadInput when the device's provider is missing: ONNX Runtime would go on without it.
    """
    options = options or ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # The file's own order, group by group: 1.05 of the default's speed for a single comment.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    provider, settings = "CPUExecutionProvider", {}
    if device == "cuda":
        # TensorFloat-32 would round float32 matmuls to ten bits behind the gates' back.
        provider, settings = "CUDAExecutionProvider", {"device_id": device_id, "use_tf32": 0}
    session: Any = None
    if provider in ort.get_available_providers():
        session = ort.InferenceSession(onnx_path, options, providers=[(provider, settings)])
    if session is None or provider not in session.get_providers():  # its libraries do not load
        raise BadInput(
            f"ONNX Runtime {ort.__version__} is without {provider}, expected it for a {device} "
            "artifact; install onnxruntime-gpu with its CUDA libraries, or export with --device cpu"
        )
    return session


@dataclass(frozen=True)
class Scores:
    """Result of one call of `Scorer.score`, rows in the order of the texts."""

    logit: NDArray[np.float32]
    """float32 [B]."""
    tokens: int
    """Tokens that ran through the encoder, [CLS] included."""
    cut: int
    """Comments that were cut at the tokenizer's `max_len`."""


class Scorer:
    """One ONNX Runtime session with one thread, and its tokenizer.

    Comments run together in the order in which they came: the serving graph computes no padding,
    and no comment's score depends on the others.
    """

    def __init__(
        self, onnx_path: Path, tokenizer: Tokenizer, device: str = "cpu", device_id: int = 0
    ) -> None:
        """Load the graph on `device`, see `open_session`. Raises BadInput without that device."""
        self._session = open_session(onnx_path, device, device_id)
        self._tokenizer = tokenizer

    def score(self, texts: Sequence[str]) -> Scores:
        """Logits of any number of comments, none included; an empty comment is valid."""
        encoded = [self._tokenizer.encode_and_cut(text) for text in texts]
        logit_B = np.empty(len(texts), np.float32)
        for at in range(0, len(texts), MAX_BATCH_SIZE):
            part = [ids for ids, _ in encoded[at : at + MAX_BATCH_SIZE]]
            logit_B[at : at + len(part)] = self._run(part)
        return Scores(
            logit=logit_B,
            tokens=sum(len(ids) for ids, _ in encoded),
            cut=sum(was_cut for _, was_cut in encoded),
        )

    def warm_up(self) -> None:
        """Score real text of several lengths and batch sizes, so that no first user waits."""
        for words in (0, 1, 4, 16, self._tokenizer.max_len):
            for copies in (1, 8):
                self.score([_WARM_UP_WORD * words] * copies)

    def _run(self, rows: list[list[int]]) -> NDArray[np.float32]:
        shape = len(rows), max(map(len, rows))
        ids_BL, mask_BL = np.full(shape, PAD_ID, np.int64), np.zeros(shape, np.int64)
        for row, ids in enumerate(rows):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        feeds = {INPUT_IDS: ids_BL, ATTENTION_MASK: mask_BL}
        logit_B: NDArray[np.float32] = self._session.run([LOGIT], feeds)[0]
        return logit_B


def probability(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function, float32 of any shape; never overflows, and 0.5 at exactly 0."""
    decay = np.exp(-np.abs(logit))
    return np.where(logit >= 0, np.float32(1), decay) / (1 + decay)
