"""A student of the old scores: they are soft targets of `python -m train --soft-labels`.

A tenth of the different texts is held out, all copies of one together (`train.data.split`), and
never trained on. Ctrl-C saves the training, and the same command goes on.
"""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from console.options import make_config
from contract import DECISION_THRESHOLD, BadInput
from migrate.collect import Collected
from migrate.config import MigrateConfig
from migrate.thresholds import keeping_alarms
from quality.metrics import Values, auroc, bootstrap, interval
from train.artifacts import load_checkpoint
from train.config import TrainConfig
from train.data.batches import TokenizedOnTheFly
from train.data.split import comments_of_run
from train.distributed import joined
from train.loop import train
from train.operating.intervals import Share
from train.terminal import StopRequest
from train.validation import logits_of, probability_of

STUDENT, PUBLISHED = "student", "published"


def train_config(found: Collected, config: MigrateConfig) -> TrainConfig:
    """The training, as `python -m train` would have it. Raises BadInput for scores of one class."""
    above = int((found.old >= DECISION_THRESHOLD).sum())
    if not 0 < above < len(found.old):
        raise BadInput(
            f"{above:,} of {len(found.old):,} old scores are {DECISION_THRESHOLD:g} or more, "
            "expected some that are and some that are not, for a student to be judged by; leave "
            "out --distill"
        )
    return make_config(
        TrainConfig,
        {
            **{"data": str(config.scores), "text_column": found.columns.text},
            **{"label_column": found.columns.score, "soft_labels": True},
            **{"out": config.student, "seed": config.seed, "epochs": config.epochs},
            **{"d_model": config.width, "n_layers": config.layers, "lr": config.learning_rate},
            "batch_size": 64,
        },
    )


def distil(found: Collected, config: MigrateConfig, asked: TrainConfig) -> dict[str, Any]:
    """Train as `asked`, and compare with the published model on what was held out; JSON.

    Raises KeyboardInterrupt once its progress is saved, and BadInput as `train.loop.train` does.
    """
    stop = StopRequest()
    with joined(asked) as (device, rank, world):
        stop.listen()
        train(asked, device, stop=stop, rank=rank, world=world)
    comments, split = comments_of_run(config.student)
    student = load_checkpoint(config.student)
    ids = TokenizedOnTheFly(comments.texts, student.tokenizer)
    with torch.inference_mode():
        probability = probability_of(logits_of(student.model, ids, split.test))
    # The log's usable rows are among those that training read, which takes longer ones too.
    places = np.searchsorted(found.rows, comments.rows[split.test])
    places = np.minimum(places, len(found.rows) - 1)
    known = found.rows[places] == comments.rows[split.test]
    held_out, scores = places[known], {STUDENT: probability[known]}
    scores[PUBLISHED] = found.new[held_out]
    return {
        "folder": str(config.student),
        "held_out": len(held_out),
        "labelled": int(found.labelled[held_out].sum()),
        **quality_of(found, held_out, scores, config),
        "next": _next_commands(config),
    }


def _next_commands(config: MigrateConfig) -> list[str]:
    """Publish the student, then find its threshold."""
    repository = ["--repository", f"{config.student}_repository"]
    export = ["toxicity", "export", "--checkpoint", str(config.student), *repository]
    again = ["toxicity", "migrate", config.source, "--scores", str(config.scores), *repository]
    return [shlex.join(export), shlex.join(again)]


def quality_of(
    found: Collected, held_out: np.ndarray, scores: dict[str, np.ndarray], config: MigrateConfig
) -> dict[str, dict[str, Any]]:
    """Agreement with the old scores, and AUROC, of models' scores float64 [m] by name.

    `held_out` int64 [m] are places among the collected comments.
    """
    old, labels = found.old[held_out], found.labels[held_out]
    known = ~np.isnan(labels)
    wanted = old >= config.threshold
    result: dict[str, dict[str, Any]] = {}
    for name, new in scores.items():
        kept = keeping_alarms(int(wanted.sum()), new)
        result[name] = {
            "spearman": _correlation(spearmanr, old, new),
            "pearson": _correlation(pearsonr, old, new),
            "mean_absolute_difference": _mean(np.abs(old - new), config),
            "same_decision": None
            if kept is None
            else Share(int(((new >= kept) == wanted).sum()), len(new)).to_json(),
        }
    if len(np.unique(labels[known])) == 2:
        for name, new in {**scores, "old": old}.items():
            area = _auroc(labels[known], new[known], config)
            if name == "old":
                result[STUDENT]["auroc_old"] = area
            else:
                result[name]["auroc"] = area
    return result


def _correlation(of: Any, old: np.ndarray, new: np.ndarray) -> dict[str, float] | None:
    """With the interval of Fisher's transformation, 1.96 / sqrt(n - 3) either way."""
    if len(old) < 4 or np.ptp(old) == 0 or np.ptp(new) == 0:
        return None
    value = float(of(old, new).statistic)
    with np.errstate(divide="ignore"):
        spread = 1.96 / np.sqrt(len(old) - 3)
        low, high = np.tanh(np.arctanh(value) + np.array([-spread, spread]))
    return {"value": value, "low": float(low), "high": float(high)}


def _mean(values: np.ndarray, config: MigrateConfig) -> dict[str, float | None]:
    def statistic(weights: np.ndarray) -> Values:
        return {"mean": weights @ values / weights.sum(axis=1)}

    drawn = {"resamples": config.resamples, "seed": config.seed}
    return interval(bootstrap(statistic, len(values), **drawn)["mean"])


def _auroc(labels: np.ndarray, scores: np.ndarray, config: MigrateConfig) -> dict[str, Any]:
    def statistic(weights: np.ndarray) -> Values:
        return {"auroc": auroc(labels, scores, weights)}

    drawn = {"resamples": config.resamples, "seed": config.seed}
    return interval(bootstrap(statistic, len(labels), **drawn)["auroc"])
