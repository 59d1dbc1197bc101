"""The comments of a training: read, split, and with the tokenizer that reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from train import artifacts
from train.config import TrainConfig
from train.data.load import Comments, load_comments
from train.data.split import Overlap, Split, overlap, split_comments
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

    @property
    def texts(self) -> list[str]:
        """Of every row: the comments', then the extra ones'."""
        return self.comments.texts + self.extra.texts

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
    comments = _load(config, config.data)
    say(comments.summary())
    attributes.check_columns(config.attributes, comments)
    test_file = None
    if config.test_data:
        test_file = _load_test_file(config, config.test_data, comments, say)
    split = split_comments(
        comments.texts, comments.labels, fractions=config.fractions, seed=config.seed
    )
    if config.attributes:
        say(attributes.summary(comments, split.train))
    for checkpoint in earlier.all:
        artifacts.check_split(checkpoint.folder, split.fingerprint, config.data)
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
    return Corpus(comments, split, tokenizer, extra, test_file, earlier)


def _load(config: TrainConfig, source: str) -> Comments:
    return load_comments(
        source,
        text_column=config.text_column,
        label_column=config.label_column,
        label_map=config.label_map,
        attributes=config.attributes,
    )


def _load_test_file(
    config: TrainConfig, source: str, comments: Comments, say: Callable[[str], None]
) -> TestFile:
    found = _load(config, source)
    say(f"test file: {found.summary()}")
    seen = overlap(found.texts, comments.texts)
    if seen.same or seen.alike:
        say(f"WARNING: {seen.words()} are in --data, too: its metrics promise too much")
    return TestFile(found, seen)
