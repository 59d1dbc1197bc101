"""A version is published whole or not at all, and an altered one is noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from conftest import TinyModel
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import contract
from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    MAX_BATCH_SIZE,
    MAX_REQUEST_COMMENTS,
    ONNX_FILE,
    ORT_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    TOKENIZER_FILE,
    BadInput,
)
from core import build
from core.binding import onnxruntime_library
from core.build import LIBRARY
from export import repository as repo
from export.scorer import Scorer, probability


def _parsed(repository: Path, model: str) -> model_config_pb2.ModelConfig:
    text = (repository / model / repo.CONFIG_FILE).read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _everything(repository: Path) -> dict[str, bytes]:
    files = (path for path in repository.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(repository)): path.read_bytes() for path in files}


def test_configurations_say_what_the_contract_and_the_graph_say(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path, instances=3)
    public, encoder, ragged = (
        _parsed(tmp_path, model) for model in (PUBLIC_MODEL, ENCODER_MODEL, RAGGED_MODEL)
    )
    assert [tensor.name for tensor in public.input] == [contract.TEXT]
    assert {tensor.name for tensor in public.output} == {
        contract.PROBABILITY,
        contract.LOGIT,
        contract.MODEL_VERSION,
    }
    for config in (encoder, ragged):
        _assert_names_types_and_dims_are_the_graphs(config, tmp_path / config.name / "1")
    for config in (public, encoder, ragged):
        most = MAX_REQUEST_COMMENTS if config is public else MAX_BATCH_SIZE
        assert config.max_batch_size == most
        assert config.HasField("dynamic_batching")
        assert [group.count for group in config.instance_group] == [3]


def _assert_names_types_and_dims_are_the_graphs(
    config: model_config_pb2.ModelConfig, version: Path
) -> None:
    """What Triton's onnxruntime backend checks when it loads a model."""
    session = ort.InferenceSession(version / ONNX_FILE)
    graph = {tensor.name: tensor for tensor in [*session.get_inputs(), *session.get_outputs()]}
    type_of = {"tensor(int64)": "TYPE_INT64", "tensor(int32)": "TYPE_INT32"}
    type_of["tensor(float)"] = "TYPE_FP32"
    configured = {tensor.name: tensor for tensor in [*config.input, *config.output]}
    made = {name: made for made in config.batch_input for name in made.target_name}
    assert configured.keys() | made.keys() == graph.keys()
    for name, tensor in {**configured, **made}.items():
        type_name = model_config_pb2.DataType.Name(tensor.data_type)
        assert type_name == type_of[graph[name].type], name
    for name, tensor in configured.items():
        # The graph's shape is the batch, then `reshape` where there is one; a ragged input is
        # joined to one dimension.
        inner = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        ragged = getattr(tensor, "allow_ragged_batch", False)
        assert len(graph[name].shape) == (1 if ragged else 1 + len(inner)), name
        assert all(isinstance(size, str) for size in graph[name].shape), "a static axis"
    for batch_input in config.batch_input:
        kind = model_config_pb2.BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT
        assert (batch_input.kind, [*batch_input.source_input]) == (kind, [contract.INPUT_IDS])
        assert len(graph[batch_input.target_name[0]].shape) == 1
        assert configured[contract.INPUT_IDS].allow_ragged_batch


