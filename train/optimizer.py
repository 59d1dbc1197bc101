"""AdamW, its learning-rate schedule and its step, shared by training and pre-training."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over every parameter of `model`.

    Fused: on a CPU the 5.8 million numbers of the default embedding are read and written once
    a step instead of about ten times.
    """
    return torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )


def lr_share(step: int, total_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at `step`: a linear rise, then half a cosine to 0."""
    warmup = round(total_steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def prepare_step(
    optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, total_steps: int, part: int
) -> None:
    """Set the learning rate of `step` and its random seed.

    The seed is a function of the step and `part` (which draws of that step), so that after a
    resume every dropout mask is as if the run had never stopped.
    """
    for group in optimizer.param_groups:
        group["lr"] = config.lr * lr_share(step, total_steps, config.warmup_share)
    torch.manual_seed(config.seed * 1_000_003 + part)


def update(
    optimizer: torch.optim.Optimizer, model: nn.Module, loss: torch.Tensor, config: TrainConfig
) -> None:
    """One step down the gradient of `loss`, its norm clipped."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
