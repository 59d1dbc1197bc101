"""The form for the CUDA provider, without a GPU: its operators' schemas, layout and numbers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from contract import (
    ACCUMULATED_COUNTS,
    ATTENTION_MASK,
    ATTRIBUTES,
    CLS_ID,
    INPUT_IDS,
    LOGIT,
    SERVING_LOGIT_ATOL,
)
from export.gates.parity import Comment, Runner, ragged_feeds, run_batch, torch_runner
from export.graph.build import build_packed
from export.graph.encoder import linear_layers
from tests.conftest import TinyModel
from train.model import every_head

ATOL = {"fp32": SERVING_LOGIT_ATOL, "fp16": 0.01}


class RemovePadding(OpRun):
    """As ONNX Runtime describes the operator: offsets of the tokens first, then of the padding."""

    op_domain = "com.microsoft"

    def _run(self, x_BLD: np.ndarray, count_B: np.ndarray) -> tuple[np.ndarray, ...]:
        assert x_BLD.ndim == 3 and count_B.dtype == np.int32
        real_BL = np.arange(x_BLD.shape[1]) < count_B[:, None]
        slot_BL = np.arange(real_BL.size).reshape(real_BL.shape)
        offset_BL = np.r_[slot_BL[real_BL], slot_BL[~real_BL]].reshape(real_BL.shape)
        ends = np.r_[0, count_B.cumsum()]
        longest = np.array([count_B.max()])
        host = (offset_BL, ends, longest)
        return x_BLD[real_BL], *(values.astype(np.int32) for values in host)


class PackedMultiHeadAttention(OpRun):
    """With packed QKV [T, H, 3, C]: each comment's tokens attend to each other, in float32."""

    op_domain = "com.microsoft"

    def _run(self, *inputs: np.ndarray, num_heads: int, scale: float) -> tuple[np.ndarray]:
        qkv, key, value, bias, offset, ends = inputs
        assert key is value is bias is None
        assert qkv.shape[1:3] == (num_heads, 3) and ends.shape == (len(offset) + 1,)
        out = np.empty((len(qkv), num_heads, qkv.shape[3]), qkv.dtype)
        for first, end in pairwise(ends):
            q, k, v = qkv[first:end].astype(np.float32).transpose(2, 1, 0, 3)  # [H, n, C]
            scores = np.exp(scale * q @ k.swapaxes(1, 2))
            context = (scores / scores.sum(axis=-1, keepdims=True)) @ v
            out[first:end] = context.swapaxes(0, 1)
        return (out.reshape(len(qkv), -1),)


def runner(path: Path) -> Runner:
    session = ReferenceEvaluator(onnx.load(path), new_ops=[RemovePadding, PackedMultiHeadAttention])

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feeds = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if ACCUMULATED_COUNTS in session.input_names:
            feeds = ragged_feeds(input_ids, attention_mask)
        outputs = session.run([LOGIT, ATTRIBUTES][: len(session.output_names)], feeds)
        return np.column_stack(outputs) if len(outputs) > 1 else outputs[0]

    return run


@pytest.fixture(scope="module")
def graphs(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for precision in ATOL:
        paths = (folder / f"{precision}{name}.onnx" for name in ("", "_ragged"))
        dense, ragged = paths
        build_packed(tiny_model.model, dense, precision, ragged)
    return folder


@pytest.fixture(params=["fp32", "fp32_ragged", "fp16", "fp16_ragged"])
def path(request: pytest.FixtureRequest, graphs: Path) -> Path:
    return graphs / f"{request.param}.onnx"


def mixed(model: TinyModel) -> list[Comment]:
    rng, config = np.random.default_rng(0), model.model.config
    lengths = [config.max_len, 1, *rng.integers(1, config.max_len + 1, 14)]
    ids = (np.r_[CLS_ID, rng.integers(3, config.vocab_size, n - 1)] for n in lengths)
    return [Comment(f"row {row}", ids) for row, ids in enumerate(ids)]


def test_logits_are_pytorchs(tiny_model: TinyModel, path: Path) -> None:
    comments, run = mixed(tiny_model), runner(path)
    expected = run_batch(torch_runner(tiny_model.model), comments)
    atol = ATOL[path.stem.split("_")[0]]
    assert expected.std() > 10 * atol  # logits that are all alike would prove nothing
    np.testing.assert_allclose(run_batch(run, comments), expected, atol=atol, rtol=0)
    alone = [run_batch(run, [comment], pad_to=9)[0] for comment in comments]
    np.testing.assert_allclose(alone, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("precision", ATOL)
def test_attributes_are_pytorchs(named_model: TinyModel, precision: str, tmp_path: Path) -> None:
    paths = tmp_path / "dense.onnx", tmp_path / "ragged.onnx"
    build_packed(named_model.model, paths[0], precision, paths[1])
    comments = mixed(named_model)
    expected = run_batch(torch_runner(every_head(named_model.model)), comments)
    assert expected.shape == (len(comments), 1 + len(named_model.model.config.attributes))
    for path in paths:
        found = run_batch(runner(path), comments)
        np.testing.assert_allclose(found, expected, atol=ATOL[precision], rtol=0)


def test_onnx_runtime_accepts_every_node(path: Path, tmp_path: Path) -> None:
    """Its schemas hold: only a CPU kernel is missing. A wrong type does not get that far."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("the gates of the export run it here")
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*RemovePadding") as missing:
        ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert "NotImplemented" in type(missing.value).__name__
    model = onnx.load(path)
    removal = next(node for node in model.graph.node if node.op_type == "RemovePadding")
    removal.input[1] = removal.input[0]
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(Exception, match=r"INVALID_GRAPH.*Type"):
        ort.InferenceSession(tmp_path / "bad.onnx", providers=["CPUExecutionProvider"])


def test_layers_are_in_the_forms_precision_and_the_head_in_float32(
    tiny_model: TinyModel, path: Path
) -> None:
    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    linears = [weights[node.input[1]] for node in graph.node if node.op_type == "Gemm"]
    assert len(linears) == linear_layers(tiny_model.model)
    expected = TensorProto.FLOAT16 if path.stem.startswith("fp16") else TensorProto.FLOAT
    assert {tensor.data_type for tensor in linears} == {expected}
    assert weights["head.weight"].data_type == TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_nothing_is_computed_that_the_host_would_have_to_see(path: Path) -> None:
    """A shape, or an operator's axes, from the data would be copied to the CPU."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ops = {node.op_type for node in graph.node}
    assert not ops & {"Shape", "Size", "Range", "NonZero", "TopK", "Expand", "ConstantOfShape"}
    for node in graph.node:
        if node.op_type in ("Reshape", "Slice", "Unsqueeze", "ReduceSum", "CumSum"):
            assert set(node.input[1:]) <= constants.keys(), node
