"""bench.model.encoder: contenders that disagree end it, work is counted right, bars can fail."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.model import encoder, peaks
from bench.model.encoder import EncoderBenchConfig, measure
from bench.model.peaks import peak_gops, profile_by_op
from bench.model.verdict import bars
from bench.report.plot import plot_encoders
from bench.serving.contenders import read_feeds, running, write_feeds
from bench.traffic import workload
from bench.traffic.comments import SYNTHETIC, load_pool
from bench.traffic.workload import STUDENT, Subject, cells_of
from contract import ATTENTION_MASK, INPUT_IDS, TOKENIZER_FILE, ToxicityError
from export.graph import build as serving_graph
from export.graph.encoder import linear_layers
from export.session import open_session, profile_into, session_options
from export.work import multiply_adds
from train.artifacts import CONFIG_FILE, save_weights, write_json
from train.data.tokenizer import build_tokenizer
from train.model import ModelConfig, ToxicityEncoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EncoderBenchConfig:
    """A checkpoint of a tiny model of random weights, and synthetic comments."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_tokenizer(load_pool(SYNTHETIC).texts, max_vocab=500, max_len=64)
    shape = ModelConfig(len(tokenizer.vocabulary), 32, 2, 2, 4.0, 0.0, 64)
    torch.manual_seed(0)
    save_weights(folder, ToxicityEncoder(shape))
    write_json(folder / CONFIG_FILE, {"model": dataclasses.asdict(shape)})
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), "utf-8")
    return EncoderBenchConfig(
        checkpoint=folder, comments=SYNTHETIC, sample=64, rounds=2, out=folder / "out"
    )


@pytest.fixture(scope="module")
def subject(config: EncoderBenchConfig, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(
        config.checkpoint, load_pool(SYNTHETIC).texts, 64, tmp_path_factory.mktemp("subject")
    )


@pytest.fixture
def copied(subject: Subject, tmp_path: Path) -> Subject:
    """For tests that change a file."""
    another = copy.copy(subject)
    another.folder = Path(shutil.copytree(subject.folder, tmp_path / "copied"))
    return another


def test_contenders_agree_with_pytorch_in_any_form(subject: Subject) -> None:
    cells = cells_of(subject.sample, 8)
    names = (*workload.FILES, "eager", STUDENT)
    with (
        running(names, subject.folder) as (alone, skipped),
        running(("serving_fp32",), subject.folder, sessions=2) as (sessions, _),
    ):
        assert not skipped
        results = [measure(subject, cell, [*alone, *sessions], 1) for cell in cells]
        assert all(contender.peak_mib > 10 for contender in alone)
    for result in results:
        assert set(result["logit_gap"]) == {*names, "serving_fp32 x2"}
        for name, gap in result["logit_gap"].items():
            assert gap["max"] < (0.3 if "int8" in name else 1e-4)
        assert result["logit_gap"]["serving_int8"]["max"] > 1e-5  # it is not the float graph
    assert results[0]["tokens"] == results[1]["tokens"] == sum(cells[0].lengths)


def test_a_wrong_contender_ends_the_run(copied: Subject) -> None:
    wrong = copy.deepcopy(copied.model)
    with torch.no_grad():
        wrong.head.bias += 2 * encoder.ATOL
    serving_graph.build(wrong, copied.folder / "serving_fp32.onnx", copied.groups)
    with (
        running(("serving_fp32",), copied.folder) as (contenders, _),
        pytest.raises(ToxicityError, match=r"serving_fp32's logits are off by .* in batch 8"),
    ):
        measure(copied, cells_of(copied.sample, 8)[0], contenders, 1)


def test_nan_ends_the_run(subject: Subject) -> None:
    cell = cells_of(subject.sample, 8)[0]
    logits = np.full(len(cell.lengths), np.nan, np.float32)
    with pytest.raises(ToxicityError, match="serving_int8's logits"):
        encoder.check(cell, "serving_int8", logits, np.zeros_like(logits))


def test_a_contender_that_dies_is_named(copied: Subject) -> None:
    (copied.folder / "serving_fp32.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(ToxicityError, match="serving_fp32 ended with status 1"),
        running(("serving_fp32",), copied.folder),
    ):
        pass


def test_what_the_machine_lacks_is_skipped_with_the_reason(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('no OpenVINO here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    names = ("openvino_int8", "torch_compile", "serving_int8")
    with running(names, subject.folder) as (contenders, skipped):
        assert [contender.name for contender in contenders] == ["serving_int8"]
    assert skipped["openvino_int8"] == "ImportError: no OpenVINO here"
    assert "c++" in skipped["torch_compile"].lower()


# --- Work ----------------------------------------------------------------------------------
def test_multiply_adds_of_the_model_are_those_that_pytorch_counts(subject: Subject) -> None:
    model = copy.deepcopy(
        subject.model
    ).train()  # without the fused inference kernel, which is not counted
    lengths = (1, 7, 50)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        for length in lengths:
            ids = torch.full((1, length), 3)
            model(ids, torch.ones_like(ids))
    head = subject.model.config.d_model * len(lengths)
    work = multiply_adds(subject.model.config, lengths, whole=True).sum()
    assert counter.get_total_flops() == 2 * (work + head)


def test_multiply_adds_of_the_serving_graph_are_those_that_it_runs(
    subject: Subject, tmp_path: Path
) -> None:
    """Alone and in a group of its own length a comment has no padding: shapes give the work."""
    length = 13
    serving_graph.build(subject.model, tmp_path / "graph.onnx", (length, 64))
    options = profile_into(session_options(), tmp_path)
    session = open_session(tmp_path / "graph.onnx", options=options)
    ids = np.full((1, length), 3)
    session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids)})
    events = json.loads(Path(session.end_profiling()).read_text())
    work = 0
    for event in events:
        op = event.get("args", {}).get("op_name")
        if op in ("Gemm", "FusedMatMul"):
            a, b = (next(iter(x.values())) for x in event["args"]["input_type_shape"][:2])
            out = next(iter(event["args"]["output_type_shape"][0].values()))
            stacked = math.prod(out[:-2])
            if op == "Gemm":  # its weight is not listed; a is [m, k], out [m, n]
                work += math.prod(a) * out[-1]
            elif stacked:  # a is [s, m, k] in some order, b [s, k, n], out [s, m, n]
                work += math.isqrt(math.prod(a) * math.prod(b) * math.prod(out) // stacked)
    assert work == multiply_adds(subject.model.config, [length])


def test_length_mix_is_that_of_all() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 5000).astype(int).tolist()
    rows = workload.length_mix(lengths, 64)
    assert len(set(rows)) == 64
    chosen = [lengths[row] for row in rows]
    assert np.mean(chosen) == pytest.approx(np.mean(lengths), rel=0.05)
    assert chosen != sorted(chosen)


