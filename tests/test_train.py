"""Training: what it writes, resumes, refuses, and that several processes equal one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic.fields import FieldInfo
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from bench.faults import child as fault_child
from console.options import make_config, run
from contract import CLS_ID, PAD_ID, THRESHOLDS_FILE, TOKENIZER_FILE, BadInput
from train.__main__ import main
from train.artifacts import (
    CONFIG_FILE,
    CURVES_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    SPLIT_FILE,
    WEIGHTS_FILE,
    load_checkpoint,
)
from train.config import REFUSED, TrainConfig
from train.data.batches import TokenizedOnTheFly, collate
from train.data.load import load_comments
from train.data.split import split_comments
from train.data.tokenizer import Respelling, Tokenizer
from train.loop import train
from train.model import ModelConfig, ToxicityEncoder
from train.optimizer import lr_share
from train.terminal import StopRequest
from train.validation import classification_metrics, logits_of

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


def test_finished_run_is_complete_and_learned(trained_run: Path) -> None:
    names = {path.name for path in trained_run.iterdir()}
    assert names == {
        WEIGHTS_FILE,
        CONFIG_FILE,
        TOKENIZER_FILE,
        SPLIT_FILE,
        METRICS_FILE,
        THRESHOLDS_FILE,
        CURVES_FILE,
    }
    assert not trained_run.with_name(trained_run.name + ".partial").exists()
    metrics = json.loads((trained_run / METRICS_FILE).read_text())
    assert metrics["synthetic_data"] is True
    for part in ("validation", "test"):
        assert 0.6 < metrics[part]["auroc"] < 0.999
    assert metrics["comments_cut_at_max_len"] > 0
    assert (trained_run / CURVES_FILE).read_bytes().startswith(b"\x89PNG")


def test_metrics_are_those_of_the_saved_weights(trained_run: Path) -> None:
    """metrics.json against an evaluation of the loaded files, from the raw texts."""
    checkpoint = load_checkpoint(trained_run)
    settings = checkpoint.config["train"]
    comments = load_comments(settings["data"])
    split = split_comments(
        comments.texts, comments.labels, fractions=settings["fractions"], seed=settings["seed"]
    )
    recorded = json.loads((trained_run / SPLIT_FILE).read_text())
    assert split.fingerprint == recorded["fingerprint"]
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    metrics = json.loads((trained_run / METRICS_FILE).read_text())
    for part, rows in (("validation", split.validation), ("test", split.test)):
        logits = logits_of(checkpoint.model, ids, rows)
        assert metrics[part]["auroc"] == pytest.approx(
            roc_auc_score(comments.labels[rows], logits), abs=1e-6
        )
    positive = comments.labels[split.train].sum()
    assert metrics["pos_weight"] == pytest.approx((len(split.train) - positive) / positive)


def small(out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": "synthetic:600",
        "out": out,
        "max_vocab": 500,
        "max_len": 24,
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "epochs": 2,
        "batch_size": 32,
        "checkpoint_steps": 5,
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


@pytest.mark.slow
def test_tokenizer_is_as_asked_for_and_its_unknown_words_are_counted(tmp_path: Path) -> None:
    config = small(tmp_path / "run", respell=False, phrases=20, epochs=1)
    train(config, CPU)
    tokenizer = load_checkpoint(config.out).tokenizer
    assert tokenizer.respelling is None
    assert sum(" " in token for token in tokenizer.vocabulary) == 20
    unknown = json.loads((config.out / METRICS_FILE).read_text())["out_of_vocabulary"]
    assert 0 < unknown["before"] < 0.5 and unknown["after"] > 0
    respelling = small(tmp_path / "respelling", epochs=1)
    train(respelling, CPU)
    assert load_checkpoint(respelling.out).tokenizer.respelling == Respelling()
    rates = json.loads((respelling.out / METRICS_FILE).read_text())["out_of_vocabulary"]
    assert 0 < rates["after"] < rates["before"]


class StopAfter(StopRequest):
    """Asks for a stop once the loop has looked this often."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that nobody interrupted."""
    config = small(tmp_path_factory.mktemp("whole") / "whole")
    train(config, CPU)
    return config


