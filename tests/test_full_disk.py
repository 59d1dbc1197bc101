"""Train, export, publish and measure where no file has room: one line, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TinyModel
from disk_limit import largest_file

import export.__main__ as export_main
import quality.__main__ as quality_main
from console.options import run
from export.config import ExportConfig
from export.repository import verify, versions
from storage.locks import LOCK_FILE
from train.artifacts import PROGRESS_FILE
from train.config import TrainConfig
from train.loop import train

CPU = torch.device("cpu")


def line_of(main: Callable[[], object], capsys: pytest.CaptureFixture[str], room: int) -> str:
    """The one line of a command that ends for want of room."""

    def limited() -> None:
        with largest_file(room):
            main()

    with pytest.raises(SystemExit) as ended:
        run(limited)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1, said
    assert "cannot be used (File too large), expected" in said
    return said


def names_in(folder: Path) -> set[str]:
    """Files, but for the locks, which stay and hold nothing."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)) for path in files if not path.name.endswith(LOCK_FILE)}


def test_training_keeps_its_last_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"max_vocab": 500, "max_len": 24, "d_model": 16, "n_layers": 1, "n_heads": 2}
    config = TrainConfig(
        data="synthetic:600",
        out=tmp_path / "run",
        epochs=1,
        batch_size=32,
        checkpoint_steps=5,
        device="cpu",
        **shape,
    )
    assert "ids.raw" in line_of(lambda: train(config, CPU), capsys, 20_000)
    assert not names_in(tmp_path)
    on_the_fly = dataclasses.replace(config, pretokenize=False)
    assert "step-5/model.safetensors" in line_of(lambda: train(on_the_fly, CPU), capsys, 20_000)
    assert not names_in(tmp_path)
    # The weights have room, their moments not.
    assert "step-5/optimizer.safetensors" in line_of(lambda: train(on_the_fly, CPU), capsys, 70_000)
    assert not names_in(tmp_path)
    train(config, CPU)  # the same command goes on when there is room
    assert (config.out / "metrics.json").is_file()
    assert not (tmp_path / "run.partial" / PROGRESS_FILE).exists()


def test_export_publishes_nothing(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ExportConfig(
        checkpoint=trained_run, repository=tmp_path / "repository", out=tmp_path / "out"
    )
    assert "traced.onnx" in line_of(lambda: export_main.export(config), capsys, 50_000)
    assert not names_in(tmp_path)


def test_publishing_leaves_the_versions_that_are_there(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model.publish(tmp_path)
    before = names_in(tmp_path)
    for room in (1_000, 20_000, 200_000):
        line_of(lambda: tiny_model.publish(tmp_path), capsys, room)
        assert names_in(tmp_path) == before
        assert versions(tmp_path) == [1]
    verify(tmp_path)


def test_an_evaluation_keeps_the_report_that_is_there(
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    flags = ["--run", trained_run, "--models", trained_run, "--resamples", 100, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, flags)])
    assert "evaluation.json" in line_of(quality_main.main, capsys, 1_000)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {}
    assert names_in(tmp_path) == {"evaluation.json"}
