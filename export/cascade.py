"""Cascade: a distilled student answers, the teacher only where the student is unsure.

    python -m train --distill runs/model --d-model 96 --n-layers 2
    python -m export --checkpoint runs/model --student runs/student --auroc-loss 0.002

Unsure is a student's logit within a band [low, high]. The band is fitted on the validation
split: of all that cost no more AUROC than allowed, the one that asks for the least work. A
student that is good enough alone is refused: a teacher that nobody asks gains nothing. Whether
the teacher is asked depends on the comment's own student logit alone, so a score still does not
depend on its batch-mates.

INT8 moves the student's logit a little, and across an edge of the band that is a jump from one
model's answer to the other's. So the INT8 gates compare logits branch by branch (a comment whose
student logit is within INT8_LOGIT_ATOL of an edge may take either branch), and bound decisions
and AUROC of the whole cascade as of any other artifact.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from contract import INT8_LOGIT_ATOL, TOKENIZER_FILE, BadInput
from export.work import multiply_adds
from storage.files import sha256_of
from train.artifacts import WEIGHTS_FILE, Checkpoint, check_split, load_checkpoint
from train.data.batches import CommentIds
from train.data.split import Split
from train.methods.calibration import Platt, fold_in
from train.methods.qat import ranges_of
from train.model import ModelConfig, ToxicityEncoder
from train.validation import logits_of

_QUANTILES = 50
"""Candidate edges of the band: the student's validation logits in so many equal parts."""
_FOR_ROUNDING = 0.25
"""Share of the allowed AUROC loss that the fit leaves for INT8's rounding."""


@dataclass(frozen=True)
class Band:
    """Where the student is unsure, on the teacher's scale, and what that costs on validation."""

    low: float
    high: float
    scale: float
    """The student's logit times `scale` plus `shift` is on the teacher's scale."""
    shift: float
    asked_share: float
    """Comments that the teacher is asked for."""
    cost: float
    """Multiply-adds of the cascade over the teacher's, both on the real lengths."""
    auroc: float
    teacher_auroc: float
    student_auroc: float


