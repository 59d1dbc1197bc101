"""Export: what is published passed the gates, and every gate goes red when it should."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Exported
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

import contract
import export.__main__ as export_main
from contract import BadInput, GateFailed
from export.config import ExportConfig
from export.gates import parity
from export.gates import run as gates
from export.gates.parity import Comment, batch_invariance, onnx_runner, shape_parity, torch_runner
from export.graph.build import build, build_int8
from export.graph.encoder import linear_layers
from export.graph.qdq import _OneByOne, linear_nodes
from export.manifest import check_gates
from export.repository import load_scorer, read_artifact, versions
from storage.locks import LOCK_FILE, locked
from train.artifacts import Checkpoint, load_checkpoint, sha256_of
from train.data.load import load_comments
from train.model import ToxicityEncoder

SMALL = {"calibration_comments": 64, "instances": 1}


@pytest.fixture(scope="module")
def exported(exported_of: Callable[[str], Exported]) -> Exported:
    return exported_of("int8")


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Checkpoint:
    return load_checkpoint(trained_run)


@pytest.fixture(scope="module")
def subject(exported: Exported) -> gates.GateSubject:
    return gates.load_subject(exported[0])


@pytest.fixture(scope="module")
def comments(checkpoint: Checkpoint) -> list[Comment]:
    texts = load_comments(checkpoint.config["train"]["data"]).texts[:24]
    edge = ["", "a", "you are fine . " * 200]
    return [parity.named(i, checkpoint.tokenizer.encode(t)) for i, t in enumerate(texts + edge)]


def test_every_gate_holds_and_is_in_the_report(
    exported: Exported,
) -> None:
    config, report = exported
    assert json.loads((config.out / "report.json").read_text()) == report
    gates = {gate["gate"]: gate for gate in report["gates"]}
    assert {
        "fp32_shapes",
        "fp32_edge_cases",
        "serving_vs_traced_shapes",
        "serving_vs_traced",
        "fp32_served_text",
        "fp32_batch_invariance",
        "fp32_ragged_vs_dense",
        "int8_ragged_vs_dense",
        "int8_layers_in_float",
        "int8_batch_invariance",
        "int8_logit_max",
        "int8_logit_mean",
        "int8_auroc",
        "int8_flipped_share",
    } == gates.keys()
    assert all(gate["holds"] and gate["worst"] for gate in gates.values())
    assert gates["int8_batch_invariance"]["value"] == 0.0


def test_report_is_kept_by_version_and_never_replaced(exported: Exported, tmp_path: Path) -> None:
    config, report = exported
    assert json.loads((config.out / "report-1.json").read_text()) == report
    for name in ("report-1.json", "report-1-2.json", "report-1-3.json"):
        export_main._write_report(tmp_path, {"published": {"version": 1}, "of": name})
        assert json.loads((tmp_path / "report.json").read_text())["of"] == name
    for path in tmp_path.glob("report-*.json"):
        assert json.loads(path.read_text())["of"] == path.name


def test_second_export_into_the_same_folder_is_refused(trained_run: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        checkpoint=trained_run, repository=tmp_path / "repository", out=tmp_path / "out", **SMALL
    )
    with (
        locked(config.out / LOCK_FILE, "it", ""),
        pytest.raises(BadInput, match=rf"--out .*/out is in use by process {os.getpid()} "),
    ):
        export_main.export(config)
    with pytest.raises(BadInput, match=r"none.pem is missing"):
        export_main.export(dataclasses.replace(config, sign_key=tmp_path / "none.pem"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be used .*another folder with --out"):
        export_main.export(dataclasses.replace(config, out=tmp_path / "file" / "out"))
    assert not config.repository.exists()


def test_report_and_artifact_name_the_published_bytes(
    exported: Exported,
) -> None:
    config, report = exported
    folder = config.repository / contract.PUBLIC_MODEL / "1"
    files = report["published"]["files"]
    assert {path.name for path in folder.iterdir()} == files.keys()
    for name, described in files.items():
        assert described["sha256"] == sha256_of(folder / name)
    artifact = read_artifact(config.repository)
    assert artifact["precision"] == "int8"
    assert artifact["tolerances"]["int8_logit_max"] == contract.INT8_LOGIT_ATOL
    assert artifact["calibration"]["slope"] > 0
    assert datetime.fromisoformat(artifact["created"]) <= datetime.now(UTC)
    check_gates(artifact, folder)


def test_graph_has_the_contracts_names_types_and_dynamic_axes(
    exported: Exported,
) -> None:
    for name in ("traced.onnx", "fp32.onnx", "int8.onnx"):
        graph = onnx.load(exported[0].out / name).graph
        shape = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in [*graph.input, *graph.output]
        }
        assert shape == {
            contract.INPUT_IDS: ["batch", "length"],
            contract.ATTENTION_MASK: ["batch", "length"],
            contract.LOGIT: ["batch"],
        }
        types = [value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]]
        assert types == [onnx.TensorProto.INT64] * 2 + [onnx.TensorProto.FLOAT]


def test_int8_runs_every_linear_layer_on_integers(
    exported: Exported, checkpoint: Checkpoint
) -> None:
    layers = linear_layers(checkpoint.model)
    out = exported[0].out
    assert len(linear_nodes(out / "fp32.onnx")) == layers
    placed = exported[1]["placement"]
    assert len(placed["int8"]["integer_linears"]) == len(placed["fp32"]["float_linears"]) == layers
    assert placed["int8"]["float_linears"] == placed["fp32"]["integer_linears"] == []


def test_int8_weights_keep_to_seven_bits(
    exported: Exported,
) -> None:
    """Beyond +-64, kernels without VNNI saturate and two CPUs disagree."""
    graph = onnx.load(exported[0].out / "int8.onnx").graph
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert weights
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 64


def test_offline_scorer_reads_what_was_published(
    exported: Exported, checkpoint: Checkpoint
) -> None:
    texts = load_comments(checkpoint.config["train"]["data"]).texts[:100]
    scores = load_scorer(exported[0].repository).score(texts)
    direct = onnx_runner(exported[0].out / "int8.onnx")
    for text, logit in zip(texts, scores.logit, strict=True):
        comment = Comment("", checkpoint.tokenizer.encode(text))
        assert parity.run_batch(direct, [comment])[0] == logit


# --- Each gate goes red --------------------------------------------------------------------
def edited(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(source)
    edit(model)
    target.write_bytes(model.SerializeToString())
    return target


def corrupt_one_weight(model: onnx.ModelProto) -> None:
    """One number of the head, by a tenth of the layer's spread."""
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] += 0.1 * values.std() + 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def drop_the_mask(model: onnx.ModelProto) -> None:
    """Attention sees padding: every use of the mask reads ones of its shape instead."""
    graph = model.graph
    ones = [
        onnx.helper.make_node("Shape", [contract.ATTENTION_MASK], ["mask_shape"]),
        onnx.helper.make_node(
            "ConstantOfShape",
            ["mask_shape"],
            ["all_ones"],
            value=onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]),
        ),
    ]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == contract.ATTENTION_MASK:
                node.input[index] = "all_ones"
    for node in reversed(ones):
        graph.node.insert(0, node)


