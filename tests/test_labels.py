"""Labels: numbers as they stand, words and classes by --label-map, nothing else dropped unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from console.options import parse_config
from contract import BadInput
from quality.curated import load_curated
from train.artifacts import CONFIG_FILE, SPLIT_FILE, read_json, write_json
from train.config import TrainConfig
from train.data.labels import parse_label_map
from train.data.load import Comments, load_comments
from train.data.split import comments_of_run


def labelled(folder: Path, labels: list[Any], name: str = "c.csv") -> str:
    """A file with a comment for each label."""
    texts = [f"words that nobody may see {row}" for row in range(len(labels))]
    frame = pd.DataFrame({"text": texts, "label": labels})
    path = folder / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return str(path)


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        load_comments(source, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "nobody" not in message
    return message


def targets(comments: Comments) -> list[float]:
    return comments.targets.tolist()


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_classes_are_shown_with_their_counts_and_mapped(name: str, tmp_path: Path) -> None:
    source = labelled(tmp_path, [0, 1, 2, 2, 1, 2], name)
    assert refusal(source) == (
        f"column 'label' of {source} holds the labels '2' (3), '1' (2), '0' (1), the first that is "
        "none in row 2, expected numbers in [0, 1], true or false; say what each means with "
        "--label-map 0=N 1=N 2=N, each N from 0 to 1 or drop"
    )
    comments = load_comments(source, label_map=("0=1", "1=0.75", "2=0"))
    assert targets(comments) == [1, 0.75, 0, 0, 0.75, 0]
    assert comments.labels.tolist() == [1, 1, 0, 0, 1, 0]
    assert comments.source["label_map"] == ["0=1", "1=0.75", "2=0"]


def test_words_are_shown_and_mapped(tmp_path: Path) -> None:
    source = labelled(tmp_path, ["toxic", "non-toxic", " Toxic", "very bad", "", None, "non-toxic"])
    message = refusal(source)
    assert "holds the labels 'non-toxic' (2), 'toxic' (1), 'Toxic' (1), 'very bad' (1)," in message
    assert "--label-map toxic=N non-toxic=N Toxic=N 'very bad=N', each" in message
    given = ("TOXIC=1", "non-toxic=0", "very bad=drop")
    comments = load_comments(source, label_map=given)
    assert targets(comments) == [1, 0, 1, 0]
    assert comments.rows.tolist() == [0, 1, 2, 6]
    assert comments.source["dropped_no_label"] == 2
    assert comments.source["dropped_by_label_map"] == 1
    assert comments.summary().endswith("2 without a label, 1 by --label-map")


def test_a_label_that_the_map_does_not_name_is_refused(tmp_path: Path) -> None:
    source = labelled(tmp_path, [0, 1, 2, -1])
    assert refusal(source, label_map=("0=1", "2.0=0")).endswith(
        "holds the labels '0' (1), '1' (1), '2' (1), '-1' (1), the first that is none in row 1, "
        "expected only what --label-map names; add --label-map -1=N 1=N, each N from 0 to 1 or drop"
    )
    assert targets(load_comments(source, label_map=("0=1", "1=0", "2=0", "-1=drop"))) == [1, 0, 0]


def test_shares_with_a_stray_word_show_the_word(tmp_path: Path) -> None:
    labels = [f"{k / 40}" for k in range(40)] + ["unknown", "1.5"]
    message = refusal(labelled(tmp_path, labels))
    assert "holds the labels 'unknown' (1), '1.5' (1), the first that is none in row 40" in message


@pytest.mark.parametrize(
    "labels",
    [
        [f"words that nobody may see, as they are no label but a text {k}" for k in range(4)],
        [f"nobody {k}" for k in range(30)],
    ],
)
def test_a_column_of_texts_is_not_shown(labels: list[str], tmp_path: Path) -> None:
    message = refusal(labelled(tmp_path, labels))
    assert f"holds {len(labels)} different texts that are no numbers, the first in row 0" in message
    assert message.endswith("; name another with --label-column")
    assert "in 'text', expected two columns" in refusal(
        labelled(tmp_path, [0, 1]), label_column="text"
    )


def test_many_classes_are_cut_short(tmp_path: Path) -> None:
    message = refusal(labelled(tmp_path, list(range(1000))))
    assert "and 988 more values" in message and len(message) < 700


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("toxic", "has 'toxic', expected VALUE=NUMBER from 0 to 1"),
        ("toxic=2", "has 'toxic=2', expected"),
        ("toxic=yes", "has 'toxic=yes', expected"),
        ("toxic=nan", "has 'toxic=nan', expected"),
        ("1=0", "names '1' twice"),
    ],
)
def test_a_bad_entry_is_named(entry: str, said: str) -> None:
    with pytest.raises(BadInput, match="--label-map") as caught:
        parse_label_map(("1.0=1", "a=b=0", entry))
    assert said in str(caught.value)


def test_the_flag_takes_negative_labels_and_is_recorded() -> None:
    argv = ["--label-map", "-1=drop", "0=0", "-1.5=0", "1=1", "--seed", "3"]
    config = parse_config(TrainConfig, argv, prog="train", description="")
    assert config.label_map == ("-1=drop", "0=0", "-1.5=0", "1=1") and config.seed == 3
    assert config.to_json()["label_map"] == list(config.label_map)
    with pytest.raises(BadInput, match="--label-map has 'toxic'"):
        parse_config(TrainConfig, ["--label-map", "toxic"], prog="train", description="")


def test_curated_sets_have_flags_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text,label,target,group\na,fine,0.9,x\nb,rude,0.8,y\n")
    assert load_curated([str(path)])["c"].targets.tolist() == np.float32([0.9, 0.8]).tolist()
    with pytest.raises(BadInput, match="with --curated-label-map fine=N rude=N, each"):
        load_curated([str(path)], label_column="label")
    sets = load_curated([str(path)], label_column="label", label_map=("fine=0", "rude=1"))
    assert targets(sets["c"]) == [0, 1]
    with pytest.raises(BadInput, match="for the text; name it with --curated-text-column"):
        load_curated([str(path)], text_column="body")


def test_a_run_from_before_the_flag_is_read(trained_run: Path, tmp_path: Path) -> None:
    document = read_json(trained_run / CONFIG_FILE, "")
    assert document["train"].pop("label_map") == []
    (tmp_path / SPLIT_FILE).write_bytes((trained_run / SPLIT_FILE).read_bytes())
    write_json(tmp_path / CONFIG_FILE, document)
    comments, split = comments_of_run(tmp_path)
    assert len(split.train) + len(split.validation) + len(split.test) == len(comments.texts)