class CascadeEncoder(nn.Module):
    """PyTorch reference of the served cascade; both models answer here, and one is taken.

    `config` and `token_embedding` are the teacher's, for the gates that craft comments.
    """

    def __init__(self, student: ToxicityEncoder, teacher: ToxicityEncoder, band: Band) -> None:
        super().__init__()
        self.student, self.teacher, self.band = _on_teachers_scale(student, band), teacher, band
        self.config = teacher.config

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.teacher.token_embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits float32 [B]; arguments as of `ToxicityEncoder.forward`."""
        student_B = self.student(input_ids, attention_mask)
        unsure_B = (student_B >= self.band.low) & (student_B <= self.band.high)
        return torch.where(unsure_B, self.teacher(input_ids, attention_mask), student_B)


@dataclass(frozen=True)
class Cascade:
    """The model, its student's folder, and each part's validation logits, float32 [n]."""

    model: CascadeEncoder
    student_folder: Path
    student: np.ndarray
    teacher: np.ndarray

    @property
    def unsure(self) -> np.ndarray:
        """Bool [n], the validation comments that the teacher is asked for."""
        return (self.student >= self.model.band.low) & (self.student <= self.model.band.high)

    def by_branch(self, served: np.ndarray) -> np.ndarray:
        """What each of the `served` logits must equal, float32 [n], as the module says."""
        low, high = self.model.band.low, self.model.band.high
        own = np.where(self.unsure, self.teacher, self.student)
        other = np.where(self.unsure, self.student, self.teacher)
        to_edge = np.minimum(np.abs(self.student - low), np.abs(self.student - high))
        crossed = (to_edge <= INT8_LOGIT_ATOL) & (np.abs(served - other) < np.abs(served - own))
        return np.where(crossed, other, own)

    def to_json(self) -> dict[str, Any]:
        """What the published version says of it."""
        sha256 = sha256_of(self.student_folder / WEIGHTS_FILE)
        return {"student_sha256": sha256, **asdict(self.model.band)}


def load_cascade(
    folder: Path,
    teacher: Checkpoint,
    ids: CommentIds,
    labels: np.ndarray,
    split: Split,
    auroc_loss: float,
) -> Cascade:
    """The student in `folder` before `teacher`, its band fitted on the validation split.

    `ids` and `labels` (0/1 [n]) are those of the training file. Raises BadInput for a student of
    another tokenizer or split, and for a checkpoint of QAT.
    """
    student = load_checkpoint(folder)
    check_split(folder, split.fingerprint, "the teacher's split")
    if student.tokenizer.to_json() != teacher.tokenizer.to_json():
        raise BadInput(
            f"{folder / TOKENIZER_FILE} is another tokenizer, expected that of {teacher.folder}; "
            f"train the student with `python -m train --distill {teacher.folder}`"
        )
    for checkpoint in (student, teacher):
        if names := checkpoint.model.config.attributes:
            raise BadInput(
                f"{checkpoint.folder} has the attributes {' '.join(names)}, expected none in a "
                "cascade, which decides by toxicity alone; export it without --student"
            )
        if ranges_of(checkpoint):
            raise BadInput(
                f"{checkpoint.folder} is a checkpoint of QAT, expected one in float; give the "
                "run that it started from"
            )
    own, asked = (logits_of(c.model, ids, split.validation) for c in (student, teacher))
    aurocs = [float(roc_auc_score(labels[split.validation], x)) for x in (own, asked)]
    if not worth_asking(aurocs[0], aurocs[1], auroc_loss):
        raise BadInput(
            f"the validation AUROC of {folder} is {aurocs[0]:.5f} and the teacher's "
            f"{aurocs[1]:.5f}, expected a loss that needs a teacher for --auroc-loss "
            f"{auroc_loss:g}; export it alone with --checkpoint {folder}"
        )
    lengths = [len(ids[row]) for row in split.validation]
    configs = student.model.config, teacher.model.config
    band = fit_band(own, asked, labels[split.validation], lengths, configs, auroc_loss)
    model = CascadeEncoder(student.model, teacher.model, band).eval()
    return Cascade(model, folder, logits_of(model.student, ids, split.validation), asked)


def worth_asking(student_auroc: float, teacher_auroc: float, auroc_loss: float) -> bool:
    """False when the student alone already loses no more than a cascade may."""
    return student_auroc < teacher_auroc - auroc_loss * (1 - _FOR_ROUNDING)


def fit_band(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    lengths: Sequence[int],
    configs: tuple[ModelConfig, ModelConfig],
    auroc_loss: float,
) -> Band:
    """The cheapest band whose AUROC is at least the teacher's less `auroc_loss`.

    All arrays are of the same comments, [n]: logits, 0/1 labels, lengths in tokens. Tried is each
    of `_QUANTILES` lower edges with the narrowest upper one that will do, and each with the
    student's logit as it is and with its least-squares map to the teacher's.
    """
    work = multiply_adds(configs[0], lengths), multiply_adds(configs[1], lengths)
    goal = roc_auc_score(labels, teacher) - auroc_loss * (1 - _FOR_ROUNDING)
    slope, offset = (float(x) for x in np.polyfit(student, teacher, 1))
    data, found = (student, teacher, labels), []
    for scale, shift in {(1.0, 0.0), (slope, offset) if slope > 0 else (1.0, 0.0)}:
        logits = _mapped(student, scale, shift)
        edges = _edges(logits)
        for i, low in enumerate(edges):
            # AUROC grows with the band but for noise, and what is found was itself measured.
            enough = partial(_reaches, goal, logits, teacher, labels, low)
            at = bisect_left(edges[i:], True, key=enough)
            found += [
                _band(*data, work, scale, shift, low, high) for high in edges[i:][at : at + 1]
            ]
    return min(found, key=lambda band: band.cost)


def _band(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    work: tuple[np.ndarray, np.ndarray],
    scale: float,
    shift: float,
    low: float,
    high: float,
) -> Band:
    """One band with what it costs; `work` is each model's multiply-adds a comment."""
    logits = _mapped(student, scale, shift)
    unsure = (logits >= low) & (logits <= high)
    return Band(
        *(low, high, scale, shift),
        asked_share=float(unsure.mean()),
        cost=float((work[0].sum() + work[1][unsure].sum()) / work[1].sum()),
        auroc=_auroc(logits, teacher, labels, low, high),
        teacher_auroc=float(roc_auc_score(labels, teacher)),
        student_auroc=float(roc_auc_score(labels, student)),
    )


def _reaches(
    goal: float,
    logits: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    low: float,
    high: float,
) -> bool:
    return _auroc(logits, teacher, labels, low, high) >= goal


def _auroc(
    logits: np.ndarray, teacher: np.ndarray, labels: np.ndarray, low: float, high: float
) -> float:
    """Of the cascade; `logits` are the student's on the teacher's scale."""
    unsure = (logits >= low) & (logits <= high)
    return float(roc_auc_score(labels, np.where(unsure, teacher, logits)))


def _mapped(student: np.ndarray, scale: float, shift: float) -> np.ndarray:
    return student * np.float32(scale) + np.float32(shift)


def _edges(logits: np.ndarray) -> list[float]:
    """Quantiles, each halfway to the next logit so that no comment lies on one, and both ends."""
    ordered = np.unique(logits)
    at = np.unique(np.linspace(0, len(ordered) - 1, _QUANTILES + 1).astype(int)[1:-1])
    between = (ordered[at].astype(float) + ordered[at + 1]) / 2
    return [float(ordered[0]) - 1, *between.tolist(), float(ordered[-1]) + 1]


def _on_teachers_scale(student: ToxicityEncoder, band: Band) -> ToxicityEncoder:
    """A copy whose head holds the band's linear map."""
    student = copy.deepcopy(student)
    fold_in(student, Platt(band.scale, band.shift))
    return student
