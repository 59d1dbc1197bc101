"""Options of training: each does what its name says, resumes, and is refused where it cannot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from console.options import make_config
from contract import CLS_ID, PAD_ID, UNK_ID, BadInput
from experiments import ablation
from train.artifacts import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE
from train.config import TrainConfig
from train.loop import train
from train.methods import debias, embeddings, pretrain
from train.methods.cls_only import ClsOnlyEncoder
from train.model import Attention, ModelConfig, ToxicityEncoder
from train.operating.intervals import Estimate
from train.terminal import StopRequest
from train.throughput import flops_per_token, matmul_peak

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    **{"data": "synthetic:600", "max_vocab": 500, "max_len": 24, "d_model": 16, "n_layers": 2},
    **{"n_heads": 2, "epochs": 1, "batch_size": 32, "checkpoint_steps": 5, "device": "cpu"},
}
ALL_AT_ONCE: dict[str, Any] = {
    **{"embeddings": "cooccurrence", "pretrain_epochs": 1, "phrases": 50, "dropout": 0.3},
    **{"identity_balance": 1.0, "identity_insertion": 0.5},
}


@pytest.fixture(scope="module", autouse=True)
def _terms_of_the_synthetic_comments() -> Iterator[None]:
    """They name no identity, so that a word of their attacks stands for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debias, "IDENTITY_TERMS", ("idiot", "stupid"))
        yield


def trained(out: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights of a finished run."""
    train(make_config(TrainConfig, {**SMALL, "out": out, **changes}), CPU)
    return load_file(out / WEIGHTS_FILE)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StopAfter(StopRequest):
    """Asks for a stop once the loops have looked this often."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "model"
    trained(out)
    return out


# --- The last block for [CLS] alone -----------------------------------------------------------
@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_cls_only_pass_has_the_logits_and_the_gradients_of_the_whole(attention: Attention) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "dropout": 0.0}
    encoder = ToxicityEncoder(ModelConfig(vocab_size=50, attention=attention, **shape))
    ids = torch.randint(3, 50, (4, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [1], [5], [8]])).long()
    passes = []
    for model in (encoder, ClsOnlyEncoder(encoder)):
        encoder.zero_grad()
        logits = model(ids, mask)
        logits.square().sum().backward()
        passes.append([logits, *(p.grad.clone() for p in encoder.parameters())])
    for whole, cls_only in zip(*passes, strict=True):
        torch.testing.assert_close(cls_only, whole, atol=1e-6, rtol=1e-4)
    assert any(gradient.abs().max() > 0.01 for gradient in passes[0][1:])


def test_operations_counted_are_those_of_the_linear_layers() -> None:
    """Beside PyTorch's own counter: long comments, where what is per comment weighs little."""
    config = ModelConfig(vocab_size=50, d_model=64, n_layers=3, n_heads=2, dropout=0.0)
    model = ClsOnlyEncoder(ToxicityEncoder(config))
    ids = torch.randint(3, 50, (2, 200))
    with FlopCounterMode(display=False) as counter:
        model(ids, torch.ones_like(ids)).sum().backward()
    linear = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op)
    )  # attention's products are operators of their own
    assert flops_per_token(config) * ids.numel() == pytest.approx(linear, rel=0.1)
    assert matmul_peak(CPU, torch.float32) > 1e8


# --- Masked-word pre-training -----------------------------------------------------------------
def test_hidden_words_are_words_and_about_the_share() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 90, (64, 60))
    ids[:, 0], ids[:, 5] = CLS_ID, UNK_ID
    mask = torch.ones_like(ids)
    mask[:, 50:], ids[:, 50:] = 0, PAD_ID
    shown, masked, words = pretrain.hide_words(ids, mask, 90)
    assert not masked[:, [0, 5, *range(50, 60)]].any()
    assert torch.equal(words, ids[masked])
    assert torch.equal(shown[~masked], ids[~masked])
    assert masked.sum() / (64 * 48) == pytest.approx(pretrain.MASKED_SHARE, abs=0.02)
    assert (shown[masked] == UNK_ID).float().mean() == pytest.approx(0.8, abs=0.06)
    assert (shown[masked] == words).float().mean() == pytest.approx(0.1, abs=0.06)


