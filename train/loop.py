"""The training: data, model, step, validate, keep the best.

What is not the loop has a place of its own: the comments (train/corpus.py), what a step reads of
them (train/examples.py), the runs it builds on (train/earlier.py), the weights it starts from
(train/start.py), going on after a stop (train/resume.py), several processes
(train/distributed.py), what a person sees (train/terminal.py), the calibrated run and its reports
(train/finish.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from storage.locks import LOCK_FILE, locked
from storage.system_errors import refusing_disk_errors
from train import artifacts, resume
from train.config import TrainConfig
from train.corpus import load_corpus
from train.data.batches import Batch, training_batches
from train.distributed import Processes, processes_of
from train.earlier import load_earlier_runs
from train.examples import Examples, make_examples
from train.finish import Finished, finish
from train.methods import attributes, debias
from train.optimizer import make_optimizer, prepare_step, update
from train.start import Network, learn_without_labels, make_network
from train.terminal import Printer, StopRequest
from train.validation import classification_metrics, logits_of


def train(
    config: TrainConfig,
    device: torch.device,
    *,
    stop: StopRequest | None = None,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Run one training from the data to the finished folder `config.out`.

    Every process of a `torchrun` calls this with its `rank`; rank 0 evaluates and writes.
    Raises KeyboardInterrupt at the first step after `stop` was requested, progress saved, and
    BadInput while another training writes `config.out` or when it cannot be written.
    """
    remedy = "free some space or allow writing there, or give another folder with --out"
    with contextlib.ExitStack() as held:
        held.enter_context(refusing_disk_errors(config.out, remedy))
        if rank == 0:
            lock = config.out.with_name(f".{config.out.name}{LOCK_FILE}")
            remedy = "wait for it, or give another folder with --out"
            held.enter_context(locked(lock, f"--out {config.out}", remedy))
        processes = processes_of(config, device, rank, world)
        _train(config, processes, stop or StopRequest(), Printer(rank))


def _train(config: TrainConfig, processes: Processes, stop: StopRequest, say: Printer) -> None:
    began = time.monotonic()

    # --- Data: the same on every process, from the same seed -----------------------------
    corpus = load_corpus(config, load_earlier_runs(config), say)
    work = resume.prepare(config, corpus, processes)
    data = make_examples(config, corpus, work.folder, processes, say)

    # --- Model, optimizer; on from where an interrupted run stopped -------------------------
    network = make_network(config, corpus, data, processes.device)
    encoder = network.encoder
    optimizer = make_optimizer(encoder, config)
    total = work.steps_per_epoch * config.epochs
    say(
        f"{sum(p.numel() for p in encoder.parameters()):,} parameters on {processes.world} x "
        f"{processes.device.type} ({processes.autocast_dtype or 'fp32'}); "
        f"{len(data.training_rows):,} training comments, {total:,} steps of {work.global_batch}; "
        f"pos_weight {data.pos_weight:.3f}"
    )
    pretraining = learn_without_labels(config, corpus, data, encoder, work, processes, stop, say)
    progress = resume.load(work, encoder, optimizer)
    if progress["step"]:
        say(f"resuming after step {progress['step']:,} of {total:,}")
    run = TrainingRun(config, processes, data, network, optimizer, work, progress, total)

    # --- The loop -----------------------------------------------------------------------------
    bar, history = say.progress_bar(total, progress["step"]), progress["history"]
    while len(history) < config.epochs and not _stalled(history, config.patience):
        run.parallel.train()
        for batch in run.batches():
            run.step(batch)
            bar(progress["step"], f"loss {np.mean(progress['epoch_loss'][-50:]):.4f}")
            stopping = stop.requested
            if stopping or progress["step"] % config.checkpoint_steps == 0:
                run.save()
            if stopping:
                say(f"saved after step {progress['step']:,}; the same command goes on from here")
                raise KeyboardInterrupt
        if processes.leads:
            validation = corpus.split.validation
            say(run.validate(validation, corpus.comments.labels[validation]))
        progress["epoch_loss"] = []
        run.save()
        processes.share(history)

    if processes.leads:
        ended = Finished(config, processes, corpus, data, network, work, progress, pretraining)
        finish(ended, began, say)