@pytest.mark.parametrize("stop_after", [3, 15, 17])
def test_resumed_run_equals_an_uninterrupted_one(
    whole: TrainConfig, tmp_path: Path, stop_after: int
) -> None:
    parts = small(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train(parts, CPU, stop=StopAfter(stop_after))
    assert not parts.out.exists()
    train(parts, CPU)
    one, other = load_file(whole.out / WEIGHTS_FILE), load_file(parts.out / WEIGHTS_FILE)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    history = [json.loads((c.out / METRICS_FILE).read_text())["history"] for c in (whole, parts)]
    assert history[0] == history[1]


def test_on_the_fly_run_gives_the_same_weights_and_metrics(tmp_path: Path) -> None:
    stored = small(tmp_path / "stored")
    live = dataclasses.replace(stored, out=tmp_path / "live", pretokenize=False)
    for config in (stored, live):
        train(config, CPU)
    one, other = ((config.out / WEIGHTS_FILE).read_bytes() for config in (stored, live))
    assert one == other
    first, second = (json.loads((c.out / METRICS_FILE).read_text()) for c in (stored, live))
    for name in ("history", "test", "out_of_vocabulary", "comments_cut_at_max_len"):
        assert first[name] == second[name]


def test_a_run_stopped_with_one_way_of_reading_goes_on_with_the_other(tmp_path: Path) -> None:
    whole, parts = small(tmp_path / "whole"), small(tmp_path / "parts", pretokenize=False)
    train(whole, CPU)
    with pytest.raises(KeyboardInterrupt):
        train(parts, CPU, stop=StopAfter(7))
    train(dataclasses.replace(parts, pretokenize=True), CPU)
    assert (whole.out / WEIGHTS_FILE).read_bytes() == (parts.out / WEIGHTS_FILE).read_bytes()


def test_token_ids_that_were_damaged_in_a_stopped_run_are_made_anew(tmp_path: Path) -> None:
    whole, parts = small(tmp_path / "whole"), small(tmp_path / "parts")
    train(whole, CPU)
    with pytest.raises(KeyboardInterrupt):
        train(parts, CPU, stop=StopAfter(7))
    (ids,) = (tmp_path / "parts.partial").rglob("ids.npy")
    ids.write_bytes(ids.read_bytes()[:-400] + b"\x05\0\0\0" * 100)
    train(parts, CPU)
    assert (whole.out / WEIGHTS_FILE).read_bytes() == (parts.out / WEIGHTS_FILE).read_bytes()


def test_a_text_is_tokenized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads it: two epochs, embeddings, the terms' statistics, the metrics."""
    read: Counter[str] = Counter()
    encode_and_cut = Tokenizer.encode_and_cut

    def counted(tokenizer: Tokenizer, text: str) -> tuple[list[int], bool]:
        read[text] += 1
        return encode_and_cut(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "encode_and_cut", counted)
    train(small(tmp_path / "run", identity_balance=1.0), CPU)
    assert read == Counter(load_comments("synthetic:600").texts)


def test_a_run_of_a_release_with_more_flags_goes_on_unless_one_was_on(tmp_path: Path) -> None:
    config = small(tmp_path / "run", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train(config, CPU, stop=StopAfter(3))
    file = tmp_path / "run.partial" / PROGRESS_FILE
    progress = json.loads(file.read_text())
    progress["identity"] |= {"ema": 0.99, "compile": False}
    file.write_text(json.dumps(progress))
    with pytest.raises(BadInput, match=r"with ema 0.99, expected .* --restart"):
        train(config, CPU)
    progress["identity"]["ema"] = 0.0
    file.write_text(json.dumps(progress))
    train(config, CPU)
    assert config.out.is_dir()


def test_interrupted_run_is_not_mixed_with_other_settings(tmp_path: Path) -> None:
    config = small(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, CPU, stop=StopAfter(3))
    with pytest.raises(BadInput, match=r"interrupted run with lr 0.001, expected 0.01.*--restart"):
        train(dataclasses.replace(config, lr=0.01), CPU)
    train(dataclasses.replace(config, lr=0.01, restart=True, epochs=1), CPU)
    assert config.out.is_dir()


@pytest.mark.slow
def test_new_run_replaces_the_old_only_when_it_is_finished(tmp_path: Path) -> None:
    config = small(tmp_path / "run", epochs=1)
    train(config, CPU)
    before = (config.out / WEIGHTS_FILE).read_bytes()
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(other, CPU, stop=StopAfter(2))
    assert (config.out / WEIGHTS_FILE).read_bytes() == before
    train(other, CPU)
    assert (config.out / WEIGHTS_FILE).read_bytes() != before


# --- Kills, a full disk, a second training -------------------------------------------------
def test_a_second_training_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path / "run", epochs=1)

    def meanwhile(process: Any) -> None:
        while not (tmp_path / "run.partial").exists():
            assert fault_child.pause(process, 0.01)
        os.kill(process.pid, signal.SIGSTOP)
        second = fault_child.run(partial(train, config, CPU), tmp_path)
        os.kill(process.pid, signal.SIGCONT)
        words = rf"--out .*/run is in use by process {process.pid} \(`.*`\) since 20.*--out"
        assert second.status == 2 and re.search(words, second.words), second

    first = fault_child.run(partial(train, config, CPU), tmp_path, meanwhile=meanwhile)
    assert first.status == 0, first
    load_checkpoint(config.out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".run.lock"}


@pytest.mark.slow
def test_a_kill_while_a_run_becomes_finished_loses_nothing(tmp_path: Path) -> None:
    """From the last step of the training on: the old run or the new one, and either goes on."""
    base, root = tmp_path / "base", tmp_path / "root"
    config = small(root / "run", epochs=1, seed=1)
    train(dataclasses.replace(config, out=base / "run", seed=0), CPU)
    old = (base / "run" / WEIGHTS_FILE).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, out=base / "run"), CPU, stop=StopAfter(14))
    work = partial(train, config, CPU)
    shutil.copytree(base, root)
    steps = fault_child.run(work, root).steps
    new = (config.out / WEIGHTS_FILE).read_bytes()
    assert new != old
    seen = []
    for step in range(steps - 26, steps + 1, 8):
        shutil.rmtree(root)
        shutil.copytree(base, root)
        assert fault_child.run(work, root, fault_child.Limits(kill_at=step)).signal == 9
        load_checkpoint(config.out)
        seen.append((config.out / WEIGHTS_FILE).read_bytes())
        assert seen[-1] in (old, new)
        train(config, CPU)
        assert (config.out / WEIGHTS_FILE).read_bytes() == new
        assert {path.name for path in root.iterdir()} == {"run", ".run.lock"}
    assert {*seen} == {old, new}


