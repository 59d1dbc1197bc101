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

from contract import TOKENIZER_FILE, BadInput
from train import distill
from train.__main__ import StopRequest, train
from train.artifacts import CONFIG_FILE, METRICS_FILE, SPLIT_FILE, WEIGHTS_FILE, sha256_of
from train.cli import make_config
from train.config import TrainConfig
from train.data import load_comments
from train.evaluate import logits_of, probability_of

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
    values = {**distill.defaults_of(teacher), "distill": teacher, "out": out, **shape, **changes}
    return make_config(TrainConfig, values)


def test_run_has_the_teachers_ids_and_split_and_names_it(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    train(student_config(teacher, out), CPU)
    for name in (TOKENIZER_FILE, SPLIT_FILE):
        assert (out / name).read_bytes() == (teacher / name).read_bytes()
    recorded = json.loads((out / CONFIG_FILE).read_text())["distillation"]
    assert recorded["teacher_sha256"] == sha256_of(teacher / WEIGHTS_FILE)
    assert json.loads((out / METRICS_FILE).read_text())["pos_weight"] == 1.0
    assert len(list((tmp_path / "teacher_logits").iterdir())) == 1


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
    distill.save_tensors(turned / WEIGHTS_FILE, weights)
    out = tmp_path / "student"
    train(student_config(turned, out, epochs=3, patience=3, batch_size=16, lr=1e-2), CPU)
    aurocs = [e["auroc"] for e in json.loads((out / METRICS_FILE).read_text())["history"]]
    assert aurocs[-1] < 0.4


def test_targets_are_the_teachers_probabilities(teacher: Path, tmp_path: Path) -> None:
    loaded = distill.load_teacher(student_config(teacher, tmp_path / "student"))
    comments = load_comments("synthetic:600")
    ids = [np.array(loaded.tokenizer.encode(text)) for text in comments.texts]
    rows = np.array([3, 1, 500])
    targets = distill.soft_targets(loaded, ids, rows, tmp_path, {"a": 1}, CPU)
    expected = probability_of(logits_of(loaded.model, ids, rows))
    np.testing.assert_allclose(targets[rows], expected, atol=1e-6)
    assert np.isnan(targets).sum() == 597
    for other in ({"a": 2}, {"distill": "another teacher"}, {"split": "another split"}):
        distill.soft_targets(loaded, ids, rows, tmp_path / "logits", other, CPU)
    assert len(list((tmp_path / "logits").iterdir())) == 3  # {"a": 2} does not matter


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
    config = student_config(teacher, tmp_path / "student", unlabelled=file)
    assert distill.unlabelled_texts(config, [known]) == ["new words", "more"]
    train(config, CPU)
    recorded = json.loads((config.out / CONFIG_FILE).read_text())["distillation"]
    assert recorded["unlabelled_comments"] == 2
    assert recorded["unlabelled_sha256"] == sha256_of(file)


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
    for changes in ({"out": teacher}, {"qat": teacher, "precision": "fp32"}):
        with pytest.raises(BadInput):
            make_config(TrainConfig, {**dataclasses.asdict(good), **changes})
    with pytest.raises(BadInput, match="expected --distill"):
        make_config(TrainConfig, {"unlabelled": "more.csv"})
