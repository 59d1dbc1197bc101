"""Cascade: one graph that equals PyTorch, whoever is asked; the band; gates that go red."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

import contract
import export.__main__ as export_main
from contract import CLS_ID, BadInput
from export.cascade import Band, Cascade, CascadeEncoder, fit_band
from export.config import ExportConfig
from export.gates import parity
from export.gates import run as gates
from export.gates.placement import placement_of
from export.graph.build import build, build_int8
from export.graph.encoder import linear_layers
from export.repository import load_scorer, read_artifact
from export.work import multiply_adds
from train.artifacts import METRICS_FILE, WEIGHTS_FILE, load_checkpoint, save_tensors
from train.model import ModelConfig, ToxicityEncoder

GROUPS = (8, 32)
NOISE = 0.12
QUALITY = {"asked_share": 0.0, "cost": 0.0, "auroc": 0.0, "teacher_auroc": 0.0}
NOBODY, SOME, ALL = (8.0, 9.0), (-4.9, -4.4), (-1e4, 1e4)


def random_encoder(d_model: int, n_layers: int) -> ToxicityEncoder:
    """Logits over several units."""
    shape = {"vocab_size": 200, "d_model": d_model, "n_heads": 2, "max_len": 32}
    model = ToxicityEncoder(ModelConfig(n_layers=n_layers, **shape)).eval()
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)
        model.head.weight.mul_(5)
    return model


def cascade_of(edges: tuple[float, float]) -> CascadeEncoder:
    torch.manual_seed(0)
    band = Band(*edges, scale=1.3, shift=0.2, student_auroc=0.0, **QUALITY)
    return CascadeEncoder(random_encoder(16, 1), random_encoder(32, 2), band).eval()


@pytest.fixture(scope="module")
def comments() -> list[parity.Comment]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 33, size=48)
    return [
        parity.Comment(f"comment {i}", [CLS_ID, *rng.integers(3, 200, size=n - 1)])
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(("edges", "asked"), [(NOBODY, "none"), (SOME, "some"), (ALL, "all")])
def test_graph_is_the_pytorch_cascade_in_both_interfaces(
    edges: tuple[float, float], asked: str, comments: list[parity.Comment], tmp_path: Path
) -> None:
    model = cascade_of(edges)
    torch_run = parity.torch_runner(model)
    logits = parity.run_batch(torch_run, comments)
    of_teacher = logits == parity.run_batch(parity.torch_runner(model.teacher), comments)
    assert {0: "none", len(comments): "all"}.get(int(of_teacher.sum()), "some") == asked
    build(model, tmp_path / "dense.onnx", GROUPS, tmp_path / "ragged.onnx")
    for run in (
        parity.onnx_runner(tmp_path / "dense.onnx"),
        parity.ragged_runner(tmp_path / "ragged.onnx"),
    ):
        found = parity.shape_parity("gate", 1e-5, torch_run, run, comments, max_len=32, seed=0)
        assert found.holds, found
        np.testing.assert_allclose(parity.run_batch(run, comments), logits, atol=1e-5)


def test_int8_does_not_depend_on_the_batch(comments: list[parity.Comment], tmp_path: Path) -> None:
    model, path, ragged = cascade_of(SOME), tmp_path / "int8.onnx", tmp_path / "ragged.onnx"
    build_int8(model, path, GROUPS, [np.array(c.ids) for c in comments], ragged)
    mates = parity.adversarial_mates(model, max_len=32, seed=0)
    run = parity.onnx_runner(path)
    found = parity.batch_invariance("gate", 0.0, run, comments, mates, max_len=32, seed=0)
    assert found.holds, found
    joined = parity.ragged_runner(ragged)
    found = parity.shape_parity("gate", 0.0, run, joined, comments, max_len=32, seed=0)
    assert found.holds, found


# --- The band ------------------------------------------------------------------------------
CONFIGS = (
    ModelConfig(vocab_size=9, d_model=16, n_layers=1),
    ModelConfig(vocab_size=9, d_model=64, n_layers=4),
)


def scores(noise: float, n: int = 800) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Student, teacher, labels, lengths; the student is the teacher with noise, on half a scale."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.2).astype(np.float32)
    teacher = (rng.normal(size=n) * 1.5 + 5 * labels - 2).astype(np.float32)
    student = (teacher + noise * rng.normal(size=n)).astype(np.float32) / 2
    return student, teacher, labels, rng.integers(5, 100, size=n).tolist()


@pytest.mark.slow
def test_band_keeps_the_promise_and_asks_for_less_when_more_may_be_lost() -> None:
    data = scores(noise=1.5)
    costs = []
    for loss in (0.001, 0.004, 0.5):
        band = fit_band(*data, CONFIGS, loss)
        student, teacher, labels, _ = data
        logits = student * np.float32(band.scale) + np.float32(band.shift)
        unsure = (logits >= band.low) & (logits <= band.high)
        auroc = roc_auc_score(labels, np.where(unsure, teacher, logits))
        assert auroc == pytest.approx(band.auroc)
        assert band.teacher_auroc - auroc <= loss
        assert unsure.mean() == pytest.approx(band.asked_share)
        costs.append(band.cost)
    own, asked = (multiply_adds(config, data[3]).sum() for config in CONFIGS)
    assert costs[0] > costs[1] > costs[2] >= own / asked
    assert costs[0] < 0.8


@pytest.mark.slow
def test_useless_student_asks_the_teacher_about_nearly_all() -> None:
    band = fit_band(*scores(noise=50.0), CONFIGS, 0.0005)
    assert band.asked_share > 0.9


@pytest.mark.long
def test_student_that_is_good_enough_needs_no_teacher(
    exported: tuple[ExportConfig, dict[str, Any]],
) -> None:
    with pytest.raises(BadInput, match="export it alone with --checkpoint"):
        gates.load_subject(dataclasses.replace(exported[0], auroc_loss=0.5))


def test_multiply_adds_are_those_of_the_matmuls() -> None:
    config = ModelConfig(vocab_size=9, d_model=8, n_layers=2, n_heads=2, mlp_ratio=4.0)
    full = 3 * 8 * 24 + 3 * 8 * 8 + 2 * 3 * 8 * 32 + 2 * 3 * 3 * 8
    last = 8 * 16 + 16 * 8 + 2 * 3 * 16 + 2 * 8 * 32
    assert multiply_adds(config, [3]).tolist() == [full + last]


# --- Gates ---------------------------------------------------------------------------------
def test_only_a_comment_at_an_edge_may_take_the_other_branch() -> None:
    model = cascade_of((0.0, 1.0))
    student = np.array([-0.1, 0.1, -3.0, 0.5], np.float32)
    teacher = np.array([4.0, 5.0, 6.0, 7.0], np.float32)
    cascade = Cascade(model, Path(), student, teacher)
    assert cascade.by_branch(student).tolist() == [*student.tolist()[:3], 0.5]
    assert cascade.by_branch(teacher).tolist() == [4.0, 5.0, -3.0, 7.0]


@pytest.fixture(scope="module")
def student(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with noise on its head: on the same scale, and worse."""
    out = tmp_path_factory.mktemp("noisy") / "student"
    shutil.copytree(trained_run, out)
    weights = load_file(out / WEIGHTS_FILE)
    noise = torch.randn(weights["head.weight"].shape, generator=torch.Generator().manual_seed(0))
    weights["head.weight"] += NOISE * noise
    save_tensors(out / WEIGHTS_FILE, weights)
    return out


