"""The comments of a training: read, split, and with the tokenizer that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from contract import BadInput
from train import artifacts
from train.config import TrainConfig
from train.data.load import Comments, load_comments
from train.data.near_duplicates import near_rows
from train.data.sources import (
    Sources,
    given_sources,
    learned_targets,
    load_all,
    load_source,
    without,
)
from train.data.split import Overlap, Split, overlap, split_comments
from train.data.stored_texts import joined
from train.data.tokenizer import Respelling, Tokenizer, build_tokenizer
from train.earlier import EarlierRuns
from train.methods import attributes, debias, distill


@dataclass(frozen=True)
class TestFile:
    """The file of --test-data."""

    comments: Comments
    in_data: Overlap
    """What of it stands in --data, too."""


@dataclass(frozen=True)
class Corpus:
    """What a training reads, as text: `comments`, then the `extra` ones, which have no label."""

    comments: Comments
    split: Split
    """Of `comments`."""
    tokenizer: Tokenizer
    extra: distill.Extra
    test_file: TestFile | None
    earlier: EarlierRuns
    sources: Sources = ()
    """That `comments` are of, by `Comments.origin`; none for one plain file."""
    held_out: Comments | None = None
    """Of --hold-out-source."""

    @property
    def learned(self) -> np.ndarray:
        """float32 [n] of the comments: what the loss compares with, by each source's meaning."""
        return learned_targets(self.comments, self.sources)

    @property
    def texts(self) -> Sequence[str]:
        """Of every row: the comments', then the extra ones'."""
        return joined(self.comments.texts, self.extra.texts)

    @property
    def training_rows(self) -> np.ndarray:
        """int64 [n]: of the training split, then of the extra comments."""
        count = len(self.comments.texts)
        extra = np.arange(count, count + len(self.extra.texts))
        return np.concatenate([self.split.train, extra])

    @property
    def training_labels(self) -> np.ndarray:
        """float32 [n] of the training split."""
        return self.comments.labels[self.split.train]


def load_corpus(config: TrainConfig, earlier: EarlierRuns, say: Callable[[str], None]) -> Corpus:
    """Read `config`'s data; the same on every process, from the same seed.

    Raises BadInput for data that cannot be read, or are not those that an earlier run had.
    """
    sources, where, held_out = _sources(config, say)
    if sources:
        comments = load_all(sources, where, config.attributes)
    else:
        comments = _load(config, config.data[0])
    say(comments.summary())
    attributes.check_columns(config.attributes, comments)
    test_file = None
    if config.test_data:
        dropped = drops_near_duplicates(config, sources)
        test_file = _load_test_file(config, config.test_data, comments, dropped, say)
    split = split_comments(
        comments.texts,
        comments.labels,
        fractions=config.fractions,
        seed=config.seed,
        origin=comments.origin if len(sources) > 1 else None,
    )
    if config.attributes:
        say(attributes.summary(comments, split.train))
    for checkpoint in earlier.all:
        artifacts.check_split(checkpoint.folder, split.fingerprint, comments.source["name"])
    if drops_near_duplicates(config, sources):
        split = _without_near_duplicates(comments, split, test_file, held_out, say)
    if earlier.all:
        tokenizer = earlier.all[0].tokenizer
    else:
        tokenizer = build_tokenizer(
            (comments.texts[row] for row in split.train),
            max_vocab=config.max_vocab,
            max_len=config.max_len,
            respelling=Respelling() if config.respell else None,
            phrases=config.phrases,
            unmerged=debias.IDENTITY_TERMS,  # one id each, or the balance would miss some
        )
    extra = distill.extra_comments(config, comments, split.train, tokenizer)
    return Corpus(comments, split, tokenizer, extra, test_file, earlier, sources, held_out)


def _sources(
    config: TrainConfig, say: Callable[[str], None]
) -> tuple[Sources, str, Comments | None]:
    """Sources to train on, the file that they stand in, and the comments of --hold-out-source."""
    sources, where = given_sources(
        config.data,
        config.sources,
        text_column=config.text_column,
        label_column=config.label_column,
        label_map=config.label_map,
    )
    if config.hold_out_source is None:
        return sources, where, None
    sources, held = without(sources, config.hold_out_source)
    comments = load_source(held, where, config.attributes)
    say(f"held out: {comments.summary()}")
    return sources, where, comments


def drops_near_duplicates(config: TrainConfig, sources: Sources) -> bool:
    """Whether training comments near to those that judge the model are left out."""
    several = len(sources) > 1 or config.hold_out_source is not None
    return config.near_duplicates == "drop" or (config.near_duplicates == "auto" and several)


def _without_near_duplicates(
    comments: Comments,
    split: Split,
    test_file: TestFile | None,
    held_out: Comments | None,
    say: Callable[[str], None],
) -> Split:
    """`split` without the training comments near one of another part, or of what is evaluated."""
    judging = [comments.texts[row] for row in (*split.validation, *split.test)]
    judging += test_file.comments.texts if test_file else []
    judging += held_out.texts if held_out else []
    near = near_rows(comments.texts, split.train, judging)
    say(
        f"{len(near):,} of {len(split.train):,} training comments are nearly the same as one of "
        f"{len(judging):,} that judge the model: left out"
    )
    kept = split.without(near)
    if len(np.unique(comments.labels[kept.train])) < 2:
        raise BadInput(
            f"{len(kept.train):,} training comments are left without near duplicates, expected "
            "both classes; give more comments, or --near-duplicates keep"
        )
    return kept


def _load(config: TrainConfig, source: str) -> Comments:
    return load_comments(
        source,
        text_column=config.text_column,
        label_column=config.label_column,
        label_map=config.label_map,
        attributes=config.attributes,
    )


def _load_test_file(
    config: TrainConfig,
    source: str,
    comments: Comments,
    dropped: bool,
    say: Callable[[str], None],
) -> TestFile:
    """`dropped`: whether what it shares with the training comments is left out of them."""
    found = _load(config, source)
    say(f"test file: {found.summary()}")
    seen = overlap(found.texts, comments.texts)
    if (seen.same or seen.alike) and not dropped:
        say(f"WARNING: {seen.words()} are in --data, too: its metrics promise too much")
    return TestFile(found, seen)
