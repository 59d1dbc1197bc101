"""The symmetric INT8 file for TensorRT: what that provider takes, close to PyTorch, and gated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import export.__main__ as export_main
from contract import GateFailed
from export.config import ExportConfig
from export.gates import parity
from export.gates.parity import Comment
from export.graph.qdq import TENSORRT_FILE, linear_nodes, qdq_logits, write_qdq
from tests.conftest import TinyModel


@pytest.fixture(scope="module")
def comments(tiny_model: TinyModel) -> list[Comment]:
    rng = np.random.default_rng(0)
    size, longest = len(tiny_model.tokenizer.vocabulary), tiny_model.tokenizer.max_len
    lengths = rng.integers(1, longest + 1, size=40)
    return [Comment(str(n), [2, *rng.integers(3, size, size=n - 1)]) for n in lengths]


@pytest.mark.slow
def test_file_is_what_tensorrt_takes_and_near_pytorch(
    tiny_model: TinyModel, comments: list[Comment], tmp_path: Path
) -> None:
    traced, path = tiny_model.onnx_path, tmp_path / TENSORRT_FILE
    write_qdq(traced, path, (np.array(c.ids) for c in comments), symmetric=True)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) >= 1
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype in (np.int8, np.int32) and not zero.any(), node.name
    inputs = {name for node in quantizers for name in node.output}
    assert len(inputs) == len(quantizers)
    assert len(linear_nodes(traced)) == 4 * tiny_model.model.config.n_layers
    expected = parity.run_batch(parity.torch_runner(tiny_model.model), comments)
    gap = np.abs(qdq_logits(path, comments) - expected)
    assert 0 < gap.max() < 0.2


def test_export_writes_it_and_its_gate_goes_red(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(
        checkpoint=trained_run,
        repository=tmp_path / "repository",
        out=tmp_path / "out",
        precision="fp32",
        calibration_comments=32,
        tensorrt=True,
    )
    report = export_main.export(config)
    gates = {gate["gate"] for gate in report["gates"]}
    assert {"tensorrt_logit_max", "tensorrt_auroc", "tensorrt_flipped_share"} <= gates
    assert len(report["tensorrt"]["sha256"]) == 64

    def too_narrow(traced: Path, path: Path, _: object, *, symmetric: bool) -> None:
        short = (np.array([2]) for _ in range(2))  # [CLS] alone: no range fits real comments
        write_qdq(traced, path, short, symmetric=symmetric)

    monkeypatch.setattr(export_main, "write_qdq", too_narrow)
    with pytest.raises(GateFailed, match="gate tensorrt_"):
        export_main.export(config)
    assert json.loads((tmp_path / "out/report.json").read_text())["published"] is None
