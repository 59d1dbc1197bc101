"""Texts -> ids -> logits with a published ONNX graph, and a cache of the logits scored last.

The code that the server runs, usable without it. What becomes of a comment that is longer than
the encoder reads is `LongText`'s to say, here and in the PyTorch reference (`export.parity`).

`export.repository.publish` copies this file beside every published model; parity tests and
offline scoring import it from here. NumPy, ONNX Runtime and the standard library only.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGIT,
    MAX_BATCH_PAIRS,
    MAX_BATCH_SIZE,
    MAX_WINDOWS,
    PAD_ID,
    BadInput,
)

if TYPE_CHECKING:  # served beside this file as `tokenizer`, hence handed in and not imported
    from train.tokenizer import Tokenizer

_WARM_UP_WORD = "don't "
"""Three tokens."""
_ENTRY_BYTES = 160
"""Of a cached logit beside its key: a float (24) and its share of the table, 105 by tracemalloc
with CPython 3.11 and more just after the table grew."""


LongTextRule = Literal["cut", "max", "mean"]


@dataclass(frozen=True)
class LongText:
    """How a comment of more than `max_len` ids is scored.

    It is read in windows of `max_len` ids: [CLS], then ids that lie `stride` further on from one
    window to the next. The last window ends where the comment ends, so that it is a full one too.
    The comment's logit is the largest of theirs ("max") or their mean. At most `windows` are
    read, and what lies behind them is cut; with one window that is "cut".
    """

    rule: LongTextRule = "cut"
    stride: int = 1
    windows: int = 1

    @classmethod
    def by(cls, rule: LongTextRule, stride: int) -> LongText:
        """The rule with the contract's bound on the windows."""
        return cls() if rule == "cut" else cls(rule, stride, MAX_WINDOWS)

    @classmethod
    def of_artifact(cls, artifact: Mapping[str, Any]) -> LongText:
        """As artifact.json says; "cut" for one that says nothing."""
        return cls(**artifact.get("long_text", {}))

    def reader(self, tokenizer: Tokenizer) -> Tokenizer:
        """`tokenizer` that gives all ids which the windows hold."""
        most = tokenizer.max_len + (self.windows - 1) * self.stride
        return dataclasses.replace(tokenizer, max_len=most)

    def starts(self, length: int, max_len: int) -> list[int]:
        """How far into a comment of `length` ids each window begins, at least one."""
        last = max(0, length - max_len)
        return [*range(0, last, self.stride), last]

    def split(self, ids: NDArray[Any], max_len: int) -> list[NDArray[Any]]:
        """Windows of a comment's ids, int [L] from `reader`, each int [max_len] or [L]."""
        starts = self.starts(len(ids), max_len)
        if len(starts) == 1:
            return [ids]
        return [np.concatenate((ids[:1], ids[1 + at : max_len + at])) for at in starts]

    def combine(self, logit_W: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 [B] of comments that have so many of the windows' logits, in order.

        The mean is taken in float64, where the sum of so few float32 has no order.
        """
        if len(logit_W) == len(counts):
            return logit_W
        first = np.cumsum([0, *counts[:-1]])
        if self.rule == "max":
            return np.maximum.reduceat(logit_W, first)
        total = np.add.reduceat(logit_W.astype(np.float64), first)
        return (total / np.asarray(counts)).astype(np.float32)


CUT = LongText()


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
    """Comments that were cut: at the tokenizer's `max_len`, or behind their last window."""
    windowed: int
    """Comments that were read in more than one window."""
    hits: int
    """Comments whose logit was known already, or is another's of this call; 0 without a cache."""
    tokenizer_cpu_s: float
    encoder_cpu_s: float
    """CPU seconds of this thread: ids of the texts, then their logits, known ones included."""


class LogitCache:
    """Logits of the comments scored last, least recently used out first, bounded in bytes.

    A key is the bytes of the ids themselves, so only comments that are the same to the encoder
    share an entry. A cache belongs to one `Scorer`, hence to one version of the model, and to
    one thread. (`cachetools` sizes an entry by its value alone; here the key is what takes room.)
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._logit_of: OrderedDict[bytes, float] = OrderedDict()
        self.used_bytes = 0
        """Estimate of what the entries take in memory."""

    def get(self, ids: bytes) -> float | None:
        """The logit if it is there, which makes it the most recently used."""
        logit = self._logit_of.get(ids)
        if logit is not None:
            self._logit_of.move_to_end(ids)
        return logit

    def put(self, ids: bytes, logit: float) -> None:
        """Keep a logit that is not there yet; one larger than the whole cache is dropped."""
        self._logit_of[ids] = logit
        self.used_bytes += _entry_bytes(ids)
        while self.used_bytes > self._capacity_bytes:
            oldest, _ = self._logit_of.popitem(last=False)
            self.used_bytes -= _entry_bytes(oldest)

    def complete(
        self, rows: Sequence[bytes], compute: Callable[[list[bytes]], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], list[bytes]]:
        """Logits of B rows of ids, float32 [B], and the distinct rows that `compute` had to run."""
        logit_of = {ids: self.get(ids) for ids in rows}
        missing = [ids for ids, logit in logit_of.items() if logit is None]
        for ids, logit in zip(missing, compute(missing).tolist(), strict=True):
            logit_of[ids] = logit
            self.put(ids, logit)
        return np.array([logit_of[ids] for ids in rows], np.float32), missing


def _entry_bytes(ids: bytes) -> int:
    return sys.getsizeof(ids) + _ENTRY_BYTES


class Scorer:
    """One ONNX Runtime session with one thread, and its tokenizer.

    Comments run together in the order in which they came: the serving graph computes no padding,
    and no comment's score depends on the others.
    """

    def __init__(
        self,
        onnx_path: Path,
        tokenizer: Tokenizer,
        device: str = "cpu",
        device_id: int = 0,
        cache: LogitCache | None = None,
        max_batch: int = MAX_BATCH_SIZE,
        long_text: LongText = CUT,
    ) -> None:
        """Load the graph on `device`, see `open_session`. Raises BadInput without that device."""
        self._session = open_session(onnx_path, device, device_id)
        self._max_len = tokenizer.max_len
        self._long_text = long_text
        self._tokenizer = long_text.reader(tokenizer)
        self._cache = cache
        self._max_batch = max_batch

    def score(self, texts: Sequence[str]) -> Scores:
        """Logits of any number of comments, none included; an empty comment is valid."""
        began = time.thread_time()
        encoded = [self._tokenizer.encode_and_cut(text) for text in texts]
        tokenized = time.thread_time()
        lengths = [len(ids) for ids, _ in encoded]
        rows = computed = [array("i", ids).tobytes() for ids, _ in encoded]
        if self._cache is None:
            logit_B = self._logits(rows)
        else:
            logit_B, computed = self._cache.complete(rows, self._logits)
        return Scores(
            logit=logit_B,
            tokens=sum(self._tokens(len(ids) // array("i").itemsize) for ids in computed),
            cut=sum(was_cut for _, was_cut in encoded),
            windowed=sum(length > self._max_len for length in lengths),
            hits=len(rows) - len(computed),
            tokenizer_cpu_s=tokenized - began,
            encoder_cpu_s=time.thread_time() - tokenized,
        )

    def windows(self, texts: Sequence[str]) -> int:
        """Rows of the encoder's batches that comments will be; only long ones are tokenized."""
        if self._long_text.windows == 1:
            return len(texts)
        return sum(map(self._windows, texts))

    def _windows(self, text: str) -> int:
        if len(text) < self._max_len:  # a token has a character or more
            return 1
        return len(self._long_text.starts(len(self._tokenizer.encode(text)), self._max_len))

    def _tokens(self, length: int) -> int:
        """Tokens of the windows of a comment of `length` ids."""
        return min(length, self._max_len) * len(self._long_text.starts(length, self._max_len))

    def warm_up(self) -> None:
        """Score real text of several lengths and batch sizes, so that no first user waits."""
        for words in (0, 1, 4, 16, self._max_len):
            ids = array("i", self._tokenizer.encode(_WARM_UP_WORD * words)).tobytes()
            for copies in (1, 8):
                self._logits([ids] * copies)  # past the cache, which would run one of them

    def _logits(self, rows: list[bytes]) -> NDArray[np.float32]:
        """Logits of any number of rows of int32 ids, none included."""
        ids_of = (np.frombuffer(row, np.intc) for row in rows)
        windows = [self._long_text.split(ids, self._max_len) for ids in ids_of]
        batches = _batches((ids for parts in windows for ids in parts), self._max_batch)
        logits = [self._run(batch) for batch in batches]
        logit_W = np.concatenate(logits) if logits else np.empty(0, np.float32)
        return self._long_text.combine(logit_W, [len(parts) for parts in windows])

    def _run(self, rows: list[NDArray[np.intc]]) -> NDArray[np.float32]:
        shape = len(rows), max(map(len, rows))
        ids_BL, mask_BL = np.full(shape, PAD_ID, np.int64), np.zeros(shape, np.int64)
        for row, ids in enumerate(rows):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        feeds = {INPUT_IDS: ids_BL, ATTENTION_MASK: mask_BL}
        logit_B: NDArray[np.float32] = self._session.run([LOGIT], feeds)[0]
        return logit_B


def _batches(
    windows: Iterator[NDArray[np.intc]], most: int = MAX_BATCH_SIZE
) -> Iterator[list[NDArray[np.intc]]]:
    """In the order in which they came, at most `most` and MAX_BATCH_PAIRS at a time."""
    batch: list[NDArray[np.intc]] = []
    pairs = 0
    for ids in windows:
        if len(batch) == most or (batch and pairs + len(ids) ** 2 > MAX_BATCH_PAIRS):
            yield batch
            batch, pairs = [], 0
        batch.append(ids)
        pairs += len(ids) ** 2
    if batch:
        yield batch


def probability(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function, float32 of any shape; never overflows, and 0.5 at exactly 0."""
    decay = np.exp(-np.abs(logit))
    return np.where(logit >= 0, np.float32(1), decay) / (1 + decay)
