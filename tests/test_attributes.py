"""Attributes beside toxicity: one column of logits each, from the loss to the served answer."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from app_door import MODERATIONS, PERSPECTIVE, ask, make_config, serving
from conftest import ATTRIBUTE_NAMES as NAMES
from conftest import TinyModel
from torch.nn import functional

import export.__main__ as export_main
from contract import (
    ATTRIBUTES,
    FLAGGED,
    FP32_INVARIANCE_ATOL,
    FP32_LOGIT_ATOL,
    HOST,
    LOGIT,
    MODEL_VERSION,
    PROBABILITY,
    SERVING_LOGIT_ATOL,
    TEXT,
    BadInput,
    GateFailed,
)
from core.binding import probability
from export import model_config
from export.config import ExportConfig
from export.gates import parity
from export.graph.build import build, build_int8, build_packed
from export.repository import load_scorer, read_artifact
from export.scorer import LongText, Scorer
from quality.config import QualityConfig
from quality.measure import measure
from quality.models import _server
from quality.report import screen
from serve import door, haproxy, triton
from serve import score as score_command
from serve.client import score_comments
from serve.probe import INFER_PATH
from train.artifacts import load_checkpoint
from train.config import TrainConfig
from train.data.load import load_comments
from train.data.split import comments_of_run
from train.data.synthetic import generate
from train.loop import train
from train.methods import attributes, calibration, distill, qat
from train.model import ModelConfig, ToxicityEncoder, every_head
from train.validation import logits_of

SHAPE = {"max_vocab": 1000, "max_len": 32, "d_model": 32, "n_layers": 1, "n_heads": 2}
CPU = torch.device("cpu")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic comments; two attributes follow toxicity, and one column is half empty."""
    texts, shares = generate(2000)
    rng = np.random.default_rng(0)
    rows = []
    for text, share in zip(texts, shares, strict=True):
        insult = float(share) if rng.random() < 0.5 else ""
        threat = int(share >= 0.7)
        rows.append({"text": text, "toxicity": share, "Insult": insult, "threat": threat})
    return write_rows(tmp_path_factory.mktemp("labelled") / "comments.csv", rows)


def training(labelled: Path, out: Path, **more: Any) -> TrainConfig:
    settings = {"epochs": 4, "batch_size": 32, "lr": 2e-3, "device": "cpu", **SHAPE}
    return TrainConfig(data=str(labelled), out=out, **{**settings, **more})


@pytest.fixture(scope="module")
def run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "model"
    train(training(labelled, out, attributes=("insult", "threat")), CPU)
    return out


def every_logit(model: ToxicityEncoder, tokenizer: Any, texts: list[str]) -> np.ndarray:
    ids = [np.asarray(tokenizer.encode(text), np.int32) for text in texts]
    return logits_of(every_head(model), ids, np.arange(len(ids)))


# --- Labels and loss -----------------------------------------------------------------------
def test_a_missing_label_adds_nothing_to_the_loss_and_no_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 2, requires_grad=True)
    shares = torch.tensor([[1.0, 0.25], [torch.nan, 0.0], [0.5, torch.nan], [torch.nan] * 2])
    losses = attributes.masked_loss(logits, shares)
    entropy = functional.binary_cross_entropy_with_logits
    for row, column in ((1, 1), (2, 0)):
        own = entropy(logits[row, column], shares[row, column]) / 2
        torch.testing.assert_close(losses[row], own)
    assert losses[3] == 0
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert ((logits.grad == 0) == shares.isnan()).all()


def test_labels_are_found_by_name_and_missing_ones_stay_missing(labelled: Path) -> None:
    comments = load_comments(str(labelled), attributes=("insult", "threat", "nowhere"))
    assert comments.attributes.keys() == {"insult", "threat"}
    known = ~np.isnan(comments.attributes["insult"])
    assert 0.4 < known.mean() < 0.6
    np.testing.assert_array_equal(comments.attributes["insult"][known], comments.targets[known])
    assert load_comments(str(labelled)).attributes == {}
    rows = attributes.targets(("insult", "nowhere"), comments, len(comments.texts) + 2)
    assert np.isnan(rows[:, 1]).all() and np.isnan(rows[-2:]).all()


