"""Long comments: windows and what becomes of their logits, linear attention end to end."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import TinyModel
from onnx import TensorProto, helper

import contract
import export.__main__ as export_main
from console.options import make_config, parse_config
from contract import (
    ACCUMULATED_COUNTS,
    ATTENTION_MASK,
    CLS_ID,
    FP32_INVARIANCE_ATOL,
    FP32_LOGIT_ATOL,
    HOST,
    INPUT_IDS,
    LOGIT,
    MAX_BATCH_PAIRS,
    MAX_BATCH_SIZE,
    MAX_LEN,
    MAX_REQUEST_COMMENTS,
    MAX_REQUEST_WINDOWS,
    MAX_WINDOWS,
    OPSET,
    BadInput,
    GateFailed,
)
from core.binding import Admission
from export.config import ExportConfig
from export.gates import parity
from export.gates import run as gates
from export.gates.parity import Comment
from export.graph.build import build_int8
from export.model_config import batch_size, encoder_config, ragged_config
from export.publish import publish
from export.repository import load_scorer, read_artifact
from export.scorer import CUT, LongText, Scorer
from serve import triton
from serve.client import score_comments
from train.artifacts import CONFIG_FILE, load_checkpoint
from train.config import TrainConfig
from train.data.batches import EVALUATION_PAIRS, evaluation_batches
from train.data.load import load_comments
from train.data.tokenizer import build_tokenizer
from train.loop import train

WORDS = "you are a kind awful person and the idea is not so bad thanks for your work".split()
RULES = {"max": LongText.by("max", 8), "mean": LongText.by("mean", 5)}


def _text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng([words, seed]).choice(WORDS, words))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of one token to more than the windows hold; the tiny model reads 16."""
    return [_text(words) for words in (0, 1, 14, 15, 16, 17, 23, 24, 31, 40, 77, 120, 136, 400)]


@pytest.fixture(scope="module", params=RULES)
def long_text(request: pytest.FixtureRequest) -> LongText:
    return RULES[request.param]


