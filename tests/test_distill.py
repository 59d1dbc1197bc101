"""Distillation: the student learns the teacher's probabilities, on the teacher's ids and split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from console.options import make_config
from contract import TOKENIZER_FILE, BadInput
from train.artifacts import (
    CONFIG_FILE,
    METRICS_FILE,
    SPLIT_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    save_tensors,
    sha256_of,
)
from train.config import TrainConfig
from train.data.batches import TokenizedOnTheFly
from train.data.load import Comments, load_comments
from train.data.tokenizer import build_tokenizer
from train.loop import train
from train.methods import augment, debias, distill, ngrams, qat
from train.terminal import StopRequest
from train.validation import logits_of, probability_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "model"
    shape = {"max_vocab": 1000, "max_len": 32, "d_model": 32, "n_layers": 2}
    config = TrainConfig(
        data="synthetic:600", out=out, epochs=2, batch_size=32, lr=3e-3, device="cpu", **shape
    )
    train(config, CPU)
    return out


def student_config(teacher: Path, out: Path, **changes: Any) -> TrainConfig:
    shape = {"d_model": 16, "n_layers": 1, "epochs": 1, "batch_size": 64, "device": "cpu"}
    shape["ngram_teacher"] = 0.0  # its own tests have it
    values = {**distill.defaults_of(teacher), "distill": (teacher,), "out": out, **shape}
    return make_config(TrainConfig, {**values, **changes})


def test_run_has_the_teachers_ids_and_split_and_names_it(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    train(student_config(teacher, out), CPU)
    for name in (TOKENIZER_FILE, SPLIT_FILE):
        assert (out / name).read_bytes() == (teacher / name).read_bytes()
    recorded = json.loads((out / CONFIG_FILE).read_text())["distillation"]
    assert recorded["teacher_sha256"] == [sha256_of(teacher / WEIGHTS_FILE)]
    assert json.loads((out / METRICS_FILE).read_text())["pos_weight"] == 1.0
    assert len(list((tmp_path / "teacher_logits").glob("*.safetensors"))) == 1


def test_defaults_of_a_teacher_from_before_respelling(teacher: Path, tmp_path: Path) -> None:
    recorded = json.loads((teacher / CONFIG_FILE).read_text())
    assert distill.defaults_of(teacher)["respell"] is True
    for name in ("respell", "phrases"):
        del recorded["train"][name]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(recorded))
    older = distill.defaults_of(tmp_path)
    assert (older["respell"], older["phrases"]) == (False, 0)


def test_student_follows_the_teacher_and_not_the_labels(teacher: Path, tmp_path: Path) -> None:
    """A teacher whose head is turned round teaches the opposite of what the labels say."""
    turned = tmp_path / "turned"
    turned.mkdir()
    for file in teacher.iterdir():
        (turned / file.name).write_bytes(file.read_bytes())
    weights = load_file(turned / WEIGHTS_FILE)
    for name in ("head.weight", "head.bias"):
        weights[name].mul_(-1)
    save_tensors(turned / WEIGHTS_FILE, weights)
    out = tmp_path / "student"
    train(student_config(turned, out, epochs=3, patience=3, batch_size=16, lr=1e-2), CPU)
    aurocs = [e["auroc"] for e in json.loads((out / METRICS_FILE).read_text())["history"]]
    assert aurocs[-1] < 0.4


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another teacher of the same split, with another tokenizer."""
    out = tmp_path_factory.mktemp("second") / "model"
    shape = {"max_vocab": 300, "max_len": 16, "d_model": 16, "n_layers": 1}
    train(TrainConfig(data="synthetic:600", out=out, epochs=1, device="cpu", **shape), CPU)
    return out


