"""The graph that is served: the traced one's weights and tensors, laid out for speed.

`python -m export` builds it beside the traced graph, which stays the reference.

Padding is dropped on entry: the tokens of all comments lie in one matrix [T, D], so that every
Linear, LayerNorm and GELU runs on real tokens only. The rows of the batch are sorted by length,
and attention runs in groups of fixed width: a comment is always padded to the width of its own
length's group, whoever shares the batch, and its padding repeats its own last token. So no
number of one comment ever meets a number of another, except as rows of one matmul. An index
computed once takes a layer's heads from the packed matrix to [n, H, W, C] in one Gather, and
another one takes them back.

The last layer runs for the [CLS] rows only: nothing else of it is read. With one query a comment,
its key and value weights are folded into those of the query and of the output projection, and no
key or value is computed at all.

Linear attention (`train.model.LinearAttention`) has the same layout and groups. The keys of a
comment's padding are set to 0, and its sums over keys and values are batched matmuls of each
group, [n, H, C, C]. Its feature map does not commute with a weight, so the last layer computes the
keys and values of all tokens; queries, as ever, of the [CLS] rows alone.

An encoder of one layer with softmax has no use for the groups: see `export.graph.one_layer`.

Two interfaces share all of it: dense, INPUT_IDS and ATTENTION_MASK [B, L]; and ragged, the ids of
all comments one after the other with ACCUMULATED_COUNTS, which Triton's ragged batching feeds
(docs/user_guide/ragged_batching.md).

Packed form, for the CUDA provider: the same without sorting and groups. ONNX Runtime's own
operators drop the padding and attend to each comment's tokens alone. No shape is computed from the
data, so nothing should run on the CPU and nothing be copied there but one count inside
RemovePadding: the gates of `export.gates.placement` decide that. No GPU has run this form yet; its
file is checked against ONNX Runtime's schemas, and its numbers against PyTorch's by a NumPy
evaluation of its operators (tests/test_packed.py).

Cascade (`export.cascade`): the student's encoder runs for the whole batch, and the teacher's, in
a branch of an `If`, for the comments that the student is unsure of. No token is copied for it:
the branch reads the same ids at those comments' starts.

INT8 form: activations U8 per tensor, weights S8 per output channel within [-64, 64] (why: see
`train.methods.qat.WEIGHT_LIMIT`), biases in float, ranges from training comments; the head stays in
float.

Dimension letters: B comments, T tokens of the batch, D width, H heads, C = D / H, n comments of
one group, W its width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from contract import ACCUMULATED_COUNTS, ATTENTION_MASK, INPUT_IDS, LOGIT, OPSET
from export.cascade import CascadeEncoder
from export.graph import one_layer
from train.artifacts import write_atomically
from train.methods.qat import WEIGHT_LIMIT, Ranges, keys_folded_away, scale_and_zero
from train.model import ATTENTION_EPSILON, Block, ModelConfig, ToxicityEncoder

_STUDENT, _TEACHER = "student.", "teacher."
"""What the names of a cascade's nodes, weights and points begin with."""
WIDTH_STEP = 8
"""Widths are multiples of it: eight floats fill a vector register."""
GROUP_COST = 96.0
"""What one more group costs a comment, in scores (W * W counts one for each pair of tokens): the
fixed time of its operators, spread over the comments of a batch. Measured: at batch 32 anything
from 64 to 192 is within 2 %; small batches gain by fewer groups, for an empty one costs too."""
_CONTRIB = "com.microsoft"
Model = ToxicityEncoder | CascadeEncoder
"""What can be built; the CUDA form is for the encoder only."""


def groups_for(config: ModelConfig, lengths: Iterable[int]) -> tuple[int, ...]:
    """`choose_groups` for the attention of `config`: each token of linear attention costs C."""
    per_token = config.d_model // config.n_heads if config.attention == "linear" else None
    return choose_groups(lengths, config.max_len, per_token)


