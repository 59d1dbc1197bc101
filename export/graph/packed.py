"""Packed form, for the CUDA provider: the same encoder without sorting and groups.

ONNX Runtime's own operators drop the padding and attend to each comment's tokens alone. No shape is
computed from the data, so nothing should run on the CPU and nothing be copied there but one count
inside RemovePadding: the gates of `export.gates.placement` decide that. No GPU has run this form
yet; its file is checked against ONNX Runtime's schemas, and its numbers against PyTorch's by a
NumPy evaluation of its operators (tests/test_packed.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from contract import ATTENTION_MASK, ATTRIBUTES, INPUT_IDS, LOGIT
from export.graph.block import BlockWeights, after_attention, attribute_head, head, norm
from export.graph.layout import ragged_batch
from export.graph.nodes import CONTRIB, Graph, array
from train.model import ToxicityEncoder


def packed_graph(model: ToxicityEncoder, dtype: Any, ragged: bool = False) -> Graph:
    """Nodes of the dense or the ragged interface; weights and activations of `dtype`."""
    g, heads = Graph(None, dtype), model.config.n_heads
    x_BLD, count = _ragged_embedding(g, model) if ragged else _dense_embedding(g, model)
    # The fourth output is the only one on the host; nothing reads it.
    x, offset, ends, _ = g.many("RemovePadding", 4, x_BLD, count, domain=CONTRIB)
    first = g("Slice", ends, g.constant([0]), g.constant([-1]))  # [B], each comment's [CLS]
    blocks = [BlockWeights(f"blocks.{i}", block, heads) for i, block in enumerate(model.blocks)]
    for block in blocks:
        context = _packed_attention(g, block, x, offset, ends)
        if block is blocks[-1]:
            x, context = g("Gather", x, first), g("Gather", context, first)
        x = after_attention(g, block, x, context, *block.projection)
    g.nodes.append(helper.make_node("Identity", [head(g, model, x)], [LOGIT]))
    if model.config.attributes:
        g.nodes.append(helper.make_node("Identity", [attribute_head(g, model, x)], [ATTRIBUTES]))
    return g


def _dense_embedding(g: Graph, model: ToxicityEncoder) -> tuple[str, str]:
    """x_BLD and the tokens of each comment int32 [B]; padding has the last token's position."""
    for name in (INPUT_IDS, ATTENTION_MASK):
        g.input(name, TensorProto.INT64, "batch", "length")
    counted = g("CumSum", ATTENTION_MASK, g.constant(1))
    tokens = g.weight(array(model.token_embedding.weight), "token_embedding")
    positions = g.weight(array(model.position_embedding.weight), "position_embedding")
    position = g("Gather", positions, g("Sub", counted, g.constant(1)))
    length = g("ReduceSum", ATTENTION_MASK, g.constant([1]), keepdims=0)
    x = g("Add", g("Gather", tokens, INPUT_IDS), position)
    return x, g("Cast", length, to=TensorProto.INT32)


def _ragged_embedding(g: Graph, model: ToxicityEncoder) -> tuple[str, str]:
    """The same with L = max_len: no width is known before the run without a look from the host."""
    batch, one = ragged_batch(g), g.constant([1])
    tokens = g.weight(array(model.token_embedding.weight), "token_embedding")
    positions = g.weight(array(model.position_embedding.weight), "position_embedding")
    last = g("Sub", g("Add", batch.start, batch.length), one)
    slots = g("Add", g("Unsqueeze", batch.start, one), g.constant(np.arange(model.config.max_len)))
    ids = g("Gather", batch.ids, g("Min", slots, g("Unsqueeze", last, one)))
    x = g("Add", g("Gather", tokens, ids), positions)
    return x, g("Cast", batch.length, to=TensorProto.INT32)


def _packed_attention(g: Graph, block: BlockWeights, x: str, offset: str, ends: str) -> str:
    """Context [T, D]. QKV are one matmul whose output is [T, H, 3, C], as the operator wants it.

    Keys stop at a comment's end, by `ends`; `offset` gives batch size and width. In float16 a head
    size that 8 divides runs in its memory-efficient kernel, another one in padded matmuls (ONNX
    Runtime, contrib_ops/cuda/bert/packed_multihead_attention.cc).
    """
    point, head_size = f"{block.name}.qkv", block.width // block.n_heads

    def by_head(rows: np.ndarray) -> np.ndarray:
        parts = rows.reshape(3, block.n_heads, head_size, -1)
        return parts.swapaxes(0, 1).reshape(rows.shape)

    normed = norm(g, x, block, "attention_norm")
    qkv = g.linear(normed, point, point, by_head(block.qkv_weight), by_head(block.qkv_bias))
    qkv = g("Reshape", qkv, g.constant([-1, block.n_heads, 3, head_size]))
    options = {"num_heads": block.n_heads, "scale": 1.0}  # the scale is in Q's weights
    inputs = (qkv, "", "", "", offset, ends)
    return g("PackedMultiHeadAttention", *inputs, domain=CONTRIB, **options)
