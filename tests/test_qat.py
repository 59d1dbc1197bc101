"""QAT: the fake-quantized model is the INT8 graph, training runs through it, and it helps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import contract
import export.__main__ as export_main
from contract import BadInput, GateFailed
from export import parity
from export.config import ExportConfig
from export.repository import load_scorer, read_artifact
from export.serving_graph import _calibrate, _graph, build_int8
from train import qat
from train.__main__ import StopRequest, train
from train.artifacts import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, load_checkpoint
from train.batches import TokenizedOnTheFly
from train.cli import parse_config
from train.config import TrainConfig
from train.data import load_comments
from train.evaluate import logits_of
from train.model import ModelConfig, ToxicityEncoder
from train.split import split_comments

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
    ours, theirs = qat.calibrate(model, ids), _calibrate(_graph(model, GROUPS, None), ids)
    assert list(ours) == qat.points(model.config)
    assert ours.keys() == theirs.keys()
    for point, (least, greatest) in theirs.items():
        assert ours[point] == pytest.approx((min(least, 0), max(greatest, 0)), abs=1e-4), point


def test_fake_quantized_model_is_the_int8_graph(
    model: ToxicityEncoder, comments: list[parity.Comment], tmp_path: Path
) -> None:
    ranges = qat.calibrate(model, (np.array(comment.ids) for comment in comments))
    build_int8(model, tmp_path / "int8.onnx", GROUPS, [], ranges)
    fake = parity.torch_runner(qat.FakeQuantizedEncoder(model, ranges).eval())
    served = parity.onnx_runner(tmp_path / "int8.onnx")
    shapes = parity.shape_parity("gate", 0.01, fake, served, comments, max_len=32, seed=0)
    from_float = parity.shape_parity(
        "gate", 0.01, parity.torch_runner(model), served, comments, max_len=32, seed=0
    )
    print(shapes, from_float)
    assert shapes.holds, shapes
    assert from_float.value > 5 * shapes.value
