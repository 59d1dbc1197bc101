"""Texts -> ids -> logits with a published ONNX graph, by the code that the server runs.

What becomes of a comment that is longer than the encoder reads is `LongText`'s to say: in the core
for what is served, here for the PyTorch reference (`export.gates.parity`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import MAX_BATCH_SIZE, MAX_WINDOWS
from core.binding import NativeScorer, Scores, probability
from export.tuning import LongTextRule
from train.data.tokenizer import Tokenizer

__all__ = ["CUT", "LongText", "LongTextRule", "Scorer", "Scores", "probability"]


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

        [B, 1 + A] where the windows have as many: each head's by itself.

        The mean is taken in float64, where the sum of so few float32 has no order.
        """
        if len(logit_W) == len(counts):
            return logit_W
        first = np.cumsum([0, *counts[:-1]])
        if self.rule == "max":
            return np.maximum.reduceat(logit_W, first)
        total = np.add.reduceat(logit_W.astype(np.float64), first)
        shares = np.asarray(counts).reshape(-1, *[1] * (logit_W.ndim - 1))
        return (total / shares).astype(np.float32)


CUT = LongText()


class Scorer:
    """A published graph and its tokenizer in the core, as the server runs them; one thread.

    Comments run together in the order in which they came: the serving graph computes no padding,
    and no comment's score depends on the others.
    """

    def __init__(
        self,
        onnx_path: Path,
        tokenizer: Tokenizer,
        device: str = "cpu",
        device_id: int = 0,
        cache_bytes: int = 0,
        max_batch: int = MAX_BATCH_SIZE,
        long_text: LongText = CUT,
        ort_library: Path | None = None,
    ) -> None:
        """Load the graph on `device`; `ort_library` is another than the installed ONNX Runtime's.

        Raises BadInput without that device, and for a graph that does not take the tokenizer's ids.
        """
        self._native = NativeScorer(
            onnx_path,
            tokenizer.native,
            gpu=device_id if device == "cuda" else None,
            rule=long_text.rule,
            stride=long_text.stride,
            windows=long_text.windows,
            max_batch=max_batch,
            cache_bytes=cache_bytes,
            ort_library=ort_library,
        )

    def score(self, texts: Sequence[str]) -> Scores:
        """Logits of any number of comments, none included; an empty comment is valid."""
        return self._native.score(texts)

    def windows(self, texts: Sequence[str]) -> int:
        """Rows of the encoder's batches that comments will be; only long ones are tokenized."""
        return self._native.windows(texts)

    @property
    def cached_bytes(self) -> int:
        """What the cache's entries take."""
        return self._native.cached_bytes

    def warm_up(self) -> None:
        """Score real text of several lengths and batch sizes, so that no first user waits."""
        self._native.warm_up()