@pytest.fixture(scope="module")
def exported(
    trained_run: Path, student: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExportConfig, dict[str, Any]]:
    root = tmp_path_factory.mktemp("exported")
    config = ExportConfig(
        checkpoint=trained_run,
        student=student,
        auroc_loss=0.004,
        repository=root / "repository",
        out=root / "out",
        calibration_comments=64,
        instances=1,
    )
    return config, export_main.export(config)


@pytest.mark.long
def test_published_cascade_passed_every_gate(
    exported: tuple[ExportConfig, dict[str, Any]], trained_run: Path
) -> None:
    config, report = exported
    found = {gate["gate"]: gate for gate in report["gates"]}
    assert all(gate["holds"] for gate in found.values())
    assert found["int8_batch_invariance"]["value"] == 0.0
    assert found["cascade_auroc_loss"]["bound"] == 0.004
    artifact = read_artifact(config.repository)
    assert artifact["cascade"]["low"] < artifact["cascade"]["high"]
    auroc = json.loads((trained_run / METRICS_FILE).read_text())["validation"]["auroc"]
    assert artifact["cascade"]["teacher_auroc"] == pytest.approx(auroc, abs=1e-6)
    assert np.isfinite(load_scorer(config.repository).score(["you are kind", ""]).logit).all()


@pytest.fixture(scope="module")
def subject(exported: tuple[ExportConfig, dict[str, Any]]) -> gates.GateSubject:
    return gates.load_subject(exported[0])


@pytest.mark.long
def test_damaged_teacher_branch_turns_the_gates_red(
    exported: tuple[ExportConfig, dict[str, Any]], subject: gates.GateSubject, tmp_path: Path
) -> None:
    proto = onnx.load(exported[0].out / "int8_ragged.onnx")  # what a CPU serves
    branches = next(node for node in proto.graph.node if node.op_type == "If").attribute
    then = next(branch.g for branch in branches if branch.name == "then_branch")
    bias = next(tensor for tensor in then.initializer if tensor.name == "teacher.head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 3, bias.name))
    onnx.save(proto, tmp_path / "damaged.onnx")
    form = gates.Form("int8", "cpu", tmp_path / "unused.onnx", tmp_path / "damaged.onnx")
    served = gates.served_scores(subject, form).logit
    found = gates._quality("int8", subject, subject.int8_reference, served)
    assert "int8_logit_max" in {finding.gate for finding in found if not finding.holds}


@pytest.mark.long
def test_every_layer_of_both_models_runs_on_integers(
    exported: tuple[ExportConfig, dict[str, Any]], subject: gates.GateSubject
) -> None:
    """The teacher's lie in a branch, where the count must look too."""
    feeds = parity.feeds_of(subject.sample)
    placed = placement_of(exported[0].out / "int8.onnx", feeds)
    assert len(placed.integer_linears) == linear_layers(subject.checkpoint.model) == 16
    assert not placed.float_linears
    in_float = placement_of(exported[0].out / "fp32.onnx", feeds)
    assert len(in_float.float_linears) == 16


@pytest.mark.long
def test_broken_promise_turns_the_gate_red(subject: gates.GateSubject) -> None:
    assert subject.cascade
    kept, broken = (
        gates._cascade_gates(subject, subject.cascade, logits)[0]
        for logits in (subject.cascade.teacher, -subject.cascade.teacher)
    )
    assert kept.holds and not broken.holds


def test_student_of_another_tokenizer_is_refused(
    exported: tuple[ExportConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config, _ = exported
    assert config.student
    other = tmp_path / "other"
    other.mkdir()
    for file in config.student.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / contract.TOKENIZER_FILE).read_text())
    tokenizer["max_len"] = 63
    (other / contract.TOKENIZER_FILE).write_text(json.dumps(tokenizer))
    with pytest.raises(BadInput, match="another tokenizer"):
        gates.load_subject(dataclasses.replace(config, student=other))
    assert load_checkpoint(config.student).model.config.d_model == 48