def choose_groups(
    lengths: Iterable[int], max_len: int, per_token: int | None = None
) -> tuple[int, ...]:
    """Widths of the attention groups, ascending, the last one `max_len`.

    They minimise the mean cost of comments of these lengths plus GROUP_COST for each group, over
    all sets of multiples of WIDTH_STEP, by dynamic programming. A comment of width W costs W * W
    scores, or W * `per_token` where that is given. `lengths` are those of training comments in
    tokens, [CLS] included.
    """
    counts = Counter(min(int(length), max_len) for length in lengths)
    total = max(1, counts.total())
    widths = [*range(WIDTH_STEP, max_len, WIDTH_STEP), max_len]
    cost = [width * (per_token or width) for width in widths]
    at_most = [sum(n for length, n in counts.items() if length <= width) for width in [0, *widths]]
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # [i]: all up to widths[i - 1] done
    for last, width in enumerate(widths, start=1):
        best.append(
            min(
                (
                    best[first][0]
                    + cost[last - 1] * (at_most[last] - at_most[first]) / total
                    + GROUP_COST,
                    (*best[first][1], width),
                )
                for first in range(last)
            )
        )
    return best[-1][1]


def build(model: Model, path: Path, groups: Sequence[int], ragged: Path | None = None) -> None:
    """Write the FP32 form: INPUT_IDS, ATTENTION_MASK int64 [B, L] to LOGIT float32 [B].

    `model` is on the CPU in eval mode; `groups` is what `choose_groups` gave. `ragged` is where
    the ragged interface goes too: INPUT_IDS int64 [T], ACCUMULATED_COUNTS int32 [B] to the same.
    """
    _write_interfaces(partial(_graph, model, groups), path, ragged)


def build_packed(
    model: ToxicityEncoder, path: Path, precision: str, ragged: Path | None = None
) -> None:
    """Write the form for the CUDA provider in "fp16" or "fp32"; interfaces as in `build`.

    It uses contrib operators that exist for CUDA only. FP16: weights and activations float16, the
    head and the logit float32; softmax and LayerNorm sum in float32 inside their kernels.
    """
    dtype = {"fp16": np.float16, "fp32": np.float32}[precision]
    _write_interfaces(partial(_packed_graph, model, dtype), path, ragged)


def build_int8(
    model: Model,
    path: Path,
    groups: Sequence[int],
    calibration: Iterable[np.ndarray],
    ragged: Path | None = None,
    *,
    ranges: Ranges | None = None,
) -> None:
    """Write the INT8 form. `calibration` gives the ids (int [L], [CLS] first) of comments.

    It is not read when the activation `ranges` are known already, as after `train.methods.qat`.
    """
    ranges = ranges or _calibrate_model(model, groups, calibration)
    _write_interfaces(partial(_graph, model, groups, ranges), path, ragged)


def linear_layers(model: Model) -> int:
    """Matmuls by weights in a serving graph: QKV, projection, MLP.

    The last block has Q alone, and with linear attention KV beside it; where
    `export.graph.one_layer` fits, Q is a constant.
    """
    if isinstance(model, CascadeEncoder):
        return linear_layers(model.student) + linear_layers(model.teacher)
    layers = 4 * model.config.n_layers + (model.config.attention == "linear")
    return layers - one_layer.fits(model)


