"""Files of a training run: checkpoints without pickle, progress, and loading them back.

A finished run is a folder with `model.safetensors`, `config.json`, `tokenizer.json`,
`split.json`, `metrics.json`, `thresholds.json` and `curves.png`. It appears whole or not at all:
the run works in `<out>.partial`, fills a folder there when it ends, and one rename makes that
`<out>`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from console.options import make_config
from contract import TOKENIZER_FILE, BadInput
from storage.files import read_json as read_json
from storage.files import remove, replace_folder
from storage.files import sha256_of as sha256_of
from storage.files import sha256_of_texts as sha256_of_texts
from storage.files import write_atomically as write_atomically
from storage.files import write_json as write_json
from train.data.tokenizer import Tokenizer
from train.encoders import Encoder, make_encoder
from train.model import ModelConfig, ToxicityEncoder

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
SPLIT_FILE = "split.json"
CURVES_FILE = "curves.png"
_OPTIMIZER_FILE = "optimizer.safetensors"
PROGRESS_FILE = "progress.json"
FINISHED_FOLDER = "finished"
"""The finished run before it is `<out>`, in the folder of the progress."""
BEST_FOLDER = "best"
"""Weights of the best epoch so far, before they are calibrated, in the folder of the progress."""


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write `model.safetensors`, tensors by their PyTorch names."""
    save_tensors(folder / WEIGHTS_FILE, model.state_dict())


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file."""
    state = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, safetensors.torch.save(state))


def load_tensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file by name. Raises BadInput that ends with `remedy`."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing; {remedy}") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a readable safetensors file ({error}); {remedy}") from error


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A finished run: the model in eval mode on the CPU, its tokenizer and its config.json."""

    folder: Path
    model: Encoder
    tokenizer: Tokenizer
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpoint(Teacher):
    """A finished run whose model can be fine-tuned, exported and served."""

    model: ToxicityEncoder


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a finished run of a Transformer.

    Raises BadInput that names the file which is missing or damaged, or for another architecture.
    """
    run = load_teacher(folder)
    if not isinstance(run.model, ToxicityEncoder):
        raise BadInput(
            f"{folder} is a {run.model.config.architecture}, which only teaches, expected a "
            "transformer; give it to `toxicity train --distill` and take the student"
        )
    return Checkpoint(run.folder, run.model, run.tokenizer, run.config)


def load_teacher(folder: Path) -> Teacher:
    """Load a finished run. Raises BadInput that names the file which is missing or damaged."""
    remedy = "run `make train` to write a new checkpoint"
    if not folder.is_dir():
        raise BadInput(f"no checkpoint at {folder}; {remedy}")
    config = read_json(folder / CONFIG_FILE, remedy)
    model = make_encoder(make_config(ModelConfig, config.get("model", {})))
    tensors = load_tensors(folder / WEIGHTS_FILE, remedy)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).replace("\n\t", " ").splitlines()[0]
        raise BadInput(
            f"{folder / WEIGHTS_FILE} does not fit config.json: {first}; {remedy}"
        ) from error
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise BadInput(
            f"{folder / WEIGHTS_FILE}: {bad[0]} holds values that are not finite; {remedy}"
        )
    try:
        tokenizer = Tokenizer.from_json((folder / TOKENIZER_FILE).read_text("utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{folder / TOKENIZER_FILE} is missing; {remedy}") from error
    if len(tokenizer.vocabulary) != model.config.vocab_size:
        raise BadInput(
            f"{folder / TOKENIZER_FILE} has {len(tokenizer.vocabulary)} tokens, the weights "
            f"{model.config.vocab_size}; {remedy}"
        )
    return Teacher(folder, model.eval(), tokenizer, config)


def check_split(folder: Path, fingerprint: str, source: str) -> None:
    """Raise BadInput unless `source` split into the parts that `folder` was trained on."""
    recorded = read_json(folder / SPLIT_FILE, "run `make train`")["fingerprint"]
    if fingerprint != recorded:
        raise BadInput(
            f"the comments in {source} are not those that {folder} was trained on "
            f"(split {fingerprint[:12]}, expected {recorded[:12]}); give the same file "
            "with --data, or train again"
        )


def save_progress(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
) -> None:
    """Write what a run needs to go on: the step's files, then one rename makes them count."""
    step = folder / f"step-{progress['step']}"
    fresh = not step.exists()
    step.mkdir(parents=True, exist_ok=True)
    state = {
        f"{index}.{name}": tensor.detach().cpu().contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, tensor in values.items()
    }
    try:
        save_weights(step, model)
        write_atomically(step / _OPTIMIZER_FILE, safetensors.torch.save(state))
        write_json(folder / PROGRESS_FILE, progress)
    except OSError:
        if fresh:  # a full disk has no room for half a step
            shutil.rmtree(step, ignore_errors=True)
        raise
    for other in folder.glob("step-*"):
        if other != step:
            shutil.rmtree(other, ignore_errors=True)


def load_progress(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore what `save_progress` wrote, or None when the folder holds no progress."""
    if not (folder / PROGRESS_FILE).exists():
        return None
    remedy = "start over with --restart"
    progress = read_json(folder / PROGRESS_FILE, remedy)
    step = folder / f"step-{progress['step']}"
    model.load_state_dict(load_tensors(step / WEIGHTS_FILE, remedy))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_tensors(step / _OPTIMIZER_FILE, remedy).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return progress


def clear_progress(folder: Path) -> None:
    """Drop what only an interrupted run needs."""
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    for step in folder.glob("step-*"):
        shutil.rmtree(step)


def finish(work: Path, out: Path) -> None:
    """Put the finished run that lies in `work` in the place of `out`, then drop `work`.

    The progress stays until the finished run counts, and says which one that is.
    """
    remedy = "start over with --restart"
    progress = read_json(work / PROGRESS_FILE, remedy)
    progress["finished"] = sha256_of(work / FINISHED_FOLDER / WEIGHTS_FILE)
    write_json(work / PROGRESS_FILE, progress)
    replace_folder(work / FINISHED_FOLDER, out)
    remove(work)


def drop_finished(work: Path, out: Path) -> None:
    """Drop `work` if `finish` was killed after its run had become `out`."""
    try:
        finished = read_json(work / PROGRESS_FILE, "").get("finished")
    except BadInput:
        return  # there is none, or whoever goes on with it says what is wrong
    if finished and (out / WEIGHTS_FILE).is_file() and sha256_of(out / WEIGHTS_FILE) == finished:
        remove(work)
