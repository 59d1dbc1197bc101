"""Texts -> ids -> logits with a published ONNX graph, and a cache of the logits scored last.

The code that the server runs, usable without it.

`export.repository.publish` copies this file beside every published model; parity tests and
offline scoring import it from here. NumPy, ONNX Runtime and the standard library only.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from contract import ATTENTION_MASK, INPUT_IDS, LOGIT, MAX_BATCH_SIZE, PAD_ID

if TYPE_CHECKING:  # served beside this file as `tokenizer`, hence handed in and not imported
    from train.tokenizer import Tokenizer

Encoded = tuple[bytes, bool]
"""Ids of a comment as the bytes of L int32, [CLS] first; whether it was cut at `max_len`."""
_WARM_UP_WORD = "don't "
"""Three tokens."""
_ENTRY_BYTES = 160
"""Of a cached comment beside its ids: a float (24) and its share of the table, 105 by tracemalloc
with CPython 3.11 and more just after the table grew."""


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

    def __init__(self, onnx_path: Path, tokenizer: Tokenizer, device: str = "cpu") -> None:
        """Load the graph. `device` is "cpu" or "cuda"; raises RuntimeError without the latter."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # The file's own order, group by group: 1.05 of the default's speed for a single comment.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        self._session: Any = ort.InferenceSession(onnx_path, options, providers=[provider])
        if provider not in self._session.get_providers():
            raise RuntimeError(f"this ONNX Runtime has no {provider}; install onnxruntime-gpu")
        self._tokenizer = tokenizer

    def score(self, texts: Sequence[str]) -> Scores:
        """Logits of any number of comments, none included; an empty comment is valid."""
        encoded = [self.encode(text) for text in texts]
        rows = [ids for ids, _ in encoded]
        return Scores(
            logit=self.logits(rows),
            tokens=tokens_in(rows),
            cut=sum(was_cut for _, was_cut in encoded),
        )

    def encode(self, text: str) -> Encoded:
        """Ids of one comment, as `logits` takes them."""
        ids, was_cut = self._tokenizer.encode_and_cut(text)
        return array("i", ids).tobytes(), was_cut

    def logits(self, rows: Sequence[bytes]) -> NDArray[np.float32]:
        """float32 [B] of any number of comments as `encode` gives their ids, none included."""
        logit_B = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), MAX_BATCH_SIZE):
            part = rows[at : at + MAX_BATCH_SIZE]
            logit_B[at : at + len(part)] = self._run(part)
        return logit_B

    def warm_up(self) -> None:
        """Score real text of several lengths and batch sizes, so that no first user waits."""
        for words in (0, 1, 4, 16, self._tokenizer.max_len):
            for copies in (1, 8):
                self.score([_WARM_UP_WORD * words] * copies)

    def _run(self, rows: Sequence[bytes]) -> NDArray[np.float32]:
        rows_ids = [np.frombuffer(ids, np.intc) for ids in rows]
        shape = len(rows), max(map(len, rows_ids))
        ids_BL, mask_BL = np.full(shape, PAD_ID, np.int64), np.zeros(shape, np.int64)
        for row, ids in enumerate(rows_ids):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        feeds = {INPUT_IDS: ids_BL, ATTENTION_MASK: mask_BL}
        logit_B: NDArray[np.float32] = self._session.run([LOGIT], feeds)[0]
        return logit_B


def tokens_in(rows: Sequence[bytes]) -> int:
    """Tokens of comments as `Scorer.encode` gives their ids, [CLS] included."""
    return sum(map(len, rows)) // array("i").itemsize


class LogitCache:
    """Logits of the comments scored last, least recently used out first, bounded in bytes.

    A key is the bytes of the ids themselves, so only comments that are the same to the encoder
    share an entry. A cache belongs to one `Scorer`, hence to one version of the model. Threads
    may share it. (`cachetools` sizes an entry by its value alone, and here the key is the size.)
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._logit_of: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = 0
        """Estimate of what the entries take in memory."""

    def get(self, ids: bytes) -> float | None:
        """The logit if it is there, which makes it the most recently used."""
        with self._lock:
            logit = self._logit_of.get(ids)
            if logit is not None:
                self._logit_of.move_to_end(ids)
        return logit

    def put(self, ids: bytes, logit: float) -> None:
        """Keep a logit; one larger than the whole cache is dropped."""
        with self._lock:
            if ids not in self._logit_of:
                self.used_bytes += _entry_bytes(ids)
            self._logit_of[ids] = logit
            while self.used_bytes > self._capacity_bytes:
                oldest, _ = self._logit_of.popitem(last=False)
                self.used_bytes -= _entry_bytes(oldest)

    def complete(
        self, rows: Sequence[bytes], compute: Callable[[list[bytes]], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], list[bytes]]:
        """Logits of B rows, float32 [B], and the distinct rows that had to be computed."""
        logit_of = {ids: self.get(ids) for ids in rows}
        missing = [ids for ids, logit in logit_of.items() if logit is None]
        for ids, logit in zip(missing, compute(missing).tolist(), strict=True):
            logit_of[ids] = logit
            self.put(ids, logit)
        return np.array([logit_of[ids] for ids in rows], np.float32), missing


def _entry_bytes(ids: bytes) -> int:
    return sys.getsizeof(ids) + _ENTRY_BYTES


def probability(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function, float32 of any shape; never overflows, and 0.5 at exactly 0."""
    decay = np.exp(-np.abs(logit))
    return np.where(logit >= 0, np.float32(1), decay) / (1 + decay)
