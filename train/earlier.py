"""Finished runs that a training builds on: the one of --qat, or the teachers of --distill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from train.artifacts import Checkpoint, Teacher
from train.config import TrainConfig
from train.methods import distill, qat


@dataclass(frozen=True)
class EarlierRuns:
    """Their split is this training's, and the first's tokenizer its tokenizer."""

    tuned: Checkpoint | None
    """Of --qat: whose weights are fine-tuned."""
    teachers: list[Teacher]
    """Of --distill."""

    @property
    def all(self) -> Sequence[Teacher]:
        """The one of --qat, or the teachers; none where a training builds on nothing."""
        return [self.tuned] if self.tuned else self.teachers

    @property
    def give_probabilities(self) -> bool:
        """Whether the logits must stay on the scale of an earlier run's probabilities."""
        return bool(self.teachers or (self.tuned and self.tuned.config.get("calibration")))


def load_earlier_runs(config: TrainConfig) -> EarlierRuns:
    """Raises BadInput for a run that is missing or damaged, or that a flag contradicts."""
    return EarlierRuns(
        tuned=qat.load_start(config) if config.qat else None,
        teachers=distill.load_teachers(config) if config.distill else [],
    )
