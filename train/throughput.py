"""How near a training comes to the machine's fastest matmul."""

from __future__ import annotations

import time

import torch

from train import recurrent
from train.model import ModelConfig

_SHAPE = (2048, 768, 768)
"""M, K, N of the matmul: large enough that nothing but the kernel counts."""
_TRIES = 10


def flops_per_token(config: ModelConfig) -> float:
    """Operations of the Linear layers for one real token, forward and backward.

    A multiplication and an addition are two; the backward pass has twice the forward's (Kaplan
    et al. 2020, section 2.1). The last block counts its keys and values alone, see
    `train.methods.cls_only`; attention's own products, about a tenth, are left out.
    """
    if config.architecture == "recurrent":  # three gates, two directions
        return 6.0 * 2 * 3 * recurrent.STATE * (config.d_model + recurrent.STATE)
    d, hidden = config.d_model, round(config.d_model * config.mlp_ratio)
    weights = (config.n_layers - 1) * (4 * d * d + 2 * d * hidden) + 2 * d * d
    return 6.0 * weights


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate of a large matmul by PyTorch, in operations/s, with the threads that it has."""
    m, k, n = _SHAPE
    a, b = (
        torch.ones(m, k, device=device, dtype=dtype),
        torch.ones(k, n, device=device, dtype=dtype),
    )
    seconds = []
    for _ in range(_TRIES):
        _synchronize(device)
        began = time.perf_counter()
        a @ b
        _synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * m * k * n / min(seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
