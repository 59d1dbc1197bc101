"""Distillation: a small student learns the probabilities of one or several finished teachers.

    python -m train --distill runs/model --d-model 96 --n-layers 2
    python -m train --distill runs/model runs/second runs/third --d-model 64 --n-layers 1
    python -m train --distill runs/model --d-model 96 --n-layers 2 --unlabelled more.csv.gz
    python -m train --distill runs/model --d-model 96 --n-layers 2 --augment 1 --contrast 4000

The student takes the first teacher's tokenizer and split, so that both read the same ids and are
validated on comments that neither has seen; every other teacher must have that split, too, and
reads with a tokenizer of its own. With --ngram-teacher a regression on the letters teaches beside
them (train/methods/ngrams.py), and counts as that many runs. The student's loss is the
cross-entropy against the probability of the teachers' mean logit (Hinton et al. 2015 at temperature
1; with two classes that is one logistic output). No pos_weight: the teachers' probabilities are
calibrated, and the student must come out on their scale for `export.cascade`, which puts the two
side by side.

A teacher scores each training comment once, without dropout; the logits lie in `teacher_logits`
beside the run, so that neither a resumed run nor the next student pays for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from console.options import make_config
from contract import BadInput
from train import artifacts
from train.artifacts import Teacher
from train.config import WRITTEN_BEFORE, TrainConfig
from train.data.batches import CommentIds, TokenizedOnTheFly
from train.data.load import Comments, load_texts
from train.data.stored_texts import chosen, joined
from train.data.tokenizer import Tokenizer
from train.encoders import training_pass
from train.methods import augment, contrast, debias, ngrams
from train.validation import logits_of, probability_of

NGRAM_TEACHER = 1.0
"""Weight of the regression on letters beside a run's 1, by the validation AUROC of students of
64 x 1 on Jigsaw Wikipedia."""
_AROUND = 5000
"""Harmless comments, at the most about so many, among whose words --contrast puts sentences."""
_SOURCE = (
    *("data", "text_column", "label_column", "label_map", "attributes"),
    *("sources", "hold_out_source", "near_duplicates"),
)
_FIXED = ("fractions", "seed", "max_vocab", "respell", "phrases", "max_len")
"""What a teacher fixes: the split and the tokenizer."""


def defaults_of(folder: Path) -> dict[str, Any]:
    """TrainConfig fields with --distill `folder`: the teacher's data, split and tokenizer.

    Raises BadInput when there is no checkpoint.
    """
    remedy = "run `make train` to write a checkpoint"
    trained = WRITTEN_BEFORE | artifacts.read_json(folder / artifacts.CONFIG_FILE, remedy).get(
        "train", {}
    )
    missing = {*_SOURCE, *_FIXED} - trained.keys()
    if missing:
        raise BadInput(
            f"{folder / artifacts.CONFIG_FILE} has no {min(missing)} of its training; {remedy}"
        )
    return {
        **{name: trained[name] for name in (*_SOURCE, *_FIXED, "identity_insertion")},
        "out": "runs/student",
        "ngram_teacher": NGRAM_TEACHER,
    }


def load_teachers(config: TrainConfig) -> list[Teacher]:
    """Checkpoints `config.distill`. Raises BadInput when a flag contradicts the first's ids."""
    first = config.distill[0]
    wanted = make_config(TrainConfig, {**defaults_of(first), "distill": config.distill})
    for name in _FIXED:
        given, expected = getattr(config, name), getattr(wanted, name)
        if given != expected:
            raise BadInput(
                f"--{name.replace('_', '-')} is {given}, expected {expected} as in "
                f"{first}; leave it out with --distill"
            )
    return [artifacts.load_teacher(folder) for folder in config.distill]


@dataclass(frozen=True)
class Extra:
    """Comments that are in no labelled file, from which a student learns, too."""

    texts: list[str]
    sources: np.ndarray
    """int64 [len(texts)]: the row of the training split that a passage is of, else -1."""
    probabilities: np.ndarray
    """float32 [len(texts)]: what a rule says of a sentence; NaN where the teachers say it."""


def extra_comments(
    config: TrainConfig, comments: Comments, train: np.ndarray, tokenizer: Tokenizer
) -> Extra:
    """Comments of --unlabelled, passages (--augment) of those at `train`, int64 [n], --contrast.

    Each unlabelled one once, without those of the labelled file: a copy of a validation or test
    comment would let the student train on what judges it.
    """
    fresh: list[str] = []
    if config.unlabelled:
        known = set(comments.texts)
        read = dict.fromkeys(load_texts(str(config.unlabelled), text_column=config.text_column))
        fresh = [text for text in read if text not in known]
    texts, sources = augment.passages(
        chosen(comments.texts, train), tokenizer, count=config.augment, seed=config.seed
    )
    ruled, said = _sentences_by_rules(config, comments, train)
    return Extra(
        fresh + texts + ruled,
        np.concatenate([np.full(len(fresh), -1), sources, np.full(len(ruled), -1)]),
        np.concatenate([np.full(len(fresh) + len(texts), np.nan, np.float32), said]),
    )


