"""Compact Pre-LN Transformer encoder: token ids in, one toxicity logit a comment out.

Shape letters: B comments, L tokens ([CLS] first), D = d_model, H heads, C = D / H.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from contract import ATTRIBUTE_NAME, ATTRIBUTES, MAX_ATTRIBUTES, MAX_LEN, PAD_ID, PUBLIC_MODEL

Attention = Literal["softmax", "linear"]
Architecture = Literal["transformer", "recurrent"]
ATTENTION_EPSILON = 1e-6
"""Added to the sum of linear attention's weights, as the authors' own code does."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shapes of the weights."""

    vocab_size: int = Field(ge=3, description="tokens in the vocabulary, special ones included")
    d_model: int = Field(64, ge=1, description="width of the residual stream")
    n_layers: int = Field(1, ge=1, description="encoder blocks")
    n_heads: int = Field(4, ge=1, description="attention heads; divides d_model")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over d_model")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability in training")
    max_len: int = Field(
        256, ge=1, le=MAX_LEN, description="longest comment in tokens, [CLS] included"
    )
    attention: Attention = Field("softmax", description="how a token weighs the others")
    architecture: Architecture = Field("transformer", description="what reads the tokens")
    attributes: tuple[str, ...] = Field((), description="what else has a logit, by name")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        check_heads(self.d_model, self.n_heads)
        check_attributes(self.attributes)
        return self

    def to_json(self) -> dict[str, Any]:
        """Every field, but for attributes that there are not."""
        return without_no_attributes(asdict(self))


def check_heads(d_model: int, n_heads: int) -> None:
    """Raise ValueError when the heads do not divide the width."""
    if d_model % n_heads:
        raise ValueError(f"d_model is {d_model}, expected a multiple of n_heads, {n_heads}")


def check_attributes(names: Sequence[str]) -> None:
    """Raise ValueError for names that cannot be those of a model's attributes."""
    for name in names:
        if not re.fullmatch(ATTRIBUTE_NAME, name) or name == PUBLIC_MODEL:
            raise ValueError(
                f"attributes has {name[:40]!r}, expected names of lower-case letters, digits and "
                f"_, as in identity_attack, and not {PUBLIC_MODEL}, which is there by itself"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"attributes has {' '.join(names)}, expected each name once")
    if len(names) > MAX_ATTRIBUTES:
        raise ValueError(f"attributes has {len(names)} names, expected at most {MAX_ATTRIBUTES}")