def test_a_full_disk_or_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    config = small(tmp_path / "run", epochs=1)
    limits = fault_child.Limits(file_bytes=4_000)
    full = fault_child.run(partial(train, config, CPU), tmp_path, limits)
    assert full.status == 2 and "\n" not in full.words, full
    assert re.search(r"run.partial/.* cannot be used \(File too large\).*--out", full.words)
    assert not config.out.exists()
    train(config, CPU)
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".run.lock"}
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be used .*another folder with --out"):
        train(small(tmp_path / "file" / "run"), CPU)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    """Dropout off: its masks are drawn per process. 32 + 32 comments a step against 64."""
    flags = "--data synthetic:600 --max-vocab 500 --max-len 24 --d-model 16 --n-layers 1"
    flags += " --n-heads 2 --epochs 1 --dropout 0 --device cpu --batch-size"
    train(small(tmp_path / "one", epochs=1, dropout=0, batch_size=64), CPU)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "train"]
    subprocess.run(
        [*launcher, *flags.split(), "32", "--out", str(tmp_path / "two")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=240,
    )
    one, two = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("one", "two"))
    for name in one:
        if name.endswith("in_proj_bias"):
            # Softmax does not see the bias of the keys: its gradient is rounding noise, which
            # AdamW scales up to whole steps.
            one[name][16:32] = two[name][16:32] = 0
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-4)
    texts = load_comments("synthetic:600").texts[:100]
    logits = []
    for name in ("one", "two"):
        run = load_checkpoint(tmp_path / name)
        logits.append(logits_of(run.model, TokenizedOnTheFly(texts, run.tokenizer), np.arange(100)))
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)
    initial = ToxicityEncoder(load_checkpoint(tmp_path / "one").model.config)
    assert not torch.allclose(one["head.weight"], initial.head.weight, atol=1e-3)
    metrics = [json.loads((tmp_path / n / METRICS_FILE).read_text()) for n in ("one", "two")]
    assert metrics[0]["test"]["auroc"] == pytest.approx(metrics[1]["test"]["auroc"], abs=1e-3)