# --- The windows ---------------------------------------------------------------------------
@pytest.mark.parametrize("stride", [1, 2, 5, 7])
def test_windows_cover_the_comment_and_are_full(stride: int) -> None:
    rule, max_len = LongText("max", stride, windows=4), 8
    for length in range(1, max_len + 3 * stride + 1):
        ids = np.r_[CLS_ID, 10 + np.arange(length - 1)]
        windows = rule.split(ids, max_len)
        assert len(windows) == 1 + max(0, -(-(length - max_len) // stride)) <= 4
        assert all(window[0] == CLS_ID for window in windows)
        assert {len(window) for window in windows} == {min(length, max_len)}
        assert set(ids) == set().union(*(map(int, window) for window in windows))
        assert windows[-1][-1] == ids[-1]
        starts = [int(window[1]) for window in windows if length > 1]
        gaps = np.diff(starts)
        assert (gaps[:-1] == stride).all()
        assert (gaps > 0).all() and (gaps <= stride).all()


def test_cut_is_one_window_of_the_tokenizers_own_ids(tiny_model: TinyModel) -> None:
    assert CUT.reader(tiny_model.tokenizer) == tiny_model.tokenizer
    assert LongText.by("cut", 99) == CUT == LongText.of_artifact({})
    whole = RULES["max"].reader(tiny_model.tokenizer)
    assert whole.max_len == 16 + (MAX_WINDOWS - 1) * 8
    rule = RULES["mean"]
    written = json.loads(json.dumps({"long_text": dataclasses.asdict(rule)}))
    assert LongText.of_artifact(written) == rule


def _scorer(model: TinyModel, long_text: LongText = CUT, **options: object) -> Scorer:
    """Of the form that a CPU serves."""
    return Scorer(model.ragged_path, model.tokenizer, long_text=long_text, **options)


def _by_hand(model: TinyModel, text: str, long_text: LongText) -> float:
    """Every window through PyTorch on its own, and their logits put together here."""
    ids = [model.tokenizer.vocabulary.index(word) for word in text.split()]
    ids = ids[: 15 + (MAX_WINDOWS - 1) * long_text.stride]
    starts = [*range(0, max(0, len(ids) - 15), long_text.stride), max(0, len(ids) - 15)]
    logits = []
    for at in starts:
        window = torch.tensor([[CLS_ID, *ids[at : at + 15]]])
        with torch.no_grad():
            logits.append(float(model.model(window, torch.ones_like(window))))
    return max(logits) if long_text.rule == "max" else sum(logits) / len(logits)


def test_scores_are_those_of_the_windows_in_pytorch(
    tiny_model: TinyModel, texts: list[str], long_text: LongText
) -> None:
    expected = [_by_hand(tiny_model, text, long_text) for text in texts]
    scores = _scorer(tiny_model, long_text).score(texts)
    np.testing.assert_allclose(scores.logit, expected, atol=FP32_LOGIT_ATOL, rtol=0)
    dense = Scorer(tiny_model.onnx_path, tiny_model.tokenizer, long_text=long_text).score(texts)
    np.testing.assert_allclose(dense.logit, expected, atol=FP32_LOGIT_ATOL, rtol=0)
    reference = parity.reference_logits(tiny_model.model, texts, tiny_model.tokenizer, long_text)
    np.testing.assert_allclose(reference, expected, atol=FP32_LOGIT_ATOL, rtol=0)
    cut = _scorer(tiny_model).score(texts)
    long = np.array([len(text.split()) > 15 for text in texts])
    assert np.abs(scores.logit - cut.logit)[long].max() > 0.1  # there is something to tell apart
    np.testing.assert_allclose(scores.logit[~long], cut.logit[~long], atol=1e-6, rtol=0)
    assert (scores.windowed, cut.windowed) == (long.sum(), 0)
    most = 15 + (MAX_WINDOWS - 1) * long_text.stride
    assert scores.cut == sum(len(text.split()) > most for text in texts) > 0
    assert cut.cut == long.sum()


def test_a_comment_of_one_window_has_the_plain_bits(tiny_model: TinyModel) -> None:
    for words in (0, 1, 7, 15):
        plain = _scorer(tiny_model).score([_text(words)])
        for long_text in RULES.values():
            scores = _scorer(tiny_model, long_text).score([_text(words)])
            np.testing.assert_array_equal(scores.logit, plain.logit)
            assert (scores.tokens, scores.windowed) == (plain.tokens, 0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_order_and_company_change_nothing(
    tiny_model: TinyModel, texts: list[str], long_text: LongText, precision: str, tmp_path: Path
) -> None:
    path, atol = tiny_model.onnx_path, FP32_INVARIANCE_ATOL
    if precision == "int8":
        path, atol = tmp_path / "int8.onnx", 0.0
        reader = long_text.reader(tiny_model.tokenizer)
        windows = [long_text.split(np.array(reader.encode(text)), 16) for text in texts]
        build_int8(tiny_model.model, path, (8, 16), (w for parts in windows for w in parts))
    scorer = Scorer(path, tiny_model.tokenizer, long_text=long_text)
    alone = np.array([scorer.score([text]).logit[0] for text in texts])
    rng = np.random.default_rng(0)
    for _ in range(3):  # of up to 100 windows, more than run together
        order = rng.permutation(len(texts))
        together = scorer.score([texts[row] for row in order]).logit
        np.testing.assert_allclose(together, alone[order], atol=atol, rtol=0)
    assert len(scorer.score([]).logit) == 0


def test_cache_knows_a_comment_by_all_of_its_ids(tiny_model: TinyModel) -> None:
    start = _text(60)
    ends = [f"{start} kind", f"{start} awful"]  # they differ in their last windows alone
    long_text = RULES["mean"]
    scorer = _scorer(tiny_model, long_text, cache_bytes=1 << 20)
    plain = _scorer(tiny_model, long_text).score(ends)
    first, again = scorer.score([*ends, ends[0]]), scorer.score(ends)
    assert (plain.hits, first.hits, again.hits) == (0, 1, 2)
    assert first.tokens == plain.tokens == 2 * 16 * len(long_text.starts(62, 16))
    assert again.tokens == 0
    np.testing.assert_array_equal(again.logit, first.logit[:2])
    assert again.logit[0] != again.logit[1]


def test_rows_are_counted_as_they_will_run(
    tiny_model: TinyModel, texts: list[str], long_text: LongText
) -> None:
    windows, counts = parity.windows_of(texts, tiny_model.tokenizer, long_text)
    assert _scorer(tiny_model, long_text).windows(texts) == len(windows) == sum(counts)
    assert max(counts) == MAX_WINDOWS
    assert _scorer(tiny_model).windows(texts) == len(texts)


# --- Bounds --------------------------------------------------------------------------------
def _batch_size_graph(path: Path, *, ragged: bool) -> Path:
    """A graph with the contract's tensors whose logits all are the size of their batch."""
    second = ACCUMULATED_COUNTS if ragged else ATTENTION_MASK
    nodes = [helper.make_node("Shape", [second], ["rows"], start=0, end=1)]
    nodes.append(helper.make_node("Cast", ["rows"], ["size"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Expand", ["size", "rows"], [LOGIT]))
    tensor = helper.make_tensor_value_info
    shape = ["batch"] if ragged else ["batch", "length"]
    inputs = [
        tensor(INPUT_IDS, TensorProto.INT64, ["tokens"] if ragged else shape),
        tensor(second, TensorProto.INT32 if ragged else TensorProto.INT64, shape),
    ]
    outputs = [tensor(LOGIT, TensorProto.FLOAT, ["batch"])]
    graph = helper.make_graph(nodes, "batch_size", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("ragged", [True, False])
def test_batches_are_bounded_in_rows_and_in_pairs_of_tokens(ragged: bool, tmp_path: Path) -> None:
    graph = _batch_size_graph(tmp_path / "graph.onnx", ragged=ragged)
    tokenizer = build_tokenizer([" ".join(WORDS)], max_vocab=100, max_len=MAX_LEN)

    def sizes(lengths: list[int], max_batch: int = MAX_BATCH_SIZE) -> list[int]:
        scorer = Scorer(graph, tokenizer, max_batch=max_batch)
        rest = scorer.score([_text(length - 1) for length in lengths]).logit.astype(int).tolist()
        found = []
        while rest:
            found.append(rest[0])
            assert rest[: rest[0]] == [rest[0]] * rest[0]  # those that ran together came together
            rest = rest[rest[0] :]
        return found

    assert sizes([]) == []
    assert sizes([256] * 130) == [MAX_BATCH_SIZE, MAX_BATCH_SIZE, 2]
    assert sizes([1024] * 9) == [4, 4, 1]
    assert sizes([5, MAX_LEN, 5, 5]) == [1, 1, 2]
    assert sizes([5] * 10, max_batch=4) == [4, 4, 2]
    assert MAX_LEN**2 > MAX_BATCH_PAIRS == MAX_BATCH_SIZE * 256**2
    for wrong in (0, MAX_REQUEST_COMMENTS + 1):
        with pytest.raises(BadInput, match=rf"max_batch is {wrong}, expected 1 to 256; run `make"):
            sizes([1], max_batch=wrong)


def test_windows_are_the_rows_of_a_batch(tiny_model: TinyModel, tmp_path: Path) -> None:
    graph = _batch_size_graph(tmp_path / "graph.onnx", ragged=True)
    scorer = Scorer(graph, tiny_model.tokenizer, long_text=RULES["max"])
    assert MAX_BATCH_SIZE == 4 * MAX_WINDOWS
    assert scorer.score([_text(400)] * 5).logit.tolist() == [64, 64, 64, 64, 16]


@pytest.mark.parametrize(
    "long_text", [LongText("max", 16, 2), LongText("mean", 0, 2), LongText("max", 8, 17)]
)
def test_windows_that_no_export_writes_are_refused(
    tiny_model: TinyModel, long_text: LongText
) -> None:
    with pytest.raises(BadInput, match=r"long_text has stride .* 1 to 16 windows; export again"):
        _scorer(tiny_model, long_text)


def test_evaluation_and_parity_batches_are_bounded_too() -> None:
    class Ids(list):  # type: ignore[type-arg]
        cut = 0

    lengths = [4096, 1024, *[256] * 200, 7]
    ids = Ids(np.full(n, 5, np.int32) for n in lengths)
    batches = list(evaluation_batches(ids, np.arange(len(ids)), batch_size=128))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == [*range(len(ids))]
    assert [len(batch.rows) for batch in batches] == [1, 8, 128, 66]
    assert all(b.input_ids.numel() * b.input_ids.shape[1] <= EVALUATION_PAIRS for b in batches[1:])

    seen = []

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        seen.append(input_ids.shape)
        return attention_mask.sum(axis=1).astype(np.float32)

    comments = [Comment("", row) for row in ids]
    np.testing.assert_array_equal(parity.run_batches(run, comments), lengths)
    assert all(rows * width**2 <= contract.PARITY_PAIRS for rows, width in seen)
    assert len(parity.run_batches(run, comments, 10)) == len(lengths)
    assert max(rows for rows, _ in seen[-20:]) == 10


def test_a_stock_triton_batches_no_more_than_memory_holds() -> None:
    assert [batch_size(n) for n in (16, 256, 512, 1024, MAX_LEN)] == [64, 64, 16, 4, 1]
    assert encoder_config(1, batch=batch_size(1024)).max_batch_size == 4
    assert ragged_config(1, batch=batch_size(1024)).max_batch_size == 4


def test_admission_weighs_windows() -> None:
    admission = Admission()
    admission.observe(100, 0.2)  # 2 ms a row: 125 begin within a calm call
    assert admission.admit([MAX_WINDOWS] * 10, now=0, comments=10) == 8
    fresh = Admission()
    fresh.observe(100, 0.2)
    assert fresh.admit([300], now=0, comments=20) == 1
    assert not fresh.overloaded  # long comments are no full call


def test_lengths_past_the_contracts_are_refused() -> None:
    flags = ["--max-len", str(MAX_LEN + 1)]
    with pytest.raises(BadInput, match=r"--max-len is '4097': .*less than or equal to 4096"):
        parse_config(TrainConfig, flags, prog="train", description="")


# --- The server ----------------------------------------------------------------------------
def _counted(config: triton.ServeConfig, name: str) -> int:
    with urllib.request.urlopen(f"http://{HOST}:{config.metrics_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}{{")).split()[-1])


@pytest.fixture(scope="module")
def windowed_server(
    tiny_model: TinyModel,
    tmp_path_factory: pytest.TempPathFactory,
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> Iterator[triton.ServeConfig]:
    repository = tmp_path_factory.mktemp("windowed")
    publish(
        repository,
        onnx_path=tiny_model.onnx_path,
        ragged_path=tiny_model.ragged_path,
        tokenizer_path=tiny_model.tokenizer_path,
        artifact={
            "precision": "fp32",
            "device": "cpu",
            "max_len": 16,
            "long_text": dataclasses.asdict(RULES["max"]),
        },
        instances=1,
    )
    config = make_server_config(repository)
    triton.start(config)
    yield config
    triton.stop(config)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_server_reads_windows_and_counts_them(
    windowed_server: triton.ServeConfig, tiny_model: TinyModel, texts: list[str], protocol: str
) -> None:
    port = getattr(windowed_server, f"{protocol}_port")
    before = _counted(windowed_server, "toxicity_comments_windowed_total")
    served = score_comments(texts, protocol=protocol, url=f"{HOST}:{port}").logit  # type: ignore[arg-type]
    expected = [_by_hand(tiny_model, text, RULES["max"]) for text in texts]
    np.testing.assert_allclose(served, expected, atol=FP32_LOGIT_ATOL, rtol=0)
    offline = load_scorer(Path(windowed_server.repository)).score(texts)
    np.testing.assert_allclose(served, offline.logit, atol=FP32_INVARIANCE_ATOL, rtol=0)
    time.sleep(0.3)  # the counters are a moment behind
    after = _counted(windowed_server, "toxicity_comments_windowed_total")
    assert after - before == offline.windowed > 0


def test_request_of_too_many_windows_is_refused_in_one_line(
    windowed_server: triton.ServeConfig,
) -> None:
    from serve.client import connect, infer

    url = f"{HOST}:{windowed_server.http_port}"
    fits = [_text(400, seed).encode() for seed in range(MAX_REQUEST_WINDOWS // MAX_WINDOWS)]
    with connect("http", url) as client:
        assert infer(client, "http", fits).as_numpy(contract.LOGIT).shape == (len(fits), 1)
        with pytest.raises(Exception, match=r"65 comments are 1025 windows.*most 1024; send fewer"):
            infer(client, "http", [*fits, b"you"])


# --- The export ----------------------------------------------------------------------------
def _config(checkpoint: Path, root: Path, **options: object) -> ExportConfig:
    small = {"calibration_comments": 64, "instances": 1}
    values = {"checkpoint": checkpoint, "repository": root / "repository", "out": root / "out"}
    return make_config(ExportConfig, {**values, **small, **options})


def test_export_proves_and_publishes_the_windows(trained_run: Path, tmp_path: Path) -> None:
    config = _config(trained_run, tmp_path, long_text="mean", stride=20)
    report = export_main.export(config)
    found = {gate["gate"]: gate for gate in report["gates"]}
    assert found["int8_long_text_invariance"]["value"] == 0.0
    for precision in ("fp32", "int8"):
        assert found[f"{precision}_long_text"]["holds"]
        assert found[f"{precision}_long_text_invariance"]["holds"]
    artifact = read_artifact(config.repository)
    assert artifact["long_text"] == {"rule": "mean", "stride": 20, "windows": MAX_WINDOWS}
    checkpoint = load_checkpoint(trained_run)
    texts = [" ".join(load_comments("synthetic:3000").texts[:n]) for n in (1, 3, 9, 30)]
    rule = LongText.by("mean", 20)
    expected = parity.reference_logits(checkpoint.model, texts, checkpoint.tokenizer, rule)
    served = load_scorer(config.repository).score(texts)
    assert served.windowed == 3
    np.testing.assert_allclose(served.logit, expected, atol=contract.INT8_LOGIT_ATOL, rtol=0)


def test_gate_goes_red_when_the_server_follows_another_rule(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(subject: gates.GateSubject, form: gates.Form) -> Scorer:
        rule = LongText.by("mean", subject.long_text.stride)
        return Scorer(form.path, subject.checkpoint.tokenizer, long_text=rule)

    monkeypatch.setattr(gates, "scorer_of", wrong)
    with pytest.raises(GateFailed, match=r"gate fp32_(long_text|served_text) is"):
        export_main.export(_config(trained_run, tmp_path, long_text="max", precision="fp32"))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 8}, r"--stride is 8, expected --long-text max or mean with it"),
        ({"long_text": "max", "student": "runs/student"}, r"--long-text is max, expected cut"),
        ({"long_text": "max", "stride": 64}, r"--stride is 64, expected less than .* max_len, 64"),
        ({"long_text": "sum"}, r"--long-text is 'sum'"),
    ],
)
def test_bad_combinations_are_one_line(
    options: dict[str, object], message: str, trained_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message) as error:
        export_main.export(_config(trained_run, tmp_path, **options))
    assert "\n" not in str(error.value)


# --- Linear attention ----------------------------------------------------------------------
@pytest.fixture(scope="module")
def linear_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("linear") / "model"
    shape = {"max_vocab": 3000, "max_len": 64, "d_model": 32, "n_layers": 2}
    options = {"epochs": 4, "batch_size": 32, "lr": 3e-3, "device": "cpu", "attention": "linear"}
    train(TrainConfig(data="synthetic:3000", out=out, **shape, **options), torch.device("cpu"))
    return out


@pytest.mark.slow
def test_linear_attention_learns_and_passes_every_gate(linear_run: Path, tmp_path: Path) -> None:
    metrics = json.loads((linear_run / "metrics.json").read_text())
    # 0.897 to 0.91, by the processor that trained it; 0.82 after one epoch.
    assert metrics["validation"]["auroc"] > 0.88
    report = export_main.export(_config(linear_run, tmp_path, torchscript=True, tensorrt=True))
    assert all(gate["holds"] for gate in report["gates"])
    assert len(report["placement"]["int8"]["integer_linears"]) == 4 * 2 + 1
    assert read_artifact(tmp_path / "repository")["precision"] == "int8"


def test_linear_attention_is_refused_where_it_does_not_exist(
    linear_run: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_main, "_device", lambda _: "cuda")
    with pytest.raises(BadInput, match=r"has linear attention, expected softmax .* --device cpu"):
        export_main.export(_config(linear_run, tmp_path))
    loaded = {"precision": "fp32", "embeddings": "random"}
    qat = make_config(TrainConfig, {"qat": linear_run, "out": tmp_path / "q", **loaded})
    with pytest.raises(BadInput, match=r"has linear attention, expected softmax with --qat"):
        train(qat, torch.device("cpu"))
    with pytest.raises(BadInput, match=r"--attention is linear, expected softmax with --qat"):
        make_config(TrainConfig, {"qat": trained_run, "attention": "linear", **loaded})


def test_a_checkpoint_from_before_the_choice_is_softmax(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "old")
    config = json.loads((tmp_path / "old" / CONFIG_FILE).read_text())
    del config["model"]["attention"], config["train"]["attention"]
    (tmp_path / "old" / CONFIG_FILE).write_text(json.dumps(config))
    old, new = load_checkpoint(tmp_path / "old").model, load_checkpoint(trained_run).model
    ids = torch.tensor([[CLS_ID, 5, 6, 7]])
    assert old.config.attention == "softmax"
    assert torch.equal(old(ids, torch.ones_like(ids)), new(ids, torch.ones_like(ids)))
