"""The encoders that a training makes, by architecture, and the pass of each that is trained."""

from __future__ import annotations

from torch import nn

from train.methods.cls_only import ClsOnlyEncoder
from train.model import ModelConfig, ToxicityEncoder
from train.recurrent import RecurrentEncoder

Encoder = ToxicityEncoder | RecurrentEncoder
"""Both take `input_ids` and `attention_mask` and end in a linear `head`."""


def make_encoder(config: ModelConfig) -> Encoder:
    """Random weights of the shapes of `config`, by PyTorch's seed."""
    if config.architecture == "recurrent":
        return RecurrentEncoder(config)
    return ToxicityEncoder(config)


def training_pass(encoder: Encoder) -> nn.Module:
    """A forward pass that equals the encoder's up to rounding, without what nobody reads."""
    return ClsOnlyEncoder(encoder) if isinstance(encoder, ToxicityEncoder) else encoder