def test_second_file_is_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("comment_text,target\n" + "you are an idiot,1\nthank you,0\n" * 20)
    with_file = small(tmp_path / "with", epochs=1, test_data=str(other))
    without = small(tmp_path / "without", epochs=1)
    train(with_file, CPU)
    train(without, CPU)
    assert json.loads((with_file.out / METRICS_FILE).read_text())["test_file"]["comments"] == 40
    one, two = load_file(with_file.out / WEIGHTS_FILE), load_file(without.out / WEIGHTS_FILE)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_padding_and_company_do_not_change_a_logit() -> None:
    torch.manual_seed(0)
    model = ToxicityEncoder(ModelConfig(vocab_size=50, d_model=16, n_layers=2, n_heads=2)).eval()
    rng = np.random.default_rng(0)
    ids = [[CLS_ID, *rng.integers(3, 50, size=n).tolist()] for n in (0, 1, 9, 40)]
    with torch.inference_mode():
        batch = collate(np.arange(4), ids)
        together = model(batch.input_ids, batch.attention_mask)
        for row, comment in enumerate(ids):
            alone = collate(np.arange(1), [comment])
            torch.testing.assert_close(
                model(alone.input_ids, alone.attention_mask)[0], together[row], atol=1e-5, rtol=0
            )
            # What stands in the padding is never read.
            batch.input_ids[row, len(comment) :] = 7
        torch.testing.assert_close(
            model(batch.input_ids, batch.attention_mask), together, atol=1e-6, rtol=0
        )
    assert PAD_ID == 0


def test_metrics_against_hand_counted_values() -> None:
    labels = np.array([1, 1, 0, 0, 0])
    logits = np.array([2.0, -1.0, 1.0, -2.0, -3.0])
    metrics = classification_metrics(labels, logits)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == pytest.approx(1 / 2)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    terms = [math.log1p(math.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True)]
    assert metrics["loss"] == pytest.approx(np.mean(terms))


