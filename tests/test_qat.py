"""QAT: the fake-quantized model is the INT8 graph, training runs through it, and it helps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

import contract
import export.__main__ as export_main
from console.options import parse_config
from contract import BadInput, GateFailed
from export.config import ExportConfig
from export.gates import parity
from export.graph.build import build_int8
from export.graph.calibrate import calibrate_model
from export.repository import load_scorer, read_artifact
from train.__main__ import DEFAULTS_FROM
from train.artifacts import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, load_checkpoint
from train.config import TrainConfig
from train.data.batches import TokenizedOnTheFly
from train.data.load import Comments, load_comments
from train.data.split import Split, split_comments
from train.loop import train
from train.methods import qat
from train.methods.calibration import quality
from train.model import ModelConfig, ToxicityEncoder
from train.terminal import StopRequest
from train.validation import logits_of

CPU = torch.device("cpu")
GROUPS = (16, 32)


@pytest.fixture(scope="module")
def model() -> ToxicityEncoder:
    """Random weights with logits over several units."""
    torch.manual_seed(0)
    shape = {"vocab_size": 200, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_len": 32}
    model = ToxicityEncoder(ModelConfig(**shape)).eval()
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)
        model.head.weight.mul_(5)
    return model


@pytest.fixture(scope="module")
def comments() -> list[parity.Comment]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 33, size=48)
    return [
        parity.Comment(f"comment {i}", [contract.CLS_ID, *rng.integers(3, 200, size=n - 1)])
        for i, n in enumerate(lengths)
    ]


def test_without_quantization_it_is_the_float_model(
    model: ToxicityEncoder, comments: list[parity.Comment]
) -> None:
    plain = parity.torch_runner(qat.FakeQuantizedEncoder(model, None).eval())
    float_run = parity.torch_runner(model)
    shapes = parity.shape_parity("gate", 1e-5, float_run, plain, comments, max_len=32, seed=0)
    assert shapes.holds, shapes


def test_ranges_are_those_that_the_export_calibrates(
    model: ToxicityEncoder, comments: list[parity.Comment]
) -> None:
    ids = [np.array(comment.ids) for comment in comments]
    ours, theirs = qat.calibrate(model, ids), calibrate_model(model, GROUPS, ids)
    assert list(ours) == qat.points(model.config)
    assert ours.keys() == theirs.keys()
    for point, (least, greatest) in theirs.items():
        assert ours[point] == (min(least, 0), max(greatest, 0)), point


def test_a_range_is_the_same_on_a_processor_with_other_last_bits() -> None:
    ends = np.random.default_rng(0).normal(scale=4, size=(1000, 2))
    ends.sort(axis=1)
    for least, greatest in ends.tolist():
        wide = qat.widened(least, greatest)
        assert wide == qat.widened(least * (1 + 1e-6), greatest * (1 - 1e-6))
        assert wide == qat.widened(*wide)
        assert wide[0] < least + 1e-4 * abs(least) and greatest - 1e-4 * abs(greatest) < wide[1]
        assert wide == pytest.approx((least, greatest), rel=1 / 60)
    assert qat.widened(0.0, 1.0) == (0.0, 1.0)
    assert qat.widened(-1.001, 0.999) == (-1 - 1 / 64, 1.0)


def test_fake_quantized_model_is_the_int8_graph(
    model: ToxicityEncoder, comments: list[parity.Comment], tmp_path: Path
) -> None:
    ranges = qat.calibrate(model, (np.array(comment.ids) for comment in comments))
    build_int8(model, tmp_path / "int8.onnx", GROUPS, [], ranges=ranges)
    fake = parity.torch_runner(qat.FakeQuantizedEncoder(model, ranges).eval())
    served = parity.onnx_runner(tmp_path / "int8.onnx")
    shapes = parity.shape_parity("gate", 1e-4, fake, served, comments, max_len=32, seed=0)
    from_float = parity.shape_parity(
        "gate", 1e-4, parity.torch_runner(model), served, comments, max_len=32, seed=0
    )
    assert shapes.holds, shapes
    assert from_float.value > 100 * shapes.value  # there is something to imitate


def test_gradient_passes_the_rounding_and_stops_where_a_value_is_clipped() -> None:
    model = ToxicityEncoder(ModelConfig(vocab_size=9, d_model=4, n_layers=1, n_heads=2))
    fake = qat.FakeQuantizedEncoder(model, {"point": (-1.0, 1.0)})
    x = torch.tensor([-2.0, -0.501, 0.3, 2.0], requires_grad=True)
    y = fake._activation(x, "point")
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 0]
    step = 2 / 255
    assert torch.all((y - x)[1:3].abs() <= step / 2 + 1e-6)
    assert y[0].item() == pytest.approx(-1, abs=step)
    weight = torch.randn(3, 5, requires_grad=True)
    rounded = fake._weight(weight)
    steps = rounded / (weight.abs().amax(dim=1, keepdim=True) / qat.WEIGHT_LIMIT)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.abs().max().round() == qat.WEIGHT_LIMIT
    rounded.sum().backward()
    assert weight.grad is not None and bool((weight.grad == 1).all())


# --- Training --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def start(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model that PTQ spoils: in float it is `trained_run`, number for number.

    One channel of each LayerNorm is 1/200 of what it was, and the weights that read it 200 times
    as large: they take up every scale.
    """
    folder = tmp_path_factory.mktemp("start") / "model"
    shutil.copytree(trained_run, folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    for i in range(2):
        for norm, reader in (
            ("attention_norm", "attention.in_proj_weight"),
            ("mlp_norm", "mlp.0.weight"),
        ):
            tensors[f"blocks.{i}.{norm}.weight"][7] /= 200
            tensors[f"blocks.{i}.{norm}.bias"][7] /= 200
            tensors[f"blocks.{i}.{reader}"][:, 7] *= 200
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def qat_config(start: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {"checkpoint_steps": 5, "batch_size": 32, "device": "cpu", "qat": start, "out": out}
    return TrainConfig(**{**qat.defaults_of(start), **values, **changes})


@pytest.fixture(scope="module")
def tuned(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "qat"
    train(qat_config(start, out, lr=5e-4, epochs=2), CPU)
    return out


@pytest.mark.long
def test_qat_recovers_what_ptq_loses(tuned: Path) -> None:
    table = json.loads((tuned / METRICS_FILE).read_text())["quantization"]
    lost = table["float"]["auroc"] - table["ptq"]["auroc"]
    assert lost > 0.003
    assert table["float"]["auroc"] - table["qat"]["auroc"] < 0.7 * lost
    assert table["qat"]["against_float"]["flipped"] < table["ptq"]["against_float"]["flipped"]


@pytest.mark.long
def test_metrics_are_those_of_the_fake_quantized_model(start: Path, tuned: Path) -> None:
    checkpoint = load_checkpoint(tuned)
    before = load_checkpoint(start)
    assert checkpoint.tokenizer.to_json() == before.tokenizer.to_json()
    assert checkpoint.model.config == before.model.config
    comments, split = data_of(start)
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    metrics = json.loads((tuned / METRICS_FILE).read_text())
    logits = logits_of(qat.int8_reference(checkpoint), ids, split.validation)
    auroc = roc_auc_score(comments.labels[split.validation], logits)
    assert metrics["validation"]["auroc"] == pytest.approx(auroc, abs=2e-3)
    assert metrics["quantization"]["qat"]["auroc"] == pytest.approx(auroc, abs=2e-3)
    # The start was calibrated, so this stayed on its scale and is calibrated as it is served.
    assert metrics["pos_weight"] == 1.0
    served = quality(comments.labels[split.validation], logits)["log_loss"]
    assert metrics["calibration"]["platt"]["log_loss"] == pytest.approx(served, abs=5e-3)
    rows = qat.calibration_rows(split.train, 0)
    fresh = qat.calibrate(before.model, (ids[row] for row in rows))
    saved = qat.ranges_of(checkpoint)
    assert saved is not None
    for point in qat.points(before.model.config):
        assert saved[point] == pytest.approx(fresh[point], abs=1e-4)


def data_of(start: Path) -> tuple[Comments, Split]:
    settings = load_checkpoint(start).config["train"]
    comments = load_comments(settings["data"])
    return comments, split_comments(comments.texts, comments.labels, seed=settings["seed"])


class StopAfter(StopRequest):
    """Asks for a stop once the loop has looked this often."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.mark.long
def test_resumed_run_equals_an_uninterrupted_one(start: Path, tmp_path: Path) -> None:
    whole = qat_config(start, tmp_path / "whole", batch_size=128)
    parts = dataclasses.replace(whole, out=tmp_path / "parts")
    train(whole, CPU)
    with pytest.raises(KeyboardInterrupt):
        train(parts, CPU, stop=StopAfter(7))
    train(parts, CPU)
    one, other = load_file(whole.out / WEIGHTS_FILE), load_file(parts.out / WEIGHTS_FILE)
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = load_file(start / WEIGHTS_FILE)
    assert not torch.equal(first["blocks.0.mlp.0.weight"], one["blocks.0.mlp.0.weight"])


def test_flags_default_to_the_checkpoints(start: Path, tmp_path: Path) -> None:
    def parsed(*flags: str) -> TrainConfig:
        return parse_config(
            TrainConfig,
            ["--qat", str(start), *flags],
            prog="train",
            description="",
            defaults_from=DEFAULTS_FROM,
        )

    config = parsed()
    assert (config.data, config.d_model, config.max_len) == (("synthetic:3000",), 48, 64)
    assert (config.epochs, config.lr, config.out) == (1, 2e-5, Path("runs/qat"))
    assert parsed("--epochs", "3", "--lr", "1e-5").epochs == 3
    for flags, message in (
        (["--d-model", "64"], r"--d-model is 64, expected 48 as in .*leave it out with --qat"),
        (["--data", "synthetic:700"], r"are not those that .* was trained on"),
    ):
        with pytest.raises(BadInput, match=message):
            train(parsed(*flags, "--out", str(tmp_path / "out")), CPU)
    with pytest.raises(BadInput, match=r"--precision is bf16, expected fp32 with --qat"):
        parsed("--precision", "bf16")
    with pytest.raises(BadInput, match=r"--out is .*, expected another folder than --qat"):
        parsed("--out", str(start))


@pytest.mark.long
def test_damaged_ranges_are_refused_in_one_line(tuned: Path, tmp_path: Path) -> None:
    edits = {
        "one-is-missing": lambda q: q["activation_ranges"].pop("blocks.1.mlp_out"),
        "without-zero": lambda q: q["activation_ranges"].update({"blocks.0.qkv": [1, 2]}),
        "none-at-all": lambda q: q.clear(),
    }
    for name, edit in edits.items():
        copy = edited_config(tuned, tmp_path / name, edit)
        with pytest.raises(BadInput, match="activation_ranges are damaged") as error:
            qat.ranges_of(load_checkpoint(copy))
        assert "\n" not in str(error.value)


def edited_config(source: Path, copy: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(source, copy)
    config = json.loads((copy / CONFIG_FILE).read_text())
    edit(config["quantization"])
    (copy / CONFIG_FILE).write_text(json.dumps(config))
    return copy


# --- Export ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def healthy(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch from a model that PTQ does not spoil, the schedule's own learning rate."""
    out = tmp_path_factory.mktemp("healthy") / "qat"
    train(qat_config(trained_run, out, batch_size=128), CPU)
    return out


def export_config(checkpoint: Path, tmp_path: Path) -> ExportConfig:
    return ExportConfig(
        checkpoint=checkpoint,
        repository=tmp_path / "repository",
        out=tmp_path / "out",
        instances=1,
        precision="int8",
    )


@pytest.mark.long
def test_export_keeps_the_ranges_and_passes_the_gates(healthy: Path, tmp_path: Path) -> None:
    config = export_config(healthy, tmp_path)
    report = export_main.export(config)
    gates = {gate["gate"]: gate for gate in report["gates"]}
    assert {"qat_reference", "qat_auroc_loss", "int8_logit_max", "int8_auroc"} <= gates.keys()
    assert all(gate["holds"] for gate in gates.values())
    table = report["checkpoint"]["quantization"]
    assert {"float", "ptq", "qat", "qat_float"} == table.keys()
    assert read_artifact(config.repository)["qat"] is True

    ranges = qat.ranges_of(load_checkpoint(healthy))
    assert ranges is not None
    stored = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load(config.out / "int8.onnx").graph.initializer
    }
    for point, ends in ranges.items():
        scale, zero = qat.scale_and_zero(*ends)
        assert stored[f"{point}.scale"] == np.float32(scale)
        assert stored[f"{point}.zero"] == zero

    texts = data_of(healthy)[0].texts[:200]
    served = load_scorer(config.repository).score(texts).logit
    checkpoint = load_checkpoint(healthy)
    ids = TokenizedOnTheFly(texts, checkpoint.tokenizer)
    fake = logits_of(qat.int8_reference(checkpoint), ids, np.arange(200))
    plain = logits_of(checkpoint.model, ids, np.arange(200))
    assert np.abs(served - fake).mean() < 0.5 * np.abs(served - plain).mean()


def wrong_ranges(*arguments: Any, ranges: qat.Ranges) -> None:
    """A graph of a checkpoint's weights that ignores what its training assumed."""
    wider = {point: (4 * least, 4 * high) for point, (least, high) in ranges.items()}
    build_int8(*arguments, ranges=wider)


@pytest.mark.long
def test_gates_go_red_and_publish_nothing(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph with other ranges, and a start that was better than what came of it."""
    better = edited_config(
        healthy, tmp_path / "better", lambda q: q.update(start_validation_auroc=0.999)
    )
    monkeypatch.setattr(export_main, "build_int8", wrong_ranges)
    config = export_config(better, tmp_path)
    with pytest.raises(GateFailed):
        export_main.export(config)
    gates = json.loads((config.out / "report.json").read_text())["gates"]
    red = {gate["gate"]: gate["worst"] for gate in gates if not gate["holds"]}
    assert {"qat_reference", "qat_auroc_loss"} <= red.keys()
    assert red["qat_auroc_loss"].startswith("float before QAT 0.99900, INT8 0.")
    assert not config.repository.exists()
