"""The recurrent teacher: padding decides nothing, order does; it teaches and is not exported."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from console.options import make_config
from contract import CLS_ID, PAD_ID, BadInput
from train.artifacts import load_checkpoint, load_teacher, read_json
from train.config import TrainConfig
from train.data.load import load_comments
from train.encoders import make_encoder
from train.loop import train
from train.model import ModelConfig
from train.recurrent import RecurrentEncoder

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    **{"data": "synthetic:1500", "max_vocab": 500, "max_len": 24, "d_model": 16, "n_heads": 2},
    **{"epochs": 4, "lr": 5e-3, "batch_size": 32, "device": "cpu"},
}


@pytest.fixture(scope="module")
def encoder() -> RecurrentEncoder:
    torch.manual_seed(0)
    made = make_encoder(ModelConfig(50, d_model=16, n_heads=2, architecture="recurrent"))
    assert isinstance(made, RecurrentEncoder)
    return made.eval()


def logits(encoder: RecurrentEncoder, comments: list[list[int]], length: int) -> np.ndarray:
    """float32 [len(comments)], each filled up to `length`."""
    ids = torch.tensor([ids + [PAD_ID] * (length - len(ids)) for ids in comments])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in comments])
    with torch.inference_mode():
        found: np.ndarray = encoder(ids, mask).numpy()
    return found


COMMENTS = [[CLS_ID], [CLS_ID, 5], [CLS_ID, 9, 8, 7, 9], [CLS_ID, *range(10, 30)]]


def test_a_comment_scores_the_same_beside_any_other(encoder: RecurrentEncoder) -> None:
    alone = np.concatenate([logits(encoder, [ids], len(ids)) for ids in COMMENTS])
    np.testing.assert_allclose(logits(encoder, COMMENTS, 21), alone, atol=1e-6)
    np.testing.assert_allclose(logits(encoder, COMMENTS[::-1], 40)[::-1], alone, atol=1e-6)
    assert len(set(alone.round(4))) == len(COMMENTS)


def test_it_reads_words_in_their_order_from_both_ends(encoder: RecurrentEncoder) -> None:
    one, other = logits(encoder, [[CLS_ID, 5, 6, 7], [CLS_ID, 7, 6, 5]], 4)
    assert abs(one - other) > 1e-4
    found = dict(encoder.named_parameters())
    ids = torch.tensor([[CLS_ID, 5, 6, 7]])
    encoder(ids, torch.ones_like(ids)).sum().backward()
    for name in ("forwards.weight_hh_l0", "backwards.weight_hh_l0", "head.weight"):
        gradient = found[name].grad
        assert gradient is not None and gradient.abs().max() > 0, name
    encoder.zero_grad()


@pytest.mark.slow
def test_it_teaches_and_is_not_exported(tmp_path: Path) -> None:
    words = sorted(load_words())
    vectors = tmp_path / "vectors.txt"
    numbers = np.random.default_rng(0).normal(size=(len(words), 8)).round(3)
    vectors.write_text(
        "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, numbers, strict=True))
    )
    given = {**SMALL, "architecture": "recurrent", "word_vectors": vectors, "out": tmp_path / "one"}
    train(make_config(TrainConfig, given), CPU)
    run = load_teacher(tmp_path / "one")
    assert isinstance(run.model, RecurrentEncoder)
    digest = hashlib.sha256(vectors.read_bytes()).hexdigest()
    assert run.config["word_vectors"] == {"name": vectors.name, "sha256": digest}
    with pytest.raises(BadInput, match="is a recurrent, which only teaches"):
        load_checkpoint(tmp_path / "one")
    student = {"distill": (tmp_path / "one",), "d_model": 16, "n_heads": 2}
    more = {"word_vectors": vectors, "ngram_teacher": 0.0, "out": tmp_path / "student"}
    given = {**SMALL, **student, **more}
    train(make_config(TrainConfig, given), CPU)
    metrics = read_json(tmp_path / "student" / "metrics.json", "")
    assert metrics["validation"]["auroc"] > 0.7
    load_checkpoint(tmp_path / "student")


def load_words() -> set[str]:
    """Of the synthetic comments."""
    return {w.lower() for text in load_comments("synthetic:1500").texts for w in text.split()}
