"""A version is published whole or not at all, and what is loaded is what was published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import TinyModel
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import contract
from bench.faults import child as fault_child
from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    MAX_BATCH_SIZE,
    MAX_REQUEST_COMMENTS,
    ONNX_FILE,
    ORT_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    SERVING_FILE,
    TOKENIZER_FILE,
    BadInput,
)
from core import build
from core.binding import onnxruntime_library
from core.build import LIBRARY
from export import publish as publishing
from export import repository as repo
from export import switch
from export.model_config import CONFIG_FILE, MODELS, Tuning
from export.scorer import Scorer, probability
from export.serving import parse_serving
from storage import revision
from storage.files import sha256_of, write_json

ROOT = Path(__file__).parent.parent
GIT = pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="no checkout by Git"
)


def _parsed(repository: Path, model: str) -> model_config_pb2.ModelConfig:
    text = (repository / model / CONFIG_FILE).read_text("utf-8")
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
        assert [*config.version_policy.specific.versions] == [1]


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
    tiny_model.publish(tmp_path, artifact={**tiny_model.artifact, "device": device})
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


# --- Whole or not at all -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "step", "call"),
    [
        *((publishing, "put_folder", n) for n in (1, 2, 3)),
        *((publishing, "copy", n) for n in (1, 2, 3)),
        *((publishing, step, 1) for step in ("link_or_copy", "write_atomically", "announce")),
        *((switch, "write_atomically", n) for n in (1, 2, 3, 4)),
    ],
)
def test_failure_at_any_step_leaves_the_older_version_alone(
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    call: int,
) -> None:
    tiny_model.publish(tmp_path)
    before = _everything(tmp_path)
    real, calls = getattr(module, step), 0

    def failing(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device", str(args[0]))
        real(*args)

    monkeypatch.setattr(module, step, failing)
    with pytest.raises(BadInput, match=r"No space left on device.*free some space"):
        tiny_model.publish(tmp_path)
    monkeypatch.undo()
    assert _everything(tmp_path) == before
    assert tiny_model.publish(tmp_path) == 2


@pytest.mark.slow
def test_a_kill_at_any_step_of_publishing_loses_nothing(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """A step is an opening, a rename, a removal, ...; the old version is removed at the end."""
    base, copy = tmp_path / "base", tmp_path / "copy"
    tiny_model.publish(base)
    old = _everything(base / PUBLIC_MODEL / "1")
    publish = partial(tiny_model.publish, copy, keep_versions=1)

    def renew() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy, copy_function=os.link, ignore=shutil.ignore_patterns(".lock"))

    renew()
    steps = fault_child.run(publish, copy).steps
    assert steps > 40
    served = set()
    for step in range(1, steps + 1, 4):
        renew()
        assert fault_child.run(publish, copy, fault_child.Limits(kill_at=step)).signal == 9
        served.add(repo.current(copy))
        for version in repo.versions(copy):
            repo.verify(copy, version)
        if 1 in repo.versions(copy):
            assert _everything(copy / PUBLIC_MODEL / "1") == old
        assert publish() in (2, 3)
        repo.verify(copy)
        assert not [path for path in copy.rglob(".*") if path.name != ".lock"]
        for model in MODELS:
            folders = [int(path.name) for path in (copy / model).iterdir() if path.is_dir()]
            assert sorted(folders) == repo.versions(copy)
    assert served == {1, 2}


def test_a_change_that_was_killed_is_finished_or_undone_by_the_next(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        tiny_model.publish(tmp_path)
    real = switch.write_atomically

    def stop_before_the_public_config(path: Path, data: Any) -> None:
        if path == tmp_path / PUBLIC_MODEL / CONFIG_FILE:
            os._exit(9)
        real(path, data)

    monkeypatch.setattr(switch, "write_atomically", stop_before_the_public_config)
    fault_child.run(partial(switch.rollback, tmp_path), tmp_path)
    monkeypatch.undo()
    said = json.loads((tmp_path / PUBLIC_MODEL / SERVING_FILE).read_text())
    assert said["now"]["served"]["version"] == 1 and said["before"]["served"]["version"] == 2
    assert repo.current(tmp_path) == repo.verify(tmp_path)["version"] == 2
    assert switch.rollback(tmp_path) == repo.verify(tmp_path)["version"] == 1
    assert repo.versions(tmp_path) == [1, 2]


def test_a_full_disk_is_one_line_and_nothing_half_written(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """A real limit: no file may be longer than what the core's library needs half of."""
    tiny_model.publish(tmp_path)
    before = _everything(tmp_path)
    for most in (10, 5_000, 100_000):
        limits = fault_child.Limits(file_bytes=most)
        ended = fault_child.run(partial(tiny_model.publish, tmp_path), tmp_path, limits)
        assert ended.status == 2 and "\n" not in ended.words, ended
        assert "File too large" in ended.words and str(tmp_path) in ended.words
        assert _everything(tmp_path) == before