@pytest.mark.parametrize("damage", [corrupt_one_weight, drop_the_mask])
def test_fp32_gate_goes_red(
    damage: Callable[[onnx.ModelProto], None],
    exported: Exported,
    checkpoint: Checkpoint,
    comments: list[Comment],
    tmp_path: Path,
) -> None:
    good = exported[0].out / "fp32.onnx"
    bad = edited(good, tmp_path / "bad.onnx", damage)
    reference = torch_runner(checkpoint.model)
    max_len = checkpoint.tokenizer.max_len

    def parity_of(path: Path) -> parity.Finding:
        bound = contract.SERVING_LOGIT_ATOL
        run = onnx_runner(path)
        return shape_parity("gate", bound, reference, run, comments, max_len=max_len, seed=0)

    assert parity_of(good).holds
    finding = parity_of(bad)
    assert not finding.holds
    assert re.search(r"batch \d+ x length \d+, row \d+", finding.worst)


def test_invariance_gate_goes_red_without_the_mask(
    exported: Exported, comments: list[Comment], tmp_path: Path
) -> None:
    bad = edited(exported[0].out / "traced.onnx", tmp_path / "bad.onnx", drop_the_mask)
    run = onnx_runner(bad)
    assert not batch_invariance("gate", 1e-5, run, comments, [], max_len=64, seed=0).holds


def test_invariance_gate_goes_red_for_dynamic_int8(
    exported: Exported,
    checkpoint: Checkpoint,
    comments: list[Comment],
    tmp_path: Path,
) -> None:
    source, dynamic = exported[0].out / "traced.onnx", tmp_path / "dynamic.onnx"
    quantize_dynamic(source, dynamic, nodes_to_quantize=linear_nodes(source))
    max_len = checkpoint.tokenizer.max_len
    mates = parity.adversarial_mates(checkpoint.model, max_len=max_len, seed=0)
    finding = batch_invariance(
        "gate",
        contract.INT8_INVARIANCE_ATOL,
        onnx_runner(dynamic),
        comments,
        mates,
        max_len=max_len,
        seed=0,
    )
    assert not finding.holds
    assert finding.worst.startswith("comment ")


def silence_a_layer(model: onnx.ModelProto) -> None:
    tensor = next(
        t
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    )
    zeros = np.zeros_like(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))


