"""Several processes as one training: `torchrun --nproc-per-node 2 -m train`.

Every process reads the same data from the same seed and computes its part of each batch; rank 0
evaluates and writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from contract import BadInput
from train.config import TrainConfig
from train.data.batches import Batch


@contextlib.contextmanager
def joined(config: TrainConfig) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and world size of this process, which is in touch with the others meanwhile.

    Raises BadInput for --device cuda without a GPU.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = _device(config)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, rank, world
    finally:
        if world > 1:
            dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """The `world` processes of a training, seen from the one of `rank`."""

    device: torch.device
    rank: int
    world: int
    autocast_dtype: torch.dtype | None
    """None computes in float32."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that evaluates and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.world > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module`, whose gradients are the mean over the processes."""
        return nn.parallel.DistributedDataParallel(module) if self.world > 1 else module

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """The part of `batch` that is this process', and what each of its comments counts.

        A process without comments in the last batch takes one with weight 0: it must meet the
        others in the gradient exchange. The gradients are averaged over the processes, and the
        mean over the whole batch is wanted.
        """
        weight = float(len(batch.rows) > self.rank)
        part = batch.part(self.rank, self.world) if weight else batch.part(0, len(batch.rows))
        return part, weight * self.world / len(batch.rows)

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def mean(self, loss: torch.Tensor) -> float:
        """Mean of a detached scalar over the processes."""
        if self.world > 1:
            dist.all_reduce(loss)
        return loss.item() / self.world

    def share(self, history: list[dict[str, Any]]) -> None:
        """Make `history` rank 0's: every process must agree on when to stop."""
        if self.world > 1:
            shared = [history]
            dist.broadcast_object_list(shared, src=0)
            history[:] = shared[0]


def processes_of(config: TrainConfig, device: torch.device, rank: int, world: int) -> Processes:
    """Raises BadInput for what several processes cannot do."""
    if config.pretrain_epochs and world > 1:
        raise BadInput(
            f"--pretrain-epochs is {config.pretrain_epochs} with {world} processes, expected "
            "one process; start it without torchrun"
        )
    return Processes(device, rank, world, _autocast_dtype(config, device))


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("--device is cuda, but torch sees no GPU; use --device cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def _autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    if config.precision == "bf16":
        return torch.bfloat16
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if config.precision == "auto" and has_bf16 else None
