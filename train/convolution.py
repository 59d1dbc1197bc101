"""A reader of short runs of words, to teach with: convolutions of several widths, pooled.

    python -m train --architecture convolution --word-dropout 0.1 --d-model 96 --epochs 3

It errs in other places than a Transformer of its size, and learns more from few comments: a filter
sees the words beside each other, and the pooling says whether and how often it answered (Kim 2014,
"Convolutional Neural Networks for Sentence Classification"; the mean beside the maximum is ours).
It costs many times what a one-layer encoder costs, so it is a teacher and not exported.

Shape letters as in `train.model`; F filters of each width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contract import PAD_ID
from train.model import ModelConfig

WIDTHS = (1, 2, 3, 5)
"""Tokens that a filter sees."""
FILTERS = 128
"""Of each width."""


class ConvolutionEncoder(nn.Module):
    """Filters over the token embeddings, their largest and mean answer, and a linear head.

    Of the configuration it reads `vocab_size`, `d_model`, `dropout` and `max_len`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD_ID)
        self.filters = nn.ModuleList(
            nn.Conv1d(config.d_model, FILTERS, width, padding=width // 2) for width in WIDTHS
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * FILTERS * len(WIDTHS), 1)
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        with torch.no_grad():
            self.token_embedding.weight[PAD_ID].zero_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits float32 [B]; arguments as of `train.model.ToxicityEncoder.forward`.

        Padding is what stands beside a comment anyway, zeros, and no filter's answer there counts.
        """
        length = input_ids.shape[1]
        real_B1L = (attention_mask != 0).unsqueeze(1)
        tokens_B1 = real_B1L.sum(dim=2)
        x_BDL = self.dropout(self.token_embedding(input_ids) * real_B1L.transpose(1, 2))
        x_BDL = x_BDL.transpose(1, 2)
        answers = []
        for convolution in self.filters:
            answer_BFL = torch.relu(convolution(x_BDL))[:, :, :length] * real_B1L
            answers += [answer_BFL.amax(dim=2), answer_BFL.sum(dim=2) / tokens_B1]
        return self.head(self.dropout(torch.cat(answers, dim=1))).squeeze(-1)  # [B]
