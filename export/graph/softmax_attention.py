"""Blocks with softmax attention, group by group.

The last one runs for the [CLS] rows only: nothing else of it is read. With one query a comment, its
key and value weights are folded into those of the query and of the output projection, and no key
or value is computed at all.
"""

from __future__ import annotations

from export.graph.block import BlockWeights, after_attention, by_head, linear, norm, packed_contexts
from export.graph.layout import Group, Layout
from export.graph.nodes import CONTRIB, Graph, array
from train.methods.qat import keys_folded_away


def full_block(
    g: Graph, block: BlockWeights, x: str, layout: Layout, index: list[tuple[str, ...]]
) -> str:
    """x_TD -> x_TD."""
    normed = norm(g, x, block, "attention_norm")
    qkv = linear(g, normed, f"{block.name}.qkv", block.qkv_weight, block.qkv_bias)
    parts = by_head(g, block, qkv)
    contexts = []
    for group, at in zip(layout.groups, index, strict=True):
        q, k, v = (g("Gather", parts, part) for part in at)  # [W, n, H, C]
        contexts.append(_attend(g, q, k, v, group.mask, transBatchA=1))
    context = packed_contexts(g, block, contexts, layout)
    return after_attention(g, block, x, context, *block.projection)


def last_block(g: Graph, block: BlockWeights, x: str, layout: Layout) -> str:
    """x_TD -> x_BD, the [CLS] rows only; its keys and values are the normed tokens themselves."""
    folded = keys_folded_away(block.module.attention)
    weight, bias, *projection = (array(parameter) for parameter in folded)
    normed = norm(g, x, block, "attention_norm")
    q = linear(g, g("Gather", normed, layout.first), f"{block.name}.query", weight, bias)
    q = g("Reshape", q, g.constant([-1, 1, block.n_heads, block.width]))
    q_of = g.many("Split", len(layout.groups), q, layout.counts, axis=0)
    tokens = g("Unsqueeze", normed, g.constant([1]))  # [T, 1, D]
    contexts = []
    for group, q in zip(layout.groups, q_of, strict=True):
        members = g("Gather", tokens, group.token)  # [W, n, 1, D]
        contexts.append(_attend(g, q, members, members, group.mask))  # [n, 1, H, D]
    context = g("Concat", *contexts, axis=0)
    context = g("Reshape", context, g.constant([-1, block.n_heads * block.width]))
    return after_attention(g, block, g("Gather", x, layout.first), context, *projection)


def part_index(g: Graph, group: Group) -> tuple[str, ...]:
    """Rows [W, n] of Q, K and V in their Linear's output seen as [3 T, H, C]."""
    token = g("Mul", group.token, g.constant(3))
    return token, g("Add", token, g.constant(1)), g("Add", token, g.constant(2))


def _attend(g: Graph, q: str, k: str, v: str, mask: str, **layout: int) -> str:
    """softmax(q k' + mask) v as [n, H, *, C]; `k` and `v` are [W, n, H, C], `q` by `layout`."""
    scores = g("FusedMatMul", q, k, transB=1, transBatchB=1, domain=CONTRIB, **layout)
    weights = g("Softmax", g("Add", scores, mask), axis=-1)  # [n, H, *, W]
    return g("FusedMatMul", weights, v, transBatchB=1, domain=CONTRIB)
