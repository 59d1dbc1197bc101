"""The nodes of a whole model, from its ids to its logits: an encoder, or a cascade of two.

Cascade (`export.cascade`): the student's encoder runs for the whole batch, and the teacher's, in a
branch of an `If`, for the comments that the student is unsure of. No token is copied for it: the
branch reads the same ids at those comments' starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from contract import ATTRIBUTES, LOGIT
from export.cascade import CascadeEncoder
from export.graph import linear_attention, one_layer, softmax_attention
from export.graph.block import BlockWeights, attribute_head, head, linear, mlp
from export.graph.layout import JoinedBatch, dense_batch, layout_of, ragged_batch
from export.graph.nodes import Graph, array
from train.methods.qat import Ranges
from train.model import ToxicityEncoder

STUDENT, TEACHER = "student.", "teacher."
"""What the names of a cascade's nodes, weights and points begin with."""
Servable = ToxicityEncoder | CascadeEncoder
"""What can be built; the CUDA form is for the encoder only."""


def serving_graph(
    model: Servable,
    groups: Sequence[int],
    ranges: Ranges | None = None,
    ragged: bool = False,
) -> Graph:
    """Nodes of the dense or the ragged interface; in float without the activations' `ranges`."""
    g = Graph(ranges)
    batch = ragged_batch(g) if ragged else dense_batch(g)
    if isinstance(model, CascadeEncoder):
        logit = _cascade(g, model, groups, batch)
        g.nodes.append(helper.make_node("Identity", [logit], [LOGIT]))
        return g
    x, order = _states(g, model, groups, batch)
    logit = _logit(g, model, x, order)
    g.nodes.append(helper.make_node("Identity", [logit], [LOGIT]))
    if model.config.attributes:
        attributes = attribute_head(g, model, x)
        if order:
            rows = g("Unsqueeze", order, g.constant([1]))
            attributes = g("ScatterND", attributes, rows, attributes)
        g.nodes.append(helper.make_node("Identity", [attributes], [ATTRIBUTES]))
    return g


def outputs_of(model: Servable) -> dict[str, list[int | str]]:
    """Shape of each output of the graph of `model`, all of them float32."""
    found: dict[str, list[int | str]] = {LOGIT: ["batch"]}
    if model.config.attributes:
        found[ATTRIBUTES] = ["batch", len(model.config.attributes)]
    return found


def _cascade(g: Graph, model: CascadeEncoder, groups: Sequence[int], batch: JoinedBatch) -> str:
    """Logits float32 [B]: the student's, and the teacher's for those within the band."""
    g.prefix = STUDENT
    student = _encoder(g, model.student, groups, batch)
    low, high = (g.constant(e, np.float32) for e in (model.band.low, model.band.high))
    unsure = g("And", g("GreaterOrEqual", student, low), g("LessOrEqual", student, high))
    rows = g("Reshape", g("NonZero", unsure), g.constant([-1]))
    # Its own constants: what only this branch reads is loaded with it.
    asked = Graph(g.ranges, g.dtype, prefix=TEACHER)
    start, length = (asked("Gather", values, rows) for values in (batch.start, batch.length))
    teacher = _encoder(asked, model.teacher, groups, JoinedBatch(batch.ids, start, length))
    asked("ScatterElements", student, rows, teacher, axis=0)
    nobody = Graph(g.ranges, g.dtype, prefix="nobody.")
    nobody("Identity", student)
    # An encoder of no comments at all would fail on its empty tensors.
    some = g("Greater", g("Size", rows), g.constant(0))
    return g("If", some, then_branch=_branch(asked), else_branch=_branch(nobody))


def _branch(g: Graph) -> onnx.GraphProto:
    """Graph of an `If`, whose output is that of the last node, float32 [B]."""
    out = helper.make_tensor_value_info(g.nodes[-1].output[0], TensorProto.FLOAT, ["batch"])
    return helper.make_graph(g.nodes, f"{g.prefix}branch", [], [out], list(g.constants.values()))


def _encoder(g: Graph, model: ToxicityEncoder, groups: Sequence[int], batch: JoinedBatch) -> str:
    """Logits float32 [B], in the order of the batch."""
    return _logit(g, model, *_states(g, model, groups, batch))


def _logit(g: Graph, model: ToxicityEncoder, x: str, order: str) -> str:
    """Logits float32 [B] in the order of the batch, of what `_states` gave."""
    logit = head(g, model, x)
    return g("ScatterElements", logit, order, logit, axis=0) if order else logit


def _states(
    g: Graph, model: ToxicityEncoder, groups: Sequence[int], batch: JoinedBatch
) -> tuple[str, str]:
    """What the heads read, float32 [B, D], and each one's row of the batch; "" where in order."""
    config = model.config
    if one_layer.fits(model):
        return _one_layer(g, model, batch), ""
    layout = layout_of(g, config, groups, batch)
    tokens = g.weight(array(model.token_embedding.weight), "token_embedding")
    positions = g.weight(array(model.position_embedding.weight), "position_embedding")
    x_TD = g("Add", g("Gather", tokens, layout.ids), g("Gather", positions, layout.position))
    *blocks, last = (
        BlockWeights(f"blocks.{i}", b, config.n_heads) for i, b in enumerate(model.blocks)
    )
    attention = linear_attention if config.attention == "linear" else softmax_attention
    index = [attention.part_index(g, group) for group in layout.groups] if blocks else []
    for block in blocks:
        x_TD = attention.full_block(g, block, x_TD, layout, index)
    return attention.last_block(g, last, x_TD, layout), layout.order


def _one_layer(g: Graph, model: ToxicityEncoder, batch: JoinedBatch) -> str:
    """The same for the models that `export.graph.one_layer` fits."""
    block = BlockWeights("blocks.0", model.blocks[0], model.config.n_heads)
    context, weight, bias = one_layer.attend(g, model, batch)
    x = linear(g, context, f"{block.name}.projection", weight, bias)
    return mlp(g, block, x)


def linear_layers(model: Servable) -> int:
    """Matmuls by weights in a serving graph: QKV, projection, MLP.

    The last block has Q alone, and with linear attention KV beside it; where
    `export.graph.one_layer` fits, Q is a constant.
    """
    if isinstance(model, CascadeEncoder):
        return linear_layers(model.student) + linear_layers(model.teacher)
    layers = 4 * model.config.n_layers + (model.config.attention == "linear")
    return layers - one_layer.fits(model)
