"""How much work an encoder is: its multiply-adds, counted from its shape and the lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.model import ModelConfig


def multiply_adds(
    config: ModelConfig, lengths: Sequence[int], *, whole: bool = False
) -> np.ndarray:
    """Of the matmuls for comments of these lengths in tokens, float64 [n], without the head.

    In the serving graph the last block works for [CLS] alone; with `whole` for every token, as the
    PyTorch model's does.
    """
    d, heads = config.d_model, config.n_heads
    length: np.ndarray = np.asarray(lengths, np.float64)
    mlp = 2 * d * round(d * config.mlp_ratio)
    if config.attention == "linear":
        full = length * (4 * d * d + mlp + 2 * d * (d // heads))
        last = length * (2 * d * d + 2 * d) + 2 * d * d + mlp
    else:
        full = length * (4 * d * d + mlp) + 2 * length**2 * d
        last = 2 * heads * d * d + 2 * length * heads * d + mlp
    return (config.n_layers - 1) * full + (full if whole else last)
