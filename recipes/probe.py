"""How long a stage of training takes on this machine, from a few of its own steps.

What is measured is the code that trains: the data are read and tokenized once, each shape takes
some steps of its own data, scores some comments, and the letters are fitted on some. The rest is
known: how many tokens an epoch has, how often a stage reads them. While a stage is measured that
will run beside others, other processes compute as those will.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.config import TrainConfig
from train.corpus import Corpus, load_corpus
from train.data.batches import TokenizedOnTheFly
from train.distributed import Processes, processes_of
from train.earlier import EarlierRuns
from train.examples import Examples, make_examples
from train.loop import TrainingRun
from train.methods import calibration, ngrams, pretrain
from train.operating.choice import Labelled
from train.operating.document import thresholds_of
from train.optimizer import make_optimizer
from train.resume import Work
from train.start import Network, learn_without_labels, make_network
from train.terminal import Printer, StopRequest
from train.validation import logits_of, probability_of

_WARM_UP, _STEPS, _LEAST_STEPS, _SECONDS = 2, 24, 6, 2.0
"""Steps before the timer; then at most so many, or so many seconds after the least of them."""
_SCORED, _LETTERS, _SAMPLED = 256, 2000, 20_000
"""Comments that time a scoring, a regression on letters, and that say how long comments are."""
_QUIET = Printer(rank=1)
_BUSY = "import os, numpy as n\na, p = n.ones((384, 384), 'f'), os.getppid()\n"
_BUSY += "while os.getppid() == p: a @ a"


@dataclass(frozen=True)
class StageCost:
    """What a stage does, beside its own flags."""

    config: TrainConfig
    """Without what it has of its teachers."""
    threads: int
    beside: int
    """Threads of the stages that run beside it."""
    teachers: tuple[TrainConfig, ...] = ()
    ngram_teacher: bool = False
    augment: int = 0


@dataclass(frozen=True)
class _Speed:
    """Of one shape, in seconds for a token."""

    step: float
    score: float
    pretrain: float


@dataclass
class Probe:
    """The comments of a training, and what was measured on them so far."""

    corpus: Corpus
    data: Examples
    processes: Processes
    folder: Path
    load_s: float
    """To read, split and tokenize the comments: each stage does it again."""
    import_s: float
    """Until a command's own code begins."""
    _speeds: dict[tuple[object, ...], _Speed] = field(default_factory=dict)
    _starts_s: dict[int, float] = field(default_factory=dict)
    _letters_s: float = 0.0
    _finish_s: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig, device: torch.device, folder: Path, import_s: float) -> Probe:
        """Reads the comments of `config`; `folder` is for temporary files. Raises BadInput."""
        began = time.monotonic()
        processes = processes_of(config, device, rank=0, world=1)
        corpus = load_corpus(config, EarlierRuns(None, []), _QUIET)
        data = make_examples(config, corpus, folder, processes, _QUIET)
        return cls(corpus, data, processes, folder, time.monotonic() - began, import_s)

    def seconds(self, stage: StageCost) -> float:
        """How long `stage` takes, its command's start and end included."""
        config, speed = stage.config, self._speed(stage.config, stage)
        train, split = self._tokens(self.data.training_rows, config), self.corpus.split
        learned = train * (1 + stage.augment)
        judged = (config.epochs + 2) * self._tokens(split.validation, config)
        judged += self._tokens(split.test, config) + self._test_file_tokens(config)
        found = self.import_s + self._finish() + self._starts_s[config.d_model]
        found += self.load_s * (1 + stage.augment)
        found += (config.epochs * speed.step + config.pretrain_epochs * speed.pretrain) * learned
        found += judged * speed.score
        for teacher in stage.teachers:
            asked = self._speed(teacher, stage).score
            reads_otherwise = (teacher.max_len, teacher.phrases) != (config.max_len, config.phrases)
            found += learned * asked + self.load_s * reads_otherwise * (1 + stage.augment)
        if stage.ngram_teacher:
            found += self._letters() * (1 + 0.5 * stage.augment)
        return found

    # --- What is measured, each thing once ----------------------------------------------------
    def _speed(self, config: TrainConfig, stage: StageCost) -> _Speed:
        shape = config.architecture, config.d_model, config.n_layers, config.attention
        run = config.max_len, config.batch_size, bool(config.pretrain_epochs)
        key = (*shape, *run, stage.threads, stage.beside)
        if key not in self._speeds:
            threads = torch.get_num_threads()
            torch.set_num_threads(stage.threads)
            try:
                with _busy(stage.beside):
                    self._speeds[key] = self._measured(config)
            finally:
                torch.set_num_threads(threads)
        return self._speeds[key]

    def _measured(self, config: TrainConfig) -> _Speed:
        data = _cut(self.data, config.max_len)
        network = make_network(config, self.corpus, data, self.processes.device)
        work = self._work(config)
        if config.d_model not in self._starts_s:
            self._starts_s[config.d_model] = _timed(lambda: self._start(config, network, work))
        rows = _sample(self.data.training_rows, _SCORED)
        score = _timed(lambda: logits_of(network.trained, data.ids, rows))
        guess = self._pretraining(config, data, network, work) if config.pretrain_epochs else 0.0
        step = self._steps(config, data, network, work)
        return _Speed(step, score / sum(len(data.ids[row]) for row in rows), guess)

    def _start(self, config: TrainConfig, network: Network, work: Work) -> None:
        """The first weights; what they cost depends on their width alone."""
        plain = replace(config, pretrain_epochs=0)
        parts = plain, self.corpus, self.data, network.encoder, work, self.processes
        learn_without_labels(*parts, StopRequest(), _QUIET)

    def _work(self, config: TrainConfig) -> Work:
        steps = math.ceil(len(self.data.training_rows) / config.batch_size)
        return Work(self.folder / "probe", {}, config.batch_size, steps)

    def _steps(self, config: TrainConfig, data: Examples, network: Network, work: Work) -> float:
        """Seconds for a token of a training step, the making of its batch included."""
        progress: dict[str, Any] = {
            "step": 0,
            "epoch_loss": [],
            "history": [],
            "seconds": 0.0,
            "tokens": 0,
        }
        optimizer = make_optimizer(network.encoder, config)
        total = work.steps_per_epoch * config.epochs
        run = TrainingRun(config, self.processes, data, network, optimizer, work, progress, total)
        run.parallel.train()
        began, before = time.monotonic(), 0
        for number, batch in enumerate(islice(run.batches(), _WARM_UP + _STEPS), 1 - _WARM_UP):
            run.step(batch)
            if number == 0:
                began, before = time.monotonic(), progress["tokens"]
            if number >= _LEAST_STEPS and time.monotonic() - began >= _SECONDS:
                break
        return (time.monotonic() - began) / max(1, progress["tokens"] - before)

    def _pretraining(
        self, config: TrainConfig, data: Examples, network: Network, work: Work
    ) -> float:
        rows = _sample(data.training_rows, config.batch_size * _LEAST_STEPS)
        once = replace(config, pretrain_epochs=1)
        parts: Any = once, work.folder, {}, self.processes.autocast, StopRequest(), _QUIET
        found = pretrain.pretrain(network.transformer, data.ids, rows, *parts)
        return 1 / max(1, found["real_tokens_per_second"])

    def _letters(self) -> float:
        """Seconds for the regressions on the letters of all training comments."""
        train = self.corpus.split.train
        if not self._letters_s and len(train):
            rows = _sample(train, _LETTERS)
            labels, none = self.corpus.comments.labels[rows], np.zeros(0, np.int64)
            texts = [self.corpus.comments.texts[row] for row in rows]
            took = _timed(
                lambda: ngrams.cross_fitted_logits(
                    *(texts, labels, np.ones(len(rows)), [], none),
                    seed=0,
                    folder=self.folder,
                    say=_QUIET,
                )
            )
            self._letters_s = took * len(train) / len(rows)
        return self._letters_s

    def _finish(self) -> float:
        """Seconds for the calibration and the thresholds at a stage's end."""
        if not self._finish_s:
            labels = self.corpus.comments.labels[self.corpus.split.validation]
            logits = np.random.default_rng(0).normal(labels, 1.0).astype(np.float32)
            names = [str(row) for row in range(len(labels))]

            def judged() -> None:
                calibration.comparison(labels, logits)
                calibration.choose(labels, logits)
                labelled = Labelled.of(labels, probability_of(logits), names)
                thresholds_of(labelled, source="validation split", scores="PyTorch")

            self._finish_s = _timed(judged)
        return self._finish_s

    # --- What is known ------------------------------------------------------------------------
    def _tokens(self, rows: np.ndarray, config: TrainConfig) -> float:
        """Real tokens of the comments at `rows`, by those of a sample."""
        if not len(rows):
            return 0.0
        taken = _sample(rows, _SAMPLED)
        lengths = [min(len(self.data.ids[row]), config.max_len) for row in taken]
        return float(np.mean(lengths)) * len(rows)

    def _test_file_tokens(self, config: TrainConfig) -> float:
        if not (found := self.corpus.test_file):
            return 0.0
        texts = found.comments.texts
        ids = TokenizedOnTheFly(texts, self.corpus.tokenizer)
        lengths = [min(len(ids[row]), config.max_len) for row in range(min(len(texts), _SCORED))]
        return float(np.mean(lengths)) * len(texts)


class _CutIds:
    """Token ids of a tokenizer that reads further, cut."""

    def __init__(self, ids: Examples, max_len: int) -> None:
        self._ids, self._max_len = ids.ids, max_len

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._ids[row][: self._max_len]

    def count_cut(self, first: int) -> int:
        return sum(len(self._ids[row]) > self._max_len for row in range(first))


def _cut(data: Examples, max_len: int) -> Examples:
    return replace(data, ids=_CutIds(data, max_len))  # type: ignore[arg-type]


def _sample(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of `rows`, drawn at random, always the same."""
    if len(rows) <= most:
        return rows
    return np.random.default_rng(0).choice(rows, most, replace=False)


def _timed(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


@contextlib.contextmanager
def _busy(threads: int) -> Iterator[None]:
    """So many processes that compute, meanwhile; they end with this one, however it ends."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _BUSY]
    others = [subprocess.Popen(command, env=alone) for _ in range(threads)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
