"""A student of old scores: learns them on their scale, is judged on what it has not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import migrate.__main__ as migrate_main
from console.options import make_config
from contract import BadInput
from migrate.config import MigrateConfig
from migrate.tables import tables
from train.artifacts import CONFIG_FILE
from train.config import TrainConfig
from train.data.json_lines import read_table
from train.data.load import load_comments
from train.data.split import comments_of_run
from train.data.synthetic import generate

MARKER = "zqxmarker"
LOW, HIGH = 0.3, 0.7


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic comments as a log of answers: two old scores, and labels of some."""
    path = tmp_path_factory.mktemp("log") / "answers.jsonl"
    texts, targets = generate(1500)
    with path.open("w", encoding="utf-8") as file:
        for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
            value = HIGH if target >= 0.5 else LOW
            summary = {"summaryScore": {"value": value, "type": "PROBABILITY"}}
            line: dict[str, Any] = {"comment": {"text": f"{text} {MARKER}"}}
            line["attributeScores"] = {"TOXICITY": summary}
            if row % 2:
                line["label"] = bool(target >= 0.5)
            file.write(json.dumps(line) + "\n")
    return path


@pytest.mark.slow
def test_a_student_learns_the_old_scores_on_their_scale(
    log: Path, tiny_model: Any, tmp_path: Path
) -> None:
    repository = tmp_path / "model_repository"
    tiny_model.publish(repository)
    config = make_config(
        MigrateConfig,
        {
            **{"source": "perspective", "scores": log, "repository": repository},
            **{"threshold": 0.5, "resamples": 100, "out": tmp_path / "report", "distill": True},
            **{"student": tmp_path / "student", "width": 32, "epochs": 6, "learning_rate": 3e-3},
        },
    )
    document = migrate_main.migrate(config)
    found = document["student"]
    assert found["held_out"] == pytest.approx(150, abs=30) and found["labelled"] > 50
    student, published = found["student"], found["published"]
    assert student["spearman"]["value"] > 0.4 > abs(published["spearman"]["value"])
    assert student["auroc"]["value"] > 0.75 and student["auroc_old"]["value"] == 1
    # Classes would be pushed to 0 and 1: half of the scores' own distance is far from that.
    assert student["mean_absolute_difference"]["value"] < (HIGH - LOW) / 2

    saved = json.loads((config.student / CONFIG_FILE).read_text("utf-8"))
    assert saved["train"]["soft_labels"] and saved["calibration"] == {"slope": 1.0, "offset": 0.0}
    comments, split = comments_of_run(config.student)
    assert np.isin(comments.targets, np.float32([LOW, HIGH])).all()
    held_out = {comments.texts[row] for row in split.test}
    assert held_out.isdisjoint(comments.texts[row] for row in split.train)

    title = next(table.title for table in tables(document) if "student" in table.title.lower())
    assert str(config.student) in title
    assert f"--checkpoint {config.student}" in found["next"][0]
    for path in config.out.iterdir():
        text = path.read_text("utf-8")
        assert MARKER not in text and ("not seen" in text or path.suffix == ".json")


def test_scores_on_one_side_cannot_teach(log: Path, tiny_model: Any, tmp_path: Path) -> None:
    repository, low = tmp_path / "model_repository", tmp_path / "low.jsonl"
    tiny_model.publish(repository)
    low.write_text(log.read_text("utf-8").replace(f": {HIGH}", ": 0.45"), "utf-8")
    given = {"source": "perspective", "scores": low, "repository": repository, "threshold": 0.4}
    given |= {"resamples": 100, "out": tmp_path / "report", "student": tmp_path / "student"}
    with pytest.raises(BadInput, match=r"0 of 1,500 old scores are 0\.5 or more"):
        migrate_main.migrate(make_config(MigrateConfig, {**given, "distill": True}))
    assert not (tmp_path / "student").exists() and not (tmp_path / "report").exists()


def test_soft_labels_do_not_go_with_teachers() -> None:
    with pytest.raises(BadInput, match="--soft-labels is on, expected it off with --distill"):
        make_config(TrainConfig, {"soft_labels": True, "distill": ("runs/other",)})


def test_json_lines_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.ndjson"
    path.write_text(
        '\ufeff{"text": "a, \\u0000", "s": {"value": 0.25}, "label": true}\n\n'
        '{"text": null, "s": {"value": null}}\n{"text": "ü", "more": [1], "label": 0}\n',
        "utf-8",
    )
    table = read_table(path, lambda names: [names[0], names[1], "label"])
    assert table.to_pydict() == {
        "text": ["a, \0", None, "ü"],
        "s.value": ["0.25", None, None],
        "label": ["true", None, "0"],
    }
    comments = load_comments(str(path))
    assert comments.texts == ["a, \0", "ü"] and comments.labels.tolist() == [1, 0]
    assert comments.source["dropped_no_text"] == 1