def test_what_cannot_be_learned_is_refused_in_one_line(labelled: Path, tmp_path: Path) -> None:
    def error(names: tuple[str, ...], data: Path = labelled) -> str:
        with pytest.raises(BadInput) as caught:
            train(training(data, tmp_path / "out", attributes=names), CPU)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
        return str(caught.value)

    assert "names obscene, and no column of" in error(("insult", "obscene"))
    rows = [{"text": f"a {n}", "toxic": n % 2, "threat": 0, "insult": "x y"} for n in range(40)]
    data = write_rows(tmp_path / "rows.csv", rows)
    assert "threat has 32 labels in the training split" in error(("threat",), data)
    message = error(("insult",), data)
    assert "no share of an attribute in row 0" in message and "x y" not in message
    for names in (("Insult",), ("a b",), ("toxicity",), ("threat", "threat"), ("",)):
        with pytest.raises(ValueError, match="attributes has"):
            training(labelled, tmp_path / "out", attributes=names)
        with pytest.raises(ValueError, match="attributes has"):
            ModelConfig(100, attributes=names)


# --- A run ---------------------------------------------------------------------------------
def test_a_run_learns_and_calibrates_every_attribute(run: Path) -> None:
    config, metrics = (json.loads((run / f"{n}.json").read_text()) for n in ("config", "metrics"))
    assert config["model"]["attributes"] == config["train"]["attributes"] == ["insult", "threat"]
    assert config["attribute_calibration"].keys() == {"insult", "threat"}
    found = metrics[ATTRIBUTES]
    assert all(of[part]["auroc"] > 0.7 for of in found.values() for part in ("validation", "test"))
    assert found["insult"]["validation"]["comments"] < found["threat"]["validation"]["comments"]
    assert metrics["validation"]["auroc"] > 0.75

    checkpoint = load_checkpoint(run)
    comments, split = comments_of_run(run)
    rows, texts = split.validation, [comments.texts[row] for row in split.validation]
    logits = every_logit(checkpoint.model, checkpoint.tokenizer, texts)
    own = attributes.auroc(comments.attributes["threat"][rows], logits[:, 2])
    assert own == pytest.approx(found["threat"]["validation"], abs=1e-4)


def test_calibration_changes_one_column_alone() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 3)
    states = torch.randn(16, 8)
    before = head(states).detach()
    calibration.fold_in_row(head, 1, calibration.Platt(2.0, -0.5))
    after = head(states).detach()
    torch.testing.assert_close(after[:, 1], 2 * before[:, 1] - 0.5)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])


def test_without_attributes_weights_and_files_are_as_before() -> None:
    torch.manual_seed(7)
    plain = ToxicityEncoder(ModelConfig(100, d_model=16, n_layers=1))
    torch.manual_seed(7)
    named = ToxicityEncoder(ModelConfig(100, d_model=16, n_layers=1, attributes=NAMES))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(named.state_dict()[name], tensor), name
    extra = named.state_dict().keys() - plain.state_dict().keys()
    assert extra == {"attribute_head.weight", "attribute_head.bias"}
    assert ATTRIBUTES not in plain.config.to_json() and ATTRIBUTES not in TrainConfig().to_json()
    assert every_head(plain) is plain
    assert named.config.to_json()[ATTRIBUTES] == list(NAMES)
    assert TrainConfig(attributes=NAMES).to_json()[ATTRIBUTES] == list(NAMES)