def test_learning_rate_rises_then_falls_to_zero() -> None:
    shares = [lr_share(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0.0)


INT8: dict[str, Any] = {"qat": "runs/a", "precision": "fp32", "embeddings": "random"}
STUDENT: dict[str, Any] = {"distill": ("runs/a",)}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({**INT8, "precision": "bf16"}, "--precision is bf16, expected fp32"),
    ({**INT8, "out": "runs/a"}, "--out is runs/a, expected another folder than --qat"),
    ({**INT8, "attention": "linear"}, "--attention is linear, expected softmax"),
    ({**INT8, "architecture": "recurrent"}, "--architecture is recurrent, expected transformer"),
    (
        {"architecture": "recurrent", "pretrain_epochs": 2},
        "--pretrain-epochs is 2, expected 0 with --architecture recurrent",
    ),
    (
        {"architecture": "recurrent", "attributes": ("insult",)},
        "--attributes is given, expected none with --architecture recurrent",
    ),
    ({**INT8, "pretrain_epochs": 1}, "--pretrain-epochs is 1, expected 0 with --qat"),
    ({**INT8, "embeddings": "spelling"}, "--embeddings is spelling, expected random"),
    (
        {"word_vectors": "glove.txt", "embeddings": "random"},
        "--word-vectors is glove.txt, expected none with --embeddings random",
    ),
    ({**INT8, **STUDENT, "out": "runs/b"}, "--distill is runs/a, expected none"),
    ({**STUDENT, "out": "runs/a"}, "--out is runs/a, expected another .* --distill"),
    ({"distill": ("runs/a", "runs/../runs/a")}, "--distill names a run twice"),
    ({**STUDENT, "identity_balance": 1.5}, "--identity-balance is 1.5, expected 0"),
    ({**STUDENT, "soft_labels": True}, "--soft-labels is on, expected it off"),
    ({"ngram_teacher": 1.0}, "--ngram-teacher is 1.0, expected --distill"),
    ({"augment": 2}, "--augment is 2, expected --distill"),
    ({"contrast": 10}, "--contrast is 10, expected --distill"),
    ({"unlabelled": "more.csv"}, "--unlabelled is more.csv, expected --distill"),
    ({"sources": "s.yaml", "data": "a.csv"}, "--data is a.csv, expected none with --sources"),
    ({"sources": "s.yaml", "label_column": "y"}, "--label-column or --label-map is given"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS)
def test_each_refused_combination_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        make_config(TrainConfig, changes)
    assert "\n" not in str(error.value)
    assert len(REFUSALS) == len(REFUSED)  # one row each, in their order


def test_every_flag_has_its_group_and_its_words() -> None:
    groups = []
    for field in dataclasses.fields(TrainConfig):
        about = field.default
        assert isinstance(about, FieldInfo) and about.description, field.name
        assert isinstance(about.json_schema_extra, dict), field.name
        groups.append(about.json_schema_extra["group"])
    assert len({*groups}) == 8
    # Fields of a group stand together.
    assert sum(one != other for one, other in pairwise(groups)) == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr -1", r"--lr is '-1': Input should be greater than 0"),
        ("--epochs many", r"--epochs is 'many'"),
        ("--colour red", r"No such option '--colour'; see python -m train --help"),
        ("--device tpu", r"Invalid value for '--device': 'tpu' is not one of 'auto', 'cpu'"),
        (
            "--d-model 10 --n-heads 4 --data synthetic:600",
            r"d_model is 10, expected a multiple of n_heads, 4",
        ),
        ("--data missing.csv", r"missing.csv"),
        ("--fractions 0.8 0.1", r"--fractions"),
    ],
)
def test_bad_flag_is_one_line_and_status_2(
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: another would import PyTorch first."""
    monkeypatch.setattr(sys, "argv", ["train", *flags.split(), "--out", str(tmp_path / "run")])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            run(main)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert re.search(message, said), said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoint_is_refused_in_one_line(trained_run: Path, tmp_path: Path) -> None:
    def damaged(name: str, data: bytes) -> Path:
        copy = tmp_path / name.replace(".", "-")
        shutil.copytree(trained_run, copy)
        (copy / name).write_bytes(data)
        return copy

    weights = (trained_run / WEIGHTS_FILE).read_bytes()
    for name, data, message in (
        (WEIGHTS_FILE, weights[:1000], "not a readable safetensors file"),
        (CONFIG_FILE, b"{", "not valid JSON"),
        (CONFIG_FILE, b'{"model": {"vocab_size": 7}}', "does not fit"),
        (TOKENIZER_FILE, b"{}", "tokenizer file is not readable"),
    ):
        with pytest.raises(BadInput, match=message) as error:
            load_checkpoint(damaged(name, data))
        assert "\n" not in str(error.value)
        shutil.rmtree(tmp_path / name.replace(".", "-"))
    with pytest.raises(BadInput, match="make train"):
        load_checkpoint(tmp_path / "nowhere")