def test_versions_count_up_and_old_ones_are_pruned_untouched(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    assert [tiny_model.publish(tmp_path, keep_versions=2) for _ in range(2)] == [1, 2]
    second = _everything(tmp_path / PUBLIC_MODEL / "2")
    assert tiny_model.publish(tmp_path, keep_versions=2) == 3
    assert repo.versions(tmp_path) == [2, 3]
    assert _everything(tmp_path / PUBLIC_MODEL / "2") == second
    for model in (ENCODER_MODEL, RAGGED_MODEL):
        assert sorted(p.name for p in (tmp_path / model).iterdir() if p.is_dir()) == ["2", "3"]
    assert repo.verify(tmp_path)["version"] == 3
    assert repo.verify(tmp_path, 2)["version"] == 2
    with pytest.raises(BadInput, match=r"version is 1, expected one of \[2, 3\]"):
        repo.read_artifact(tmp_path, 1)


@pytest.mark.parametrize(("device", "form"), [("cpu", RAGGED_MODEL), ("cuda", ENCODER_MODEL)])
def test_public_version_shares_the_bytes_of_the_devices_form(
    tiny_model: TinyModel, tmp_path: Path, device: str, form: str
) -> None:
    repo.publish(
        tmp_path,
        onnx_path=tiny_model.onnx_path,
        ragged_path=tiny_model.ragged_path,
        tokenizer_path=tiny_model.tokenizer_path,
        artifact={"device": device, "max_len": 16},
    )
    public = tmp_path / PUBLIC_MODEL / "1" / ONNX_FILE
    for model in (ENCODER_MODEL, RAGGED_MODEL):
        assert public.samefile(tmp_path / model / "1" / ONNX_FILE) is (model == form)
    group = model_config_pb2.ModelInstanceGroup
    kind = {"cpu": group.KIND_CPU, "cuda": group.KIND_GPU}[device]
    assert {_parsed(tmp_path, m).instance_group[0].kind for m in (PUBLIC_MODEL, form)} == {kind}


def test_version_has_all_that_runs_it_and_says_what_it_is(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path)
    folder = tmp_path / PUBLIC_MODEL / "1"
    artifact = repo.verify(tmp_path)
    served = {LIBRARY, ORT_FILE, ONNX_FILE, TOKENIZER_FILE}
    assert {path.name for path in folder.iterdir()} == served | {ARTIFACT_FILE}
    assert artifact["files"].keys() == served
    assert (folder / LIBRARY).read_bytes() == build.library().read_bytes()
    assert (folder / ORT_FILE).read_bytes() == onnxruntime_library().read_bytes()
    assert artifact["core"] == build.described()
    assert artifact["core"].keys() == {"compiler", "target", "flags", "sources"}


def test_versions_share_one_runtime_but_not_one_that_was_altered(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    for _ in range(2):
        tiny_model.publish(tmp_path)
    first, second, third = (tmp_path / PUBLIC_MODEL / str(n) / ORT_FILE for n in (1, 2, 3))
    assert second.samefile(first) and not first.samefile(onnxruntime_library())
    with first.open("r+b") as file:
        file.write(b"!")
    tiny_model.publish(tmp_path)
    assert not third.samefile(second)
    assert repo.verify(tmp_path)["version"] == 3
    with pytest.raises(BadInput, match=rf"/2/{ORT_FILE} is damaged"):
        repo.verify(tmp_path, 2)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        *((step, n) for step in ("write_atomically", "_fsync_folder", "_put") for n in (1, 2, 3)),
        *(("_link_or_copy", n) for n in (1, 2)),
        ("write_json", 1),
    ],
)
def test_failure_at_any_step_leaves_the_older_version_alone(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    tiny_model.publish(tmp_path)
    before = _everything(tmp_path)
    real, calls = getattr(repo, step), 0

    def failing(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError("disk full")
        real(*args)

    monkeypatch.setattr(repo, step, failing)
    with pytest.raises(OSError, match="disk full"):
        tiny_model.publish(tmp_path)
    monkeypatch.undo()
    assert _everything(tmp_path) == before
    assert tiny_model.publish(tmp_path) == 2


def test_killed_publish_shows_nothing_and_the_next_one_cleans_up(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path)
    process = multiprocessing.get_context("spawn").Process(
        target=_publish_and_die,
        args=(tmp_path, tiny_model.onnx_path, tiny_model.ragged_path, tiny_model.tokenizer_path),
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert repo.versions(tmp_path) == [1]
    assert repo.verify(tmp_path)["version"] == 1
    assert tiny_model.publish(tmp_path) == 2
    assert not list(tmp_path.rglob(".staging-*"))


def _publish_and_die(
    repository: Path, onnx_path: Path, ragged_path: Path, tokenizer_path: Path
) -> None:
    real, calls = repo._put, []

    def dying(staged: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:  # the encoders are in place, the public model is not
            os._exit(9)
        real(staged, target)

    repo._put = dying
    repo.publish(
        repository,
        onnx_path=onnx_path,
        ragged_path=ragged_path,
        tokenizer_path=tokenizer_path,
        artifact={"device": "cpu", "max_len": 16},
        instances=1,
    )


@pytest.mark.parametrize("name", [LIBRARY, ORT_FILE, TOKENIZER_FILE, ONNX_FILE])
def test_one_altered_byte_is_refused_by_name(
    tiny_model: TinyModel, tmp_path: Path, name: str
) -> None:
    tiny_model.publish(tmp_path)
    path = tmp_path / PUBLIC_MODEL / "1" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=f"/1/{name} is damaged.*make export"):
        repo.verify(tmp_path)


@pytest.mark.parametrize("model", [ENCODER_MODEL, RAGGED_MODEL])
def test_altered_encoders_are_refused(tiny_model: TinyModel, tmp_path: Path, model: str) -> None:
    tiny_model.publish(tmp_path)
    path = tmp_path / model / "1" / ONNX_FILE
    data = path.read_bytes()
    path.unlink()  # the public model may have the same file
    with pytest.raises(BadInput, match=f"{model}/1/{ONNX_FILE} is missing"):
        repo.verify(tmp_path)
    path.write_bytes(data[:-1])
    with pytest.raises(BadInput, match=f"{model}/1/{ONNX_FILE} is damaged.*make export"):
        repo.verify(tmp_path)


def test_missing_pieces_are_named(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no published model.*make train export"):
        repo.verify(tmp_path / "nowhere")
    tiny_model.publish(tmp_path)
    folder = tmp_path / PUBLIC_MODEL / "1"
    (folder / LIBRARY).unlink()
    with pytest.raises(BadInput, match=rf"{LIBRARY} is missing"):
        repo.verify(tmp_path)
    artifact = json.loads((folder / ARTIFACT_FILE).read_text())
    del artifact["files"][ORT_FILE]
    (folder / ARTIFACT_FILE).write_text(json.dumps(artifact))
    with pytest.raises(BadInput, match=rf"artifact\.json does not list {ORT_FILE}"):
        repo.verify(tmp_path)
    (folder / ARTIFACT_FILE).write_text("{")
    with pytest.raises(BadInput, match=r"artifact\.json is not valid JSON"):
        repo.verify(tmp_path)


@pytest.mark.parametrize("form", ["onnx_path", "ragged_path"])
def test_scorer_equals_pytorch_in_any_order_and_company(
    tiny_model: TinyModel, comments: list[str], form: str
) -> None:
    scorer = Scorer(getattr(tiny_model, form), tiny_model.tokenizer)
    together = scorer.score(comments)
    expected = np.array([tiny_model.logit(text) for text in comments], np.float32)
    assert expected.std() > 0.1  # weights so small that all texts score alike would prove nothing
    np.testing.assert_allclose(together.logit, expected, atol=contract.FP32_LOGIT_ATOL, rtol=0)
    alone = np.concatenate([scorer.score([text]).logit for text in comments])
    atol = contract.FP32_INVARIANCE_ATOL
    np.testing.assert_allclose(together.logit, alone, atol=atol, rtol=0)
    np.testing.assert_allclose(
        scorer.score(comments[::-1]).logit, together.logit[::-1], atol=atol, rtol=0
    )
    lengths = [tiny_model.tokenizer.encode_and_cut(text) for text in comments]
    assert together.tokens == sum(len(ids) for ids, _ in lengths)
    assert together.cut == sum(cut for _, cut in lengths) > 0
    assert scorer.score([]).logit.shape == (0,)


def test_probability_is_stable_at_the_ends() -> None:
    logit = np.array([-1e4, -100, -1, 0, 1, 100, 1e4], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        result = probability(logit)
    assert result.dtype == np.float32
    assert result[0] == 0 and result[3] == 0.5 and result[-1] == 1
    np.testing.assert_allclose(result + result[::-1], 1, atol=1e-7)
