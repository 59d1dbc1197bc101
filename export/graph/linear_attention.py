"""Blocks with linear attention (`train.model.LinearAttention`), group by group.

The keys of a comment's padding are set to 0, and its sums over keys and values are batched matmuls
of each group, [n, H, C, C]. Its feature map does not commute with a weight, so the last block
computes the keys and values of all tokens; queries of the [CLS] rows alone.
"""

from __future__ import annotations

import numpy as np

from export.graph.block import BlockWeights, after_attention, by_head, linear, norm, packed_contexts
from export.graph.layout import Group, Layout
from export.graph.nodes import CONTRIB, Graph
from train.model import ATTENTION_EPSILON


def full_block(
    g: Graph, block: BlockWeights, x: str, layout: Layout, index: list[tuple[str, ...]]
) -> str:
    """x_TD -> x_TD, with linear attention."""
    normed = norm(g, x, block, "attention_norm")
    qkv = linear(g, normed, f"{block.name}.qkv", block.qkv_weight, block.qkv_bias)
    widths = g.constant([2 * block.width, block.width])
    qk, v = g.many("Split", 2, qkv, widths, axis=1)
    qk, v = by_head(g, block, _feature_map(g, qk)), by_head(g, block, v)
    contexts = []
    for group, (q_at, k_at) in zip(layout.groups, index, strict=True):
        q = g("Gather", qk, q_at)  # [W, n, H, C], like k
        k = g("Mul", g("Gather", qk, k_at), group.mask)
        contexts.append(_attend_linearly(g, q, k, g("Gather", v, group.token)))
    context = packed_contexts(g, block, contexts, layout)
    return after_attention(g, block, x, context, *block.projection)


def last_block(g: Graph, block: BlockWeights, x: str, layout: Layout) -> str:
    """x_TD -> x_BD, the [CLS] rows only, with linear attention."""
    normed = norm(g, x, block, "attention_norm")
    weight, bias, d = block.qkv_weight, block.qkv_bias, block.width
    kv = linear(g, normed, f"{block.name}.key_value", weight[d:], bias[d:])
    q = g("Gather", normed, layout.first)
    q = by_head(g, block, linear(g, q, f"{block.name}.query", weight[:d], bias[:d]))
    q = g("Unsqueeze", _feature_map(g, q), g.constant([2]))  # [B, H, 1, C]
    q_of = g.many("Split", len(layout.groups), q, layout.counts, axis=0)
    k, v = g.many("Split", 2, kv, axis=1, num_outputs=2)
    k, v = by_head(g, block, _feature_map(g, k)), by_head(g, block, v)
    contexts = []
    for group, q in zip(layout.groups, q_of, strict=True):
        members = g("Mul", g("Gather", k, group.token), group.mask)
        # With one query its weights are less work than the sums of k' v.
        weights = g("FusedMatMul", q, members, transB=1, transBatchB=1, domain=CONTRIB)
        total = g("ReduceSum", weights, g.constant([3]))  # [n, H, 1, 1]
        total = g("Add", total, g.constant(ATTENTION_EPSILON, np.float32))
        values = g("Gather", v, group.token)
        context = g("FusedMatMul", weights, values, transBatchB=1, domain=CONTRIB)
        contexts.append(g("Div", context, total))  # [n, H, 1, C]
    context = g("Reshape", g("Concat", *contexts, axis=0), g.constant([-1, block.width]))
    return after_attention(g, block, g("Gather", x, layout.first), context, *block.projection)


def part_index(g: Graph, group: Group) -> tuple[str, ...]:
    """Rows [W, n] of Q and K in both seen as [2 T, H, C]."""
    token = g("Mul", group.token, g.constant(2))
    return token, g("Add", token, g.constant(1))


def _feature_map(g: Graph, x: str) -> str:
    return g("Add", g("Elu", x), g.constant(1, np.float32))


def _attend_linearly(g: Graph, q: str, k: str, v: str) -> str:
    """Context [n, H, W, C], q (k' v) / q sum(k)'; all are [W, n, H, C], `k` is 0 for padding."""
    sums = g("FusedMatMul", k, v, transA=1, transBatchA=1, transBatchB=1, domain=CONTRIB)
    values = g("FusedMatMul", q, sums, transBatchA=1, domain=CONTRIB)
    total = g("Unsqueeze", g("ReduceSum", k, g.constant([0]), keepdims=0), g.constant([3]))
    weights = g("FusedMatMul", q, total, transBatchA=1, domain=CONTRIB)  # [n, H, W, 1]
    return g("Div", values, g("Add", weights, g.constant(ATTENTION_EPSILON, np.float32)))
