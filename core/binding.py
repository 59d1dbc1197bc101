"""The native core from Python: training's tokenizer, the gates, and scoring without a server.

By ctypes, for the same file then is the Triton backend, and no Python header is needed to build it.
Other threads run while a call is in the core.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import BadInput, ToxicityError
from core import build

LIBRARY_VARIABLE = "TOXICITY_CORE"
"""Names another build of the library, as with sanitizers."""
_BAD_INPUT = 2
_RULES = ("cut", "max", "mean")
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_TEXT = ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "error": (ctypes.c_char_p, []),
    "tokenizer_open": (_I, [_TEXT, _L, _P]),
    "tokenizer_close": (None, [_P]),
    "encode": (_I, [_P, _TEXT, _L, _I, _P, _P, _P]),
    "encode_all": (_I, [_P, _TEXT, _P, _L, _I, _P, _P]),
    "split": (_I, [_P, _TEXT, _L, _P, _P]),
    "scorer_open": (_I, [_P, _TEXT, _TEXT, _L, _I, _I, _I, _I, _I, _L, _P]),
    "scorer_close": (None, [_P]),
    "warm_up": (_I, [_P]),
    "cached_bytes": (_L, [_P]),
    "width": (_L, [_P]),
    "windows": (_I, [_P, _TEXT, _L, _P]),
    "score": (_I, [_P, _P, _P, _L, _P, _P, _P, _P]),
    "probability": (None, [_P, _L, _P]),
    "admission_open": (_P, []),
    "admission_close": (None, [_P]),
    "ended": (None, [_P, ctypes.c_double]),
    "admit": (_I, [_P, _P, _L, ctypes.c_double, _L, _L, _P, _P]),
    "observe": (None, [_P, _I, ctypes.c_double]),
    "capacity_open": (_P, []),
    "capacity_close": (None, [_P]),
    "capacity_after": (ctypes.c_double, [_P, _L, ctypes.c_double, ctypes.c_double]),
    "sha256": (_I, [_TEXT, _L, _P]),
}


@functools.cache
def _core() -> Any:
    library = ctypes.CDLL(os.environ.get(LIBRARY_VARIABLE) or str(build.library()))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"toxicity_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _checked(status: int) -> None:
    if status:
        words = _core().toxicity_error().decode("utf-8", "replace")
        raise (BadInput if status == _BAD_INPUT else ToxicityError)(words)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@functools.cache
def _array_type(kind: Any, bits: int) -> Any:
    return kind * (1 << bits)


def _array(kind: Any, least: int) -> Any:
    """A ctypes array of zeros with room for `least`.

    Its size is a power of two: to make a type of array takes longer than to tokenize a comment.
    """
    return _array_type(kind, max(6, (least - 1).bit_length()))()


class NativeTokenizer:
    """The rule of core/src/tokenizer.h over one tokenizer file. Safe to share among threads."""

    def __init__(self, document: str) -> None:
        """`document` is the JSON of `train.data.tokenizer`. Raises BadInput for any other."""
        self._handle = _P()
        raw = document.encode("utf-8", "surrogatepass")
        _checked(_core().toxicity_tokenizer_open(raw, len(raw), ctypes.byref(self._handle)))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _core().toxicity_tokenizer_close(self._handle)

    def encode(self, text: str, most: int) -> tuple[list[int], bool]:
        """1 to `most` ids of a text, [CLS] first, and whether it had more."""
        raw = _bytes(text)
        # An id takes a byte of text or more, but for [CLS].
        ids = _array(ctypes.c_int32, min(most, len(raw) + 1 if len(raw) > 64 else 64 * 3 + 1))
        count, cut = ctypes.c_int(), ctypes.c_int()
        _checked(
            _core().toxicity_encode(
                *(self._handle, raw, len(raw), most, ids),
                *(ctypes.byref(count), ctypes.byref(cut)),
            )
        )
        return ids[: count.value], bool(cut.value)

    def time_encoding(self, texts: Sequence[str], most: int) -> tuple[int, float]:
        """How many ids all texts have, and the CPU seconds that the core took, for benches."""
        parts = [_bytes(text) for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        total, cpu_s = _L(), ctypes.c_double()
        _checked(
            _core().toxicity_encode_all(
                *(self._handle, b"".join(parts), ends.ctypes.data, len(parts), most),
                *(ctypes.byref(total), ctypes.byref(cpu_s)),
            )
        )
        return total.value, cpu_s.value

    def split(self, text: str) -> list[str]:
        """Tokens by steps 1 and 2 of the rule."""
        raw = _bytes(text)
        tokens = _array(ctypes.c_char, 2 * len(raw) + 1)
        written = _L()
        _checked(_core().toxicity_split(self._handle, raw, len(raw), tokens, ctypes.byref(written)))
        return ctypes.string_at(tokens, written.value).decode().split()


@dataclass(frozen=True)
class Scores:
    """Result of one call of `NativeScorer.score`, rows in the order of the texts."""

    logits: NDArray[np.float32]
    """float32 [B, 1 + A]: toxicity's, then those of the graph's attributes."""
    lengths: NDArray[np.int32]
    """int32 [B], tokens of each comment as far as it is read, [CLS] included."""
    tokens: int
    """Tokens that ran through the encoder, [CLS] included."""
    cut: int
    """Comments that were cut: at the tokenizer's `max_len`, or behind their last window."""
    windowed: int
    """Comments that were read in more than one window."""
    hits: int
    """Comments whose logit was known already, or is another's of this call; 0 without a cache."""
    words: int
    """Words of all comments, as far as they are read."""
    unknown_words: int
    """Of them, those that the vocabulary does not have."""
    respelled_words: int
    """Of them, disguised ones that were read as known words."""
    tokenizer_cpu_s: float
    encoder_cpu_s: float
    """CPU seconds of this thread: ids of the texts, then their logits, known ones included."""

    @property
    def logit(self) -> NDArray[np.float32]:
        """Of toxicity, float32 [B]."""
        return np.ascontiguousarray(self.logits[:, 0])

    @property
    def attributes(self) -> NDArray[np.float32]:
        """Logits float32 [B, A]; A is 0 for a graph without attributes."""
        return self.logits[:, 1:]