def test_targets_are_the_probability_of_the_mean_logit(
    teacher: Path, second: Path, tmp_path: Path
) -> None:
    config = student_config(teacher, tmp_path / "student", distill=(teacher, second))
    loaded = distill.load_teachers(config)
    comments, rows = load_comments("synthetic:600"), np.array([3, 1, 500])
    texts = [*comments.texts, "an extra one"]
    scored = np.array([*rows, 600])
    expected = np.mean(
        [logits_of(t.model, TokenizedOnTheFly(texts, t.tokenizer), scored) for t in loaded], axis=0
    )
    said: list[str] = []

    def targets_of(
        teachers: list[Checkpoint], comments: Comments, rows: np.ndarray, extra: list[str]
    ) -> np.ndarray:
        more = distill.Extra(extra, np.full(len(extra), -1), np.full(len(extra), np.nan))
        ids = TokenizedOnTheFly([*comments.texts, *extra], teachers[0].tokenizer)
        return distill.soft_targets(
            config, teachers, comments, more, rows, ids, tmp_path, CPU, said.append
        )

    targets = targets_of(loaded, comments, rows, ["an extra one"])
    np.testing.assert_allclose(targets[scored], probability_of(expected), atol=1e-6)
    assert np.isnan(targets).sum() == 597
    assert len(said) == len(list(tmp_path.glob("*.safetensors"))) == 4
    targets_of(loaded[1:], comments, rows, ["an extra one"])
    targets_of(loaded, comments, rows, [])
    assert len(said) == 4  # kept
    reworded = dataclasses.replace(comments, texts=["another", *comments.texts[1:]])
    retokenized = dataclasses.replace(loaded[0], tokenizer=loaded[1].tokenizer)
    for others, other_comments, other_rows in (
        (loaded[:1], comments, np.array([3, 1])),
        (loaded[:1], comments, np.array([3, 1, 0])),
        (loaded[:1], reworded, np.array([3, 1, 0])),
        ([retokenized], comments, np.array([3, 1])),
    ):
        targets_of(others, other_comments, other_rows, [])
    assert len(said) == 8


def test_a_student_of_two_has_the_firsts_ids(teacher: Path, second: Path, tmp_path: Path) -> None:
    config = student_config(teacher, tmp_path / "student", distill=(teacher, second))
    train(config, CPU)
    kept = (config.out / TOKENIZER_FILE).read_bytes()
    assert kept == (teacher / TOKENIZER_FILE).read_bytes()
    recorded = json.loads((config.out / CONFIG_FILE).read_text())
    assert recorded["distillation"]["teacher_sha256"] == [
        sha256_of(folder / WEIGHTS_FILE) for folder in (teacher, second)
    ]
    assert recorded["train"]["distill"] == [str(teacher), str(second)]


def test_a_second_teacher_of_another_split_is_refused(teacher: Path, tmp_path: Path) -> None:
    """It may have trained on the comments that judge the student."""
    other = tmp_path / "other"
    shape = {"max_vocab": 300, "max_len": 16, "d_model": 16, "n_layers": 1}
    train(TrainConfig(data="synthetic:600", seed=1, out=other, device="cpu", **shape), CPU)
    with pytest.raises(BadInput, match=r"not those that .*other was trained on"):
        train(student_config(teacher, tmp_path / "student", distill=(teacher, other)), CPU)


def test_fine_tuning_a_student_balances_as_its_teacher_did(teacher: Path, tmp_path: Path) -> None:
    recorded = json.loads((teacher / CONFIG_FILE).read_text())
    recorded["train"] |= {"identity_balance": 1.5, "identity_insertion": 0.05}
    assert distill.identity_balance_of(recorded) == 1.5
    student = {**recorded, "distillation": {"identity_balance": 1.5}}
    student["train"] = {**recorded["train"], "identity_balance": 0.0}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(student))
    assert qat.defaults_of(tmp_path)["identity_balance"] == 1.5
    assert distill.defaults_of(tmp_path)["identity_insertion"] == 0.05
    assert "identity_balance" not in distill.defaults_of(tmp_path)


