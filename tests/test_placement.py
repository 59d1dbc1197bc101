"""Where nodes run, read from a real profile; which precision may be published, and which is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import export.__main__ as export_main
from contract import ENCODER_MODEL, PUBLIC_MODEL, RAGGED_MODEL, BadInput
from export.config import ExportConfig
from export.gates import rates
from export.gates.parity import Comment, feeds_of
from export.gates.placement import (
    OperatorTime,
    Placement,
    layers_in_float,
    off_the_gpu,
    placement_of,
)
from export.graph.build import build, build_int8
from export.graph.encoder import linear_layers
from export.publish import publish
from export.repository import read_artifact
from export.session import open_session
from tests.conftest import TinyModel

GROUPS = (8, 16)
NO_GPU = "CUDAExecutionProvider" not in ort.get_available_providers()


def some_comments(model: TinyModel) -> list[Comment]:
    rng = np.random.default_rng(0)
    vocab, max_len = model.model.config.vocab_size, model.model.config.max_len
    lengths = rng.integers(1, max_len + 1, 12)
    return [Comment(str(n), np.r_[2, rng.integers(3, vocab, n - 1)]) for n in lengths]


def placed(tiny_model: TinyModel, path: Path) -> Placement:
    return placement_of(path, feeds_of(some_comments(tiny_model)))


@pytest.fixture(scope="module")
def int8(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Placement:
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    calibration = (np.asarray(comment.ids) for comment in some_comments(tiny_model))
    build_int8(tiny_model.model, path, GROUPS, calibration)
    return placed(tiny_model, path)


# --- Linear layers -----------------------------------------------------------------------
def test_int8_runs_every_layer_in_integers(tiny_model: TinyModel, int8: Placement) -> None:
    layers = linear_layers(tiny_model.model)
    finding = layers_in_float(int8, layers)
    assert finding.holds and finding.value == 0, finding
    rows = {row.op: row for row in int8.rows}
    assert rows["MatMulIntegerToFloat"].nodes == layers
    assert {row.provider for row in int8.rows} == {"CPUExecutionProvider"}
    assert all(row.us > 0 for row in int8.rows if row.op == "MatMulIntegerToFloat")


def test_float_in_disguise_goes_red(tiny_model: TinyModel, tmp_path: Path) -> None:
    """An FP32 graph under the name of INT8."""
    build(tiny_model.model, tmp_path / "int8.onnx", GROUPS)
    layers = linear_layers(tiny_model.model)
    finding = layers_in_float(placed(tiny_model, tmp_path / "int8.onnx"), layers)
    assert not finding.holds
    assert finding.value == layers


def test_eight_bit_weights_in_a_float_matmul_go_red(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Weights alone in INT8: the file looks quantized, and no matmul runs on integers."""
    build(tiny_model.model, tmp_path / "fp32.onnx", GROUPS)
    model = onnx.load(tmp_path / "fp32.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Gemm"]:
        weight, name = tensors[node.input[1]], node.input[1]
        values = onnx.numpy_helper.to_array(weight)
        scale = np.float32(np.abs(values).max() / 127)
        eight_bits = np.rint(values / scale).astype(np.int8)
        weight.CopyFrom(onnx.numpy_helper.from_array(eight_bits, name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
        node.input[1] = f"{name}.float"
        inputs, output = [name, f"{name}.scale"], [node.input[1]]
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", inputs, output))
    onnx.save(model, tmp_path / "int8.onnx")
    layers = linear_layers(tiny_model.model)
    finding = layers_in_float(placed(tiny_model, tmp_path / "int8.onnx"), layers)
    assert not finding.holds
    assert finding.value == layers


# --- A GPU artifact ----------------------------------------------------------------------
def on_gpu(placement: Placement, *more: OperatorTime) -> Placement:
    """A real profile as a GPU would give it when all is well, and `more`."""
    moved = [dataclasses.replace(row, provider="CUDAExecutionProvider") for row in placement.rows]
    return dataclasses.replace(placement, rows=[*moved, *more])


def test_gpu_gates_hold_only_on_the_gpu(int8: Placement) -> None:
    assert all(finding.holds for finding in off_the_gpu("fp16", on_gpu(int8)))
    nodes, copies = off_the_gpu("fp16", int8)  # as it ran: every node on the CPU
    assert (nodes.gate, copies.gate) == ("fp16_nodes_off_gpu", "fp16_host_copies")
    assert not nodes.holds
    assert nodes.value == sum(row.nodes for row in int8.rows)
    assert "on CPUExecutionProvider" in nodes.worst


def test_one_node_on_the_cpu_goes_red(int8: Placement) -> None:
    nodes, copies = off_the_gpu(
        "fp16", on_gpu(int8, OperatorTime("TopK", "CPUExecutionProvider", 1, 3.0))
    )
    assert not nodes.holds and nodes.value == 1
    assert nodes.worst == "1 TopK on CPUExecutionProvider"
    assert copies.holds


@pytest.mark.parametrize("op", ["MemcpyToHost", "MemcpyFromHost"])
def test_a_host_copy_goes_red(tiny_model: TinyModel, tmp_path: Path, op: str) -> None:
    """The copy is in the graph, and ran: ONNX Runtime has the operator on a CPU too."""
    build(tiny_model.model, tmp_path / "fp32.onnx", GROUPS)
    model = onnx.load(tmp_path / "fp32.onnx")
    copied = next(node for node in model.graph.node if node.op_type == "Gemm")
    result, copied.output[0] = copied.output[0], "to_copy"
    at = list(model.graph.node).index(copied) + 1
    model.graph.node.insert(at, onnx.helper.make_node(op, ["to_copy"], [result], name="copy"))
    onnx.save(model, tmp_path / "copies.onnx")
    nodes, copies = off_the_gpu("fp16", on_gpu(placed(tiny_model, tmp_path / "copies.onnx")))
    assert nodes.holds
    assert not copies.holds and copies.value == 1
    assert copies.worst == f"1 {op} on CUDAExecutionProvider"


@pytest.mark.skipif(not NO_GPU, reason="this ONNX Runtime has the CUDA provider")
def test_a_gpu_artifact_never_falls_back_to_the_cpu(tiny_model: TinyModel) -> None:
    with pytest.raises(BadInput, match="is without CUDAExecutionProvider, expected"):
        open_session(tiny_model.onnx_path, "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_triton_places_every_model_on_the_artifacts_device(
    tiny_model: TinyModel, tmp_path: Path, device: str
) -> None:
    publish(
        tmp_path,
        onnx_path=tiny_model.onnx_path,
        ragged_path=tiny_model.ragged_path,
        tokenizer_path=tiny_model.tokenizer_path,
        artifact={"precision": "fp32", "device": device, "max_len": 16},
        instances=1,
    )
    group = pb.ModelInstanceGroup
    kind = {"cpu": group.KIND_CPU, "cuda": group.KIND_GPU}[device]
    for model in (PUBLIC_MODEL, ENCODER_MODEL, RAGGED_MODEL):
        text = (tmp_path / model / "config.pbtxt").read_text()
        config = text_format.Parse(text, pb.ModelConfig())
        assert [instances.kind for instances in config.instance_group] == [kind], model


# --- The choice of a precision -----------------------------------------------------------
def auto(trained_run: Path, root: Path) -> ExportConfig:
    return ExportConfig(
        checkpoint=trained_run,
        repository=root / "repository",
        out=root / "out",
        precision="auto",
        device="cpu",
        calibration_comments=64,
        instances=1,
    )


def turned_round(
    measure: Callable[..., dict[str, float]],
) -> Callable[..., dict[str, float]]:
    def reversed_measure(*args: object) -> dict[str, float]:
        measured = measure(*args)
        return dict(zip(measured, reversed(measured.values()), strict=True))

    return reversed_measure


def test_auto_publishes_the_faster_one(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured here, and then with the same rates exchanged: the other one."""
    config, published = auto(trained_run, tmp_path), []
    real, measured = rates.measure, dict[str, float]()

    def once(*args: object) -> dict[str, float]:
        if not measured:  # on a busy machine a second time might turn them round by itself
            measured.update(real(*args))  # type: ignore[arg-type]
        return measured

    for measure in (once, turned_round(once)):
        monkeypatch.setattr(rates, "measure", measure)
        report = export_main.export(config)
        forms = {form["precision"]: form for form in report["rates"]["forms"]}
        assert list(forms) == ["int8", "fp16", "fp32"]
        assert forms["fp32"]["gain"] == 1
        ratio = forms["int8"]["comments_per_s"] / forms["fp32"]["comments_per_s"]
        assert forms["int8"]["gain"] == pytest.approx(ratio)
        assert forms["fp16"]["comments_per_s"] is None
        assert "CUDA" in forms["fp16"]["verdict"]
        best = max(("int8", "fp32"), key=lambda name: forms[name]["comments_per_s"])
        other = {"int8": "fp32", "fp32": "int8"}[best]
        assert (forms[best]["verdict"], forms[other]["verdict"]) == ("published", "passes")
        assert report["precision"] == best == read_artifact(config.repository)["precision"]
        published.append(best)
    assert published in (["int8", "fp32"], ["fp32", "int8"])


def test_auto_passes_over_what_fails_its_gates(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def float_in_disguise(
        model: torch.nn.Module, path: Path, groups: object, _: object, ragged: Path, **__: object
    ) -> None:
        build(model, path, groups, ragged)

    monkeypatch.setattr(export_main, "build_int8", float_in_disguise)
    report = export_main.export(auto(trained_run, tmp_path))
    verdicts = {form["precision"]: form["verdict"] for form in report["rates"]["forms"]}
    assert verdicts["int8"] == "fails int8_layers_in_float"
    assert verdicts["fp32"] == "published"
    assert read_artifact(tmp_path / "repository")["precision"] == "fp32"
    assert "fails int8_layers_in_float" in capsys.readouterr().out


@pytest.mark.slow
def test_dynamic_quantization_is_refused_with_the_reason() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "export", "--precision", "dynamic"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "a comment's score would depend on its batch-mates" in done.stderr
    assert "expected one of int8, fp16, fp32, auto" in done.stderr


@pytest.mark.parametrize(
    ("precision", "device", "reason"),
    [
        ("fp16", "cpu", r"--precision is 'fp16' for the device 'cpu', expected .*int8 .*CUDA only"),
        ("int8", "cuda", r"--precision is 'int8' for the device 'cuda', expected .*fp16 .*kernels"),
        pytest.param(
            *("auto", "cuda", r"--device is cuda, expected a GPU"),
            marks=pytest.mark.skipif(not NO_GPU, reason="a GPU may be here"),
        ),
        pytest.param(
            *("fp16", "auto", r"--precision is 'fp16' for the device 'cpu'"),
            marks=pytest.mark.skipif(not NO_GPU, reason="a GPU may be here"),
        ),
    ],
)
def test_a_precision_that_the_device_does_not_serve_is_refused(
    precision: str, device: str, reason: str, tmp_path: Path
) -> None:
    config = ExportConfig(checkpoint=tmp_path, precision=precision, device=device)
    with pytest.raises(BadInput, match=reason) as error:
        export_main.export(config)
    assert "\n" not in str(error.value)
