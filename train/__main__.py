"""Train the encoder on labelled comments: `make train`, or `python -m train --help`.

    python -m train --data comments.csv.gz
    torchrun --nproc-per-node 2 -m train --data ...
    python -m train --qat runs/model     # fine-tune that run for INT8, see train/methods/qat.py
    python -m train --distill runs/model --d-model 64 --n-layers 1   # see train/methods/distill.py
    python -m train --pretrain-epochs 2  # learn to guess masked words first, see
    train/methods/pretrain.py

Ctrl-C saves the progress; the same command goes on at the same step. One training at a time
writes an --out: its lock is `.<name>.lock` beside the folder. The training itself: train/loop.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from console.options import parse_config, run
from train.config import TrainConfig
from train.distributed import joined
from train.loop import train
from train.methods import distill, qat
from train.terminal import StopRequest

DEFAULTS_FROM: dict[str, Callable[[Any], dict[str, Any]]] = {
    "qat": lambda run: qat.defaults_of(Path(run)),
    "distill": lambda runs: distill.defaults_of(Path(runs[0])),
}
"""Flags that fix the defaults of others, as `parse_config` takes them."""


def main() -> None:
    about: dict[str, Any] = {"prog": "python -m train", "description": "Train the encoder."}
    config = parse_config(TrainConfig, None, defaults_from=DEFAULTS_FROM, **about)
    stop = StopRequest()
    with joined(config) as (device, rank, world):
        if world == 1:  # several processes would stop at different steps; they have the last save
            stop.listen()
        train(config, device, stop=stop, rank=rank, world=world)


if __name__ == "__main__":
    run(main)
