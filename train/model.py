"""Compact Pre-LN Transformer encoder: token ids in, one toxicity logit a comment out.

Shape letters at line ends: B comments, L tokens ([CLS] first), D = d_model.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from contract import PAD_ID


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shapes of the weights."""

    vocab_size: int = Field(ge=3, description="tokens in the vocabulary, special ones included")
    d_model: int = Field(192, ge=1, description="width of the residual stream")
    n_layers: int = Field(4, ge=1, description="encoder blocks")
    n_heads: int = Field(4, ge=1, description="attention heads; divides d_model")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over d_model")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability in training")
    max_len: int = Field(256, ge=1, description="longest comment in tokens, [CLS] included")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        check_heads(self.d_model, self.n_heads)
        return self


def check_heads(d_model: int, n_heads: int) -> None:
    """Raise ValueError when the heads do not divide the width."""
    if d_model % n_heads:
        raise ValueError(f"d_model is {d_model}, expected a multiple of n_heads, {n_heads}")


class Block(nn.Module):
    """x + SelfAttention(LN(x)), then x + MLP(LN(x)); Pre-LN as in Xiong et al. 2020, fig. 1b."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, hidden = config.d_model, round(config.d_model * config.mlp_ratio)
        self.attention_norm = nn.LayerNorm(d)
        # Dropout is on each branch's output only: inside the attention it would rule out the
        # fused kernel, and drawing its masks took 29 % of a training step on a CPU.
        self.attention = nn.MultiheadAttention(d, config.n_heads, batch_first=True)
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
    """Encoder with a linear head on the final [CLS] state.

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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits.

        Args:
            input_ids: int64 [B, L], L at most `config.max_len`, padded with PAD_ID.
            attention_mask: int64 [B, L], 1 for a token and 0 for padding; column 0 is 1.

        Returns:
            float32 [B]; the probability is its logistic function.
        """
        position_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        x_BLD = self.token_embedding(input_ids) + self.position_embedding(position_L)
        x_BLD = self.dropout(x_BLD)
        padding_BL = attention_mask == 0
        for block in self.blocks:
            x_BLD = block(x_BLD, padding_BL)
        return self.head(x_BLD[:, 0]).squeeze(-1)  # [B]
