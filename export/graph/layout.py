"""Where the tokens of a batch lie: packed rows sorted by length, in groups of fixed width.

Padding is dropped on entry, whichever interface the batch came by: dense, INPUT_IDS and
ATTENTION_MASK [B, L], or ragged, the ids of all comments one after the other with
ACCUMULATED_COUNTS. An index computed once takes a layer's heads from the packed matrix to
[n, H, W, C] in one Gather, and another one takes them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from contract import ACCUMULATED_COUNTS, ATTENTION_MASK, INPUT_IDS
from export.graph.nodes import Graph
from train.model import ModelConfig


@dataclass(frozen=True)
class Group:
    """One attention group: index of its tokens int64 [W, n], and float32 mask.

    The mask is added to the scores, [n, 1, 1, W]; linear attention multiplies the keys with it,
    [W, n, 1, 1].
    """

    token: str
    mask: str


@dataclass(frozen=True)
class Layout:
    """What every layer shares. Rows are sorted by length, longest first."""

    order: str  # int64 [B], original row of each sorted one
    ids: str  # int64 [T]
    position: str  # int64 [T]
    first: str  # int64 [B], index of each comment's [CLS] token
    counts: str  # int64 [G], comments of each group, widest group first
    groups: list[Group]
    pack: str  # int64 [T, H], where the groups' contexts [*, C] hold a token's heads


@dataclass(frozen=True)
class JoinedBatch:
    """A batch as it comes: comment b is `length[b]` ids from `start[b]` on, int64 [B]."""

    ids: str  # int64, one dimension
    start: str
    length: str


def dense_batch(g: Graph) -> JoinedBatch:
    """The batch of the dense interface, whose inputs it declares."""
    for name in (INPUT_IDS, ATTENTION_MASK):
        g.input(name, TensorProto.INT64, "batch", "length")
    width = g("Gather", g("Shape", INPUT_IDS), g.constant(1))
    start = g("Range", g.constant(0), g("Size", INPUT_IDS), width)
    length = g("ReduceSum", ATTENTION_MASK, g.constant([1]), keepdims=0)
    return JoinedBatch(g("Reshape", INPUT_IDS, g.constant([-1])), start, length)


def ragged_batch(g: Graph) -> JoinedBatch:
    """The batch of the ragged interface, whose inputs it declares."""
    ids = g.input(INPUT_IDS, TensorProto.INT64, "tokens")
    counts = g.input(ACCUMULATED_COUNTS, TensorProto.INT32, "batch")
    end = g("Cast", counts, to=TensorProto.INT64)
    zero = g.constant([0])
    start = g("Concat", zero, g("Slice", end, zero, g.constant([-1])), axis=0)
    return JoinedBatch(ids, start, g("Sub", end, start))


def layout_of(g: Graph, config: ModelConfig, groups: Sequence[int], batch: JoinedBatch) -> Layout:
    """The layout for attention groups of these widths, the last of them `max_len`."""
    zero, one, heads = g.constant(0), g.constant(1), g.constant(config.n_heads)
    length, order = g.many("TopK", 2, batch.length, g("Shape", batch.length), axis=0)
    column = g("Range", zero, g("ReduceMax", length, keepdims=0), one)
    at = g("NonZero", g("Less", column, g("Unsqueeze", length, one)))  # [2, T]
    row, position = g("Gather", at, zero), g("Gather", at, one)
    start = g("Gather", g("Gather", batch.start, order), row)
    ids = g("Gather", batch.ids, g("Add", start, position))
    first = g("CumSum", length, zero, exclusive=1)

    widest_first = sorted(groups, reverse=True)
    width_of = [min(w for w in groups if w >= length) for length in range(config.max_len + 1)]
    width = g("Gather", g.constant(width_of, name="width_of_length"), length)  # [B]
    member = g("Equal", width, g.constant([[w] for w in widest_first]))  # [G, B]
    counts = g("ReduceSum", g("Cast", member, to=TensorProto.INT64), g.constant([1]), keepdims=0)

    context = g("CumSum", g("Mul", width, heads), zero, exclusive=1)  # [B], first of each comment
    begin = g("Add", g("Gather", context, row), position)
    head_stride = g("Unsqueeze", g("Gather", width, row), one)
    head_offset = g("Mul", head_stride, g.constant(np.arange(config.n_heads)))
    pack = g("Add", g("Unsqueeze", begin, one), head_offset)

    last = g("Sub", g("Add", first, length), one)
    linear = config.attention == "linear"
    rows = (first, last, g("Unsqueeze", length, g.constant([1, 2] if linear else [1, 2, 3])))
    rows_of = (g.many("Split", len(groups), values, counts, axis=0) for values in rows)
    group = _linear_group if linear else _group
    members = [group(g, *parts) for parts in zip(widest_first, *rows_of, strict=True)]
    return Layout(order, ids, position, first, counts, members, pack)


def _group(g: Graph, width: int, first: str, last: str, length: str) -> Group:
    """Index and mask of the comments with these first and last tokens [n], lengths [n, 1, 1, 1]."""
    real = g("Less", g.constant(np.arange(width)), length)  # [n, 1, 1, W]
    zero, masked = (g.constant(value, np.float32) for value in (0, np.finfo(np.float32).min))
    return Group(_token_index(g, width, first, last), g("Where", real, zero, masked))


def _linear_group(g: Graph, width: int, first: str, last: str, length: str) -> Group:
    """The same for linear attention, of lengths [n, 1, 1]."""
    real = g("Less", g.constant(np.arange(width)[:, None, None, None]), length)  # [W, n, 1, 1]
    return Group(_token_index(g, width, first, last), g("Cast", real, to=TensorProto.FLOAT))


def _token_index(g: Graph, width: int, first: str, last: str) -> str:
    """int64 [W, n]; past a comment's end it is its last token again."""
    return g("Min", g("Add", first, g.constant(np.arange(width)[:, None])), last)
