"""Distillation: a small student learns the probabilities of a finished teacher.

    python -m train --distill runs/model --d-model 96 --n-layers 2
    python -m train --distill runs/model --d-model 96 --n-layers 2 --unlabelled more.csv.gz

The student takes the teacher's tokenizer and split, so that both read the same ids and are
validated on comments that neither has seen. Its loss is the cross-entropy against the teacher's
probability (Hinton et al. 2015 at temperature 1; with two classes that is one logistic output).
No pos_weight: the teacher's probabilities are calibrated, and the student must come out on their
scale for `export.cascade`, which puts the two side by side.

The teacher scores each training comment once, without dropout; the logits lie in `teacher_logits`
beside the run, so that neither a resumed run nor the next student pays for them again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contract import BadInput
from train.artifacts import (
    CONFIG_FILE,
    METRICS_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    load_checkpoint,
    load_tensors,
    read_json,
    save_tensors,
    sha256_of,
)
from train.batches import CommentIds
from train.cli import make_config
from train.config import WRITTEN_BEFORE, TrainConfig
from train.data import load_texts
from train.evaluate import logits_of, probability_of

_SOURCE = ("data", "text_column", "label_column")
_FIXED = ("fractions", "seed", "max_vocab", "respell", "phrases", "max_len")
"""What a teacher fixes: the split and the tokenizer."""
_SCORED = ("distill", "split", "rows", "unlabelled")
"""What fixes the teacher's logits, of the settings that make two runs the same."""


def defaults_of(folder: Path) -> dict[str, Any]:
    """TrainConfig fields with --distill `folder`: the teacher's data, split and tokenizer.

    Raises BadInput when there is no checkpoint.
    """
    remedy = "run `make train` to write a checkpoint"
    trained = WRITTEN_BEFORE | read_json(folder / CONFIG_FILE, remedy).get("train", {})
    missing = {*_SOURCE, *_FIXED} - trained.keys()
    if missing:
        raise BadInput(f"{folder / CONFIG_FILE} has no {min(missing)} of its training; {remedy}")
    return {**{name: trained[name] for name in (*_SOURCE, *_FIXED)}, "out": "runs/student"}


def load_teacher(config: TrainConfig) -> Checkpoint:
    """Checkpoint `config.distill`. Raises BadInput when a flag contradicts its split or ids."""
    assert config.distill is not None
    teacher = load_checkpoint(config.distill)
    wanted = make_config(TrainConfig, {**defaults_of(config.distill), "distill": config.distill})
    for name in _FIXED:
        given, expected = getattr(config, name), getattr(wanted, name)
        if given != expected:
            raise BadInput(
                f"--{name.replace('_', '-')} is {given}, expected {expected} as in "
                f"{config.distill}; leave it out with --distill"
            )
    return teacher


def unlabelled_texts(config: TrainConfig, texts: list[str]) -> list[str]:
    """Texts of `config.unlabelled`, each once, without those of the labelled file.

    A copy of a validation or test comment would let the student train on what judges it.
    """
    assert config.unlabelled is not None
    known = set(texts)
    fresh = dict.fromkeys(load_texts(config.unlabelled, config.text_column))
    return [text for text in fresh if text not in known]


def soft_targets(
    teacher: Checkpoint,
    ids: CommentIds,
    rows: np.ndarray,
    folder: Path,
    identity: dict[str, Any],
    device: torch.device,
) -> np.ndarray:
    """The teacher's probability, float32 [len(ids)]: of `rows` (int64 [n]); NaN elsewhere.

    Computed once for the teacher, the split and the unlabelled comments that an `identity` (what
    makes two runs the same) names, and kept in `folder`.
    """
    scored = {name: identity.get(name) for name in _SCORED}
    key = hashlib.sha256(repr(sorted(scored.items())).encode()).hexdigest()[:16]
    file = folder / f"{key}.safetensors"
    if not file.exists():
        logits = logits_of(teacher.model.to(device), ids, rows)
        save_tensors(file, {"logit": torch.from_numpy(logits)})
    saved = load_tensors(file, f"delete {file}")["logit"].numpy()
    targets = np.full(len(ids), np.nan, np.float32)
    targets[rows] = probability_of(saved)
    return targets


def record(config: TrainConfig, unlabelled: int) -> dict[str, Any]:
    """What config.json says of the distillation."""
    assert config.distill is not None
    metrics = read_json(config.distill / METRICS_FILE, "run `make train`")
    return {
        "teacher_sha256": sha256_of(config.distill / WEIGHTS_FILE),
        "teacher_validation_auroc": metrics["validation"]["auroc"],
        "unlabelled_sha256": config.unlabelled and sha256_of(config.unlabelled),
        "unlabelled_comments": unlabelled,
    }
