"""Attention of an encoder of one layer, laid out for ONNX Runtime's CPU kernels.

`export.graph.encoder` builds it for softmax encoders of one layer, the student of a cascade
included. Such an encoder reads the output of [CLS] alone, and there the query is a constant:
[CLS] has one embedding and one position. The key weights fold into it as they do in
`train.methods.qat.keys_folded_away`; the key bias, and whatever else a head adds to all of its
scores, cancels in the softmax. What is left of a token is its LayerNorm, H dot products with
constant vectors, and its share in H weighted sums.

The tokens lie in chunks of WIDTH, each of one comment; a comment's last chunk reads the batch's
first token in the place of what it lacks, at weight 0. So the weighted sums of a chunk are one
small matmul whose shape never varies, and those of a comment's chunks are added in their order,
whoever shares the batch. Nothing is sorted, and a comment is padded by WIDTH - 1 tokens at most.

LayerNorm subtracts a row's mean and divides by its deviation. The mean is taken off both
embedding tables here, so that a row of the graph needs the mean of its squares only; the
division is by token, of scores and of weights, and never touches the rows. Its weight goes into
the query and is applied to the sums, its bias is added to the sums: softmax weights sum to one.

Softmax is exp(score) / sum exp(score), without the maximum taken off first: a normed row has
length sqrt(D) at most, which bounds every score by the weights alone. A model whose bound is
above SCORE_LIMIT keeps the general layout.

Needs a session of one thread, as every session here has: with more of them ONNX Runtime may add
the chunks of one comment in any order, or at once.

Dimension letters: N chunks of the batch, W = WIDTH, B comments, H heads, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto
from torch import Tensor

from contract import CLS_ID
from export.graph.layout import JoinedBatch
from export.graph.nodes import CONTRIB, Graph
from train.methods.qat import WEIGHT_LIMIT, keys_folded_away, scale_and_zero
from train.model import Block, ToxicityEncoder

WIDTH = 16
"""Tokens of a chunk. From 16 to 64 the time is the same within 5 %: fewer, larger matmuls against
more padding. A multiple of 16, so that no kernel has a rest to compute in another way."""
SCORE_LIMIT = 60.0
"""Largest |score| whose exp is taken as it is: exp(-60) is a normal float32, and the sum of
exp(60) over the longest comment is below the largest."""
_DEPTH = 128
"""Longest sum that ONNX Runtime's float32 matmul takes in one go, however many tokens there are
(MLAS_SGEMM_STRIDEK). A longer one it may split, depending on their number."""
QUERY = "attention.query"
"""What the name of the constant query ends with. It is attention, not a Linear layer: float32."""
_POINT = "blocks.0.query"


class Attended(NamedTuple):
    """What the rest of the layer reads."""

    context: str
    """Sums of the normed tokens, float32 [B, H * D]."""
    weight: np.ndarray
    """Of the output projection, float32 [D, H * D]."""
    bias: np.ndarray
    """Its bias and the residual, which is that of [CLS] for every comment; float32 [D]."""


def fits(model: ToxicityEncoder) -> bool:
    """Whether `attend` is for `model`; the general layout is for every model.

    Rows of whole vectors of 16 are summed alike wherever they lie.
    """
    config = model.config
    if config.n_layers != 1 or config.attention != "softmax" or config.d_model % 16:
        return False
    return score_bound(model) <= SCORE_LIMIT


def score_bound(model: ToxicityEncoder) -> float:
    """No token of any comment has a larger |score|, up to what cancels in the softmax."""
    query = _query(model, _cls_row(model))
    query -= query.mean(axis=1, keepdims=True)
    return float(np.sqrt((query**2).sum(axis=1) * query.shape[1]).max())


def attend(g: Graph, model: ToxicityEncoder, batch: JoinedBatch) -> Attended:
    """Context of [CLS], and the projection that reads it."""
    config, block = model.config, _block(model)
    d, heads = config.d_model, config.n_heads
    first_row = _cls_row(model)
    _, _, weight, bias = (_float64(parameter) for parameter in keys_folded_away(block.attention))
    gain, shift = _float64(block.attention_norm.weight), _float64(block.attention_norm.bias)

    # Chunks: `row` and `chunk`, int64 [N, 1], of which comment each is and where in it.
    step = g.constant(np.arange(0, config.max_len, WIDTH))
    real = g("Less", step, g("Unsqueeze", batch.length, g.constant(1)))
    at = g("Transpose", g("NonZero", real), perm=[1, 0])
    row, chunk = g.many("Split", 2, at, axis=1, num_outputs=2)
    offset = g("Mul", chunk, g.constant(WIDTH))
    begin = g("Add", g("Gather", batch.start, row), offset)
    left = g("Sub", g("Gather", batch.length, row), offset)
    member = g.constant(np.arange(WIDTH))
    valid = g("Less", member, left)  # [N, W]
    token = g("Where", valid, g("Add", begin, member), g.constant(0))

    # Rows, float32 [N * W, D]: their squares sum to the variance that LayerNorm takes.
    ids = g("GatherElements", batch.ids, g("Reshape", token, g.constant([-1])))
    tokens = _centred(_float64(model.token_embedding.weight))
    positions = np.zeros((-(-config.max_len // WIDTH) * WIDTH, d))
    positions[: config.max_len] = _centred(_float64(model.position_embedding.weight))
    by_chunk = g.weight(positions.reshape(-1, WIDTH * d), "position_embedding")
    rows = g("Reshape", g("Gather", by_chunk, chunk), g.constant([-1, d]))
    x = g("Add", g("Gather", g.weight(tokens, "token_embedding"), ids), rows)
    variance = g("ReduceSum", g("Mul", x, x), g.constant([1]), keepdims=0)
    epsilon = g.constant(block.attention_norm.eps, np.float32)
    deviation = g("Sqrt", g("Add", variance, epsilon))

    # Scores and weights of a head are one row, float32 [H, N * W].
    chunks = g("Reshape", x, g.constant([-1, WIDTH, d]))
    query = _query(model, first_row, g) * np.sqrt(d)
    score = _scores(g, query, x, chunks)
    mask = g("Cast", g("Reshape", valid, g.constant([-1])), to=TensorProto.FLOAT)
    part = g("Mul", g("Exp", g("Div", score, deviation)), mask)
    by_head = g.constant([heads, -1, WIDTH])
    share = g("Reshape", g("Div", part, deviation), by_head)
    sums = g("FusedMatMul", share, chunks, transBatchA=1, domain=CONTRIB)  # [N, H, D]
    total = g("ReduceSum", g("Reshape", part, by_head), g.constant([2]))  # [H, N, 1]
    both = g("Concat", sums, g("Transpose", total, perm=[1, 0, 2]), axis=2)

    shape = g("Concat", g("Shape", batch.length), g.constant([heads, d + 1]), axis=0)
    both = g("ScatterND", g("ConstantOfShape", shape), row, both, reduction="add")
    sums, total = g.many("Split", 2, both, g.constant([d, 1]), axis=2)
    normed = g("Mul", g("Div", sums, total), g.weight(gain * np.sqrt(d), "context.weight"))
    context = g("Add", normed, g.weight(shift, "context.bias"))
    context = g("Reshape", context, g.constant([-1, heads * d]))
    return Attended(context, weight.astype(np.float32), (bias + first_row).astype(np.float32))


def _scores(g: Graph, query: np.ndarray, x: str, chunks: str) -> str:
    """`query` [H, D] times the rows x [N * W, D], as [H, N * W]."""
    if query.shape[1] <= _DEPTH:
        return g("Gemm", g.weight(query, QUERY), x, transB=1)
    three = g.weight(query[None], QUERY)  # by chunk, a matmul of one shape for every batch
    scores = g("FusedMatMul", three, chunks, transB=1, domain=CONTRIB)  # [N, H, W]
    scores = g("Transpose", scores, perm=[1, 0, 2])
    return g("Reshape", scores, g.constant([len(query), -1]))


def _query(model: ToxicityEncoder, first_row: np.ndarray, g: Graph | None = None) -> np.ndarray:
    """Query over normed rows before LayerNorm's weight and bias, float64 [H, D].

    After QAT with the rounding that it was trained with.
    """
    block = _block(model)
    norm = block.attention_norm
    gain, shift = _float64(norm.weight), _float64(norm.bias)
    weight, bias, _, _ = (_float64(parameter) for parameter in keys_folded_away(block.attention))
    centred = first_row - first_row.mean()
    normed = centred / np.sqrt((centred**2).mean() + norm.eps) * gain + shift
    if g is not None and g.ranges is not None and g.prefix + _POINT in g.ranges:
        scale, zero = scale_and_zero(*g.ranges[g.prefix + _POINT])
        normed = (np.clip(np.rint(normed / scale) + zero, 0, 255) - zero) * scale
        scale_N = np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-12) / WEIGHT_LIMIT
        weight = np.rint(weight / scale_N) * scale_N
    query: np.ndarray = (weight @ normed + bias).reshape(-1, len(normed)) * gain
    return query


def _block(model: ToxicityEncoder) -> Block:
    (block,) = model.blocks
    assert isinstance(block, Block)
    return block


def _cls_row(model: ToxicityEncoder) -> np.ndarray:
    """Embedding of [CLS] at its place, float64 [D]."""
    tokens, positions = model.token_embedding.weight, model.position_embedding.weight
    return _float64(tokens[CLS_ID]) + _float64(positions[0])


def _centred(table: np.ndarray) -> np.ndarray:
    """Rows less their mean, and divided by the root of their width."""
    return (table - table.mean(axis=1, keepdims=True)) / np.sqrt(table.shape[1])


def _float64(parameter: Tensor) -> np.ndarray:
    return np.asarray(parameter.detach().numpy(), np.float64)
