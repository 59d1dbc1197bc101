"""The folder of a run in progress, `<out>.partial`, and whether a command may go on with it.

A run that was stopped or killed goes on at its last save, to the same weights, where every
setting that changes the weights is as it was.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contract import ATTRIBUTES, BadInput
from storage.files import clear_removed, clear_unfinished, recover, remove
from train import artifacts
from train.config import WRITTEN_BEFORE, TrainConfig
from train.corpus import Corpus
from train.distributed import Processes
from train.examples import TOKENIZED
from train.methods import distill, pretrain


@dataclass(frozen=True)
class Work:
    """The folder of a run in progress, and the run that it is of."""

    folder: Path
    identity: dict[str, Any]
    """Every setting that changes the weights."""
    global_batch: int
    """Comments of a step, of all processes."""
    steps_per_epoch: int

    @property
    def has_progress(self) -> bool:
        """Whether the training itself goes on; its pre-training has a progress of its own."""
        return (self.folder / artifacts.PROGRESS_FILE).exists()


def prepare(config: TrainConfig, corpus: Corpus, processes: Processes) -> Work:
    """Make the working folder, mend what a kill left.

    Raises BadInput when it holds another run, rather than mix the two.
    """
    folder = config.out.with_name(config.out.name + ".partial")
    batch = config.batch_size * processes.world
    steps = math.ceil(len(corpus.training_rows) / batch)
    work = Work(folder, _identity(config, corpus, batch), batch, steps)
    if processes.leads:
        clear_removed(config.out.parent)
        recover(config.out)
        artifacts.drop_finished(folder, config.out)
        known = _known_progress(folder)
        if os.path.lexists(folder) and (config.restart or not known):
            remove(folder)
            known = []
        for progress in known:
            _check_same_run(progress, work)
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder, below=True)
        if (folder / TOKENIZED).exists():  # made in seconds, and nothing says that they are whole
            remove(folder / TOKENIZED)
    processes.wait()
    return work


def load(work: Work, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Progress of the training, weights and moments restored; of step 0 where there is none."""
    return artifacts.load_progress(work.folder, model, optimizer) or {
        "identity": work.identity,
        "step": 0,
        "epoch_loss": [],
        "history": [],
        "seconds": 0.0,
        "tokens": 0,
    }


def _identity(config: TrainConfig, corpus: Corpus, global_batch: int) -> dict[str, Any]:
    settings = config.to_json() | {ATTRIBUTES: list(config.attributes)}
    for name in ("out", "test_data", "pretokenize", "checkpoint_steps", "restart", "device"):
        del settings[name]
    settings["fractions"] = list(config.fractions)
    if config.qat:  # the weights that it starts from, wherever they lie
        settings["qat"] = artifacts.sha256_of(config.qat / artifacts.WEIGHTS_FILE)
    if config.distill:
        settings["distill"] = distill.sha256_of_weights(config.distill)
    if config.word_vectors:
        settings["word_vectors"] = artifacts.sha256_of(config.word_vectors)
    if config.unlabelled:
        settings["unlabelled"] = artifacts.sha256_of(config.unlabelled)
    if corpus.sources:  # what the file says, wherever it lies
        settings["sources"] = [source.to_json() for source in corpus.sources]
    del settings["batch_size"]
    return {
        **settings,
        "global_batch": global_batch,
        "split": corpus.split.fingerprint,
        "rows": len(corpus.comments.texts),
        **({"left_out": corpus.split.left_out.tolist()} if len(corpus.split.left_out) else {}),
    }


def _known_progress(folder: Path) -> list[Path]:
    before = folder / pretrain.FOLDER
    files = (
        folder / artifacts.PROGRESS_FILE,
        before / artifacts.PROGRESS_FILE,
        before / pretrain.RESULT,
    )
    return [file for file in files if file.exists()]


def _check_same_run(progress: Path, work: Work) -> None:
    read = artifacts.read_json(progress, "start over with --restart")
    earlier = WRITTEN_BEFORE | (read.get("identity") or {})
    for name, value in work.identity.items():
        if earlier.get(name) != value:
            raise BadInput(
                f"{work.folder} holds an interrupted run with {name} {earlier.get(name)!r}, "
                f"expected {value!r}; give the same settings to go on, or --restart to drop it"
            )
    for name in earlier.keys() - work.identity.keys():
        if earlier[name]:  # of a release that had more flags, and none of them on by default
            raise BadInput(
                f"{work.folder} holds an interrupted run with {name} {earlier[name]!r}, expected "
                "a run of this release, which has no such flag; drop it with --restart"
            )