def _sentences_by_rules(
    config: TrainConfig, comments: Comments, train: np.ndarray
) -> tuple[list[str], np.ndarray]:
    if not config.contrast:  # then no comment is read for it
        return [], np.empty(0, np.float32)
    harmless = train[comments.labels[train] == 0]
    around = chosen(comments.texts, harmless[:: max(1, len(harmless) // _AROUND)])
    return contrast.sentences(config.contrast, around, seed=config.seed)


def soft_targets(
    config: TrainConfig,
    teachers: Sequence[Teacher],
    comments: Comments,
    extra: Extra,
    train: np.ndarray,
    ids: CommentIds,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> np.ndarray:
    """Probability of the teachers' mean logit, float32 [len(comments.texts) + len(extra.texts)].

    Of the comments at `train` (int64 [n]) and the `extra` ones; NaN elsewhere. `ids` are those of
    the comments, then of the extra ones, by the first teacher's tokenizer. A teacher's logits are
    computed once and kept in `folder`.
    """
    texts = joined(comments.texts, extra.texts)
    extra_rows = np.arange(len(comments.texts), len(texts))
    total = np.zeros(len(train) + len(extra_rows), np.float64)
    for teacher in teachers:
        same = teacher.tokenizer == teachers[0].tokenizer
        read = ids if same else TokenizedOnTheFly(texts, teacher.tokenizer)  # once
        total += np.concatenate(
            [
                _logits_by(teacher, texts, read, rows, folder, device, say)
                for rows in (train, extra_rows)
                if len(rows)
            ]
        )
    if config.ngram_teacher:
        labels = comments.labels[train]
        strength = identity_balance_of(teachers[0].config)
        terms = debias.term_ids(teachers[0].tokenizer.vocabulary)
        terms_of = debias.statistics(ids, train, labels, terms)
        total += config.ngram_teacher * ngrams.cross_fitted_logits(
            [comments.texts[row] for row in train],
            labels,
            debias.balancing_weights(ids, train, labels, terms_of, strength),
            extra.texts,
            extra.sources,
            seed=config.seed,
            folder=folder,
            say=say,
        )
    targets = np.full(len(texts), np.nan, np.float32)
    targets[np.concatenate([train, extra_rows])] = probability_of(
        total / (len(teachers) + config.ngram_teacher)
    )
    ruled = np.isfinite(extra.probabilities)
    targets[extra_rows[ruled]] = extra.probabilities[ruled]
    return targets


def _logits_by(
    teacher: Teacher,
    texts: Sequence[str],
    ids: CommentIds,
    rows: np.ndarray,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> np.ndarray:
    """float32 [n] of `rows` int64 [n] of the texts, from `folder` where they are kept."""
    weights = artifacts.sha256_of(teacher.folder / artifacts.WEIGHTS_FILE)
    read = (texts[row] for row in rows)
    key = artifacts.sha256_of_texts([weights, teacher.tokenizer.to_json(), *read])[:16]
    file = folder / f"{key}.safetensors"
    if not file.exists():
        say(f"{teacher.folder} scores {len(rows):,} comments ...")
        logits = logits_of(training_pass(teacher.model.to(device)), ids, rows)
        artifacts.save_tensors(file, {"logit": torch.from_numpy(logits)})
    return artifacts.load_tensors(file, f"delete {file}")["logit"].numpy()


def record(config: TrainConfig, teachers: Sequence[Teacher], extra: Extra) -> dict[str, Any]:
    """What config.json says of the distillation."""
    folders = [teacher.folder for teacher in teachers]
    ruled = np.isfinite(extra.probabilities)
    metrics = [
        artifacts.read_json(folder / artifacts.METRICS_FILE, "run `make train`")
        for folder in folders
    ]
    return {
        "teacher_sha256": sha256_of_weights(folders),
        "teacher_validation_auroc": [values["validation"]["auroc"] for values in metrics],
        "identity_balance": identity_balance_of(teachers[0].config),
        "ngram_teacher": config.ngram_teacher,
        "unlabelled_sha256": config.unlabelled and artifacts.sha256_of(config.unlabelled),
        "unlabelled_comments": int(np.sum((extra.sources < 0) & ~ruled)),
        "passages": int(np.sum(extra.sources >= 0)),
        "sentences_by_rules": int(np.sum(ruled)),
    }


def sha256_of_weights(runs: Sequence[Path]) -> list[str]:
    """What names the teachers, wherever they lie; hex digests in their order."""
    return [artifacts.sha256_of(run / artifacts.WEIGHTS_FILE) for run in runs]


def identity_balance_of(config: Mapping[str, Any]) -> float:
    """How strongly a run's identity terms are balanced, by its config.json.

    A student has it from its teacher's probabilities, and a fine-tuning of it must do it itself.
    """
    own = WRITTEN_BEFORE | config["train"]
    learned = config.get("distillation") or {}
    return float(learned.get("identity_balance", own["identity_balance"]))
