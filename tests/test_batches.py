"""Batches: every comment once, little padding, the same from disk as on the fly."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import PAD_ID
from train.data.batches import (
    Pretokenized,
    TokenizedOnTheFly,
    evaluation_batches,
    pretokenize,
    training_batches,
)
from train.data.tokenizer import build_tokenizer

RNG = np.random.default_rng(0)
WORDS = [f"word{i}" for i in range(500)]
TEXTS = [
    " ".join(RNG.choice(WORDS, size=n))
    for n in np.clip(RNG.lognormal(3, 1, 3000), 0, 90).astype(int)
]
TOKENIZER = build_tokenizer(TEXTS, max_vocab=400, max_len=64)
ROWS = np.arange(0, len(TEXTS), 2)
FEW = ROWS[::3]


def ids() -> TokenizedOnTheFly:
    return TokenizedOnTheFly(TEXTS, TOKENIZER)


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
def test_each_row_once_an_epoch(batch_size: int, seed: int, epoch: int) -> None:
    batches = list(training_batches(ids(), FEW, batch_size=batch_size, seed=seed, epoch=epoch))
    assert sorted(np.concatenate([b.rows for b in batches])) == FEW.tolist()
    assert len(batches) == -(-len(FEW) // batch_size)


@settings(max_examples=25)
@given(st.integers(1, 64), st.integers(0, 30))
def test_start_skips_whole_batches(batch_size: int, start: int) -> None:
    def rows_from(start: int) -> list[list[int]]:
        made = training_batches(ids(), FEW, batch_size=batch_size, seed=1, epoch=2, start=start)
        return [batch.rows.tolist() for batch in made]

    assert rows_from(start) == rows_from(0)[start:]


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return next(
            training_batches(ids(), ROWS, batch_size=32, seed=seed, epoch=epoch)
        ).rows.tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_tensors_hold_the_ids_and_little_padding() -> None:
    real = padded = 0
    for batch in training_batches(ids(), ROWS, batch_size=16, seed=0, epoch=0):
        for row, line, mask in zip(batch.rows, batch.input_ids, batch.attention_mask, strict=True):
            expected = TOKENIZER.encode(TEXTS[row])
            assert line[mask == 1].tolist() == expected
            assert (line[len(expected) :] == PAD_ID).all()
            assert mask.tolist() == [1] * len(expected) + [0] * (len(line) - len(expected))
        real += int(batch.attention_mask.sum())
        padded += batch.input_ids.numel()
    assert padded <= 1.1 * real


def test_pretokenized_gives_the_identical_batches(tmp_path: Path) -> None:
    stored = pretokenize(TEXTS, TOKENIZER, tmp_path)
    live = ids()
    assert len(stored) == len(live)
    settings_ = {"batch_size": 32, "seed": 3, "epoch": 1}
    for one, other in zip(
        training_batches(stored, ROWS, **settings_),
        training_batches(live, ROWS, **settings_),
        strict=True,
    ):
        assert (one.rows == other.rows).all()
        assert (one.input_ids == other.input_ids).all()
        assert (one.attention_mask == other.attention_mask).all()
    for first in (100, len(TEXTS)):
        cut = sum(TOKENIZER.encode_and_cut(text)[1] for text in TEXTS[:first])
        assert stored.count_cut(first) == live.count_cut(first) == cut > 0
    assert isinstance(stored._ids, np.memmap)


def test_pretokenized_ids_are_not_reused_for_other_texts(tmp_path: Path) -> None:
    pretokenize(TEXTS, TOKENIZER, tmp_path)
    changed = pretokenize(["another", *TEXTS[1:]], TOKENIZER, tmp_path)
    assert changed[0].tolist() == TOKENIZER.encode("another")
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_ids_are_stored_in_constant_memory(tmp_path: Path) -> None:
    class Many:
        """Many comments, made when they are asked for."""

        def __len__(self) -> int:
            return 400_000

        def __getitem__(self, row: int) -> str:
            if row >= len(self):
                raise IndexError
            return TEXTS[row % 8]

    tracemalloc.start()
    try:
        stored = pretokenize(Many(), TOKENIZER, tmp_path)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(stored) == 400_000
    for row in (0, 7, 399_999):
        assert stored[row].tolist() == TOKENIZER.encode(TEXTS[row % 8])
    assert stored._ids.nbytes > 20 << 20  # what would have been held, and twice of it
    assert peak < 400_000 * 10 + (6 << 20)
    names = {
        path.name for folder in tmp_path.iterdir() if folder.is_dir() for path in folder.iterdir()
    }
    assert names == {"ids.npy", "offsets.npy", "cut.npy"}


def test_an_interrupted_pretokenization_leaves_nothing_behind_that_is_read(tmp_path: Path) -> None:
    class Stops(list[str]):
        def __getitem__(self, row: object) -> str:  # type: ignore[override]
            if row == 100:
                raise KeyboardInterrupt
            return super().__getitem__(row)  # type: ignore[index]

    with pytest.raises(KeyboardInterrupt):
        pretokenize(Stops(TEXTS), TOKENIZER, tmp_path)
    assert isinstance(pretokenize(TEXTS, TOKENIZER, tmp_path), Pretokenized)


def test_evaluation_covers_every_row_once() -> None:
    batches = list(evaluation_batches(ids(), ROWS, batch_size=100))
    assert sorted(np.concatenate([b.rows for b in batches])) == ROWS.tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_parts_make_up_the_batch(world: int) -> None:
    batch = next(training_batches(ids(), ROWS, batch_size=31, seed=0, epoch=0))
    parts = [batch.part(rank, world).rows for rank in range(world)]
    assert sorted(np.concatenate(parts)) == sorted(batch.rows)
