"""What the blocks of every form share: their weights, Linear, LayerNorm, MLP, and the head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from export.graph.layout import Layout
from export.graph.nodes import Graph, array
from train.model import Block, ToxicityEncoder


class BlockWeights:
    """Weights of one block's attention as arrays, the scale of softmax folded into Q."""

    def __init__(self, name: str, block: Any, n_heads: int) -> None:
        assert isinstance(block, Block)
        self.name, self.module, self.n_heads = name, block, n_heads
        attention = block.attention
        self.width = attention.embed_dim
        scale = np.ones((3 * self.width, 1), np.float32)
        if not block.is_linear:
            scale[: self.width] = 1 / math.sqrt(self.width // n_heads)
        self.qkv_weight = array(attention.in_proj_weight) * scale
        self.qkv_bias = array(attention.in_proj_bias) * scale[:, 0]
        self.projection = (array(attention.out_proj.weight), array(attention.out_proj.bias))


def after_attention(
    g: Graph, block: BlockWeights, x: str, context: str, weight: np.ndarray, bias: np.ndarray
) -> str:
    """Output projection by `weight` and `bias`, residual, MLP; `x` and the result are [*, D]."""
    x = g("Add", x, linear(g, context, f"{block.name}.projection", weight, bias))
    return mlp(g, block, x)


def mlp(g: Graph, block: BlockWeights, x: str) -> str:
    """X + MLP(LN(x)), [*, D]."""
    into, _, out, _ = block.module.mlp
    normed = norm(g, x, block, "mlp_norm")
    hidden = linear(g, normed, f"{block.name}.mlp_in", array(into.weight), array(into.bias))
    # The tanh form is off by 5e-4 at most, far below a step of U8, and takes half the time.
    hidden = g("Gelu", hidden, approximate="none" if g.ranges is None else "tanh")
    hidden = linear(g, hidden, f"{block.name}.mlp_out", array(out.weight), array(out.bias))
    return g("Add", x, hidden)


def linear(g: Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
    """A Linear layer, weight [N, K], that quantizes its own input: [*, K] -> [*, N]."""
    return g.linear(g.quantized(x, name), name, name, weight, bias)


def norm(g: Graph, x: str, block: BlockWeights, which: str) -> str:
    """The block's LayerNorm of this name, [*, D]."""
    norm = getattr(block.module, which)
    name = f"{block.name}.{which}"
    weight = g.weight(array(norm.weight), f"{name}.weight")
    bias = g.weight(array(norm.bias), f"{name}.bias")
    return g("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)


def head(g: Graph, model: ToxicityEncoder, x: str) -> str:
    """x_BD -> logit float32 [B], in float32 whatever the encoder's precision.

    As products and a sum of each row: a matmul of width 1 picks its kernel by the batch size.
    """
    if g.dtype is not np.float32:
        x = g("Cast", x, to=TensorProto.FLOAT)
    weight = g.constant(array(model.head.weight)[0], np.float32, "head.weight")
    dot = g("ReduceSum", g("Mul", x, weight), g.constant([1]), keepdims=0)
    return g("Add", dot, g.constant(array(model.head.bias), np.float32, "head.bias"))


def attribute_head(g: Graph, model: ToxicityEncoder, x: str) -> str:
    """x_BD -> logits of the attributes float32 [B, A]; as `head` computes one."""
    if g.dtype is not np.float32:
        x = g("Cast", x, to=TensorProto.FLOAT)
    weight = g.constant(array(model.attribute_head.weight), np.float32, "attribute_head.weight")
    products = g("Mul", g("Unsqueeze", x, g.constant([1])), weight)  # [B, A, D]
    dots = g("ReduceSum", products, g.constant([2]), keepdims=0)
    bias = array(model.attribute_head.bias)
    return g("Add", dots, g.constant(bias, np.float32, "attribute_head.bias"))


def by_head(g: Graph, block: BlockWeights, x: str) -> str:
    """Rows of whole multiples of D as [*, H, C], D after D."""
    return g("Reshape", x, g.constant([-1, block.n_heads, block.width // block.n_heads]))


def packed_contexts(g: Graph, block: BlockWeights, contexts: Sequence[str], layout: Layout) -> str:
    """Context [T, D] from those of the groups, [n, H, W, C]."""
    head_size = g.constant([-1, block.width // block.n_heads])
    rows = [g("Reshape", context, head_size) for context in contexts]
    packed = g("Gather", g("Concat", *rows, axis=0), layout.pack)  # [T, H, C]
    return g("Reshape", packed, g.constant([-1, block.width]))
