"""The native core by itself: what it refuses to load, its checksum, and that it builds alike."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import TinyModel
from onnx import TensorProto, helper

from contract import MAX_BATCH_SIZE, BadInput, ToxicityError
from core import build
from core.binding import NativeScorer, NativeTokenizer, onnxruntime_library, probability, sha256
from export.scorer import Scorer


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_checksum_is_sha256(length: int) -> None:
    data = bytes(i * 7 % 256 for i in range(length))
    assert sha256(data) == hashlib.sha256(data).hexdigest()


def test_probability_is_the_logistic_function() -> None:
    logits = np.array([0, -0.0, 1, -1, 88, -88, 1e4, -1e4, 3.4e38, -3.4e38], np.float32)
    expected = [1 / (1 + math.exp(-min(max(x, -700), 700))) for x in logits.astype(float)]
    np.testing.assert_allclose(probability(logits), np.float32(expected), rtol=1e-7, atol=1e-38)
    assert probability(np.zeros((2, 1), np.float32)).tolist() == [[0.5], [0.5]]


def _open(path: Path, tokenizer: NativeTokenizer, **options: object) -> NativeScorer:
    return NativeScorer(path, tokenizer, max_batch=MAX_BATCH_SIZE, **options)


def _graph(path: Path, inputs: dict[str, tuple[int, list]], output: str, rank: int) -> Path:
    """A graph with these inputs that gives the sum of the first, by its row."""
    declared = [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in inputs.items()]
    name = next(iter(inputs))
    nodes = [
        helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float"], [output], keepdims=int(rank > 1)),
    ]
    shape = ["a", "b"][:rank]
    made = helper.make_graph(
        nodes, "g", declared, [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


INT64 = TensorProto.INT64


@pytest.mark.parametrize(
    ("inputs", "output", "rank"),
    [
        ({"ids": (INT64, ["b", "l"]), "attention_mask": (INT64, ["b", "l"])}, "logit", 1),
        ({"input_ids": (INT64, ["b", "l"])}, "logit", 1),
        ({"input_ids": (INT64, ["b"]), "attention_mask": (INT64, ["b", "l"])}, "logit", 1),
        ({"input_ids": (INT64, ["b"]), "accumulated_counts": (INT64, ["b"])}, "logit", 1),
        ({"input_ids": (INT64, ["b", "l"]), "attention_mask": (INT64, ["b", "l"])}, "score", 1),
        ({"input_ids": (INT64, ["b", "l"]), "attention_mask": (INT64, ["b", "l"])}, "logit", 2),
    ],
)
def test_graph_of_other_tensors_is_refused(
    tiny_model: TinyModel,
    tmp_path: Path,
    inputs: dict[str, tuple[int, list]],
    output: str,
    rank: int,
) -> None:
    path = _graph(tmp_path / "other.onnx", inputs, output, rank)
    with pytest.raises(BadInput, match="the graph") as error:
        _open(path, tiny_model.tokenizer.native)
    assert "\n" not in str(error.value)


def test_hostile_artifacts_are_refused_loads(tiny_model: TinyModel, tmp_path: Path) -> None:
    native = tiny_model.tokenizer.native
    whole = tiny_model.ragged_path.read_bytes()
    for at in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(whole[:at])
        with pytest.raises(BadInput, match="the graph"):
            _open(cut, native)
    document = json.loads(tiny_model.tokenizer.to_json())
    more = {"vocabulary": [*document["vocabulary"], "more"]}  # an id beyond the graph's vocabulary
    for changes in (more, {"max_len": document["max_len"] + 1}):
        other = NativeTokenizer(json.dumps(document | changes))
        for path in (tiny_model.onnx_path, tiny_model.ragged_path):
            with pytest.raises(BadInput, match="does not take the tokenizer's"):
                _open(path, other)
    model = onnx.load(tiny_model.ragged_path)
    for tensor in model.graph.initializer:
        if tensor.name == "head.bias":
            tensor.raw_data = np.float32(np.nan).tobytes()
    (tmp_path / "nan.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="a logit that is no number"):
        _open(tmp_path / "nan.onnx", native)


def test_options_that_no_export_writes_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    native, path = tiny_model.tokenizer.native, tiny_model.ragged_path
    for options in (
        {"rule": "max", "stride": 0, "windows": 4},
        {"rule": "max", "stride": 99, "windows": 4},
        {"rule": "mean", "stride": 8, "windows": 999},
        {"gpu": 0},  # this ONNX Runtime has no CUDA provider, or this machine no GPU
        {"ort_library": tmp_path / "no.so"},
    ):
        with pytest.raises(BadInput):
            _open(path, native, **options)
    for batch in (0, -1, 100_000):
        with pytest.raises(BadInput, match="max_batch"):
            NativeScorer(path, native, max_batch=batch)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(BadInput, match="ONNX Runtime cannot be opened"):
        _open(path, native, ort_library=tmp_path / "text.so")


def test_dense_and_ragged_graph_score_alike(tiny_model: TinyModel, comments: list[str]) -> None:
    logits = [
        Scorer(path, tiny_model.tokenizer).score(comments).logit
        for path in (tiny_model.onnx_path, tiny_model.ragged_path)
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5, rtol=0)
    assert len(Scorer(tiny_model.ragged_path, tiny_model.tokenizer).score([]).logit) == 0


def test_library_needs_no_more_than_it_says() -> None:
    """No newer glibc than 2.28 and nothing of C++: symbols by their version."""
    data = build.library().read_bytes()
    needed = {tuple(map(int, v.split(b"."))) for v in _versions(data, b"GLIBC_")}
    assert needed and max(needed) <= (2, 28)
    assert not _versions(data, b"GLIBCXX_")
    assert b"TRITONBACKEND_ModelInstanceExecute" in data
    assert onnxruntime_library().name.startswith("libonnxruntime.so.1")


def _versions(data: bytes, prefix: bytes) -> set[bytes]:
    found = set()
    for part in data.split(b"\0"):
        if part.startswith(prefix) and part[len(prefix) :].replace(b".", b"").isdigit():
            found.add(part[len(prefix) :])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    built = build.build(tmp_path / "elsewhere" / "lib")
    for name in (build.LIBRARY, build.NOOP, build.GENERATOR):
        assert (built / name).read_bytes() == build.executable(name).read_bytes(), name
    described = json.loads((built / build.BUILD_FILE).read_text("utf-8"))
    assert described == build.described()
    assert described["compiler"].startswith("ziglang ")


def test_build_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match=r"the package ziglang is not installed.*make install"):
        build.build(tmp_path / "lib")
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(BadInput, match=r"no clang\+\+ or g\+\+ is on PATH"):
        build.build_sanitized(tmp_path / "lib", "address")
    assert issubclass(BadInput, ToxicityError)
