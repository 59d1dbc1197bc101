"""A reader of words in their order, to teach with: a GRU in each direction, pooled.

    python -m train --architecture recurrent --d-model 128 --dropout 0.15 --epochs 1

It errs in other places than a Transformer of its size, and makes more of --word-vectors (Cho et al.
2014, "Learning Phrase Representations using RNN Encoder-Decoder"; both kinds of pooling beside each
other as in Howard and Ruder 2018, section 3.3). It costs many times what a one-layer encoder costs,
so it is a teacher and not exported.

Shape letters as in `train.model`; R numbers of the state of one direction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contract import PAD_ID
from train.model import ModelConfig

STATE = 80
"""Numbers of the state of one direction."""
_SCALE = 3.0
"""Of the embeddings, which start at a root mean square of 0.1, as suits a layer norm."""


class RecurrentEncoder(nn.Module):
    """A GRU in each direction, the largest and the mean of its states, and a linear head.

    Of the configuration it reads `vocab_size`, `d_model`, `dropout` and `max_len`. Dropout takes
    the same numbers of every token of a comment, and twice as often as of what the head reads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD_ID)
        self.forwards = nn.GRU(config.d_model, STATE, batch_first=True)
        self.backwards = nn.GRU(config.d_model, STATE, batch_first=True)
        self.of_numbers = nn.Dropout1d(min(2 * config.dropout, 0.9))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(4 * STATE, 1)
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        with torch.no_grad():
            self.token_embedding.weight[PAD_ID].zero_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits float32 [B]; arguments as of `train.model.ToxicityEncoder.forward`.

        Both directions meet a comment's padding last, so that it decides nothing.
        """
        real_BL1 = (attention_mask != 0).unsqueeze(2)
        lengths_B1 = real_BL1.sum(dim=1)
        places_BL = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        turned_BL = torch.where(places_BL < lengths_B1, lengths_B1 - 1 - places_BL, places_BL)
        x_BDL = _SCALE * self.token_embedding(input_ids).transpose(1, 2)
        x_BLD = self.of_numbers(x_BDL).transpose(1, 2)
        ahead_BLR, _ = self.forwards(x_BLD)
        back_BLR, _ = self.backwards(_in_order(x_BLD, turned_BL))
        states_BLR = torch.cat([ahead_BLR, _in_order(back_BLR, turned_BL)], dim=2)
        largest_BR = states_BLR.masked_fill(~real_BL1, -torch.inf).amax(dim=1)
        mean_BR = (states_BLR * real_BL1).sum(dim=1) / lengths_B1
        return self.head(self.dropout(torch.cat([largest_BR, mean_BR], dim=1))).squeeze(-1)  # [B]


def _in_order(x_BLD: Tensor, places_BL: Tensor) -> Tensor:
    """The tokens of each comment in the order of `places_BL`."""
    return x_BLD.gather(1, places_BL.unsqueeze(2).expand_as(x_BLD))
