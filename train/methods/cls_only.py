"""The encoder's forward pass without what nobody reads: the last block for [CLS] alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.model import Block, ToxicityEncoder


class ClsOnlyEncoder(nn.Module):
    """Equals `encoder` up to rounding and shares its parameters; cheaper to train.

    The head reads the last state of [CLS], so the last block needs the keys and values of every
    token but the query, the projection and the MLP of [CLS] only, as in `export.graph.build`.
    """

    def __init__(self, encoder: ToxicityEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits float32 [B]; arguments as of `ToxicityEncoder.forward`."""
        return self.encoder.head(self.cls_state(input_ids, attention_mask)).squeeze(-1)  # [B]

    def cls_state(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the heads read, [B, D]."""
        padding_BL = attention_mask == 0
        x_BLD = embed(self.encoder, input_ids)
        *full, last = self.encoder.blocks
        for block in full:
            x_BLD = block(x_BLD, padding_BL)
        assert isinstance(last, Block)
        normed_BLD = last.attention_norm(x_BLD)
        if last.is_linear:  # its sums over the tokens are what costs
            attended_B1D = last.attention(normed_BLD, padding_BL)[:, :1]
        else:
            attended_B1D, _ = last.attention(
                normed_BLD[:, :1],
                normed_BLD,
                normed_BLD,
                key_padding_mask=padding_BL,
                need_weights=False,
            )
        x_B1D = x_BLD[:, :1] + last.attention_dropout(attended_B1D)
        x_B1D = x_B1D + last.mlp(last.mlp_norm(x_B1D))
        return x_B1D[:, 0]


def embed(encoder: ToxicityEncoder, input_ids: Tensor) -> Tensor:
    """What the first block reads, [B, L, D]: tokens plus positions, with dropout."""
    position_L = torch.arange(input_ids.shape[1], device=input_ids.device)
    x_BLD = encoder.token_embedding(input_ids) + encoder.position_embedding(position_L)
    return encoder.dropout(x_BLD)