def test_a_student_is_shown_harmless_comments_with_a_term(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside unlabelled comments, of which the terms' statistics know nothing."""
    monkeypatch.setattr(debias, "IDENTITY_TERMS", ("idiot", "stupid"))
    (tmp_path / "more.csv").write_text("text\nyou idiot\nfine words\n")
    weights = []
    for share in (0.0, 0.5):
        out = tmp_path / str(share)
        more = {"identity_insertion": share, "unlabelled": tmp_path / "more.csv"}
        train(student_config(teacher, out, **more), CPU)
        weights.append(load_file(out / WEIGHTS_FILE)["head.weight"])
    assert not torch.equal(*weights)


def test_a_teacher_scores_the_comments_once(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (student_config(teacher, tmp_path / name) for name in ("whole", "stopped"))
    train(whole, CPU)

    def again(*_args: Any) -> np.ndarray:
        raise AssertionError("the teacher was asked a second time")

    monkeypatch.setattr(distill, "logits_of", again)
    stop = StopRequest()
    stop.requested = True  # after the first step
    with pytest.raises(KeyboardInterrupt):
        train(stopped, CPU, stop=stop)
    train(stopped, CPU)
    weights = [load_file(c.out / WEIGHTS_FILE) for c in (whole, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_unlabelled_comments_are_trained_on_once(teacher: Path, tmp_path: Path) -> None:
    known = load_comments("synthetic:600").texts[0]
    file = tmp_path / "more.csv"
    rows = "".join(f'"{text}"\n' for text in ["new words", "new words", "more", " ", known])
    file.write_text(f"text\n{rows}")
    config = student_config(teacher, tmp_path / "student", unlabelled=file, augment=1)
    comments, tokenizer = load_comments("synthetic:600"), distill.load_teachers(config)[0].tokenizer
    extra = distill.extra_comments(config, comments, np.arange(5), tokenizer)
    assert extra.texts[:2] == ["new words", "more"]
    assert extra.sources.tolist() == [-1, -1, 0, 1, 2, 3, 4]
    train(config, CPU)
    recorded = json.loads((config.out / CONFIG_FILE).read_text())["distillation"]
    assert recorded["unlabelled_comments"] == 2
    assert 400 < recorded["passages"] <= 480
    assert recorded["unlabelled_sha256"] == sha256_of(file)


def test_a_student_is_told_what_the_rules_say_and_of_all_else_what_its_teacher_says(
    teacher: Path, tmp_path: Path
) -> None:
    config = student_config(teacher, tmp_path / "student", augment=1, contrast=50)
    comments, loaded = load_comments("synthetic:600"), distill.load_teachers(config)
    rows = np.arange(0, 600, 3)
    extra = distill.extra_comments(config, comments, rows, loaded[0].tokenizer)
    ruled = np.isfinite(extra.probabilities)
    assert 40 < ruled.sum() <= 50 and (extra.sources[ruled] == -1).all()
    assert not ruled[: len(ruled) - ruled.sum()].any()
    ids = TokenizedOnTheFly([*comments.texts, *extra.texts], loaded[0].tokenizer)
    arguments = rows, ids, tmp_path, CPU, print
    targets = distill.soft_targets(config, loaded, comments, extra, *arguments)[600:]
    asked = dataclasses.replace(extra, probabilities=np.full(len(ruled), np.nan, np.float32))
    by_teacher = distill.soft_targets(config, loaded, comments, asked, *arguments)[600:]
    assert (targets[ruled] == extra.probabilities[ruled]).all()
    assert (targets[~ruled] == by_teacher[~ruled]).all() and np.isfinite(by_teacher).all()
    train(config, CPU)
    recorded = json.loads((config.out / CONFIG_FILE).read_text())["distillation"]
    assert 40 < recorded["sentences_by_rules"] <= 50 and recorded["unlabelled_comments"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "--seed is 1, expected 0"),
        ({"max_len": 16}, "--max-len is 16, expected 32"),
        ({"data": "synthetic:700"}, "are not those that"),
        ({"unlabelled": Path("nowhere.csv")}, "no file at nowhere.csv"),
    ],
)
def test_refuses_what_the_teacher_does_not_fit(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        train(student_config(teacher, tmp_path / "student", **changes), CPU)


def test_flags_that_contradict_each_other(teacher: Path) -> None:
    good = student_config(teacher, Path("student"))
    qat = {"qat": teacher, "precision": "fp32", "embeddings": "random"}
    twice = {"distill": (teacher, teacher)}
    for changes, message in (
        ({"out": teacher}, "--out is"),
        (qat, "--distill is"),
        (twice, "twice"),
    ):
        with pytest.raises(BadInput, match=message):
            make_config(TrainConfig, {**dataclasses.asdict(good), **changes})
    with pytest.raises(BadInput, match="expected --distill"):
        make_config(TrainConfig, {"unlabelled": "more.csv"})
    with pytest.raises(BadInput, match="--augment is 1, expected --distill"):
        make_config(TrainConfig, {"augment": 1})
    with pytest.raises(BadInput, match=r"--ngram-teacher is 2\.0, expected --distill"):
        make_config(TrainConfig, {"ngram_teacher": 2.0})


# --- The regression on letters -----------------------------------------------------------------
def test_no_regression_scores_a_comment_that_it_was_fitted_on(tmp_path: Path) -> None:
    """Labels by chance cannot be known, unless from the comment itself."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), 30)) for _ in range(400)]
    labels = rng.integers(2, size=400).astype(np.float32)
    logits = letters(texts, labels, tmp_path)
    assert 0.4 < roc_auc_score(labels, logits) < 0.6
    assert abs(probability_of(logits).mean() - labels.mean()) < 0.05  # calibrated
    fitted = ngrams.regression(characters=True).fit(texts, labels)
    assert roc_auc_score(labels, fitted.decision_function(texts)) > 0.9


def letters(
    texts: list[str],
    labels: np.ndarray,
    folder: Path,
    unlabelled: tuple[str, ...] = (),
    weights: np.ndarray | None = None,
) -> np.ndarray:
    weights = np.ones(len(texts), np.float32) if weights is None else weights
    said: list[str] = []
    sources = np.full(len(unlabelled), -1)
    return ngrams.cross_fitted_logits(
        texts, labels, weights, unlabelled, sources, seed=0, folder=folder, say=said.append
    )


def test_a_passage_is_scored_as_the_comment_that_it_is_of(tmp_path: Path) -> None:
    """By the regression that has not seen the label: word and label are one comment's own."""
    texts = [f"word{i} word{i}" for i in range(60)] * 2
    labels = np.array([i % 2 for i in range(60)] * 2, np.float32)
    weights, sources = np.ones(len(texts), np.float32), np.arange(-1, 40)
    passages = [texts[0], *texts[:40]]
    logits = ngrams.cross_fitted_logits(
        texts, labels, weights, passages, sources, seed=0, folder=tmp_path, say=print
    )
    assert (logits * ngrams.STEPS == np.round(logits * ngrams.STEPS)).all()  # no last bits
    np.testing.assert_allclose(logits[121:], logits[:40], atol=1e-9)
    assert logits[120] != logits[0]  # of all texts


def test_passages_are_of_their_comment_with_words_of_others() -> None:
    texts = [" ".join(f"{a}{b}" for b in "xyzuvw") for a in "abcdefgh"] * 2
    texts += ["", "!"]
    tokenizer = build_tokenizer(texts, max_vocab=100, max_len=16)
    made, sources = augment.passages(texts, tokenizer, count=6, seed=0)
    assert len(set(made)) == len(made) == len(sources)
    kept = 0
    for passage, source in zip(made, sources, strict=True):
        words = passage.split()
        assert len(words) == 1 if texts[source] == "!" else 3 <= len(words) <= 6
        assert set(words) <= {word for text in texts for word in text.split()}
        kept += bool(set(words) & set(texts[source].split()))
    assert kept > 0.9 * len(made)
    assert any(set(p.split()) - set(texts[s].split()) for p, s in zip(made, sources, strict=True))
    again, _ = augment.passages(texts, tokenizer, count=6, seed=0)
    other, _ = augment.passages(texts, tokenizer, count=6, seed=1)
    assert made == again != other
    assert augment.passages(texts, tokenizer, count=0, seed=0)[0] == []


def test_letters_know_a_word_they_have_not_met_and_count_by_weight(tmp_path: Path) -> None:
    texts = ["you stupid man", "you stupidest man", "a fine man", "a finer man"] * 30
    labels = np.array([1, 1, 0, 0] * 30, np.float32)
    first, second = letters(texts, labels, tmp_path, ("stupider", "finest"))[-2:]
    assert first > 0 > second
    weights = np.where(labels == 1, 0.01, 1.0).astype(np.float32)
    assert not np.allclose(
        letters(texts, labels, tmp_path, weights=weights), letters(texts, labels, tmp_path)
    )
    assert len(list(tmp_path.glob("ngrams-*"))) == 3
    with pytest.raises(BadInput, match="3 training comments, 1 of them toxic, are too few"):
        letters(texts[1:4], labels[1:4], tmp_path)


def test_letters_teach_beside_the_runs(teacher: Path, tmp_path: Path) -> None:
    config = student_config(teacher, tmp_path / "student", ngram_teacher=2.0)
    loaded, comments = distill.load_teachers(config), load_comments("synthetic:600")
    rows = np.arange(0, 600, 2)
    nothing = distill.Extra([], np.empty(0, np.int64), np.empty(0))
    ids = TokenizedOnTheFly(comments.texts, loaded[0].tokenizer)
    arguments = loaded, comments, nothing, rows, ids, tmp_path, CPU, print
    both = distill.soft_targets(config, *arguments)[rows]
    alone = distill.soft_targets(dataclasses.replace(config, ngram_teacher=0.0), *arguments)[rows]
    (kept,) = tmp_path.glob("ngrams-*")
    of_letters = load_file(kept)["logit"].numpy()
    expected = (np.log(alone / (1 - alone)) + 2 * of_letters) / 3
    np.testing.assert_allclose(both, probability_of(expected), atol=1e-4)
    train(config, CPU)
    recorded = json.loads((config.out / CONFIG_FILE).read_text())["distillation"]
    assert recorded["ngram_teacher"] == 2.0
    assert distill.defaults_of(teacher)["ngram_teacher"] == distill.NGRAM_TEACHER