def test_sampled_softmax_is_right_on_average_and_exact_over_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    encoder = ToxicityEncoder(ModelConfig(vocab_size=800, d_model=16, n_layers=1, n_heads=2))
    torch.nn.init.normal_(encoder.token_embedding.weight, std=0.3)
    model = pretrain.MaskedWordModel(encoder).eval()
    torch.nn.init.normal_(model.bias)
    ids = torch.randint(3, 800, (8, 20))
    inputs = pretrain.hide_words(ids, torch.ones_like(ids), 800)
    with torch.no_grad():
        exact = model(inputs[0], torch.ones_like(ids), *inputs[1:])
        states = {}
        model.norm.register_forward_hook(lambda _m, _i, out: states.update(guess=out))
        model(inputs[0], torch.ones_like(ids), *inputs[1:])
        logits = functional.linear(states["guess"], encoder.token_embedding.weight, model.bias)
        assert exact.item() == pytest.approx(
            functional.cross_entropy(logits, inputs[2]).item(), abs=1e-5
        )
        monkeypatch.setattr(pretrain, "SAMPLED", 100)
        encoder.dropout.p = 0.0
        model.norm.train()
        model.training = True  # the softmax alone: dropout stays off
        losses = [model(inputs[0], torch.ones_like(ids), *inputs[1:]).item() for _ in range(200)]
    assert np.mean(losses) == pytest.approx(exact.item(), abs=0.05)
    assert np.std(losses) > 0.001


def test_pretraining_learns_and_gives_the_classifier_its_start(tmp_path: Path, plain: Path) -> None:
    weights = trained(tmp_path / "run", pretrain_epochs=6, lr=1e-2)
    record = json.loads((tmp_path / "run" / METRICS_FILE).read_text())["pretraining"]
    assert record["epochs"] == 6
    assert record["loss"] < 5.0  # ln 500 = 6.2 is a guess
    assert {path.name for path in (tmp_path / "run").iterdir()} == {p.name for p in plain.iterdir()}
    assert weights.keys() == load_file(plain / WEIGHTS_FILE).keys()