class TrainingRun:
    """A training under way: what a step, a validation and a save need."""

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes,
        data: Examples,
        network: Network,
        optimizer: torch.optim.Optimizer,
        work: resume.Work,
        progress: dict[str, Any],
        total_steps: int,
    ) -> None:
        self.config, self.processes, self.data = config, processes, data
        self.network, self.optimizer, self.work = network, optimizer, work
        self.progress, self.total_steps = progress, total_steps
        self.parallel = processes.parallel(network.heads)
        pos_weight = torch.tensor(data.pos_weight, device=processes.device)
        self.loss_of = nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction="none")

    def batches(self) -> Iterator[Batch]:
        """Those of the epoch under way that are still to do."""
        epoch = len(self.progress["history"])  # the last save may be just before its validation
        return training_batches(
            self.data.ids,
            self.data.epoch_rows(epoch),
            batch_size=self.work.global_batch,
            seed=self.config.seed,
            epoch=epoch,
            start=self.progress["step"] - epoch * self.work.steps_per_epoch,
        )

    def step(self, batch: Batch) -> None:
        """One step down the gradient of the weighted loss of `batch`."""
        began, step = time.monotonic(), self.progress["step"]
        processes, data = self.processes, self.data
        draws = step * processes.world + processes.rank
        prepare_step(self.optimizer, self.config, step, self.total_steps, draws)
        part, each = processes.part(batch)
        labels = torch.from_numpy(data.targets[part.rows]).to(processes.device)
        weights = torch.from_numpy(data.weights[part.rows]).to(processes.device)
        with processes.autocast():
            if data.terms:
                share = self.config.identity_insertion
                part = debias.with_terms_inserted(part, labels, data.terms, share)
            ids, mask = (x.to(processes.device) for x in (part.input_ids, part.attention_mask))
            logits = self.parallel(ids, mask).float()
        losses = self._losses(logits, labels, part.rows) * weights
        loss = losses.sum() * each
        update(self.optimizer, self.network.encoder, loss, self.config)

        self.progress["step"] = step + 1
        self.progress["epoch_loss"].append(processes.mean(loss.detach()))
        self.progress["tokens"] += int(batch.attention_mask.sum())
        self.progress["seconds"] += time.monotonic() - began

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Of each comment, float32 [B]; `logits` are [B], or [B, 1 + A] with --attributes."""
        if not self.config.attributes:
            return self.loss_of(logits, labels)
        targets = torch.from_numpy(self.data.attributes[rows]).to(logits.device)
        own = attributes.masked_loss(logits[:, 1:], targets)
        return self.loss_of(logits[:, 0], labels) + attributes.WEIGHT * own

    def validate(self, rows: np.ndarray, labels: np.ndarray) -> str:
        """Judge the weights on the validation split, keep them if they are the best; says how."""
        history, progress = self.progress["history"], self.progress
        metrics = classification_metrics(
            labels, logits_of(self.network.trained, self.data.ids, rows)
        )
        train_loss = float(np.mean(progress["epoch_loss"]))
        if metrics["auroc"] > max((entry["auroc"] for entry in history), default=-1.0):
            best = self.work.folder / artifacts.BEST_FOLDER
            artifacts.save_weights(best, self.network.encoder)
        epoch = len(history) + 1
        history.append(
            {"epoch": epoch, "step": progress["step"], "train_loss": train_loss, **metrics}
        )
        return (
            f"epoch {epoch}: training loss {train_loss:.4f}, validation loss "
            f"{metrics['loss']:.4f}, F1 {metrics['f1']:.4f}, AUROC {metrics['auroc']:.4f}"
        )

    def save(self) -> None:
        """Rank 0 writes what the run needs to go on."""
        if self.processes.leads:
            folder, encoder = self.work.folder, self.network.encoder
            artifacts.save_progress(folder, encoder, self.optimizer, self.progress)


def _stalled(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs were no better than the best before them."""
    if not history:
        return False
    best = max(range(len(history)), key=lambda i: history[i]["auroc"])
    return len(history) - 1 - best >= patience