def test_a_tuning_and_a_student_take_the_attributes_along(run: Path, tmp_path: Path) -> None:
    for defaults in (qat.defaults_of(run), distill.defaults_of(run)):
        assert list(defaults[ATTRIBUTES]) == ["insult", "threat"]
    tuned = tmp_path / "tuned"
    train(TrainConfig(**{**qat.defaults_of(run), "qat": run, "out": tuned, "device": "cpu"}), CPU)
    assert json.loads((tuned / "metrics.json").read_text())[ATTRIBUTES].keys() == {
        "insult",
        "threat",
    }
    with pytest.raises(BadInput, match=r"--attributes is \('insult',\), expected"):
        fields = {**qat.defaults_of(run), "qat": run, ATTRIBUTES: ("insult",), "device": "cpu"}
        train(TrainConfig(**{**fields, "out": tmp_path / "other"}), CPU)
    student = {**distill.defaults_of(run), "distill": (run,), "ngram_teacher": 0.0, "epochs": 1}
    student |= {"d_model": 16, "n_layers": 1, "n_heads": 2, "out": tmp_path / "student"}
    train(TrainConfig(**student, device="cpu"), CPU)
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert metrics[ATTRIBUTES].keys() == {"insult", "threat"}


# --- Graphs --------------------------------------------------------------------------------
def mixed(vocab: int, max_len: int, count: int = 16) -> list[parity.Comment]:
    rng = np.random.default_rng(0)
    lengths = np.r_[1, max_len, rng.integers(2, max_len, count - 2)]
    return [
        parity.Comment(f"row {i}", np.r_[2, rng.integers(3, vocab, n - 1)])
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(("n_layers", "attention"), [(1, "softmax"), (2, "softmax"), (2, "linear")])
def test_every_graph_gives_the_columns_of_pytorch(
    n_layers: int, attention: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_heads": 2, "max_len": 40, "attention": attention}
    config = ModelConfig(60, n_layers=n_layers, attributes=NAMES, **shape)
    model = ToxicityEncoder(config).eval()
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)
        model.head.weight.mul_(2)
        model.attribute_head.weight.mul_(2)
        model.attribute_head.bias.copy_(torch.tensor([3.0, -2.0, 1.0]))
    comments = mixed(60, 40)
    export_main.trace(model, tmp_path / "traced.onnx")
    build(model, tmp_path / "fp32.onnx", (16, 40), tmp_path / "fp32_ragged.onnx")
    ids = [np.asarray(comment.ids) for comment in comments]
    build_int8(model, tmp_path / "int8.onnx", (16, 40), ids, tmp_path / "int8_ragged.onnx")
    reference = parity.torch_runner(every_head(model))
    expected = parity.run_batch(reference, comments)
    assert expected.shape == (len(comments), 4) and expected.std(axis=0).min() > 0.05
    mates = parity.adversarial_mates(model, max_len=40, seed=0)
    for name, bound in (("traced", 1e-4), ("fp32", SERVING_LOGIT_ATOL), ("int8", 0.5)):
        path = tmp_path / f"{name}.onnx"
        outputs = {output.name for output in onnx.load(path).graph.output}
        assert outputs == {LOGIT, ATTRIBUTES}
        dense = parity.onnx_runner(path)
        found = [parity.shape_parity("g", bound, reference, dense, comments, max_len=40, seed=0)]
        if name != "traced":
            ragged = parity.ragged_runner(tmp_path / f"{name}_ragged.onnx")
            apart = 0.0 if name == "int8" else FP32_INVARIANCE_ATOL
            sized = {"max_len": 40, "seed": 0}
            found += [
                parity.shape_parity("g", apart, dense, ragged, comments, **sized),
                parity.batch_invariance("g", apart, dense, comments, mates, **sized),
            ]
        assert all(finding.holds for finding in found), found
    if attention == "softmax":
        build_packed(model, tmp_path / "fp16.onnx", "fp16", tmp_path / "fp16_ragged.onnx")
        outputs = {output.name for output in onnx.load(tmp_path / "fp16.onnx").graph.output}
        assert outputs == {LOGIT, ATTRIBUTES}


def test_a_damaged_column_turns_the_gates_red() -> None:
    logits = np.zeros((60, 3), np.float32)
    broken = logits.copy()
    broken[7, 2] = np.nan
    names = [f"comment {row}" for row in range(60)]
    assert not parity.comment_parity("g", 1e-4, logits, broken, names).holds
    broken[7, 2] = 0.5
    found = parity.comment_parity("g", 1e-4, logits, broken, names)
    assert not found.holds and found.worst == "comment 7: 0.500000, expected 0.000000"

    rng = np.random.default_rng(0)
    shares = (rng.random((400, 2)) < 0.5).astype(np.float32)
    good = (shares + rng.normal(size=(400, 2))).astype(np.float32)
    asked = [f"comment {row}" for row in range(400)], ("insult", "threat")
    assert all(f.holds for f in parity.attribute_parity("int8", shares, good, good, *asked))
    bad = good.copy()
    bad[:, 1] = -bad[:, 1]
    held = {f.gate: f.holds for f in parity.attribute_parity("int8", shares, good, bad, *asked)}
    assert held == {
        "int8_attributes_logit_max": False,
        "int8_attributes_logit_mean": False,
        "int8_attributes_auroc": False,
    }


# --- The core ------------------------------------------------------------------------------
def test_the_core_gives_pytorchs_columns_cached_or_not(
    named_model: TinyModel, comments: list[str]
) -> None:
    texts = [text for text in comments if text.isprintable()]
    expected = every_logit(named_model.model, named_model.tokenizer, texts)
    for path in (named_model.ragged_path, named_model.onnx_path):
        plain = Scorer(path, named_model.tokenizer).score(texts)
        np.testing.assert_allclose(plain.logits, expected, atol=FP32_LOGIT_ATOL, rtol=0)
        assert plain.logit.shape == (len(texts),) and plain.attributes.shape[1] == len(NAMES)
    cached = Scorer(named_model.ragged_path, named_model.tokenizer, cache_bytes=1 << 20)
    first, again = cached.score(texts), cached.score(texts[::-1])
    assert again.hits == len(texts)
    np.testing.assert_array_equal(again.logits[::-1], first.logits)
    np.testing.assert_allclose(first.logits, expected, atol=FP32_LOGIT_ATOL, rtol=0)
    assert cached.score([]).logits.shape == (0, 1 + len(NAMES))


def test_the_cache_counts_every_logit(tiny_model: TinyModel, named_model: TinyModel) -> None:
    used = []
    for model in (tiny_model, named_model):
        scorer = Scorer(model.ragged_path, model.tokenizer, cache_bytes=1 << 20)
        scorer.score(["you are kind"])
        used.append(scorer.cached_bytes)
    assert used[1] - used[0] == 4 * len(NAMES)


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_windows_are_joined_column_by_column(named_model: TinyModel, rule: Any) -> None:
    rng = np.random.default_rng(0)
    words = "you are a kind awful person and the idea is not so bad".split()
    texts = [" ".join(rng.choice(words, n)) for n in (3, 15, 16, 17, 40, 90)]
    long_text = LongText.by(rule, 8)
    model, tokenizer = named_model.model, named_model.tokenizer
    expected = parity.reference_logits(every_head(model), texts, tokenizer, long_text)
    found = Scorer(named_model.ragged_path, tokenizer, long_text=long_text).score(texts)
    assert found.windowed >= 3
    np.testing.assert_allclose(found.logits, expected, atol=FP32_LOGIT_ATOL, rtol=0)


def test_a_graph_of_other_outputs_is_refused(named_model: TinyModel, tmp_path: Path) -> None:
    proto = onnx.load(named_model.ragged_path)
    proto.graph.output[1].name = proto.graph.node[-1].output[0] = "others"
    onnx.save(proto, tmp_path / "others.onnx")
    with pytest.raises(BadInput, match="other outputs than logit and the columns of attributes"):
        Scorer(tmp_path / "others.onnx", named_model.tokenizer)


# --- Export --------------------------------------------------------------------------------
def exporting(run: Path, folder: Path, **more: Any) -> ExportConfig:
    settings: dict[str, Any] = {"precision": "int8", "calibration_comments": 64, "instances": 1}
    names = {"repository": folder / "repository", "out": folder / "out"}
    return ExportConfig(checkpoint=run, **names, **{**settings, **more})


def test_an_export_gates_and_names_the_attributes(run: Path, tmp_path: Path) -> None:
    config = exporting(run, tmp_path)
    try:
        report = export_main.export(config)
    except GateFailed as error:
        pytest.fail(str(error))
    gates = {gate["gate"] for gate in report["gates"]}
    assert {"int8_attributes_logit_max", "int8_attributes_auroc"} < gates
    artifact = read_artifact(config.repository)
    assert artifact[ATTRIBUTES] == ["insult", "threat"]
    checkpoint = load_checkpoint(run)
    texts = generate(50, seed=3)[0]
    found = load_scorer(config.repository).score(texts)
    expected = every_logit(checkpoint.model, checkpoint.tokenizer, texts)
    np.testing.assert_allclose(found.logits, expected, atol=0.5, rtol=0)
    with pytest.raises(BadInput, match="has the attributes insult threat, expected none in a casc"):
        export_main.export(exporting(run, tmp_path, student=run))
    with pytest.raises(BadInput, match="expected none with --tensorrt"):
        export_main.export(exporting(run, tmp_path, tensorrt=True))


def test_configurations_are_as_before_without_attributes(named_model: TinyModel) -> None:
    tuning = model_config.Tuning(1)
    named = model_config.render(1, tuning, 0, named_model.artifact)
    artifact = {k: v for k, v in named_model.artifact.items() if k != ATTRIBUTES}
    for name, text in model_config.render(1, tuning, 0, artifact).items():
        assert ATTRIBUTES not in text and ATTRIBUTES in named[name]
    assert 'string_value: "insult,threat,identity_attack"' in named["toxicity"]


def test_an_evaluation_shows_every_attribute(run: Path) -> None:
    config = QualityConfig(run=run, models=(str(run), "baseline-words"), resamples=100)
    document = measure(config).document
    assert document[ATTRIBUTES].keys() == {"validation", "test"}
    (of_model,) = document[ATTRIBUTES]["test"].values()
    expected = json.loads((run / "metrics.json").read_text())[ATTRIBUTES]
    for name, found in of_model.items():
        whole = expected[name]["test"]
        assert (found["comments"], found["positive"]) == (whole["comments"], whole["positive"])
        assert found["auroc"]["value"] == pytest.approx(whole["auroc"], abs=1e-4)
        assert found["auroc"]["low"] <= found["auroc"]["value"] <= found["auroc"]["high"]
    assert "attributes of test" in screen(document)


# --- Served --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server(
    named_model: TinyModel,
    tmp_path_factory: pytest.TempPathFactory,
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> triton.ServeConfig:
    repository = tmp_path_factory.mktemp("served") / "repository"
    named_model.publish(repository)
    config = make_server_config(repository)
    triton.start(config)
    return config


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_server_gives_pytorchs_probabilities_by_name(
    server: triton.ServeConfig, named_model: TinyModel, comments: list[str], protocol: Any
) -> None:
    port = server.http_port if protocol == "http" else server.grpc_port
    live = score_comments(comments, protocol=protocol, url=f"{HOST}:{port}")
    expected = every_logit(named_model.model, named_model.tokenizer, comments)
    np.testing.assert_allclose(live.logit, expected[:, 0], atol=FP32_LOGIT_ATOL, rtol=0)
    assert all(tuple(row) == NAMES for row in live.attributes)
    values = np.array([list(row.values()) for row in live.attributes])
    np.testing.assert_allclose(values, probability(expected[:, 1:]), atol=1e-4, rtol=0)
    model = _server(f"{protocol}://{HOST}:{port}")
    assert model.attributes == NAMES
    found = model.attribute_logits(comments[:20])
    np.testing.assert_allclose(found, expected[:20, 1:], atol=1e-3, rtol=0)


def test_who_asks_for_the_probability_alone_gets_nothing_else(
    server: triton.ServeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    def answer(*names: str) -> dict[str, Any]:
        tensor = {"name": TEXT, "datatype": "BYTES", "shape": [2, 1], "data": ["a", "kind"]}
        asked = {"inputs": [tensor], "outputs": [{"name": name} for name in names]}
        url = f"http://{HOST}:{server.http_port}{INFER_PATH}"
        with urllib.request.urlopen(url, json.dumps(asked).encode(), timeout=60) as found:
            return json.load(found)

    alone = answer(PROBABILITY)
    assert [output["name"] for output in alone["outputs"]] == [PROBABILITY]
    assert ATTRIBUTES not in alone.get("parameters", {})
    named = answer(ATTRIBUTES)
    assert named["outputs"][0]["shape"] == [2, len(NAMES)]
    assert named["parameters"][ATTRIBUTES] == ",".join(NAMES)

    url = f"{HOST}:{server.http_port}"
    monkeypatch.setattr("sys.argv", ["score", "--json", "--url", url, "you are kind"])
    score_command._main()
    assert tuple(json.loads(capsys.readouterr().out)[ATTRIBUTES]) == NAMES
    monkeypatch.setattr("sys.argv", ["score", "--attributes", "--url", url, "you are kind"])
    score_command._main()
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == [PROBABILITY, LOGIT, "version", FLAGGED, *NAMES, TEXT]
    assert len(line.split()) == 4 + len(NAMES) + 3


# --- Other APIs ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def opened(
    named_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("app")
    named_model.publish(folder / "repository")
    with serving(make_config(folder / "run", folder / "repository")) as config:
        yield config


def test_other_apis_answer_the_attributes(
    opened: door.DoorConfig, tiny_model: TinyModel, named_model: TinyModel
) -> None:
    texts = ["you are kind", "awful person", "a"]
    expected = probability(every_logit(named_model.model, named_model.tokenizer, texts))
    status, answer, _ = ask(opened, "/score", texts)
    assert status == 200 and answer[MODEL_VERSION] == "1"
    for row, own in zip(expected, answer[ATTRIBUTES], strict=True):
        assert own == pytest.approx(dict(zip(NAMES, row[1:].tolist(), strict=True)), abs=1e-4)
    _, single, _ = ask(opened, "/score", "you are kind")
    assert single[ATTRIBUTES] == pytest.approx(answer[ATTRIBUTES][0], abs=1e-6)

    wanted = {"TOXICITY": {}, "INSULT": {}, "IDENTITY_ATTACK": {"scoreThreshold": 2}}
    body = {"comment": {"text": "you are kind. awful person!"}, "requestedAttributes": wanted}
    _, found, _ = ask(opened, PERSPECTIVE, {**body, "spanAnnotations": True})
    assert found["attributeScores"].keys() == {"TOXICITY", "INSULT"}
    insult = found["attributeScores"]["INSULT"]
    assert len(insult["spanScores"]) == 2 and 0 < insult["summaryScore"]["value"] < 1
    _, alone, _ = ask(opened, PERSPECTIVE, {**body, "requestedAttributes": {"THREAT": {}}})
    assert alone["attributeScores"].keys() == {"THREAT"}
    for unknown in ("PROFANITY", "SPAM"):
        asked = {**body, "requestedAttributes": {"TOXICITY": {}, unknown: {}}}
        status, refused, _ = ask(opened, PERSPECTIVE, asked)
        assert status == 400
        assert refused["error"]["message"] == (
            f"Unknown requested attribute: {unknown}; the served model has TOXICITY, INSULT, "
            "THREAT, IDENTITY_ATTACK"
        )

    _, moderated, _ = ask(opened, MODERATIONS, {"input": texts})
    for row, result in zip(expected, moderated["results"], strict=True):
        scores, flags = result["category_scores"], result["categories"]
        judged = ("toxicity", "harassment", "harassment/threatening", "hate")
        assert [scores[name] for name in judged] == pytest.approx(row.tolist(), abs=1e-4)
        assert flags == {name: value >= 0.5 for name, value in scores.items()}
        assert result["flagged"] == any(flags.values())
        applied = result["category_applied_input_types"]
        assert {name for name, kinds in applied.items() if kinds == ["text"]} == set(judged)

    # A version without them: the application notices, and asks for them no more.
    tiny_model.publish(opened.repository)
    door.start(opened)
    _, answer, _ = ask(opened, "/score", texts)
    assert answer.keys() == {PROBABILITY, MODEL_VERSION} and answer[MODEL_VERSION] == "2"
    status, refused, _ = ask(opened, PERSPECTIVE, {**body, "requestedAttributes": {"INSULT": {}}})
    assert status == 400 and refused["error"]["message"].endswith("has TOXICITY only")