# --- Embeddings from neighbours -----------------------------------------------------------------
def test_words_with_the_same_neighbours_start_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 and 21 stand among 5 to 9, 22 among 10 to 14; 23 is alone."""
    rng = np.random.default_rng(0)
    comments = [np.array([CLS_ID, 23])]
    for _ in range(400):
        for word, low in ((20, 5), (21, 5), (22, 10)):
            around = rng.integers(low, low + 5, 6)
            comments.append(np.array([CLS_ID, *around[:3], word, *around[3:], UNK_ID]))
    vectors, known = embeddings.cooccurrence_embeddings(comments, 30, 4, 0)
    assert set(np.flatnonzero(known)) == {*range(5, 15), 20, 21, 22}
    alike, other = vectors[20] @ vectors[21], vectors[20] @ vectors[22]
    scale = 4 * embeddings.ROOT_MEAN_SQUARE**2  # a vector's square
    assert alike / scale > 0.9
    assert other / scale < 0.5
    table = torch.nn.Embedding(30, 4)
    before = table.weight.detach().clone()
    embeddings.start_from(table, vectors, known)
    assert np.array_equal(table.weight.detach().numpy()[known], vectors[known])
    assert torch.equal(table.weight.detach()[~known], before[~known])
    again, _ = embeddings.cooccurrence_embeddings(comments, 30, 4, 0)
    assert np.array_equal(again, vectors)
    monkeypatch.setattr(embeddings, "_PIECE", 100)  # comments that come, and go, a few at a time
    largest = max(len(piece) for piece in embeddings._pieces(iter(comments)))
    assert largest <= 100 < sum(map(len, comments))
    again, _ = embeddings.cooccurrence_embeddings(iter(comments), 30, 4, 0)
    assert np.array_equal(again, vectors)


def test_a_rare_word_is_drawn_to_those_spelled_alike() -> None:
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "stupid", "stupidity", "harmless", "1", "stupidly")
    vectors = np.zeros((8, 6), np.float32)
    vectors[3:7] = np.eye(4, 6)  # of "stupidly", which has no neighbour, nothing is known
    comments = [np.array([3] * 5_000 + [5, 6]), np.array([4, 4, 7])]
    drawn, known = embeddings.spelled_alike(vectors, comments, embeddings.alike_words(vocabulary))
    assert known.tolist() == [False] * 3 + [True] * 5
    units = drawn[3:] / np.linalg.norm(drawn[3:], axis=1, keepdims=True)
    assert units[1] @ units[0] > 0.9  # met twice: where "stupid" is
    assert units[4] @ units[0] > 0.9
    assert units[0] @ np.eye(4, 6)[0] > 0.99  # met often: where it was
    assert np.allclose(units[2:4], np.eye(4, 6)[2:])  # spelled like no other
    assert np.allclose(drawn[3:].std(), embeddings.ROOT_MEAN_SQUARE, atol=0.02)


@pytest.mark.parametrize("words", [("1", "2"), ("ab", "xy")])
def test_words_without_letters_in_common_stay_where_they_are(words: tuple[str, str]) -> None:
    vectors = np.zeros((5, 4), np.float32)
    vectors[3:] = embeddings.ROOT_MEAN_SQUARE * 2 * np.eye(2, 4)
    drawn, known = embeddings.spelled_alike(
        vectors, [np.array([3, 4])], embeddings.alike_words(("[PAD]", "[UNK]", "[CLS]", *words))
    )
    assert known.tolist() == [False, False, False, True, True]
    assert np.allclose(drawn, vectors)


# --- Every option -----------------------------------------------------------------------------
@pytest.mark.parametrize("stop_after", [3, 14, 15, 16, 24, 30])
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, whole: dict[str, torch.Tensor], stop_after: int
) -> None:
    """15 steps of pre-training, 15 of training."""
    config = make_config(TrainConfig, {**SMALL, **ALL_AT_ONCE, "out": tmp_path / "parts"})
    with pytest.raises(KeyboardInterrupt):
        train(config, CPU, stop=StopAfter(stop_after))
    train(config, CPU)
    assert equal(load_file(config.out / WEIGHTS_FILE), whole)


@pytest.mark.parametrize("stop_after", [3, 16])
def test_interrupted_pretraining_is_not_mixed_with_other_settings(
    tmp_path: Path, stop_after: int
) -> None:
    """Stopped within the 15 steps of pre-training, and just behind them."""
    settings = {**SMALL, "pretrain_epochs": 1, "checkpoint_steps": 100, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        train(make_config(TrainConfig, settings), CPU, stop=StopAfter(stop_after))
    with pytest.raises(BadInput, match=r"interrupted run with weight_decay 0.01, expected 0.5"):
        train(make_config(TrainConfig, {**settings, "weight_decay": 0.5}), CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return trained(tmp_path_factory.mktemp("whole") / "run", **ALL_AT_ONCE)


@pytest.mark.parametrize("changes", [{name: value} for name, value in ALL_AT_ONCE.items()])
def test_option_changes_the_weights_and_is_recorded(
    tmp_path: Path, plain: Path, changes: dict[str, Any]
) -> None:
    assert not equal(trained(tmp_path / "run", **changes), load_file(plain / WEIGHTS_FILE))
    recorded = json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["train"]
    assert {name: recorded[name] for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qat": "runs/base", "precision": "fp32", "pretrain_epochs": 1}, "--pretrain-epochs is"),
        (
            {"qat": "runs/base", "precision": "fp32", "embeddings": "cooccurrence"},
            "--embeddings is cooccurrence",
        ),
        ({"dropout": 1.0}, "--dropout is 1.0"),
        ({"pretrain_epochs": -1}, "--pretrain-epochs is -1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        make_config(TrainConfig, changes)
    assert "\n" not in str(error.value)


def test_pretraining_in_several_processes_is_refused(tmp_path: Path) -> None:
    config = make_config(TrainConfig, {**SMALL, "out": tmp_path / "run", "pretrain_epochs": 1})
    with pytest.raises(BadInput, match=r"--pretrain-epochs is 1 with 2 processes"):
        train(config, CPU, rank=0, world=2)


# --- The ablation -----------------------------------------------------------------------------
def row(name: str, validation: float, test: float = 0.9, **changes: Any) -> ablation.Row:
    elsewhere = {"a.csv": 0.7, "b.csv": 0.9}
    return ablation.Row(name, changes, validation, test, elsewhere, 0.2, 0.05, 1.0, 1.0, 0.1)


def changed(*rows: ablation.Row) -> list[ablation.AblationChange]:
    return ablation.changes_of(rows)


def test_combination_has_what_helped_and_the_better_of_two() -> None:
    rows = changed(
        row("default", 0.90),
        row("pretrain-3", 0.92, pretrain_epochs=3),
        row("pretrain-1", 0.91, pretrain_epochs=1),
        row("epochs-2", 0.89, epochs=2),
        row("phrases", 0.905, phrases=2000),
        row("recurrent", 0.95, architecture="recurrent"),  # it only teaches
    )
    assert ablation.best(rows).name == "pretrain-3"
    assert ablation.combined(rows) == {"pretrain_epochs": 3, "phrases": 2000}
    assert ablation.combined(changed(row("default", 0.9), row("lr-5e-4", 0.9, lr=5e-4))) == {}


def test_validation_alone_chooses_and_a_bar_can_fail() -> None:
    rows = changed(row("default", 0.90, 0.99), row("epochs-2", 0.91, 0.97))
    assert rows[1].elsewhere == pytest.approx(0.8)
    assert ablation.best(rows).name == "epochs-2"
    assert ablation.bars(rows)["test_auroc"]["value"] == 0.97
    assert not ablation.bars(rows)["test_auroc"]["holds"]
    assert ablation.bars(rows[:1])["test_auroc"]["holds"]
    assert ablation.bars(rows)["fpr_ratio"] == {
        "value": 4.0,
        "wanted": "at most",
        "bar": 3.0,
        "holds": False,
    }
    flags_identities_alone = [dataclasses.replace(rows[0], fpr_random=0.0)]
    expected = {"value": None, "wanted": "at most", "bar": 3.0, "holds": False}
    assert ablation.bars(flags_identities_alone)["fpr_ratio"] == expected


def test_what_chance_explains_is_no_gain() -> None:
    """Three seeds: one change gains 0.01 with each, another 0.01 in the mean alone."""
    rows = []
    for seed, steady, lucky in ((0, 0.91, 0.94), (1, 0.911, 0.90), (2, 0.909, 0.89)):
        for one in (row("default", 0.9), row("steady", steady, lr=1), row("lucky", lucky, lr=2)):
            rows.append(dataclasses.replace(one, seed=seed))
    default, steady, lucky = changes = ablation.changes_of(rows)
    assert default.gain_validation == Estimate(0.0, 0.0, 0.0)
    # t of 2 degrees of freedom, 4.303, times 0.001 over the root of 3
    assert steady.gain_validation.value == pytest.approx(0.01)
    assert steady.gain_validation.low == pytest.approx(0.01 - 0.002484, abs=1e-5)
    assert lucky.gain_validation.value == pytest.approx(0.01) and not lucky.gains
    assert ablation.combined(changes) == {"lr": 1} and ablation.best(changes).name == "steady"


def test_small_ablation_from_training_to_document(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("comment_text,target\n" + "you are an idiot,1\nthank you,0\n" * 20)
    harmless = tmp_path / "harmless.csv"
    harmless.write_text("comment_text,toxic,group\n" + "a gay man,0,with\na man,0,without\n" * 3)
    config = ablation.AblationConfig(
        data="synthetic:600",
        test_data=str(other),
        out_of_domain=(str(other),),
        harmless=str(harmless),
        rows=("dropout-0.2",),
        d_model=16,
        n_layers=1,
        max_len=24,
        epochs=1,
        seeds=(0, 1),
        runs=tmp_path / "runs",
    )
    document = ablation.measure(config)
    assert [r["name"] for r in document["rows"]] == ["default"] * 2 + ["dropout-0.2"] * 2
    gained = document["changes"][1]["gain_validation"]
    assert gained["low"] <= gained["value"] <= gained["high"]
    written = (tmp_path / "runs" / "seed-1" / "default" / WEIGHTS_FILE).stat().st_mtime_ns
    assert ablation.measure(config) == document
    assert (tmp_path / "runs" / "seed-1" / "default" / WEIGHTS_FILE).stat().st_mtime_ns == written
    assert "dropout-0.2" in ablation.table(document["changes"])
    (tmp_path / "runs/seed-0/dropout-0.2").rename(tmp_path / "runs/seed-0/lr-5e-4")
    for rows, message in (
        (("lr-5e-4",), r"runs/seed-0/lr-5e-4 has .*delete"),
        (("lr",), "--rows has 'lr'"),
    ):
        with pytest.raises(BadInput, match=message):
            ablation.measure(ablation.AblationConfig(**{**vars(config), "rows": rows}))
    harmless.write_text("comment_text,toxic,group\na gay man,1,with\na man,0,without\n")
    with pytest.raises(BadInput, match="has 1 toxic comments in 2 groups"):
        ablation.measure(config)