def test_a_read_only_repository_is_one_line(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path)
    before = _everything(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    above = [path for path in tmp_path.parents if path.stat().st_uid == os.getuid()]
    modes = {path: path.stat().st_mode for path in [*folders, *above]}

    def work(change: Callable[[Path], object]) -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        change(tmp_path)

    try:
        for path in modes:
            path.chmod(0o555 if path in folders else modes[path] | 0o555)
        for change in (tiny_model.publish, switch.serve_version, switch.rollback):
            ended = fault_child.run(partial(work, change), tmp_path)
            assert ended.status == 2 and "\n" not in ended.words, ended
            assert "Permission denied" in ended.words
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert _everything(tmp_path) == before


# --- What is loaded is what was published ------------------------------------------------
@pytest.mark.parametrize("name", [LIBRARY, ORT_FILE, TOKENIZER_FILE, ONNX_FILE, ARTIFACT_FILE])
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
    (tmp_path / PUBLIC_MODEL / CONFIG_FILE).unlink()
    with pytest.raises(BadInput, match=rf"{CONFIG_FILE} is missing.*make publish"):
        repo.current(tmp_path)


def _write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _replace(old: str, new: str) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def _link_to_itself(path: Path) -> None:
    moved = path.parent.parent.parent / "moved"
    path.rename(moved)
    path.symlink_to(moved)


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def _pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CONFIG, SERVING = f"{PUBLIC_MODEL}/{CONFIG_FILE}", f"{PUBLIC_MODEL}/{SERVING_FILE}"
FIRST = f"{PUBLIC_MODEL}/1"
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (
        CONFIG,
        _replace("67108864", "-1"),
        r"cache_bytes\.stringValue '-1', expected",
    ),
    (CONFIG, _replace('"64"', '"99999"'), r"max_batch\.stringValue '99999'"),
    (CONFIG, _replace("count: 1", "count: 0"), r"instanceGroup\.0\.count"),
    (CONFIG, _replace("versions: 1", "versions: 2"), r"versions\.0 '2'"),
    (CONFIG, _replace("\n", "\n\n"), "another layout"),
    (CONFIG, _write("model {"), "is no model configuration"),
    (CONFIG, _link_to_itself, "is a link"),
    (f"{ENCODER_MODEL}/{CONFIG_FILE}", _replace("count: 1", "count: 9"), "count 9, expected 1"),
    (f"{RAGGED_MODEL}/{CONFIG_FILE}", _folder_instead, "no regular file"),
    (SERVING, _replace('"instances": 1', '"instances": 0'), "instances is 0"),
    (SERVING, _replace('"cache_bytes": 6', '"cache_bytes": -6'), "cache_bytes is"),
    (SERVING, _replace('"max_batch": 64', '"max_batch": 65'), "max_batch is 65"),
    (SERVING, _replace('"window_ms": 0.0', '"window_ms": "0"'), "window_ms is '0'"),
    (SERVING, _replace('"version": 1', '"version": true'), "version is True"),
    (SERVING, _write("[" * 100_000), "is not valid: Invalid JSON"),
    (SERVING, _write("{}"), "Field required"),
    (SERVING, lambda path: path.write_bytes(b"\xff"), "not valid: Invalid JSON"),
    (f"{FIRST}/{ARTIFACT_FILE}", _replace('"cpu"', '"gpu"'), "is damaged"),
    (f"{FIRST}/{ARTIFACT_FILE}", _link_to_itself, "is a link"),
    (f"{FIRST}/{TOKENIZER_FILE}", _link_to_itself, "is a link"),
    (f"{FIRST}/{TOKENIZER_FILE}", _folder_instead, "is no regular file"),
    (f"{FIRST}/{TOKENIZER_FILE}", _pipe_instead, "is no regular file"),
    (FIRST, _link_to_itself, "is no folder"),
    (FIRST, _file_instead, "cannot be read"),
    (f"{FIRST}/numpy.py", _write("raise SystemExit"), "is not of the published version.*delete it"),
    (f"{FIRST}/__pycache__", Path.mkdir, "is not of the published version"),
    (f"{FIRST}/artifact.sig", Path.mkdir, "is no regular file"),
    (f"{ENCODER_MODEL}/1/model.py", _write(""), "is not of the published version"),
    (f"{RAGGED_MODEL}/1", _file_instead, "is no folder"),
    (ENCODER_MODEL, _link_to_itself, "is no folder"),
    (PUBLIC_MODEL, _file_instead, "is no folder"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGES, ids=range(len(DAMAGES)))
def test_what_was_not_published_is_refused_by_name(
    tiny_model: TinyModel,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    repository = tmp_path / "model repository"
    tiny_model.publish(repository)
    damage(repository / name)
    with pytest.raises(BadInput, match=words) as caught:
        repo.verify(repository)
    assert str(repository / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_of_the_artifact_are_checked_whoever_wrote_them(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    for changes, words in (
        ({"device": "tpu"}, "device is 'tpu', expected 'cpu' or 'cuda'"),
        ({"max_len": 0}, "max_len is 0, expected greater than or equal to 1"),
        ({"max_len": "16"}, "max_len is '16', expected a valid integer"),
        ({"precision": 8}, "precision is 8, expected 'fp32', 'fp16' or 'int8'"),
        ({"long_text": {"rule": "cut"}}, "long_text.stride: Field required"),
        ({"long_text": {"rule": "max", "stride": 16, "windows": 2}}, "long_text.stride is not"),
        ({"long_text": {"rule": "last", "stride": 1, "windows": 1}}, "long_text.rule is 'last'"),
        ({"comments_per_s": -1}, "comments_per_s is -1"),
    ):
        with pytest.raises(BadInput) as caught:
            tiny_model.publish(tmp_path, artifact={**tiny_model.artifact, **changes})
        assert words in str(caught.value)
    assert repo.versions(tmp_path) == []


def test_a_repository_older_than_serving_json_is_to_be_exported_again(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model.publish(tmp_path)
    (tmp_path / PUBLIC_MODEL / SERVING_FILE).unlink()
    for look in (repo.verify, repo.current, repo.versions, switch.rollback, switch.serve_version):
        with pytest.raises(BadInput, match=r"is missing and version 1 is there.*export") as caught:
            look(tmp_path)
        assert str(tmp_path / PUBLIC_MODEL / SERVING_FILE) in str(caught.value)
    old = _everything(tmp_path / PUBLIC_MODEL / "1")
    assert tiny_model.publish(tmp_path) == 2
    assert repo.versions(tmp_path) == [2]
    assert _everything(tmp_path / PUBLIC_MODEL / "1") == old
    assert "has versions [1] that its serving.json does not list" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["", "{}", '{"format": 1'])
def test_a_damaged_list_of_versions_is_not_replaced_in_silence(
    left: str, tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model.publish(tmp_path)
    assert not capsys.readouterr().err
    (tmp_path / PUBLIC_MODEL / SERVING_FILE).write_text(left)
    assert tiny_model.publish(tmp_path) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(
        f"{SERVING_FILE} is damaged: a new list of versions begins; restore it from a backup to "
        "serve an earlier version again"
    )
    assert "has versions [1] that its serving.json does not list" in said[1]


def test_every_byte_of_the_list_of_versions_is_verified(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    for _ in range(2):
        tiny_model.publish(tmp_path)
    switch.tune(tmp_path, Tuning(2, window_ms=1), {})
    path = tmp_path / PUBLIC_MODEL / SERVING_FILE
    data = path.read_bytes()
    assert repo.verify(tmp_path)["version"] == 2
    for at in range(len(data)):
        with pytest.raises(BadInput) as caught:
            parse_serving(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], path)
        assert str(path) in str(caught.value)
    for other in (data + b"\n", data.replace(b'"format": 2', b'"format": 1')):
        path.write_bytes(other)
        with pytest.raises(BadInput, match=r"is damaged: its sha256 is not.*restore it"):
            repo.verify(tmp_path)


def test_a_list_of_versions_without_a_sum_is_read_and_gets_one(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path)
    path = tmp_path / PUBLIC_MODEL / SERVING_FILE
    document = json.loads(path.read_text("utf-8"))
    assert len(document.pop("sha256")) == 64
    write_json(path, {**document, "format": 1})
    assert repo.verify(tmp_path)["version"] == 1
    assert tiny_model.publish(tmp_path) == 2
    assert repo.versions(tmp_path) == [1, 2]
    assert json.loads(path.read_text("utf-8")).keys() == {*document, "sha256"}


def test_a_version_is_described_by_checked_values(tiny_model: TinyModel, tmp_path: Path) -> None:
    for _ in range(2):
        tiny_model.publish(tmp_path)
    text = (tmp_path / PUBLIC_MODEL / CONFIG_FILE).read_text("utf-8")
    assert repo.serving_config(tmp_path) == repo.serving_config(tmp_path, 2) == text
    assert repo.serving_config(tmp_path, 1) == text.replace("versions: 2", "versions: 1")
    for version in (1, 2):
        folder = repo.version_folder(tmp_path, version)
        assert repo.served_files(tmp_path, version) == {
            path.name: sha256_of(path) for path in folder.iterdir()
        }


@pytest.mark.parametrize("name", ["two words", "it's", "a;b", "$HOME", "(x)", "für", "[a-z]*"])
def test_any_path_will_do(tiny_model: TinyModel, tmp_path: Path, name: str) -> None:
    repository = tmp_path / name / name
    for _ in range(2):
        tiny_model.publish(repository, keep_versions=1)
    assert repo.verify(repository)["version"] == 2
    assert repo.versions(repository) == [2]
    scores = repo.load_scorer(repository).score(["you are kind"])
    assert scores.logit[0] == pytest.approx(tiny_model.logit("you are kind"), abs=1e-4)


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


# --- Where it came from ------------------------------------------------------------------
@GIT
def test_every_manifest_names_the_commit_of_its_source(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tiny_model.publish(tmp_path)
    assert repo.read_artifact(tmp_path)["commit"] == head.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    tiny_model.publish(tmp_path)
    assert "commit" not in repo.read_artifact(tmp_path)


@GIT
def test_a_copy_inside_another_checkout_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    me = ("-c", "user.name=a", "-c", "user.email=a@b")
    made = ["git", "-C", tmp_path, *me, "commit", "-q", "--allow-empty", "-m", "a"]
    subprocess.run(made, check=True)
    (tmp_path / "contract.py").write_text("")
    monkeypatch.setattr(revision, "_ROOT", tmp_path)
    assert revision.source_commit() is None
    subprocess.run(["git", "-C", tmp_path, "add", "contract.py"], check=True)
    assert len(revision.source_commit() or "") == 40