def test_feeds_come_back_in_order(tmp_path: Path) -> None:
    feeds = [(np.full((1, n), n), np.ones((1, n), np.int64)) for n in range(1, 13)]
    write_feeds(tmp_path / "feeds.npz", feeds)
    assert [ids.tolist() for ids, _ in read_feeds(tmp_path / "feeds.npz")] == [
        ids.tolist() for ids, _ in feeds
    ]


def test_profile_counts_every_linear_layer(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = subject.feeds(cells_of(subject.sample, 32)[0])
    rows = profile_by_op(subject.folder / "serving_int8.onnx", feeds)
    nodes = {row["op"]: row["nodes"] for row in rows}
    assert nodes["MatMulIntegerToFloat"] == linear_layers(subject.model)
    assert sum(row["share"] or 0 for row in rows) == pytest.approx(1, abs=0.01)
    monkeypatch.setattr(peaks, "PEAK_SHAPE", (256, 256, 256))
    assert all(peak_gops(kind, 1) > 1 for kind in ("int8", "fp32"))


# --- Bars and the whole --------------------------------------------------------------------
def section(student_gops: float = 300.0, **rates: float) -> dict[str, Any]:
    """The full size does 1 GOP a comment, and the student by default half of that."""
    known = {"serving_int8": 100.0, "dynamic_int8": 10.0, "eager": 5.0, STUDENT: 600.0, **rates}
    full = {"model_share_of_int8_peak": 0.6, "serving_share_of_int8_peak": 0.4}
    full["model_gops"] = known["serving_int8"]
    results = [{"name": "batch 32, random", "comments_per_s": known}]
    work = {"serving_int8": full, STUDENT: {"model_gops": student_gops}}
    return {"results": results, "work": work}


def test_bars_hold_fail_and_stay_open() -> None:
    judged = {name: bar["holds"] for name, bar in bars(section()).items()}
    assert judged == {
        "serving_int8_over_dynamic_int8_8x": True,
        "serving_int8_over_dynamic_int8_10x": True,
        "serving_int8_over_eager_12x": True,
        "serving_int8_over_openvino_int8_5x": None,
        "model_share_of_int8_peak": True,
        "serving_share_of_int8_peak": False,
        "student_over_full_size": True,
    }
    # Beside a checkpoint that is the smaller one, the student has nothing to show.
    assert bars(section(student_gops=601.0))["student_over_full_size"]["holds"] is None
    slow = bars(section(100.0, serving_int8=50.0, openvino_int8=11.0, **{STUDENT: 252.0}))
    assert [bar["holds"] for bar in slow.values()] == [
        False,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert slow["student_over_full_size"]["value"] == pytest.approx(5.04)


def test_whole_run_on_a_tiny_model(
    config: EncoderBenchConfig,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(encoder, "Subject", lambda *_: subject)  # it would make the same again
    monkeypatch.setattr(peaks, "PEAK_SHAPE", (256, 256, 256))
    monkeypatch.setattr(encoder, "BATCHES", (1, 32))
    monkeypatch.setattr(encoder, "GROWTH_BATCHES", (1, 2))
    monkeypatch.setattr(encoder, "GROWTH_LENGTHS", (8, 64))
    contenders = ("serving_int8", "serving_fp32", "dynamic_int8", "eager", STUDENT)
    monkeypatch.setattr(encoder, "ONE_THREAD", contenders)
    monkeypatch.setattr(encoder, "SESSIONS", ("serving_int8",))
    before = os.sched_getaffinity(0)
    document = encoder.bench(config)
    assert os.sched_getaffinity(0) == before
    assert json.loads(json.dumps(document)) == document
    one = document["one_thread"]
    names = ["batch 1, random", "batch 32, random", "batch 32, sorted"]
    assert [result["name"] for result in one["results"]] == names
    assert set(one["peak_memory_mib"]) == set(contenders)
    assert set(one["growth"]["length"]["eager"]) == {"8", "64"}
    assert document["bars"]["serving_int8_over_openvino_int8_5x"]["holds"] is None
    if len(before) > 1:
        rates = document["all_cores"]["results"][0]["comments_per_s"]
        assert f"serving_int8 x{len(before)}" in rates
    assert "ns/token" in capsys.readouterr().out
    plot_encoders(document, config.out / "encoder.png")
    assert (config.out / "encoder.png").read_bytes().startswith(b"\x89PNG")
