"""One layer without groups: equal to PyTorch, bitwise the same in any company, and cheap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from contract import (
    CLS_ID,
    FP32_INVARIANCE_ATOL,
    INT8_INVARIANCE_ATOL,
    MAX_BATCH_SIZE,
    SERVING_LOGIT_ATOL,
)
from export.cascade import Band, CascadeEncoder
from export.gates.parity import (
    Comment,
    Runner,
    adversarial_mates,
    batch_invariance,
    feeds_of,
    onnx_runner,
    ragged_feeds,
    ragged_runner,
    run_batch,
    shape_parity,
    torch_runner,
)
from export.gates.placement import Placement, layers_in_float, placement_of
from export.graph import one_layer
from export.graph.build import build, build_int8
from export.graph.encoder import linear_layers
from export.session import open_session
from train.methods.qat import FakeQuantizedEncoder, calibrate
from train.model import ModelConfig, ToxicityEncoder

VOCAB, GROUPS = 100, (8, 70)
MAX_LEN = 70
"""Not a multiple of a chunk."""
OPERATORS = 65
"""Most nodes of the ragged INT8 graph once ONNX Runtime has fused what it can."""
ATOL = {"fp32": FP32_INVARIANCE_ATOL, "int8": INT8_INVARIANCE_ATOL}
SHAPES = {
    "one-head": (32, 1),
    "as-trained": (64, 4),
    "many-heads": (48, 6),
    "longer-than-a-sum": (192, 4),
}


def random_encoder(d_model: int, n_heads: int, n_layers: int = 1) -> ToxicityEncoder:
    torch.manual_seed(0)
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "max_len": MAX_LEN}
    model = ToxicityEncoder(ModelConfig(VOCAB, **shape)).eval()
    with torch.no_grad():  # so that logits spread over several units
        model.token_embedding.weight.mul_(50)
        model.position_embedding.weight.mul_(20)
        model.head.weight.mul_(10)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1: a lost one would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def mixed(count: int, seed: int) -> list[Comment]:
    """Lengths of every kind: [CLS] alone, on both sides of a chunk's edge, the longest."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, MAX_LEN + 1, count)
    lengths[: count // 2] = np.resize([1, 15, 16, 17, 32, 33, MAX_LEN], count // 2)
    return [
        Comment(f"row {row}", np.r_[CLS_ID, rng.integers(3, VOCAB, length - 1)])
        for row, length in enumerate(rng.permutation(lengths))
    ]


def calibration() -> list[np.ndarray]:
    return [np.asarray(comment.ids) for comment in mixed(32, seed=1)]


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> ToxicityEncoder:
    return random_encoder(*SHAPES[request.param])


@pytest.fixture(scope="module")
def graphs(model: ToxicityEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of fp32.onnx and int8.onnx, and of their ragged forms."""
    folder = tmp_path_factory.mktemp("graphs")
    build(model, folder / "fp32.onnx", GROUPS, ragged=folder / "fp32_ragged.onnx")
    ragged = folder / "int8_ragged.onnx"
    build_int8(model, folder / "int8.onnx", GROUPS, calibration(), ragged=ragged)
    return folder


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- Equal to PyTorch --------------------------------------------------------------------
def test_fp32_equals_pytorch_at_every_shape(model: ToxicityEncoder, graphs: Path) -> None:
    assert one_layer.fits(model)
    expected = run_batch(torch_runner(model), mixed(32, seed=2))
    assert expected.std() > 0.3  # logits that are all alike would prove nothing
    for name, runner in {"fp32": onnx_runner, "fp32_ragged": ragged_runner}.items():
        finding = shape_parity(
            "one layer",
            SERVING_LOGIT_ATOL,
            torch_runner(model),
            runner(graphs / f"{name}.onnx"),
            mixed(16, seed=3),
            max_len=MAX_LEN,
            seed=0,
        )
        assert finding.holds, finding


def test_int8_is_near_and_follows_qat(model: ToxicityEncoder, graphs: Path, tmp_path: Path) -> None:
    """With QAT's ranges the constant query has the rounding that it was trained with."""
    comments = mixed(MAX_BATCH_SIZE, seed=5)
    expected = run_batch(torch_runner(model), comments)
    logits = run_batch(onnx_runner(graphs / "int8.onnx"), comments)
    assert 0 < np.abs(logits - expected).mean() < 0.1 * expected.std()
    ranges = calibrate(model, calibration())
    build_int8(model, tmp_path / "qat.onnx", GROUPS, [], ranges=ranges)
    tuned = run_batch(torch_runner(FakeQuantizedEncoder(model, ranges).eval()), comments)
    served = run_batch(onnx_runner(tmp_path / "qat.onnx"), comments)
    assert np.abs(served - tuned).mean() < 0.2 * np.abs(tuned - expected).mean()


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
        mixed(24, seed=6),
        adversarial_mates(model, max_len=MAX_LEN, seed=0),
        max_len=MAX_LEN,
        seed=0,
    )
    assert finding.holds, finding


def test_order_and_size_of_a_batch_change_nothing(graphs: Path) -> None:
    """Every prefix of a batch, and the batch backwards: each comment in every place."""
    run, comments = ragged_runner(graphs / "int8_ragged.onnx"), mixed(MAX_BATCH_SIZE, seed=7)
    whole = run_batch(run, comments)
    for size in range(1, len(comments)):
        np.testing.assert_array_equal(run_batch(run, comments[:size]), whole[:size])
        np.testing.assert_array_equal(run_batch(run, comments[-size:][::-1]), whole[-size:][::-1])


def test_what_stands_in_the_padding_is_never_read(graphs: Path, precision: str) -> None:
    run = onnx_runner(graphs / f"{precision}.onnx")
    ids, mask = feeds_of(mixed(8, seed=8), pad_to=MAX_LEN).values()
    garbage = np.where(mask == 0, VOCAB + 10_000, ids)
    np.testing.assert_array_equal(run(garbage, mask), run(ids, mask))


@pytest.mark.parametrize("batch", [1, 2, 3, 17, MAX_BATCH_SIZE])
def test_both_interfaces_agree_bitwise(graphs: Path, precision: str, batch: int) -> None:
    comments = mixed(batch, seed=batch)
    dense, ragged = (
        run_batch(runner(graphs / f"{precision}{suffix}.onnx"), comments)
        for runner, suffix in ((onnx_runner, ""), (ragged_runner, "_ragged"))
    )
    np.testing.assert_array_equal(dense, ragged)


# --- Which models ------------------------------------------------------------------------
def test_scores_keep_to_their_bound(model: ToxicityEncoder) -> None:
    """Of all tokens at all places, from PyTorch's own weights."""
    attention, norm = model.blocks[0].attention, model.blocks[0].attention_norm
    heads, d = model.config.n_heads, model.config.d_model
    with torch.inference_mode():
        rows = model.token_embedding.weight[:, None] + model.position_embedding.weight
        normed = norm(rows)
        qk = attention.in_proj_weight[: 2 * d], attention.in_proj_bias[: 2 * d]
        q, k = torch.nn.functional.linear(normed, *qk).unflatten(-1, (2, heads, -1)).unbind(2)
        scores = torch.einsum("hc,vphc->vph", q[CLS_ID, 0], k) / (d // heads) ** 0.5
    spread = scores.flatten(0, 1).amax(0) - scores.flatten(0, 1).amin(0)
    bound = one_layer.score_bound(model)
    assert 0.1 * bound < float(spread.max()) / 2 <= bound <= one_layer.SCORE_LIMIT


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_scores_beyond_the_limit_take_the_general_layout(tmp_path: Path, scale: float) -> None:
    """Just below the limit the sums are exact still; just above it no exp is taken at all."""
    model, comments = random_encoder(64, 4), mixed(MAX_BATCH_SIZE, seed=9)
    with torch.no_grad():  # the keys have no bias in the scores, so these scale with the weight
        factor = scale * one_layer.SCORE_LIMIT / one_layer.score_bound(model)
        model.blocks[0].attention.in_proj_weight[64:128].mul_(factor)
    assert one_layer.score_bound(model) == pytest.approx(scale * one_layer.SCORE_LIMIT)
    assert one_layer.fits(model) == (scale < 1)
    build(model, tmp_path / "graph.onnx", GROUPS)
    kinds = {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    assert ("Softmax" in kinds) == (scale > 1) and ("ScatterND" in kinds) == (scale < 1)
    logits = run_batch(onnx_runner(tmp_path / "graph.onnx"), comments)
    expected = run_batch(torch_runner(model), comments)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)  # sharp scores round more
    assert linear_layers(model) == (3 if scale < 1 else 4)


def test_other_models_keep_the_general_layout() -> None:
    assert not one_layer.fits(random_encoder(64, 4, n_layers=2))
    assert not one_layer.fits(random_encoder(36, 2))  # rows of no whole vectors
    linear = ModelConfig(VOCAB, 64, 1, 4, max_len=MAX_LEN, attention="linear")
    assert not one_layer.fits(ToxicityEncoder(linear).eval())


def test_a_students_cascade_has_it_too(tmp_path: Path) -> None:
    student, teacher = random_encoder(32, 1), random_encoder(48, 6, n_layers=2)
    comments = mixed(MAX_BATCH_SIZE, seed=10)
    low, high = np.quantile(run_batch(torch_runner(student), comments), [0.3, 0.7])
    band = Band(low, high, 1.0, 0.0, 0.4, 1.0, 0.9, 0.9, 0.9)
    model = CascadeEncoder(student, teacher, band).eval()
    build(model, tmp_path / "graph.onnx", GROUPS)
    logits = run_batch(onnx_runner(tmp_path / "graph.onnx"), comments)
    np.testing.assert_allclose(
        logits, run_batch(torch_runner(model), comments), atol=SERVING_LOGIT_ATOL, rtol=0
    )
    assert linear_layers(model) == 3 + 8


# --- Cost --------------------------------------------------------------------------------
def placed(path: Path) -> Placement:
    feeds = feeds_of(mixed(33, seed=11))
    return placement_of(path, ragged_feeds(*feeds.values()))


def test_few_operators_run_and_the_linear_layers_in_integers(
    model: ToxicityEncoder, graphs: Path
) -> None:
    placement = placed(graphs / "int8_ragged.onnx")
    assert placement.operators <= OPERATORS
    assert {"TopK", "Softmax"}.isdisjoint(row.op for row in placement.rows)
    finding = layers_in_float(placement, linear_layers(model))
    assert finding.holds, finding
    assert len(placed(graphs / "fp32_ragged.onnx").float_linears) == linear_layers(model) == 3


def test_placement_says_what_a_batch_takes(graphs: Path) -> None:
    placement = placed(graphs / "int8_ragged.onnx")
    assert placement.us == pytest.approx(sum(row.us for row in placement.rows))
    assert f"{placement.operators} nodes on CPU" in str(placement) and " us a batch" in str(
        placement
    )
    report = placement.to_json()
    assert (report["operators"], report["us"]) == (placement.operators, placement.us)


def test_the_same_weights_give_the_same_file(model: ToxicityEncoder, graphs: Path) -> None:
    again = graphs / "again.onnx"
    build(model, again, GROUPS)
    assert again.read_bytes() == (graphs / "fp32.onnx").read_bytes()
    open_session(again)