class NativeScorer:
    """One ONNX Runtime session with one thread, and its tokenizer. Not for several threads."""

    def __init__(
        self,
        onnx_path: Path,
        tokenizer: NativeTokenizer,
        *,
        gpu: int | None = None,
        rule: str = "cut",
        stride: int = 1,
        windows: int = 1,
        max_batch: int,
        cache_bytes: int = 0,
        ort_library: Path | None = None,
    ) -> None:
        """Load the graph; raises BadInput for one that does not take the tokenizer's ids."""
        self._handle, self._tokenizer = _P(), tokenizer
        graph = onnx_path.read_bytes()
        _checked(
            _core().toxicity_scorer_open(
                *(tokenizer._handle, str(ort_library or onnxruntime_library()).encode()),
                *(graph, len(graph), -1 if gpu is None else gpu),
                *(_RULES.index(rule), stride, windows, max_batch, cache_bytes),
                ctypes.byref(self._handle),
            )
        )
        self._width = int(_core().toxicity_width(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _core().toxicity_scorer_close(self._handle)

    def score(self, texts: Sequence[str]) -> Scores:
        """Logits of any number of comments, none included; an empty comment is valid."""
        parts = [_bytes(text) for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return self.score_joined(np.frombuffer(b"".join(parts), np.uint8), ends)

    def score_joined(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> Scores:
        """As `score`, of comments that lie one behind the other, as UTF-8.

        uint8 [bytes], and where each ends, int64 [B].
        """
        data, ends = np.ascontiguousarray(data), np.ascontiguousarray(ends)
        logits_BH = np.empty((len(ends), self._width), np.float32)
        lengths_B = np.empty(len(ends), np.int32)
        counts, cpu_s = np.zeros(7, np.int64), np.zeros(2)
        _checked(
            _core().toxicity_score(
                *(self._handle, data.ctypes.data, ends.ctypes.data, len(ends)),
                *(logits_BH.ctypes.data, lengths_B.ctypes.data),
                *(counts.ctypes.data, cpu_s.ctypes.data),
            )
        )
        return Scores(logits_BH, lengths_B, *counts.tolist(), *cpu_s.tolist())

    def windows(self, texts: Sequence[str]) -> int:
        """Rows of the encoder's batches that comments will be; only long ones are tokenized."""
        total, rows = 0, ctypes.c_int()
        for raw in map(_bytes, texts):
            _checked(_core().toxicity_windows(self._handle, raw, len(raw), ctypes.byref(rows)))
            total += rows.value
        return total

    @property
    def cached_bytes(self) -> int:
        """Estimate of what the cache's entries take; 0 without a cache."""
        return int(_core().toxicity_cached_bytes(self._handle))

    def warm_up(self) -> None:
        """Score real text of several lengths and batch sizes, so that no first user waits."""
        _checked(_core().toxicity_warm_up(self._handle))


class Admission:
    """How much of what waits an instance of the server takes on (core/src/admission.h)."""

    def __init__(self) -> None:
        self._handle = _P(_core().toxicity_admission_open())
        self.overloaded = False

    def __del__(self) -> None:
        _core().toxicity_admission_close(self._handle)

    def admit(self, rows: Sequence[int], now: float, comments: int | None = None) -> int:
        """How many of the requests, of so many rows, to score now; `now` in seconds.

        They hold `comments` in all, left out: one a row.
        """
        array, total = np.asarray(rows, np.intc), sum(rows) if comments is None else comments
        admitted, overloaded = _L(), ctypes.c_int()
        _checked(
            _core().toxicity_admit(
                *(self._handle, array.ctypes.data, len(array), now),
                *(total, min(max(rows, default=0), total)),
                *(ctypes.byref(admitted), ctypes.byref(overloaded)),
            )
        )
        self.overloaded = bool(overloaded.value)
        return admitted.value

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a call that scored so many rows in so much time."""
        _core().toxicity_observe(self._handle, rows, seconds)

    def ended(self, now: float) -> None:
        """The call that was admitted last is answered."""
        _core().toxicity_ended(self._handle, now)


class Capacity:
    """What a server's instance could do by what it does (core/src/capacity.h)."""

    def __init__(self) -> None:
        self._handle = _P(_core().toxicity_capacity_open())

    def __del__(self) -> None:
        _core().toxicity_capacity_close(self._handle)

    def after(self, comments: int, busy_s: float, now_s: float) -> float:
        """Comments a busy second of the last minute, once a call ended at `now_s`."""
        return float(_core().toxicity_capacity_after(self._handle, comments, busy_s, now_s))


def probability(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function as the server computes it, float32 of any shape; 0.5 at exactly 0."""
    given = np.ascontiguousarray(logit, np.float32)
    found = np.empty_like(given)
    _core().toxicity_probability(given.ctypes.data, given.size, found.ctypes.data)
    return found


def sha256(data: bytes) -> str:
    """The checksum as the backend computes it."""
    out = ctypes.create_string_buffer(65)
    _checked(_core().toxicity_sha256(data, len(data), out))
    return out.value.decode()


@functools.cache
def onnxruntime_library() -> Path:
    """ONNX Runtime's shared library in its wheel. Raises BadInput without one."""
    spec = find_spec("onnxruntime")
    for root in (spec.submodule_search_locations or []) if spec else []:
        if found := sorted((Path(root) / "capi").glob("libonnxruntime.so.1*")):
            return found[-1]
    raise BadInput(
        "the package onnxruntime has no libonnxruntime.so, expected its wheel for Linux; "
        "run `make install`"
    )
