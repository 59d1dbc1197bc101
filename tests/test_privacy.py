"""What people wrote is in no log, report, metric or error, unless a flag asks for it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import contract
import export.__main__ as export_main
import quality.__main__ as quality_main
from bench.traffic.comments import load_pool
from console.options import make_config, run
from contract import TOKENIZER_FILE, BadInput, GateFailed
from export.config import ExportConfig
from serve.offline.config import ScoreFileConfig
from serve.offline.rows import open_source
from serve.score_file import score_file
from train.config import TrainConfig
from train.data.load import load_comments
from train.data.synthetic import generate
from train.loop import train

pytestmark = pytest.mark.slow

MARKER = "zqxmarker"
"""In every comment, and never said otherwise."""
WORDS = ("toxic=1", "fine=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "comments.csv"
    texts, targets = generate(600)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "group"))
        for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
            label = "toxic" if target >= 0.5 else "fine"
            rows.writerow((f"{MARKER} {row} {text}", label, row % 2))
    return path


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[Path, str]:
    """A finished run on words for labels; what it prints is asked for by another test."""
    out = data.parent / "model"
    shape = {"max_vocab": 500, "max_len": 24, "d_model": 16, "n_layers": 1, "n_heads": 2}
    config = TrainConfig(
        data=str(data),
        test_data=str(data),
        label_map=WORDS,
        out=out,
        epochs=1,
        batch_size=32,
        device="cpu",
        **shape,
    )
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("train.terminal.tqdm.write", lambda line, **_: said.append(line))
        train(config, torch.device("cpu"))
    return out, "\n".join(said)


def files_with_the_marker(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != TOKENIZER_FILE and MARKER.encode() in path.read_bytes():
            yield path


def test_training_keeps_comments_to_itself(data: Path, trained: tuple[Path, str]) -> None:
    _, said = trained
    assert "WARNING: 600 of 600 comments are in --data, too: its metrics" in said
    assert MARKER not in said
    assert list(files_with_the_marker(data.parent)) == [data]


def export_config(run_folder: Path, out: Path, **more: object) -> ExportConfig:
    return ExportConfig(
        checkpoint=run_folder,
        repository=out / "repository",
        out=out / "out",
        precision="fp32",
        instances=1,
        **more,
    )


def test_export_and_evaluation_name_comments_by_their_rows(
    trained: tuple[Path, str],
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_folder, _ = trained
    config = export_config(run_folder, tmp_path)
    export_main.export(config)
    argv = ["--run", run_folder, "--models", run_folder, config.repository, "--data", "test", data]
    argv += ["--label-map", *WORDS, "--curated", data, "--curated-label-map", *WORDS, "--misspell"]
    argv += ["--resamples", 100, "--out", tmp_path / "eval"]
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, argv)])
    quality_main.main()
    said = capfd.readouterr()
    assert MARKER not in said.out + said.err
    assert "tokens, row " in said.out and "of the validation split" in said.out
    assert not list(files_with_the_marker(tmp_path))

    monkeypatch.setattr(contract, "SERVING_LOGIT_ATOL", -1.0)  # no gate can hold
    monkeypatch.setattr(contract, "FP32_LOGIT_ATOL", -1.0)
    with pytest.raises(GateFailed) as error:
        export_main.export(config)
    assert MARKER not in str(error.value) + "".join(capfd.readouterr())
    assert not list(files_with_the_marker(tmp_path))

    with pytest.raises(GateFailed):
        export_main.export(export_config(run_folder, tmp_path, show_comments=True))
    assert f"'{MARKER} " in capfd.readouterr().out
    assert list(files_with_the_marker(tmp_path)) == [config.out / "report.json"]


def test_a_named_row_is_the_files_own(tmp_path: Path) -> None:
    """Rows that were left out count."""
    path = tmp_path / "c.csv"
    path.write_text("text,label\n,1\nfirst,1\nno label,\nsecond,0\n")
    assert load_comments(str(path)).rows.tolist() == [1, 3]


def reads(path: Path) -> dict[str, Callable[[], object]]:
    """Every way in which a command reads a file of comments; none comes to an end."""
    config = {"file": str(path), "repository": path.parent, "keep_columns": ("none",)}
    return {
        "train": lambda: load_comments(str(path)),
        "bench": lambda: _all_texts(path),
        "score": lambda: score_file(make_config(ScoreFileConfig, config)),
        "rows": lambda: _all_rows(path),
    }


def _all_texts(path: Path) -> None:
    load_pool(str(path))
    raise BadInput("read")


def _all_rows(path: Path) -> None:
    with open_source(str(path)) as source:
        list(source.chunks(source.names))
    raise BadInput("read")


@pytest.mark.parametrize(
    "content",
    [
        b"%s,1\nb,0\n",  # no header
        b'"%s, so long that it is no name of a column whatever one thinks",toxic\nb,0\n',
        b"%s and more,toxic\nb,0\n",
        b'text,label\n"%s,1\nb,0\n',
        b'text,label\n"%s "a" b",1\nb,0\n',
        b"text,label\n%s,b,1\nb,0\n",
        b"text,label\n%s \xe9,1\nb,0\n",
        b"text,label\n1,%s and more words than any label has, surely; all of them shown\n",
        b"label,target\n%s,1\nb,0\n",
    ],
)
def test_no_error_quotes_a_comment(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(content.replace(b"%s", MARKER.encode()))
    for name, read in reads(path).items():
        with pytest.raises(SystemExit) as ended:
            run(read)  # type: ignore[arg-type]
        assert ended.value.code == 2, name
        said = capsys.readouterr()
        assert MARKER not in said.out + said.err, name
