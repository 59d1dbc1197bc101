"""The weights that a training starts from: random ones, those of --qat, and what is known before
the first label is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn

from train.config import TrainConfig
from train.corpus import Corpus
from train.distributed import Processes
from train.encoders import Encoder, make_encoder, training_pass
from train.examples import Examples
from train.methods import pretrain, qat
from train.methods.embeddings import alike_words, cooccurrence_embeddings, spelled_alike, start_from
from train.methods.word_vectors import beside, read_word_vectors
from train.model import ToxicityEncoder, every_head
from train.resume import Work
from train.terminal import Printer, StopRequest


@dataclass(frozen=True)
class Network:
    """The encoder, and the pass through it that is trained."""

    encoder: Encoder
    """What is optimized and saved."""
    trained: nn.Module
    """Its forward pass in training, which shares its parameters."""
    ranges: qat.Ranges | None
    """Activation ranges of --qat."""

    @property
    def heads(self) -> nn.Module:
        """`trained` with the logits of --attributes: [B, 1 + A], [B] without any."""
        if isinstance(self.encoder, ToxicityEncoder):
            return every_head(self.encoder, self.trained)
        return self.trained

    @property
    def transformer(self) -> ToxicityEncoder:
        """The encoder of what the flags allow a Transformer only."""
        assert isinstance(self.encoder, ToxicityEncoder)
        return self.encoder


def make_network(
    config: TrainConfig, corpus: Corpus, data: Examples, device: torch.device
) -> Network:
    """Random weights by `config.seed`, or those of --qat with the INT8 rounding in their pass."""
    torch.manual_seed(config.seed)
    if corpus.earlier.tuned is None:
        shape = config.encoder_config(len(corpus.tokenizer.vocabulary))
        encoder = make_encoder(shape).to(device)
        return Network(encoder, training_pass(encoder), None)
    tuned = corpus.earlier.tuned.model.to(device)
    observed = qat.calibration_rows(corpus.split.train, config.seed)
    ranges = qat.calibrate(tuned, (data.ids[row] for row in observed))
    return Network(tuned, qat.FakeQuantizedEncoder(tuned, ranges), ranges)


def learn_without_labels(
    config: TrainConfig,
    corpus: Corpus,
    data: Examples,
    encoder: Encoder,
    work: Work,
    processes: Processes,
    stop: StopRequest,
    say: Printer,
) -> dict[str, Any] | None:
    """Token embeddings, then pre-training, as the flags say; what metrics.json says of the latter.

    Nothing where the training itself is under way. Raises KeyboardInterrupt as the training does.
    """
    if config.embeddings != "random" and not work.has_progress:
        _start_embeddings(config, corpus, data, encoder, say)
    if not config.pretrain_epochs:
        return None
    assert isinstance(encoder, ToxicityEncoder)  # the flags allow no other
    rows, place = data.training_rows, (work.folder, work.identity)
    return pretrain.pretrain(encoder, data.ids, rows, config, *place, processes.autocast, stop, say)


def _start_embeddings(
    config: TrainConfig,
    corpus: Corpus,
    data: Examples,
    encoder: Encoder,
    say: Callable[[str], None],
) -> None:
    say("counting which words stand near each other ...")
    vocabulary = corpus.tokenizer.vocabulary
    rows = data.training_rows

    def read() -> Iterator[np.ndarray]:
        return (data.ids[row] for row in rows)

    @functools.cache
    def alike() -> sparse.csr_matrix:
        return alike_words(vocabulary)

    vectors, known = cooccurrence_embeddings(read(), len(vocabulary), config.d_model, config.seed)
    if config.embeddings == "spelling":
        vectors, known = spelled_alike(vectors, read(), alike())
    if config.word_vectors:
        say(f"reading {config.word_vectors} ...")
        others = read_word_vectors(config.word_vectors, vocabulary)
        say(f"{others[1].sum():,} of {len(vocabulary):,} tokens have a word vector")
        vectors, known = beside(vectors, *others, alike(), seed=config.seed)
    start_from(encoder.token_embedding, vectors, known)