def without_no_attributes(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a config as JSON, as they were before there were attributes where it has none."""
    names = fields.pop(ATTRIBUTES)
    return fields | {ATTRIBUTES: list(names)} if names else fields


class LinearAttention(nn.Module):
    """Attention whose cost grows with L, not L * L; Katharopoulos et al. 2020, section 3.2.

    A token weighs another by phi(q) phi(k)', where softmax has exp(q k'); phi(x) = elu(x) + 1 is
    their equation 7. So the sums over a comment's keys and values are taken once for all of its
    queries. The parameters have the names, shapes and first values of `nn.MultiheadAttention`'s.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.epsilon = d_model, n_heads, ATTENTION_EPSILON
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BLD: Tensor, padding_BL: Tensor) -> Tensor:
        """Context [B, L, D]; bool `padding_BL` is true for tokens that nobody may see."""
        qkv = functional.linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.reshape(x_BLD.shape[0], x_BLD.shape[1], 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = functional.elu(q) + 1  # [B, H, L, C] like k and v
        k = (functional.elu(k) + 1).masked_fill(padding_BL[:, None, :, None], 0.0)
        sums = q @ (k.transpose(2, 3) @ v)
        weights = (q * k.sum(dim=2, keepdim=True)).sum(dim=3, keepdim=True)
        context = sums / (weights + self.epsilon)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + SelfAttention(LN(x)), then x + MLP(LN(x)); Pre-LN as in Xiong et al. 2020, fig. 1b."""

    __constants__ = ("is_linear",)  # to TorchScript, which then compiles one branch only

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, hidden = config.d_model, round(config.d_model * config.mlp_ratio)
        self.attention_norm = nn.LayerNorm(d)
        self.is_linear = config.attention == "linear"
        # Dropout is on each branch's output only: inside the attention it would rule out the
        # fused kernel, and drawing its masks took 29 % of a training step on a CPU.
        self.attention = (
            LinearAttention(d, config.n_heads)
            if self.is_linear
            else nn.MultiheadAttention(d, config.n_heads, batch_first=True)
        )
        self.attention_dropout = nn.Dropout(config.dropout)
        self.mlp_norm = nn.LayerNorm(d)
        self.mlp = nn.Sequential(
            nn.Linear(d, hidden),
            nn.GELU(),
            nn.Linear(hidden, d),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BLD: Tensor, padding_BL: Tensor) -> Tensor:
        normed_BLD = self.attention_norm(x_BLD)
        if self.is_linear:
            attended_BLD = self.attention(normed_BLD, padding_BL)
        else:
            attended_BLD, _ = self.attention(
                normed_BLD,
                normed_BLD,
                normed_BLD,
                key_padding_mask=padding_BL,
                need_weights=False,
            )
        x_BLD = x_BLD + self.attention_dropout(attended_BLD)
        return x_BLD + self.mlp(self.mlp_norm(x_BLD))


class ToxicityEncoder(nn.Module):
    """Encoder with a linear head on the final [CLS] state, and one for each attribute.

    The tokenizer puts [CLS] at position 0, so the learned [CLS] vector is row CLS_ID of the
    token embedding and an empty comment is one token long.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD_ID)
        self.position_embedding = nn.Embedding(config.max_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.head = nn.Linear(config.d_model, 1)
        nn.init.normal_(self.token_embedding.weight, std=0.02)  # BERT's; N(0, 1) learns slower
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        with torch.no_grad():
            self.token_embedding.weight[PAD_ID].zero_()
        if config.attributes:  # the last to draw its weights: the others are as without it
            self.attribute_head = nn.Linear(config.d_model, len(config.attributes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits.

        Args:
            input_ids: int64 [B, L], L at most `config.max_len`, padded with PAD_ID.
            attention_mask: int64 [B, L], 1 for a token and 0 for padding; column 0 is 1.

        Returns:
            float32 [B]; the probability is its logistic function.
        """
        return self.head(self.cls_state(input_ids, attention_mask)).squeeze(-1)  # [B]

    def cls_state(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the heads read, [B, D]; arguments as of `forward`."""
        position_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        x_BLD = self.token_embedding(input_ids) + self.position_embedding(position_L)
        x_BLD = self.dropout(x_BLD)
        padding_BL = attention_mask == 0
        for block in self.blocks:
            x_BLD = block(x_BLD, padding_BL)
        return x_BLD[:, 0]


class AllHeads(nn.Module):
    """Logits of toxicity and of every attribute, by a forward pass that gives [CLS] states."""

    def __init__(self, encoder: ToxicityEncoder, states: nn.Module) -> None:
        """`states` is `encoder`, or another pass through it, which shares its parameters."""
        super().__init__()
        self.encoder = encoder
        self.states: Any = states  # of PyTorch's type it would be a module or a tensor to mypy

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [B, 1 + A], toxicity first; arguments as of `ToxicityEncoder.forward`."""
        cls_BD = self.states.cls_state(input_ids, attention_mask)
        return torch.cat([self.encoder.head(cls_BD), self.encoder.attribute_head(cls_BD)], dim=1)


def every_head(encoder: ToxicityEncoder, states: nn.Module | None = None) -> nn.Module:
    """A pass that gives all logits: float32 [B, 1 + A], or [B] of an encoder without attributes."""
    given = states or encoder
    if not encoder.config.attributes:
        return given
    return AllHeads(encoder, given).train(given.training)  # as it is: a mode goes down to the parts
