"""What a step of the training reads: token ids, targets, and what each comment counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.files import clear_unfinished
from storage.locks import LOCK_FILE, SHARED_WAIT_S, locked
from train.config import TrainConfig
from train.corpus import Corpus
from train.data.batches import CommentIds, TextIds, TokenizedOnTheFly, pretokenize
from train.data.stored_texts import chosen
from train.data.tokenizer import oov_rates
from train.distributed import Processes
from train.methods import attributes, debias, distill, sampling

TOKENIZED = "pretokenized"
"""Folder of the token ids, in that of the progress."""
TEACHER_LOGITS = "teacher_logits"
"""Folder of what teachers said, beside the run: the next student needs it, too."""


@dataclass(frozen=True)
class Examples:
    """By row of the corpus; rows that are not trained on have targets and weights that say nothing.

    `targets` and `weights` are float32 [n].
    """

    ids: TextIds
    training_rows: np.ndarray
    """int64 [m]."""
    targets: np.ndarray
    """What the loss compares with: labels, or probabilities of teachers or of --soft-labels."""
    weights: np.ndarray
    """What a comment counts in the loss."""
    pos_weight: float
    """What a toxic comment counts beside a harmless one."""
    terms: debias.IdentityStatistics | None
    """With --identity-balance or --identity-insertion."""
    sampling: sampling.Sampling | None
    """Of several sources."""
    attributes: np.ndarray
    """float32 [n, A], NaN where nothing is said; A is 0 without --attributes."""
    unknown: dict[str, float]
    """Shares of the validation comments' tokens, as `oov_rates` gives them."""

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """int64: rows of the examples of an epoch, counted from 0."""
        return self.sampling.epoch_rows(epoch) if self.sampling else self.training_rows


def make_examples(
    config: TrainConfig,
    corpus: Corpus,
    work: Path,
    processes: Processes,
    say: Callable[[str], None],
) -> Examples:
    """Tokenize the corpus and take its targets; `work` is the folder of the progress."""
    ids = _token_ids(config, corpus, work, processes)
    validation, tokenizer = corpus.split.validation, corpus.tokenizer
    unknown = oov_rates(
        chosen(corpus.comments.texts, validation),
        tokenizer,
        (ids[row] for row in validation),
    )
    say(
        f"vocabulary of {len(tokenizer.vocabulary):,}; {unknown['before']:.2%} of the validation "
        f"comments' tokens are not in it, {unknown['after']:.2%} stay [UNK]"
    )
    weights, terms = _identity_weights(config, corpus, ids, say)
    source_weights = _source_weights(corpus)
    weights[: len(source_weights)] *= source_weights
    drawn = _sampling(config, corpus, say)
    scaled = config.soft_labels or corpus.earlier.give_probabilities
    return Examples(
        ids=ids,
        training_rows=corpus.training_rows,
        targets=_targets(config, corpus, ids, processes, say),
        weights=weights,
        pos_weight=1.0 if scaled else _balance(corpus, source_weights, drawn),
        terms=terms,
        sampling=drawn,
        attributes=attributes.targets(config.attributes, corpus.comments, len(ids)),
        unknown=unknown,
    )


def _source_weights(corpus: Corpus) -> np.ndarray:
    """float32 [n] of the comments: `weight` of the source of each."""
    if corpus.comments.origin is None:
        return np.ones(len(corpus.comments.texts), np.float32)
    weights = [source.weight for source in corpus.sources]
    return np.array(weights, np.float32)[corpus.comments.origin]


def _sampling(
    config: TrainConfig, corpus: Corpus, say: Callable[[str], None]
) -> sampling.Sampling | None:
    """How epochs are drawn where there are several sources."""
    origin, train = corpus.comments.origin, corpus.split.train
    if len(corpus.sources) < 2 or origin is None:
        return None
    wanted = [source.share for source in corpus.sources]
    always = corpus.training_rows[len(train) :]
    drawn = sampling.plan(train, origin, wanted, config.seed, always)
    for source, rows, count in zip(corpus.sources, drawn.rows, drawn.counts, strict=True):
        say(
            f"source {source.name}: {len(rows):,} training comments, {count:,} examples an epoch "
            f"({count / len(train):.1%}), weight {source.weight:g}"
        )
    return drawn


def _balance(corpus: Corpus, source_weights: np.ndarray, drawn: sampling.Sampling | None) -> float:
    """Harmless examples of an epoch for each toxic one, as often as it has them."""
    train = corpus.split.train
    if drawn is None:
        positive = float(corpus.training_labels.sum())
        return (len(train) - positive) / positive
    counts = (drawn.rate(len(source_weights)) * source_weights)[train]
    toxic = float(counts @ corpus.learned[train])
    return (float(counts.sum()) - toxic) / toxic


def _token_ids(config: TrainConfig, corpus: Corpus, work: Path, processes: Processes) -> TextIds:
    if not config.pretokenize:
        return TokenizedOnTheFly(corpus.texts, corpus.tokenizer)
    if processes.leads:
        pretokenize(corpus.texts, corpus.tokenizer, work / TOKENIZED)
    processes.wait()
    return pretokenize(corpus.texts, corpus.tokenizer, work / TOKENIZED)


def _targets(
    config: TrainConfig,
    corpus: Corpus,
    ids: CommentIds,
    processes: Processes,
    say: Callable[[str], None],
) -> np.ndarray:
    """Labels, or with --distill the teachers' probabilities: rank 0 asks, the others read."""
    teachers = corpus.earlier.teachers
    if not teachers:
        return corpus.comments.targets if config.soft_labels else corpus.learned
    folder = config.out.parent / TEACHER_LOGITS
    data = corpus.comments, corpus.extra, corpus.split.train, ids
    asked = config, teachers, *data, folder, processes.device, say
    if processes.leads:
        with locked(folder / LOCK_FILE, str(folder), "wait for it", SHARED_WAIT_S):
            clear_unfinished(folder)
            targets = distill.soft_targets(*asked)
    processes.wait()
    return targets if processes.leads else distill.soft_targets(*asked)


def _identity_weights(
    config: TrainConfig, corpus: Corpus, ids: CommentIds, say: Callable[[str], None]
) -> tuple[np.ndarray, debias.IdentityStatistics | None]:
    """What each row counts, float32 [n], and what the training split says of identity terms."""
    weights = np.ones(len(ids), np.float32)
    if not (config.identity_balance or config.identity_insertion):
        return weights, None
    train, vocabulary = corpus.split.train, corpus.tokenizer.vocabulary
    labelled = train, corpus.training_labels
    terms = debias.statistics(ids, *labelled, debias.term_ids(vocabulary))
    say(debias.summary(terms, vocabulary))
    weights[train] = debias.balancing_weights(ids, *labelled, terms, config.identity_balance)
    return weights, terms