@pytest.mark.parametrize("damaged", ["int8.onnx", "int8_ragged.onnx"])
def test_interface_gate_goes_red_when_one_is_another_model(
    exported: Exported,
    subject: gates.GateSubject,
    tmp_path: Path,
    damaged: str,
) -> None:
    names = ("int8.onnx", "int8_ragged.onnx")
    paths = {name: exported[0].out / name for name in names}
    good = gates.Form("int8", "cpu", *paths.values())
    assert gates._ragged_parity(subject, good, seed=0).holds
    paths[damaged] = edited(paths[damaged], tmp_path / damaged, silence_a_layer)
    bad = gates.Form("int8", "cpu", *paths.values())
    assert not gates._ragged_parity(subject, bad, seed=0).holds


def test_nan_never_passes(comments: list[Comment]) -> None:
    def broken(input_ids: np.ndarray, _mask: np.ndarray) -> np.ndarray:
        return np.full(len(input_ids), np.nan, np.float32)

    def fine(input_ids: np.ndarray, _mask: np.ndarray) -> np.ndarray:
        return np.zeros(len(input_ids), np.float32)

    assert not shape_parity("gate", 1.0, fine, broken, comments, max_len=64, seed=0).holds
    assert not batch_invariance("gate", 1.0, broken, comments, [], max_len=64, seed=0).holds
    labels, logits = np.array([0, 1]), np.zeros(2, np.float32)
    findings = parity.quality_parity("int8", labels, logits, logits * np.nan, ["a", "b"])
    assert not findings[0].holds


Calibration = Iterable[np.ndarray]


def all_operators_int8(
    model: ToxicityEncoder,
    path: Path,
    groups: Sequence[int],
    calibration: Calibration,
    ragged: Path,
    **_: object,
) -> None:
    build(model, path, groups, ragged)
    traced = path.with_name("to_quantize.onnx")
    export_main.trace(model, traced)  # once for all tests
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(traced, path, _OneByOne(calibration), **types)


def float_in_disguise(
    model: ToxicityEncoder,
    path: Path,
    groups: Sequence[int],
    _calibration: Calibration,
    ragged: Path,
    **_: object,
) -> None:
    build(model, path, groups, ragged)


def damaged_int8(
    model: ToxicityEncoder,
    path: Path,
    groups: Sequence[int],
    calibration: Calibration,
    ragged: Path,
    **_: object,
) -> None:
    """The same damage in both interfaces, so that they agree."""
    build_int8(model, path, groups, calibration, ragged)
    for form in (path, ragged):
        edited(form, form, silence_a_layer)


@pytest.mark.parametrize(
    ("quantizer", "gate"),
    [
        (all_operators_int8, r"gate int8_\w+ is"),
        (float_in_disguise, r"gate int8_layers_in_float is 8, expected at most 0"),
        (damaged_int8, r"gate int8_\w+ is .*comment \d+ \(\d+ tokens, row \d+ of the val"),
    ],
)
def test_failed_gate_publishes_nothing_and_keeps_the_old_version(
    quantizer: Callable[..., None],
    gate: str,
    trained_run: Path,
    exported_of: Callable[[str], Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ExportConfig(
        checkpoint=trained_run, repository=tmp_path / "repository", out=tmp_path / "out", **SMALL
    )
    shutil.copytree(exported_of("fp32")[0].repository, config.repository)
    before = sorted(path for path in config.repository.rglob("*") if path.is_file())
    monkeypatch.setattr(export_main, "build_int8", quantizer)
    with pytest.raises(GateFailed, match=gate) as error:
        export_main.export(config)
    assert error.value.exit_status == 3
    assert "\n" not in str(error.value)
    assert sorted(path for path in config.repository.rglob("*") if path.is_file()) == before
    assert versions(config.repository) == [1]
    assert read_artifact(config.repository)["precision"] == "fp32"
    report = json.loads((config.out / "report.json").read_text())
    assert report["published"] is None
    assert not all(entry["holds"] for entry in report["gates"])


def test_changed_comments_are_refused(trained_run: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        checkpoint=trained_run,
        repository=tmp_path / "repository",
        out=tmp_path / "out",
        data="synthetic:700",
        **SMALL,
    )
    with pytest.raises(BadInput, match=r"are not those that .* was trained on"):
        export_main.export(config)
    assert not config.repository.exists()


def test_trace_of_one_comment_of_one_token(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The shape that a careless example would have made the only one."""
    path = tmp_path / "model.onnx"
    export_main.trace(checkpoint.model, path)
    lone = [Comment("lone", [contract.CLS_ID])]
    one = parity.run_batch(onnx_runner(path), lone)
    assert one == pytest.approx(parity.run_batch(torch_runner(checkpoint.model), lone), abs=1e-5)


def test_ids_of_the_checkpoint_and_of_the_published_tokenizer_agree(
    exported: Exported,
) -> None:
    folder = exported[0].repository / contract.PUBLIC_MODEL / "1"
    assert (folder / contract.TOKENIZER_FILE).read_bytes() == (
        exported[0].checkpoint / contract.TOKENIZER_FILE
    ).read_bytes()
