"""Train the encoder on labelled comments: `make train`, or `python -m train --help`.

    python -m train --data ../shared/data/jigsaw_wiki_train.csv.gz
    torchrun --nproc-per-node 2 -m train --data ...
    python -m train --qat runs/model     # fine-tune that run for INT8, see train/methods/qat.py
    python -m train --distill runs/model --d-model 64 --n-layers 1   # see train/methods/distill.py
    python -m train --pretrain-epochs 2  # learn to guess masked words first, see
    train/methods/pretrain.py

Ctrl-C saves the progress; the same command goes on at the same step. One training at a time
writes an --out: its lock is `.<name>.lock` beside the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import swa_utils
from tqdm import tqdm

from console.options import parse_config, run
from contract import TOKENIZER_FILE, UNK_ID, BadInput
from storage.files import clear_removed, clear_unfinished, recover, refusing_disk_errors, remove
from storage.locks import LOCK_FILE, SHARED_WAIT_S, locked
from train import artifacts
from train.config import WRITTEN_BEFORE, TrainConfig
from train.curves import plot_curves
from train.data.batches import Batch, CommentIds, TokenizedOnTheFly, pretokenize, training_batches
from train.data.load import Comments, load_comments
from train.data.split import overlap, split_comments
from train.data.tokenizer import Respelling, build_tokenizer, oov_rates
from train.methods import calibration, debias, distill, pretrain, qat
from train.methods.cls_only import ClsOnlyEncoder
from train.methods.embeddings import cooccurrence_embeddings, spelled_alike, start_from
from train.model import ToxicityEncoder
from train.optimizer import make_optimizer, prepare_step, update
from train.throughput import flops_per_token, matmul_peak
from train.validation import classification_metrics, logits_of

DEFAULTS_FROM: dict[str, Callable[[Any], dict[str, Any]]] = {
    "qat": lambda run: qat.defaults_of(Path(run)),
    "distill": lambda runs: distill.defaults_of(Path(runs[0])),
}
"""Flags that fix the defaults of others, as `parse_config` takes them."""
_SECONDS_BETWEEN_LINES = 10.0
"""Progress without a terminal: one plain line this often."""


def main() -> None:
    config = parse_config(
        TrainConfig,
        None,
        prog="python -m train",
        description="Train the encoder.",
        defaults_from=DEFAULTS_FROM,
    )
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = _device(config)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    stop = StopRequest()
    if world == 1:  # several processes would stop at different steps; they have the last save
        stop.listen()
    try:
        train(config, device, stop=stop, rank=rank, world=world)
    finally:
        if world > 1:
            dist.destroy_process_group()


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
        _train(config, device, stop or StopRequest(), rank, world)


def _train(
    config: TrainConfig, device: torch.device, stop: StopRequest, rank: int, world: int
) -> None:
    say = _Printer(rank)
    began = time.monotonic()
    _check_machine(config, device, world)

    # --- Data: the same on every process, from the same seed -----------------------------
    start = qat.load_start(config) if config.qat else None
    teachers = distill.load_teachers(config) if config.distill else []
    columns: dict[str, Any] = {
        "text_column": config.text_column,
        "label_column": config.label_column,
        "label_map": config.label_map,
    }
    comments = load_comments(config.data, **columns)
    say(comments.summary())
    test_file = None
    if config.test_data:
        test_file = load_comments(config.test_data, **columns)
        say(f"test file: {test_file.summary()}")
        seen = overlap(test_file.texts, comments.texts)
        if seen.same or seen.alike:
            say(f"WARNING: {seen.words()} are in --data, too: its metrics promise too much")
    split = split_comments(
        comments.texts, comments.labels, fractions=config.fractions, seed=config.seed
    )
    if earlier := [start] if start else teachers:
        for checkpoint in earlier:
            artifacts.check_split(checkpoint.folder, split.fingerprint, config.data)
        tokenizer = earlier[0].tokenizer
    else:
        tokenizer = build_tokenizer(
            (comments.texts[row] for row in split.train),
            max_vocab=config.max_vocab,
            max_len=config.max_len,
            respelling=Respelling() if config.respell else None,
            phrases=config.phrases,
            unmerged=debias.IDENTITY_TERMS,  # one id each, or the balance would miss some
        )
    unknown = oov_rates([comments.texts[row] for row in split.validation], tokenizer)
    say(
        f"vocabulary of {len(tokenizer.vocabulary):,}; {unknown['before']:.2%} of the validation "
        f"comments' tokens are not in it, {unknown['after']:.2%} stay [UNK]"
    )
    extra = distill.extra_comments(config, comments, split.train, tokenizer)
    texts = comments.texts + extra.texts
    training_rows = np.concatenate([split.train, np.arange(len(comments.texts), len(texts))])
    ids: CommentIds = TokenizedOnTheFly(texts, tokenizer)
    if config.pretokenize:
        if rank == 0:
            pretokenize(texts, tokenizer, config.out.parent / "pretokenized")
        _wait_for_all(world)
        ids = pretokenize(texts, tokenizer, config.out.parent / "pretokenized")

    # --- Model, loss, optimizer, schedule --------------------------------------------------
    torch.manual_seed(config.seed)
    if start:
        model = start.model.to(device)
        observed = qat.calibration_rows(split.train, config.seed)
        ranges = qat.calibrate(model, (ids[row] for row in observed))
        # Shares the parameters of `model`, which stays what is optimized and saved.
        trained: nn.Module = qat.FakeQuantizedEncoder(model, ranges)
    else:
        model = ToxicityEncoder(config.encoder_config(len(tokenizer.vocabulary))).to(device)
        trained = ClsOnlyEncoder(model)
    positive = float(comments.labels[split.train].sum())
    # A calibrated start must stay on the scale of its probabilities, as a student on its teacher's.
    unweighted = teachers or (start and start.config.get("calibration"))
    balance = 1.0 if unweighted else (len(split.train) - positive) / positive
    pos_weight = torch.tensor(balance, device=device)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction="none")
    optimizer = make_optimizer(model, config)
    global_batch = config.batch_size * world
    steps_per_epoch = math.ceil(len(training_rows) / global_batch)
    total_steps = steps_per_epoch * config.epochs
    autocast_dtype = _autocast_dtype(config, device)
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters on {world} x {device.type} "
        f"({autocast_dtype or 'fp32'}); {len(training_rows):,} training comments, "
        f"{total_steps:,} steps of {global_batch}; pos_weight {pos_weight.item():.3f}"
    )

    # --- Resume where an interrupted run with the same settings stopped ----------------------
    identity = _identity(config, comments, split.fingerprint, global_batch)
    work = config.out.with_name(config.out.name + ".partial")
    if rank == 0:
        _prepare(work, config.out, identity, restart=config.restart)
    targets = _targets(config, comments)
    folder = config.out.parent / "teacher_logits"
    taught = config, teachers, comments, extra, split.train, folder, device, say
    if teachers and rank == 0:
        lock, what = folder / LOCK_FILE, str(folder)
        with locked(lock, what, "wait for it", SHARED_WAIT_S):
            clear_unfinished(folder)
            targets = distill.soft_targets(*taught)
    _wait_for_all(world)
    if teachers and rank != 0:  # reads what rank 0 wrote
        targets = distill.soft_targets(*taught)
    resumes = (work / artifacts.PROGRESS_FILE).exists()
    if config.embeddings != "random" and not resumes:
        say("counting which words stand near each other ...")
        read = [ids[row] for row in training_rows]
        vectors, known = cooccurrence_embeddings(
            read, len(tokenizer.vocabulary), config.d_model, config.seed
        )
        if config.embeddings == "spelling":
            vectors, known = spelled_alike(vectors, read, tokenizer.vocabulary)
        start_from(model.token_embedding, vectors, known)
    terms = None
    comment_weights = np.ones(len(texts), np.float32)
    if config.identity_balance or config.identity_insertion:
        labelled = split.train, comments.labels[split.train]
        terms = debias.statistics(ids, *labelled, debias.term_ids(tokenizer.vocabulary))
        say(debias.summary(terms, tokenizer.vocabulary))
        comment_weights[split.train] = debias.balancing_weights(
            ids, *labelled, terms, config.identity_balance
        )
    pretraining = None
    if config.pretrain_epochs:
        pretraining = pretrain.pretrain(
            model,
            ids,
            training_rows,
            config,
            work,
            identity,
            autocast_dtype=autocast_dtype,
            say=say,
            bar=say.progress_bar,
            stopped=lambda: stop.requested,
        )
    average = _average_of(trained, config)
    judged = average.module if average else trained
    progress = artifacts.load_progress(work, model, optimizer, average) or {
        "identity": identity,
        "step": 0,
        "epoch_loss": [],
        "history": [],
        "seconds": 0.0,
        "tokens": 0,
    }
    if progress["step"]:
        say(f"resuming after step {progress['step']:,} of {total_steps:,}")
    parallel = nn.parallel.DistributedDataParallel(trained) if world > 1 else trained
    if config.compile:
        parallel = cast(nn.Module, torch.compile(parallel, dynamic=True))

    # --- The loop --------------------------------------------------------------------------
    history: list[dict[str, Any]] = progress["history"]
    bar = say.progress_bar(total_steps, progress["step"])
    while len(history) < config.epochs and not _stalled(history, config.patience):
        epoch = len(history)  # epochs that were validated; the last save may be just before that
        done = progress["step"] - epoch * steps_per_epoch
        parallel.train()
        for batch in training_batches(
            ids, training_rows, batch_size=global_batch, seed=config.seed, epoch=epoch, start=done
        ):
            step_began = time.monotonic()
            step = progress["step"]
            prepare_step(optimizer, config, step, total_steps, step * world + rank)
            # A process without comments in the last batch takes one with weight 0: it must
            # meet the others in the gradient exchange.
            weight = float(len(batch.rows) > rank)
            part = batch.part(rank, world) if weight else batch.part(0, len(batch.rows))
            labels = torch.from_numpy(targets[part.rows]).to(device)
            counts = torch.from_numpy(comment_weights[part.rows]).to(device)
            with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
                if terms:
                    part = debias.with_terms_inserted(
                        part, labels, terms, config.identity_insertion
                    )
                shown = _without_some_words(part, config.word_dropout)
                logits = parallel(shown.to(device), part.attention_mask.to(device))
            # DDP averages over processes; the mean over the whole batch is wanted.
            losses = loss_of(logits.float(), labels) * counts
            loss = losses.sum() * (weight * world / len(batch.rows))
            update(optimizer, model, loss, config)
            if average:
                average.update_parameters(trained)

            progress["step"] = step + 1
            progress["epoch_loss"].append(_mean_over_processes(loss.detach(), world))
            progress["tokens"] += int(batch.attention_mask.sum())
            progress["seconds"] += time.monotonic() - step_began
            bar(progress["step"], f"loss {np.mean(progress['epoch_loss'][-50:]):.4f}")
            if stop.requested or progress["step"] % config.checkpoint_steps == 0:
                if rank == 0:
                    artifacts.save_progress(work, model, optimizer, progress, average)
                if stop.requested:
                    say(
                        f"saved after step {progress['step']:,}; the same command goes on from here"
                    )
                    raise KeyboardInterrupt

        # --- End of an epoch: validate, keep the best ------------------------------------------
        if rank == 0:
            validation_logits = logits_of(judged, ids, split.validation)
            metrics = classification_metrics(comments.labels[split.validation], validation_logits)
            train_loss = float(np.mean(progress["epoch_loss"]))
            best_before = max((entry["auroc"] for entry in history), default=-1.0)
            history.append(
                {"epoch": epoch + 1, "step": progress["step"], "train_loss": train_loss, **metrics}
            )
            say(
                f"epoch {epoch + 1}: training loss {train_loss:.4f}, validation loss "
                f"{metrics['loss']:.4f}, F1 {metrics['f1']:.4f}, AUROC {metrics['auroc']:.4f}"
            )
            if metrics["auroc"] > best_before:
                artifacts.save_weights(
                    work / artifacts.BEST_FOLDER, judged.get_submodule("encoder")
                )
            progress["epoch_loss"] = []
            artifacts.save_progress(work, model, optimizer, progress, average)
        else:
            progress["epoch_loss"] = []
        _share_history(history, world)

    # --- Best checkpoint, calibrated; test metrics, the finished folder -----------------------
    if rank != 0:
        return
    weights = work / artifacts.BEST_FOLDER / artifacts.WEIGHTS_FILE
    model.load_state_dict(artifacts.load_tensors(weights, "start over with --restart"))
    best = max(history, key=lambda entry: entry["auroc"])
    validation_labels = comments.labels[split.validation]
    validation_logits = logits_of(trained, ids, split.validation)
    platt = calibration.fit_platt(validation_labels, validation_logits)
    calibration.fold_in(model, platt)
    finished = work / artifacts.FINISHED_FOLDER
    if finished.exists():
        remove(finished)
    artifacts.save_weights(finished, model)
    results = {
        "synthetic_data": bool(comments.source["synthetic"]),
        "best_epoch": best["epoch"],
        "stopped_early": len(history) < config.epochs,
        "validation": classification_metrics(validation_labels, platt(validation_logits)),
        "test": _metrics_on(trained, ids, split.test, comments.labels),
        "history": history,
        "calibration": calibration.comparison(validation_labels, validation_logits),
        "pos_weight": pos_weight.item(),
        "out_of_vocabulary": unknown,
        "comments_cut_at_max_len": _count_cut(comments.texts, tokenizer),
        "training_seconds": round(progress["seconds"], 1),
        **_speed(model, progress, device, autocast_dtype, world),
        "pretraining": pretraining,
    }
    if test_file is not None:
        rows = np.arange(len(test_file.texts))
        test_ids = TokenizedOnTheFly(test_file.texts, tokenizer)
        results["test_file"] = {
            "source": test_file.source,
            "in_data": dataclasses.asdict(seen),
            **_metrics_on(trained, test_ids, rows, test_file.labels),
        }
    quantization = None
    if start:
        results["quantization"] = table = qat.compare(
            start.folder, ranges, model, ids, split.validation, validation_labels
        )
        quantization = {
            "start_sha256": artifacts.sha256_of(start.folder / artifacts.WEIGHTS_FILE),
            "start_validation_auroc": table["float"]["auroc"],
            "activation_ranges": ranges,
        }
    artifacts.write_atomically(finished / TOKENIZER_FILE, tokenizer.to_json())
    artifacts.write_json(
        finished / artifacts.CONFIG_FILE,
        {
            "model": dataclasses.asdict(model.config),
            "train": config.to_json(),
            "data": comments.source,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "unicode": tokenizer.rule.unicode_version,
            },
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "processes": world,
            "quantization": quantization,
            "calibration": dataclasses.asdict(platt),
            "distillation": distill.record(config, teachers, extra) if teachers else None,
        },
    )
    artifacts.write_json(finished / artifacts.SPLIT_FILE, split.to_json())
    artifacts.write_json(finished / artifacts.METRICS_FILE, results)
    plot_curves(history, finished / artifacts.CURVES_FILE)
    artifacts.finish(work, config.out)
    say(calibration.summary(results["calibration"]))
    for name in ("validation", "test", "test_file"):
        if name in results:
            say(_metrics_line(name, results[name]))
    if start:
        for line in qat.table_lines(results["quantization"], len(split.validation)):
            say(line)
    say(
        f"{config.out}: best epoch {best['epoch']}, "
        f"{results['real_tokens_per_second']:,} real tokens/s, "
        f"{100 * results['matmul_peak_share']:.0f} % of the matmul peak, "
        f"{time.monotonic() - began:.0f} s in all"
    )


def _check_machine(config: TrainConfig, device: torch.device, world: int) -> None:
    """Raise BadInput for an option that these processes cannot carry out."""
    if config.pretrain_epochs and world > 1:
        raise BadInput(
            f"--pretrain-epochs is {config.pretrain_epochs} with {world} processes, expected "
            "one process; start it without torchrun"
        )
    compiler = os.environ.get("CXX", "g++")
    if config.compile and device.type == "cpu" and shutil.which(compiler) is None:
        raise BadInput(
            f"--compile finds no {compiler}, expected a C++ compiler; install one or leave it out"
        )


def _targets(config: TrainConfig, comments: Comments) -> np.ndarray:
    """float32 [n] that the loss compares with, unless a teacher gives them."""
    targets = comments.labels
    if config.soft_targets:
        targets = comments.targets
        if np.isin(targets, (0, 1)).all():
            raise BadInput(
                f"{config.data} has targets 0 and 1 alone, expected shares of annotators; "
                "leave out --soft-targets"
            )
    return targets + np.float32(config.label_smoothing) * (np.float32(0.5) - targets)


def _average_of(trained: nn.Module, config: TrainConfig) -> swa_utils.AveragedModel | None:
    """Exponential moving average of the weights with --ema, else None."""
    if not config.ema:
        return None
    average_of = swa_utils.get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
    return swa_utils.AveragedModel(trained, multi_avg_fn=average_of)


def _without_some_words(batch: Batch, share: float) -> torch.Tensor:
    """The ids of `batch` with a random `share` of the words as [UNK]; [CLS] stays."""
    if not share:
        return batch.input_ids
    dropped = (torch.rand(batch.input_ids.shape) < share) & (batch.attention_mask != 0)
    dropped[:, 0] = False
    return batch.input_ids.masked_fill(dropped, UNK_ID)


def _speed(
    model: ToxicityEncoder,
    progress: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype | None,
    world: int,
) -> dict[str, float]:
    """Speed for metrics.json; the peak is that of one device, measured now."""
    per_second = progress["tokens"] / max(progress["seconds"], 1e-9)
    peak = world * matmul_peak(device, dtype or torch.float32)
    return {
        "real_tokens_per_second": round(per_second),
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "matmul_peak_share": round(flops_per_token(model.config) * per_second / peak, 4),
    }


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


def _identity(
    config: TrainConfig, comments: Comments, fingerprint: str, global_batch: int
) -> dict[str, Any]:
    """What must be the same for a run to go on: every setting that changes the weights."""
    settings = config.to_json()
    for name in ("out", "test_data", "pretokenize", "checkpoint_steps", "restart", "device"):
        del settings[name]
    settings["fractions"] = list(config.fractions)
    if config.qat:  # the weights that it starts from, wherever they lie
        settings["qat"] = artifacts.sha256_of(config.qat / artifacts.WEIGHTS_FILE)
    if config.distill:
        settings["distill"] = distill.sha256_of_weights(config.distill)
    if config.unlabelled:
        settings["unlabelled"] = artifacts.sha256_of(config.unlabelled)
    del settings["batch_size"]
    return {
        **settings,
        "global_batch": global_batch,
        "split": fingerprint,
        "rows": len(comments.texts),
    }


def _prepare(work: Path, out: Path, identity: dict[str, Any], *, restart: bool) -> None:
    """Make the working folder, mend what a kill left; refuse to mix two different runs in it."""
    clear_removed(out.parent)
    recover(out)
    artifacts.drop_finished(work, out)
    before = work / pretrain.FOLDER
    known = [
        progress
        for progress in (
            work / artifacts.PROGRESS_FILE,
            before / artifacts.PROGRESS_FILE,
            before / pretrain.RESULT,
        )
        if progress.exists()
    ]
    if os.path.lexists(work) and (restart or not known):
        remove(work)
        known = []
    for progress in known:
        read = artifacts.read_json(progress, "start over with --restart")
        earlier = WRITTEN_BEFORE | (read.get("identity") or {})
        for name, value in identity.items():
            if earlier.get(name) != value:
                raise BadInput(
                    f"{work} holds an interrupted run with {name} {earlier.get(name)!r}, expected "
                    f"{value!r}; give the same settings to go on, or --restart to drop it"
                )
    work.mkdir(parents=True, exist_ok=True)
    clear_unfinished(work, below=True)


def _stalled(history: list[dict[str, Any]], patience: int) -> bool:
    if not history:
        return False
    best = max(range(len(history)), key=lambda i: history[i]["auroc"])
    return len(history) - 1 - best >= patience


def _metrics_on(
    model: nn.Module, ids: CommentIds, rows: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    return classification_metrics(labels[rows], logits_of(model, ids, rows))


def _metrics_line(name: str, metrics: dict[str, float]) -> str:
    shown = ("accuracy", "precision", "recall", "f1", "auroc")
    return f"{name:<10} " + "  ".join(f"{key} {metrics[key]:.4f}" for key in shown)


def _count_cut(texts: list[str], tokenizer: Any) -> int:
    return sum(tokenizer.encode_and_cut(text)[1] for text in texts)


def _wait_for_all(world: int) -> None:
    if world > 1:
        dist.barrier()


def _mean_over_processes(loss: torch.Tensor, world: int) -> float:
    if world > 1:
        dist.all_reduce(loss)
    return loss.item() / world


def _share_history(history: list[dict[str, Any]], world: int) -> None:
    """Every process must agree on when to stop: take rank 0's history."""
    if world > 1:
        shared = [history]
        dist.broadcast_object_list(shared, src=0)
        history[:] = shared[0]


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a stop after the step; the second one is at once."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, _frame: Any) -> None:
        self.requested = True
        signal.signal(signum, signal.SIG_DFL)


class _Printer:
    """Lines and progress of rank 0: a bar on a terminal, a plain line now and then otherwise."""

    def __init__(self, rank: int) -> None:
        self._on = rank == 0

    def __call__(self, line: str) -> None:
        if self._on:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def progress_bar(self, total: int, initial: int) -> Any:
        if self._on and sys.stderr.isatty():
            bar = tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True)

            def advance(step: int, text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(step - bar.n)
                if step == total:
                    bar.close()

            return advance
        last = time.monotonic()

        def line(step: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self(f"step {step:,} of {total:,}  {text}")

        return line


if __name__ == "__main__":
    run(main)
