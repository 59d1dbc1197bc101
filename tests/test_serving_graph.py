"""The serving graph: equal to PyTorch, the same in any company, dense or ragged, FP32 or INT8."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from contract import (
    ACCUMULATED_COUNTS,
    ATTENTION_MASK,
    CLS_ID,
    FP32_INVARIANCE_ATOL,
    INPUT_IDS,
    INT8_INVARIANCE_ATOL,
    LOGIT,
    MAX_BATCH_SIZE,
    SERVING_LOGIT_ATOL,
)
from export.gates.parity import (
    Comment,
    Runner,
    adversarial_mates,
    batch_invariance,
    feeds_of,
    onnx_runner,
    ragged_runner,
    run_batch,
    shape_parity,
    torch_runner,
)
from export.gates.placement import placement_of
from export.graph.build import build, build_int8
from export.graph.encoder import linear_layers
from export.graph.groups import GROUP_COST, WIDTH_STEP, choose_groups, groups_for
from train.model import Attention, ModelConfig, ToxicityEncoder

MAX_LEN, VOCAB = 64, 100
GROUPS = (8, 24, 64)
ATOL = {"fp32": FP32_INVARIANCE_ATOL, "int8": INT8_INVARIANCE_ATOL}


@pytest.fixture(scope="module", params=["softmax", "linear"])
def model(request: pytest.FixtureRequest) -> ToxicityEncoder:
    return _model(n_layers=2, attention=request.param)


def _model(n_layers: int, attention: Attention) -> ToxicityEncoder:
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": n_layers, "n_heads": 2, "max_len": MAX_LEN}
    config = ModelConfig(VOCAB, **shape, attention=attention)
    model = ToxicityEncoder(config).eval()
    with torch.no_grad():  # so that logits spread over several units
        model.token_embedding.weight.mul_(50)
        model.head.weight.mul_(10)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1: a lost one would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _comments(lengths: Sequence[int] | np.ndarray) -> list[Comment]:
    rng = np.random.default_rng(len(lengths))
    return [
        Comment(f"row {row}", np.r_[CLS_ID, rng.integers(3, VOCAB, length - 1)])
        for row, length in enumerate(lengths)
    ]


def _mixed(count: int, seed: int) -> list[Comment]:
    """Lengths of every kind: [CLS] alone, the longest, and what lies between, in any order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, MAX_LEN + 1, count)
    lengths[: count // 4] = 1
    lengths[count // 4 : count // 2] = MAX_LEN
    return _comments(rng.permutation(lengths))


@pytest.fixture(scope="module")
def graphs(model: ToxicityEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of fp32.onnx and int8.onnx, and of their ragged forms."""
    folder = tmp_path_factory.mktemp("graphs")
    build(model, folder / "fp32.onnx", GROUPS, ragged=folder / "fp32_ragged.onnx")
    calibration = (np.asarray(comment.ids) for comment in _mixed(32, seed=1))
    ragged = folder / "int8_ragged.onnx"
    build_int8(model, folder / "int8.onnx", GROUPS, calibration, ragged=ragged)
    return folder


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- Equal to PyTorch --------------------------------------------------------------------
def test_fp32_equals_pytorch_at_every_shape(model: ToxicityEncoder, graphs: Path) -> None:
    expected = run_batch(torch_runner(model), _mixed(32, seed=2))
    assert expected.std() > 0.4  # logits that are all alike would prove nothing
    finding = shape_parity(
        "serving",
        SERVING_LOGIT_ATOL,
        torch_runner(model),
        onnx_runner(graphs / "fp32.onnx"),
        _mixed(16, seed=3),
        max_len=MAX_LEN,
        seed=0,
    )
    assert finding.holds, finding


@pytest.mark.parametrize(
    "lengths",
    [
        [1],  # batch 1, empty comment
        [MAX_LEN],
        [1] * 5,
        [24] * 5,  # one group only: the others are empty
        [8, 8, 9, 24, 25],  # on both sides of each edge
        [MAX_LEN] * MAX_BATCH_SIZE,
        [*range(1, MAX_LEN + 1)],
        [*range(MAX_LEN, 0, -1)],
    ],
    ids=lambda lengths: f"{len(lengths)}x{lengths[0]}..{lengths[-1]}",
)
def test_answers_come_in_the_order_of_the_comments(
    model: ToxicityEncoder, graphs: Path, lengths: list[int]
) -> None:
    comments = _comments(lengths)
    expected = [run_batch(torch_runner(model), [comment])[0] for comment in comments]
    for name, runner in {"fp32": onnx_runner, "fp32_ragged": ragged_runner}.items():
        logits = run_batch(runner(graphs / f"{name}.onnx"), comments)
        np.testing.assert_allclose(logits, expected, atol=SERVING_LOGIT_ATOL, rtol=0)


@pytest.mark.parametrize("groups", [(MAX_LEN,), tuple(range(8, MAX_LEN + 1, 8))])
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_any_depth_and_number_of_groups(
    tmp_path: Path, attention: Attention, n_layers: int, groups: tuple[int, ...]
) -> None:
    model, comments = _model(n_layers, attention), _mixed(16, seed=4)
    build(model, tmp_path / "graph.onnx", groups)
    logits = run_batch(onnx_runner(tmp_path / "graph.onnx"), comments)
    expected = run_batch(torch_runner(model), comments)
    np.testing.assert_allclose(logits, expected, atol=SERVING_LOGIT_ATOL, rtol=0)


def test_int8_is_near_and_runs_every_layer_on_integers(
    model: ToxicityEncoder, graphs: Path
) -> None:
    comments = _mixed(64, seed=5)
    placed = placement_of(graphs / "int8.onnx", feeds_of(comments))
    assert len(placed.integer_linears) == linear_layers(model)
    assert placed.float_linears == []
    logits = run_batch(onnx_runner(graphs / "int8.onnx"), comments)
    expected = run_batch(torch_runner(model), comments)
    assert 0 < np.abs(logits - expected).mean() < 0.1 * expected.std()


def drop_a_mask(graph: onnx.GraphProto) -> None:
    """Linear attention of every layer sees the padding of the widest group."""
    name = next(node.input[1] for node in graph.node if node.op_type == "Mul" and _masks(node))
    for node in graph.node:
        if name in node.input:
            node.input[list(node.input).index(name)] = "one"
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))


def _masks(node: onnx.NodeProto) -> bool:
    return node.input[0].startswith("Gather_") and node.input[1].startswith("Cast_")


def test_gates_go_red_when_linear_attention_sees_padding(tmp_path: Path) -> None:
    model, comments = _model(2, "linear"), _mixed(16, seed=7)
    build(model, tmp_path / "good.onnx", GROUPS)
    damaged = onnx.load(tmp_path / "good.onnx")
    drop_a_mask(damaged.graph)
    onnx.save(damaged, tmp_path / "bad.onnx")
    reference = torch_runner(model)
    holds = {
        name: shape_parity(
            "gate",
            SERVING_LOGIT_ATOL,
            reference,
            onnx_runner(tmp_path / f"{name}.onnx"),
            comments,
            max_len=MAX_LEN,
            seed=0,
        ).holds
        for name in ("good", "bad")
    }
    assert holds == {"good": True, "bad": False}


# --- Batch invariance --------------------------------------------------------------------
@pytest.mark.parametrize("interface", ["", "_ragged"])
def test_company_changes_nothing(
    model: ToxicityEncoder, graphs: Path, precision: str, interface: str
) -> None:
    runner: Callable[[Path], Runner] = ragged_runner if interface else onnx_runner
    finding = batch_invariance(
        "invariance",
        ATOL[precision],
        runner(graphs / f"{precision}{interface}.onnx"),
        _mixed(16, seed=6),
        adversarial_mates(model, max_len=MAX_LEN, seed=0),
        max_len=MAX_LEN,
        seed=0,
    )
    assert finding.holds, finding


# --- Ragged interface --------------------------------------------------------------------
@pytest.mark.parametrize("requests", [1, 2, 3, 17, MAX_BATCH_SIZE])
def test_ragged_batch_of_requests_equals_the_padded_batch(
    graphs: Path, precision: str, requests: int
) -> None:
    """Joined as the onnxruntime backend joins them; [3], [4], [5] tokens count 3, 7, 12."""
    comments = _mixed(requests, seed=requests)
    joined = np.concatenate([np.asarray(comment.ids) for comment in comments])
    counts = np.cumsum([len(comment.ids) for comment in comments], dtype=np.int32)
    session = ort.InferenceSession(graphs / f"{precision}_ragged.onnx")
    (logits,) = session.run([LOGIT], {INPUT_IDS: joined, ACCUMULATED_COUNTS: counts})
    assert logits.shape == (requests,)
    expected = run_batch(onnx_runner(graphs / f"{precision}.onnx"), comments)
    np.testing.assert_allclose(logits, expected, atol=ATOL[precision], rtol=0)


def test_both_interfaces_declare_the_contracts_tensors(graphs: Path, precision: str) -> None:
    int64, int32, float32 = (
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
        onnx.TensorProto.FLOAT,
    )
    logit = {LOGIT: (float32, ["batch"])}
    dense = {name: (int64, ["batch", "length"]) for name in (INPUT_IDS, ATTENTION_MASK)}
    ragged = {INPUT_IDS: (int64, ["tokens"]), ACCUMULATED_COUNTS: (int32, ["batch"])}
    for name, expected in {"": dense | logit, "_ragged": ragged | logit}.items():
        graph = onnx.load(graphs / f"{precision}{name}.onnx").graph
        declared = {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_param for dim in value.type.tensor_type.shape.dim],
            )
            for value in [*graph.input, *graph.output]
        }
        assert declared == expected


# --- Choice of the groups ----------------------------------------------------------------
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_len", [40, 61])
@pytest.mark.parametrize("per_token", [None, 24])
def test_groups_are_the_cheapest_of_all(seed: int, max_len: int, per_token: int | None) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, max_len + 1, 20)
    widths = [*range(WIDTH_STEP, max_len, WIDTH_STEP)]
    every = [
        (*inner, max_len)
        for count in range(len(widths) + 1)
        for inner in itertools.combinations(widths, count)
    ]
    chosen = choose_groups(lengths, max_len, per_token)
    assert chosen in every
    least = min(_cost(groups, lengths, per_token) for groups in every)
    assert _cost(chosen, lengths, per_token) == pytest.approx(least)


def _cost(groups: tuple[int, ...], lengths: np.ndarray, per_token: int | None) -> float:
    padded = [min(width for width in groups if width >= length) for length in lengths]
    costs = [width * (per_token or width) for width in padded]
    return float(np.mean(costs)) + GROUP_COST * len(groups)


def test_padding_is_cheaper_under_linear_attention() -> None:
    lengths, shape = range(1, 2049), {"vocab_size": 9, "d_model": 48, "max_len": 2048}
    softmax, linear = (
        groups_for(ModelConfig(**shape, attention=attention), lengths)
        for attention in ("softmax", "linear")
    )
    assert softmax == choose_groups(lengths, 2048)
    assert len(linear) < len(softmax)


def test_groups_follow_the_lengths() -> None:
    assert choose_groups([5] * 100, 256) == (8, 256)
    assert choose_groups([256] * 100, 256) == (256,)
    assert choose_groups([], 256) == (256,)
    assert choose_groups([3, 9999], 5) == (5,)  # cut at max_len, which is below a step
    spread = choose_groups(np.random.default_rng(0).integers(1, 257, 1000), 256)
    assert spread[-1] == 256 and len(spread) > 4