# --- Nodes -------------------------------------------------------------------------------
@dataclass
class _Graph:
    """Nodes and constants so far, and the points whose activations an INT8 form quantizes."""

    ranges: Ranges | None
    dtype: Any = np.float32  # of weights and activations that are not quantized
    prefix: str = ""  # of every name made from here on
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)

    def input(self, name: str, dtype: int, *shape: str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, value: Any, name: str) -> str:
        return self.constant(value, self.dtype, name)

    def constant(self, value: Any, dtype: Any = np.int64, name: str = "") -> str:
        name = self.prefix + (name or f"constant_{len(self.constants)}")
        array = np.array(value, dtype, order="C")
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def many(self, op: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list:
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        outputs = [f"{name}_{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return outputs

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.many(op, 1, *inputs, **attributes)[0]

    def quantized(self, x: str, point: str) -> str:
        """`x` as the Linear layers read it: U8 in the INT8 form, itself otherwise."""
        self.points[self.prefix + point] = x
        if self.ranges is None:
            return x
        scale, zero = scale_and_zero(*self.ranges[self.prefix + point])
        return self(
            "QuantizeLinear",
            x,
            self.constant(scale, np.float32, f"{point}.scale"),
            self.constant(zero, np.uint8, f"{point}.zero"),
        )

    def linear(self, x: str, point: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """Linear layer, weight [N, K]; `x` comes from `quantized` at `point`."""
        if self.ranges is None:
            weight_name = self.weight(weight.T, f"{name}.weight")
            return self("Gemm", x, weight_name, self.weight(bias, f"{name}.bias"))
        scale_N = np.maximum(np.abs(weight).max(axis=1), 1e-12) / WEIGHT_LIMIT
        return self(
            "MatMulIntegerToFloat",
            x,
            self.constant(np.rint(weight / scale_N[:, None]).T, np.int8, f"{name}.weight"),
            f"{self.prefix}{point}.scale",
            self.constant(scale_N, np.float32, f"{name}.weight_scale"),
            f"{self.prefix}{point}.zero",
            "",  # the weights' zero point is 0
            self.constant(bias, np.float32, f"{name}.bias"),
            domain=_CONTRIB,
        )


# --- Layout ------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Group:
    """One attention group: index of its tokens int64 [W, n], and float32 mask.

    The mask is added to the scores, [n, 1, 1, W]; linear attention multiplies the keys with it,
    [W, n, 1, 1].
    """

    token: str
    mask: str


@dataclass(frozen=True)
class _Layout:
    """What every layer shares. Rows are sorted by length, longest first."""

    order: str  # int64 [B], original row of each sorted one
    ids: str  # int64 [T]
    position: str  # int64 [T]
    first: str  # int64 [B], index of each comment's [CLS] token
    counts: str  # int64 [G], comments of each group, widest group first
    groups: list[_Group]
    pack: str  # int64 [T, H], where the groups' contexts [*, C] hold a token's heads


@dataclass(frozen=True)
class _Batch:
    """A batch as it comes: comment b is `length[b]` ids from `start[b]` on, int64 [B]."""

    ids: str  # int64, one dimension
    start: str
    length: str


def _dense_batch(g: _Graph) -> _Batch:
    for name in (INPUT_IDS, ATTENTION_MASK):
        g.input(name, TensorProto.INT64, "batch", "length")
    width = g("Gather", g("Shape", INPUT_IDS), g.constant(1))
    start = g("Range", g.constant(0), g("Size", INPUT_IDS), width)
    length = g("ReduceSum", ATTENTION_MASK, g.constant([1]), keepdims=0)
    return _Batch(g("Reshape", INPUT_IDS, g.constant([-1])), start, length)


def _ragged_batch(g: _Graph) -> _Batch:
    ids = g.input(INPUT_IDS, TensorProto.INT64, "tokens")
    counts = g.input(ACCUMULATED_COUNTS, TensorProto.INT32, "batch")
    end = g("Cast", counts, to=TensorProto.INT64)
    zero = g.constant([0])
    start = g("Concat", zero, g("Slice", end, zero, g.constant([-1])), axis=0)
    return _Batch(ids, start, g("Sub", end, start))


def _layout(g: _Graph, config: ModelConfig, groups: Sequence[int], batch: _Batch) -> _Layout:
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
    return _Layout(order, ids, position, first, counts, members, pack)


def _group(g: _Graph, width: int, first: str, last: str, length: str) -> _Group:
    """Index and mask of the comments with these first and last tokens [n], lengths [n, 1, 1, 1]."""
    real = g("Less", g.constant(np.arange(width)), length)  # [n, 1, 1, W]
    zero, masked = (g.constant(value, np.float32) for value in (0, np.finfo(np.float32).min))
    return _Group(_token_index(g, width, first, last), g("Where", real, zero, masked))


def _linear_group(g: _Graph, width: int, first: str, last: str, length: str) -> _Group:
    """The same for linear attention, of lengths [n, 1, 1]."""
    real = g("Less", g.constant(np.arange(width)[:, None, None, None]), length)  # [W, n, 1, 1]
    return _Group(_token_index(g, width, first, last), g("Cast", real, to=TensorProto.FLOAT))


def _token_index(g: _Graph, width: int, first: str, last: str) -> str:
    """int64 [W, n]; past a comment's end it is its last token again."""
    return g("Min", g("Add", first, g.constant(np.arange(width)[:, None])), last)


# --- Encoder -----------------------------------------------------------------------------
def _graph(
    model: Model,
    groups: Sequence[int],
    ranges: Ranges | None = None,
    ragged: bool = False,
) -> _Graph:
    g = _Graph(ranges)
    batch = _ragged_batch(g) if ragged else _dense_batch(g)
    if isinstance(model, CascadeEncoder):
        logit = _cascade(g, model, groups, batch)
    else:
        logit = _encoder(g, model, groups, batch)
    g.nodes.append(helper.make_node("Identity", [logit], [LOGIT]))
    return g


def _cascade(g: _Graph, model: CascadeEncoder, groups: Sequence[int], batch: _Batch) -> str:
    """Logits float32 [B]: the student's, and the teacher's for those within the band."""
    g.prefix = _STUDENT
    student = _encoder(g, model.student, groups, batch)
    low, high = (g.constant(e, np.float32) for e in (model.band.low, model.band.high))
    unsure = g("And", g("GreaterOrEqual", student, low), g("LessOrEqual", student, high))
    rows = g("Reshape", g("NonZero", unsure), g.constant([-1]))
    # Its own constants: what only this branch reads is loaded with it.
    asked = _Graph(g.ranges, g.dtype, prefix=_TEACHER)
    start, length = (asked("Gather", values, rows) for values in (batch.start, batch.length))
    teacher = _encoder(asked, model.teacher, groups, _Batch(batch.ids, start, length))
    asked("ScatterElements", student, rows, teacher, axis=0)
    nobody = _Graph(g.ranges, g.dtype, prefix="nobody.")
    nobody("Identity", student)
    # An encoder of no comments at all would fail on its empty tensors.
    some = g("Greater", g("Size", rows), g.constant(0))
    return g("If", some, then_branch=_branch(asked), else_branch=_branch(nobody))


def _branch(g: _Graph) -> onnx.GraphProto:
    """Graph of an `If`, whose output is that of the last node, float32 [B]."""
    out = helper.make_tensor_value_info(g.nodes[-1].output[0], TensorProto.FLOAT, ["batch"])
    return helper.make_graph(g.nodes, f"{g.prefix}branch", [], [out], list(g.constants.values()))


def _encoder(g: _Graph, model: ToxicityEncoder, groups: Sequence[int], batch: _Batch) -> str:
    """Logits float32 [B], in the order of the batch."""
    config = model.config
    if one_layer.fits(model):
        return _one_layer(g, model, batch)
    layout = _layout(g, config, groups, batch)
    tokens = g.weight(_array(model.token_embedding.weight), "token_embedding")
    positions = g.weight(_array(model.position_embedding.weight), "position_embedding")
    x_TD = g("Add", g("Gather", tokens, layout.ids), g("Gather", positions, layout.position))
    *blocks, last = (_Block(f"blocks.{i}", b, config.n_heads) for i, b in enumerate(model.blocks))
    linear = config.attention == "linear"
    part_index = _linear_part_index if linear else _part_index
    index = [part_index(g, group) for group in layout.groups] if blocks else []
    for block in blocks:
        x_TD = (_linear_full_block if linear else _full_block)(g, block, x_TD, layout, index)
    x_BD = (_linear_last_block if linear else _last_block)(g, last, x_TD, layout)
    sorted_B = _head(g, model, x_BD)
    return g("ScatterElements", sorted_B, layout.order, sorted_B, axis=0)


def _one_layer(g: _Graph, model: ToxicityEncoder, batch: _Batch) -> str:
    """The same for the models that `export.graph.one_layer` fits."""
    block = _Block("blocks.0", model.blocks[0], model.config.n_heads)
    context, weight, bias = one_layer.attend(g, model, batch)
    x = _linear(g, context, f"{block.name}.projection", weight, bias)
    return _head(g, model, _mlp(g, block, x))


def _head(g: _Graph, model: ToxicityEncoder, x: str) -> str:
    """x_BD -> logit float32 [B], in float32 whatever the encoder's precision.

    As products and a sum of each row: a matmul of width 1 picks its kernel by the batch size.
    """
    if g.dtype is not np.float32:
        x = g("Cast", x, to=TensorProto.FLOAT)
    weight = g.constant(_array(model.head.weight)[0], np.float32, "head.weight")
    dot = g("ReduceSum", g("Mul", x, weight), g.constant([1]), keepdims=0)
    return g("Add", dot, g.constant(_array(model.head.bias), np.float32, "head.bias"))


class _Block:
    """Weights of one block's attention as arrays, the scale of softmax folded into Q."""

    def __init__(self, name: str, block: Any, n_heads: int) -> None:
        assert isinstance(block, Block)
        self.name, self.module, self.n_heads = name, block, n_heads
        attention = block.attention
        self.width = attention.embed_dim
        scale = np.ones((3 * self.width, 1), np.float32)
        if not block.is_linear:
            scale[: self.width] = 1 / math.sqrt(self.width // n_heads)
        self.qkv_weight = _array(attention.in_proj_weight) * scale
        self.qkv_bias = _array(attention.in_proj_bias) * scale[:, 0]
        self.projection = (_array(attention.out_proj.weight), _array(attention.out_proj.bias))


def _full_block(
    g: _Graph, block: _Block, x: str, layout: _Layout, index: list[tuple[str, ...]]
) -> str:
    """x_TD -> x_TD."""
    normed = _norm(g, x, block, "attention_norm")
    qkv = _linear(g, normed, f"{block.name}.qkv", block.qkv_weight, block.qkv_bias)
    parts = _by_head(g, block, qkv)
    contexts = []
    for group, at in zip(layout.groups, index, strict=True):
        q, k, v = (g("Gather", parts, part) for part in at)  # [W, n, H, C]
        contexts.append(_attend(g, q, k, v, group.mask, transBatchA=1))
    context = _packed_contexts(g, block, contexts, layout)
    return _after_attention(g, block, x, context, *block.projection)


def _by_head(g: _Graph, block: _Block, x: str) -> str:
    """Rows of whole multiples of D as [*, H, C], D after D."""
    return g("Reshape", x, g.constant([-1, block.n_heads, block.width // block.n_heads]))


def _packed_contexts(g: _Graph, block: _Block, contexts: Sequence[str], layout: _Layout) -> str:
    """Context [T, D] from those of the groups, [n, H, W, C]."""
    head_size = g.constant([-1, block.width // block.n_heads])
    rows = [g("Reshape", context, head_size) for context in contexts]
    packed = g("Gather", g("Concat", *rows, axis=0), layout.pack)  # [T, H, C]
    return g("Reshape", packed, g.constant([-1, block.width]))


def _last_block(g: _Graph, block: _Block, x: str, layout: _Layout) -> str:
    """x_TD -> x_BD, the [CLS] rows only; its keys and values are the normed tokens themselves."""
    folded = keys_folded_away(block.module.attention)
    weight, bias, *projection = (_array(parameter) for parameter in folded)
    normed = _norm(g, x, block, "attention_norm")
    q = _linear(g, g("Gather", normed, layout.first), f"{block.name}.query", weight, bias)
    q = g("Reshape", q, g.constant([-1, 1, block.n_heads, block.width]))
    q_of = g.many("Split", len(layout.groups), q, layout.counts, axis=0)
    tokens = g("Unsqueeze", normed, g.constant([1]))  # [T, 1, D]
    contexts = []
    for group, q in zip(layout.groups, q_of, strict=True):
        members = g("Gather", tokens, group.token)  # [W, n, 1, D]
        contexts.append(_attend(g, q, members, members, group.mask))  # [n, 1, H, D]
    context = g("Concat", *contexts, axis=0)
    context = g("Reshape", context, g.constant([-1, block.n_heads * block.width]))
    return _after_attention(g, block, g("Gather", x, layout.first), context, *projection)


def _part_index(g: _Graph, group: _Group) -> tuple[str, ...]:
    """Rows [W, n] of Q, K and V in their Linear's output seen as [3 T, H, C]."""
    token = g("Mul", group.token, g.constant(3))
    return token, g("Add", token, g.constant(1)), g("Add", token, g.constant(2))


def _attend(g: _Graph, q: str, k: str, v: str, mask: str, **layout: int) -> str:
    """softmax(q k' + mask) v as [n, H, *, C]; `k` and `v` are [W, n, H, C], `q` by `layout`."""
    scores = g("FusedMatMul", q, k, transB=1, transBatchB=1, domain=_CONTRIB, **layout)
    weights = g("Softmax", g("Add", scores, mask), axis=-1)  # [n, H, *, W]
    return g("FusedMatMul", weights, v, transBatchB=1, domain=_CONTRIB)


def _linear_full_block(
    g: _Graph, block: _Block, x: str, layout: _Layout, index: list[tuple[str, ...]]
) -> str:
    """x_TD -> x_TD, with linear attention."""
    normed = _norm(g, x, block, "attention_norm")
    qkv = _linear(g, normed, f"{block.name}.qkv", block.qkv_weight, block.qkv_bias)
    widths = g.constant([2 * block.width, block.width])
    qk, v = g.many("Split", 2, qkv, widths, axis=1)
    qk, v = _by_head(g, block, _feature_map(g, qk)), _by_head(g, block, v)
    contexts = []
    for group, (q_at, k_at) in zip(layout.groups, index, strict=True):
        q = g("Gather", qk, q_at)  # [W, n, H, C], like k
        k = g("Mul", g("Gather", qk, k_at), group.mask)
        contexts.append(_attend_linearly(g, q, k, g("Gather", v, group.token)))
    context = _packed_contexts(g, block, contexts, layout)
    return _after_attention(g, block, x, context, *block.projection)


def _linear_last_block(g: _Graph, block: _Block, x: str, layout: _Layout) -> str:
    """x_TD -> x_BD, the [CLS] rows only, with linear attention."""
    normed = _norm(g, x, block, "attention_norm")
    weight, bias, d = block.qkv_weight, block.qkv_bias, block.width
    kv = _linear(g, normed, f"{block.name}.key_value", weight[d:], bias[d:])
    q = g("Gather", normed, layout.first)
    q = _by_head(g, block, _linear(g, q, f"{block.name}.query", weight[:d], bias[:d]))
    q = g("Unsqueeze", _feature_map(g, q), g.constant([2]))  # [B, H, 1, C]
    q_of = g.many("Split", len(layout.groups), q, layout.counts, axis=0)
    k, v = g.many("Split", 2, kv, axis=1, num_outputs=2)
    k, v = _by_head(g, block, _feature_map(g, k)), _by_head(g, block, v)
    contexts = []
    for group, q in zip(layout.groups, q_of, strict=True):
        members = g("Mul", g("Gather", k, group.token), group.mask)
        # With one query its weights are less work than the sums of k' v.
        weights = g("FusedMatMul", q, members, transB=1, transBatchB=1, domain=_CONTRIB)
        total = g("ReduceSum", weights, g.constant([3]))  # [n, H, 1, 1]
        total = g("Add", total, g.constant(ATTENTION_EPSILON, np.float32))
        values = g("Gather", v, group.token)
        context = g("FusedMatMul", weights, values, transBatchB=1, domain=_CONTRIB)
        contexts.append(g("Div", context, total))  # [n, H, 1, C]
    context = g("Reshape", g("Concat", *contexts, axis=0), g.constant([-1, block.width]))
    return _after_attention(g, block, g("Gather", x, layout.first), context, *block.projection)


def _linear_part_index(g: _Graph, group: _Group) -> tuple[str, ...]:
    """Rows [W, n] of Q and K in both seen as [2 T, H, C]."""
    token = g("Mul", group.token, g.constant(2))
    return token, g("Add", token, g.constant(1))


def _feature_map(g: _Graph, x: str) -> str:
    return g("Add", g("Elu", x), g.constant(1, np.float32))


def _attend_linearly(g: _Graph, q: str, k: str, v: str) -> str:
    """Context [n, H, W, C], q (k' v) / q sum(k)'; all are [W, n, H, C], `k` is 0 for padding."""
    sums = g("FusedMatMul", k, v, transA=1, transBatchA=1, transBatchB=1, domain=_CONTRIB)
    values = g("FusedMatMul", q, sums, transBatchA=1, domain=_CONTRIB)
    total = g("Unsqueeze", g("ReduceSum", k, g.constant([0]), keepdims=0), g.constant([3]))
    weights = g("FusedMatMul", q, total, transBatchA=1, domain=_CONTRIB)  # [n, H, W, 1]
    return g("Div", values, g("Add", weights, g.constant(ATTENTION_EPSILON, np.float32)))


def _after_attention(
    g: _Graph, block: _Block, x: str, context: str, weight: np.ndarray, bias: np.ndarray
) -> str:
    """Output projection by `weight` and `bias`, residual, MLP; `x` and the result are [*, D]."""
    x = g("Add", x, _linear(g, context, f"{block.name}.projection", weight, bias))
    return _mlp(g, block, x)


def _mlp(g: _Graph, block: _Block, x: str) -> str:
    """X + MLP(LN(x)), [*, D]."""
    into, _, out, _ = block.module.mlp
    normed = _norm(g, x, block, "mlp_norm")
    hidden = _linear(g, normed, f"{block.name}.mlp_in", _array(into.weight), _array(into.bias))
    # The tanh form is off by 5e-4 at most, far below a step of U8, and takes half the time.
    hidden = g("Gelu", hidden, approximate="none" if g.ranges is None else "tanh")
    hidden = _linear(g, hidden, f"{block.name}.mlp_out", _array(out.weight), _array(out.bias))
    return g("Add", x, hidden)


def _linear(g: _Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
    return g.linear(g.quantized(x, name), name, name, weight, bias)


def _norm(g: _Graph, x: str, block: _Block, which: str) -> str:
    norm = getattr(block.module, which)
    name = f"{block.name}.{which}"
    weight = g.weight(_array(norm.weight), f"{name}.weight")
    bias = g.weight(_array(norm.bias), f"{name}.bias")
    return g("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)


def _array(parameter: Any) -> np.ndarray:
    return np.asarray(parameter.detach().numpy(), np.float32)


# --- Packed form, for CUDA ----------------------------------------------------------------
def _packed_graph(model: ToxicityEncoder, dtype: Any, ragged: bool = False) -> _Graph:
    g, heads = _Graph(None, dtype), model.config.n_heads
    x_BLD, count = _ragged_embedding(g, model) if ragged else _dense_embedding(g, model)
    # The fourth output is the only one on the host; nothing reads it.
    x, offset, ends, _ = g.many("RemovePadding", 4, x_BLD, count, domain=_CONTRIB)
    first = g("Slice", ends, g.constant([0]), g.constant([-1]))  # [B], each comment's [CLS]
    blocks = [_Block(f"blocks.{i}", block, heads) for i, block in enumerate(model.blocks)]
    for block in blocks:
        context = _packed_attention(g, block, x, offset, ends)
        if block is blocks[-1]:
            x, context = g("Gather", x, first), g("Gather", context, first)
        x = _after_attention(g, block, x, context, *block.projection)
    g.nodes.append(helper.make_node("Identity", [_head(g, model, x)], [LOGIT]))
    return g


def _dense_embedding(g: _Graph, model: ToxicityEncoder) -> tuple[str, str]:
    """x_BLD and the tokens of each comment int32 [B]; padding has the last token's position."""
    for name in (INPUT_IDS, ATTENTION_MASK):
        g.input(name, TensorProto.INT64, "batch", "length")
    counted = g("CumSum", ATTENTION_MASK, g.constant(1))
    tokens = g.weight(_array(model.token_embedding.weight), "token_embedding")
    positions = g.weight(_array(model.position_embedding.weight), "position_embedding")
    position = g("Gather", positions, g("Sub", counted, g.constant(1)))
    length = g("ReduceSum", ATTENTION_MASK, g.constant([1]), keepdims=0)
    x = g("Add", g("Gather", tokens, INPUT_IDS), position)
    return x, g("Cast", length, to=TensorProto.INT32)


def _ragged_embedding(g: _Graph, model: ToxicityEncoder) -> tuple[str, str]:
    """The same with L = max_len: no width is known before the run without a look from the host."""
    batch, one = _ragged_batch(g), g.constant([1])
    tokens = g.weight(_array(model.token_embedding.weight), "token_embedding")
    positions = g.weight(_array(model.position_embedding.weight), "position_embedding")
    last = g("Sub", g("Add", batch.start, batch.length), one)
    slots = g("Add", g("Unsqueeze", batch.start, one), g.constant(np.arange(model.config.max_len)))
    ids = g("Gather", batch.ids, g("Min", slots, g("Unsqueeze", last, one)))
    x = g("Add", g("Gather", tokens, ids), positions)
    return x, g("Cast", batch.length, to=TensorProto.INT32)


def _packed_attention(g: _Graph, block: _Block, x: str, offset: str, ends: str) -> str:
    """Context [T, D]. QKV are one matmul whose output is [T, H, 3, C], as the operator wants it.

    Keys stop at a comment's end, by `ends`; `offset` gives batch size and width. In float16 a head
    size that 8 divides runs in its memory-efficient kernel, another one in padded matmuls (ONNX
    Runtime, contrib_ops/cuda/bert/packed_multihead_attention.cc).
    """
    point, head_size = f"{block.name}.qkv", block.width // block.n_heads

    def by_head(rows: np.ndarray) -> np.ndarray:
        parts = rows.reshape(3, block.n_heads, head_size, -1)
        return parts.swapaxes(0, 1).reshape(rows.shape)

    normed = _norm(g, x, block, "attention_norm")
    qkv = g.linear(normed, point, point, by_head(block.qkv_weight), by_head(block.qkv_bias))
    qkv = g("Reshape", qkv, g.constant([-1, block.n_heads, 3, head_size]))
    options = {"num_heads": block.n_heads, "scale": 1.0}  # the scale is in Q's weights
    inputs = (qkv, "", "", "", offset, ends)
    return g("PackedMultiHeadAttention", *inputs, domain=_CONTRIB, **options)


# --- File --------------------------------------------------------------------------------
def _proto(g: _Graph, outputs: Mapping[str, Sequence[int | str]]) -> onnx.ModelProto:
    """Model of `g` with these float outputs by name and shape."""
    declared = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in outputs.items()
    ]
    graph = helper.make_graph(g.nodes, "encoder", g.inputs, declared, list(g.constants.values()))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _write_interfaces(graph_of: Callable[..., _Graph], dense: Path, ragged: Path | None) -> None:
    for path in (dense, ragged):
        if path is not None:
            proto = _proto(graph_of(ragged=path is ragged), {LOGIT: ["batch"]})
            onnx.checker.check_model(proto)
            write_atomically(path, proto.SerializeToString())


def _calibrate_model(model: Model, groups: Sequence[int], comments: Iterable[np.ndarray]) -> Ranges:
    """Each model of a cascade over all comments, for one that is asked may be any of them."""
    if isinstance(model, ToxicityEncoder):
        return _calibrate(_graph(model, groups), comments)
    comments, parts = list(comments), {_STUDENT: model.student, _TEACHER: model.teacher}
    return {
        prefix + point: ends
        for prefix, part in parts.items()
        for point, ends in _calibrate(_graph(part, groups), comments).items()
    }


def _calibrate(g: _Graph, comments: Iterable[np.ndarray]) -> Ranges:
    """Range at every point over the comments, each run alone."""
    ends = {
        point: (g("ReduceMin", x, keepdims=0), g("ReduceMax", x, keepdims=0))
        for point, x in g.points.items()
    }
    names = [name for pair in ends.values() for name in pair]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        _proto(g, {name: [] for name in names}).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    seen = []
    for ids in comments:
        input_ids = np.asarray(ids, np.int64)[None]
        feeds = {INPUT_IDS: input_ids, ATTENTION_MASK: np.ones_like(input_ids)}
        seen.append(session.run(names, feeds))
    ends_of = np.array(seen, np.float64).reshape(len(seen), len(ends), 2)
    least, greatest = ends_of[..., 0].min(axis=0), ends_of[..., 1].max(axis=0)
    return {point: (float(least[i]), float(greatest[i])) for i, point in enumerate(ends)}
