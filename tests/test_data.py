"""The loader: the same comments from every form, no row lost unseen, errors that name a way out."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import LABEL_THRESHOLD, BadInput
from train.artifacts import sha256_of
from train.data import IDENTITY_COLUMNS, Comments, load_comments

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXTS = [
    "you are kind",
    "NA",
    "null",
    "nan",
    "007",
    "1e5",
    'she said "no", twice',
    "two\nlines",
    " spaced  ",
    "café 🙂",
]
TARGETS = [0.0, 1.0, 0.5, 0.49, 0.25, 0.75, 0.0, 0.6, 0.1, 0.0]
MALE = [0.0, 1.0, np.nan, 0.5, 0.0, np.nan, 1.0, 0.0, 0.0, 0.25]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"id": range(10), "comment_text": TEXTS, "target": TARGETS, "male": MALE})


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def csv_file(folder: Path, text: str) -> str:
    path = folder / "comments.csv"
    path.write_bytes(text.encode())
    return str(path)


def write_as(name: str, path: Path, table: pd.DataFrame) -> None:
    csv = table.to_csv(index=False).encode()
    if name.endswith(".parquet"):
        table.to_parquet(path)
    elif name.endswith(".zip"):
        write_zip(path, {"train.csv": csv})
    else:
        path.write_bytes(gzip.compress(csv) if name.endswith(".gz") else csv)


def error_of(load: Callable[[], Comments]) -> str:
    with pytest.raises(BadInput) as caught:
        load()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# --- The same comments in every form ------------------------------------------------------


@pytest.mark.parametrize("name", ["c.csv", "c.csv.gz", "c.csv.zip", "c.zip", "c.parquet", "C.CSV"])
def test_every_form_gives_the_same_comments(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_as(name.lower(), path, frame())
    comments = load_comments(str(path))
    assert comments.texts == TEXTS  # "NA" and "007" are comments, not a gap and not the number 7
    np.testing.assert_array_equal(comments.targets, np.array(TARGETS, np.float32))
    np.testing.assert_array_equal(comments.labels, [0, 1, 1, 0, 0, 1, 0, 1, 0, 0])
    assert comments.labels.dtype == comments.targets.dtype == np.float32
    assert list(comments.identities) == ["male"]
    np.testing.assert_array_equal(comments.identities["male"], np.array(MALE, np.float32))
    assert json.loads(json.dumps(comments.source)) == {
        "name": str(path),
        "kind": "file",
        "sha256": sha256_of(path),
        "synthetic": False,
        "text_column": "comment_text",
        "label_column": "target",
        "rows": 10,
        "dropped_no_text": 0,
        "dropped_no_label": 0,
        "kept": 10,
        "positives": 4,
        "identities": ["male"],
    }


writable = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
target = st.one_of(st.floats(0, 1, width=32), st.sampled_from([None, 2.0, -0.5]))


@given(rows=st.lists(st.tuples(writable, target), max_size=30))
def test_no_row_is_lost_unseen(
    rows: list[tuple[str, float | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [*rows, ("good", 0.0), ("bad", 1.0)]
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    pd.DataFrame(rows, columns=["text", "toxicity"]).to_csv(
        path, index=False, quoting=csv.QUOTE_ALL
    )
    comments = load_comments(str(path))
    kept = [(text, t) for text, t in rows if text.strip() and t is not None and 0 <= t <= 1]
    assert comments.texts == [text for text, _ in kept]
    np.testing.assert_array_equal(comments.targets, np.array([t for _, t in kept], np.float32))
    source = comments.source
    assert source["dropped_no_text"] == sum(not text.strip() for text, _ in rows)
    assert source["kept"] == len(kept)
    assert source["kept"] + source["dropped_no_text"] + source["dropped_no_label"] == len(rows)
    assert source["rows"] == len(rows)
    assert source["positives"] == int(comments.labels.sum())


def test_dropped_rows_are_counted_by_their_reason(tmp_path: Path) -> None:
    rows = (
        "fine,0\nbad,1\n,1\n   ,1\nno label,\nword,maybe\nhigh,1.5\nlow,-1\ngap,nan\nend,inf\nx\n"
    )
    comments = load_comments(csv_file(tmp_path, "text,label\n" + rows))
    assert comments.texts == ["fine", "bad"]
    source = comments.source
    assert (source["rows"], source["dropped_no_text"], source["dropped_no_label"]) == (11, 2, 7)
    summary = comments.summary()
    assert "2 comments" in summary and "50.0 % toxic" in summary
    assert "dropped 2 without text and 7 without a label" in summary
    assert "SYNTHETIC" not in summary


@pytest.mark.parametrize(
    "yes, no", [("true", "false"), ("True", "FALSE"), ("1", "0"), (" 1.0 ", "0.")]
)
def test_labels_as_people_write_them(yes: str, no: str, tmp_path: Path) -> None:
    comments = load_comments(csv_file(tmp_path, f"text,label\na,{yes}\nb,{no}\n"))
    assert comments.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels",
    [
        [True, False, None],
        pd.array([True, False, None], dtype="boolean"),
        pd.array([1, 0, None], dtype="Int64"),
        [1.0, 0.0, np.nan],
        ["1", "0", None],
    ],
)
def test_parquet_labels_of_every_type(labels: object, tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pd.DataFrame({"text": ["a", "b", "c"], "label": labels}).to_parquet(path)
    comments = load_comments(str(path))
    assert comments.labels.tolist() == [1, 0]
    assert comments.source["dropped_no_label"] == 1


def test_the_label_is_half_of_the_annotators(tmp_path: Path) -> None:
    comments = load_comments(csv_file(tmp_path, "text,target\na,0.5\nb,0.4999\n"))
    assert comments.labels.tolist() == [1, 0]
    assert LABEL_THRESHOLD == 0.5


# --- Columns --------------------------------------------------------------------------------


def test_known_names_in_any_case_and_order_of_preference(tmp_path: Path) -> None:
    csv = "Toxicity,Comment_Text,text,TARGET,Black\n0,one,x,1,0.5\n1,two,y,0,\n"
    comments = load_comments(csv_file(tmp_path, csv))
    assert comments.texts == ["one", "two"]
    assert comments.labels.tolist() == [1, 0]  # TARGET before Toxicity
    np.testing.assert_array_equal(comments.identities["black"], np.float32([0.5, np.nan]))


def test_other_columns_by_flag(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label,body,rude\nno,0,one,1\nno,1,two,0\n")
    comments = load_comments(source, text_column="body", label_column="rude")
    assert comments.texts == ["one", "two"]
    assert comments.labels.tolist() == [1, 0]
    assert comments.source["text_column"] == "body"
    assert comments.source["label_column"] == "rude"


def test_identities_follow_the_rows_that_were_kept(tmp_path: Path) -> None:
    header = ",".join(("text", "label", *IDENTITY_COLUMNS))
    values = [",".join(str(k / 100 + i / 1000) for k in range(24)) for i in range(3)]
    csv = f"{header}\na,1,{values[0]}\n,1,{values[1]}\nb,0,{values[2]}\n"
    comments = load_comments(csv_file(tmp_path, csv))
    assert tuple(comments.identities) == IDENTITY_COLUMNS
    for k, column in enumerate(comments.identities.values()):
        np.testing.assert_allclose(column, [k / 100, k / 100 + 0.002], rtol=1e-5)


# --- What cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("c.csv", b"", "No columns to parse"),
        ("c.csv", b"text,label\ncaf\xe9,1\nb,0\n", "utf-8"),
        ("c.csv", b'text,label\n"open,1\nb,0\n', "EOF inside string"),
        ("c.csv", b"text,label\na,1\nb, c,0\n", "Expected 2 fields in line 3, saw 3"),
        ("c.csv.gz", b"text,label\na,1\nb,0\n", "Not a gzipped file"),
        ("c.csv.gz", gzip.compress(b"text,label\na,1\n" * 99)[:-12], "ended before"),
        ("c.zip", b"PK\x03\x04 no zip", "not a zip file"),
        ("c.parquet", b"PAR1 no parquet", "Parquet"),
    ],
)
def test_damaged_files(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    message = error_of(lambda: load_comments(str(path)))
    assert message.startswith(f"{path} cannot be read (") and said in message
    assert message.endswith("expected a whole UTF-8 CSV or Parquet file; fetch it again")


def test_a_flipped_byte_in_a_gzip_is_seen(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(frame().to_csv(index=False).encode()))
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "c.csv.gz"
    path.write_bytes(data)
    assert "cannot be read" in error_of(lambda: load_comments(str(path)))


@pytest.mark.parametrize("rows", ["hello, you,1\nfoo, bar,0\n", "a,0.5, 1\nb,0\n"])
def test_a_comma_without_quotes_never_shifts_the_columns(rows: str, tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\n" + rows)
    message = error_of(lambda: load_comments(source))
    assert message == (
        f"{source} has rows with more fields than its header has names, expected as many; "
        "put comments that hold a comma in quotes"
    )


def test_a_zip_holds_one_csv(tmp_path: Path) -> None:
    csv, path = b"text,label\na,1\nb,0\n", tmp_path / "c.zip"
    write_zip(path, {"data/": b"", "data/a.csv": csv, "__MACOSX/._a.csv": b"x", "README": b"x"})
    assert load_comments(str(path)).texts == ["a", "b"]
    write_zip(path, {"train.csv": csv, "test.csv": csv})
    assert error_of(lambda: load_comments(str(path))) == (
        f"{path} holds 2 CSV files, expected one; unpack it and name the file"
    )


@pytest.mark.parametrize("source", ["nowhere.csv", "/", ""])
def test_no_file(source: str) -> None:
    assert error_of(lambda: load_comments(source)) == (
        f"no file at {source}, expected labelled comments; "
        "give another path with --data, or 'synthetic'"
    )


def test_an_unknown_ending(tmp_path: Path) -> None:
    path = tmp_path / "comments.xlsx"
    path.write_bytes(b"x")
    assert error_of(lambda: load_comments(str(path))) == (
        f"{path} ends in .xlsx, expected .csv, .csv.gz, .zip or .parquet; convert or rename it"
    )


@pytest.mark.parametrize(
    "header, asked, said",
    [
        (
            "body,label",
            {},
            "body, label, expected one of comment_text, text, comment for the text; "
            "name it with --text-column",
        ),
        (
            "text,rude",
            {},
            "text, rude, expected one of target, toxicity, toxic, label for the label; "
            "name it with --label-column",
        ),
        (
            "text,label",
            {"text_column": "body"},
            "text, label, expected 'body' for the text; name it with --text-column",
        ),
        (
            "text,label",
            {"label_column": "rude"},
            "text, label, expected 'rude' for the label; name it with --label-column",
        ),
    ],
)
def test_missing_columns(header: str, asked: dict[str, str], said: str, tmp_path: Path) -> None:
    source = csv_file(tmp_path, f"{header}\na,1\nb,0\n")
    message = error_of(lambda: load_comments(source, **asked))
    assert message == f"the columns of {source} are {said}"


def test_a_file_without_a_header_is_one_short_line(tmp_path: Path) -> None:
    csv = '"' + "many words\n" * 500 + '",1\nb,0\n'
    message = error_of(lambda: load_comments(csv_file(tmp_path, csv)))
    assert "--text-column" in message and len(message) < 700


@pytest.mark.parametrize(
    "rows, found",
    [
        ("", "0 usable comments, 0 of them toxic (0 rows without text, 0 without"),
        (" ,1\na,\n", "0 usable comments, 0 of them toxic (1 rows without text, 1 without"),
        ("a,0\nb,0.4\n", "2 usable comments, 0 of them toxic (0 rows without text, 0 without"),
        ("a,1\nb,0.5\n", "2 usable comments, 2 of them toxic (0 rows without text, 0 without"),
    ],
)
def test_both_classes_are_needed(rows: str, found: str, tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\n" + rows)
    assert error_of(lambda: load_comments(source)) == (
        f"{source} has {found} a label in [0, 1]), expected both classes; check the columns "
        "'text' and 'label', or name others with --text-column and --label-column"
    )


def test_one_class_where_it_is_asked_for(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\na,0\nb,0\n")
    assert load_comments(source, both_classes=False).labels.tolist() == [0, 0]
    source = csv_file(tmp_path, "text,label\n,0\n")
    message = error_of(lambda: load_comments(source, both_classes=False))
    assert "0 usable comments" in message and "expected at least one;" in message


def test_a_hub_data_set_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    message = error_of(lambda: load_comments("hub:google/civil_comments:test"))
    assert "hub:google/civil_comments:test needs the package datasets" in message
    assert "pip install datasets" in message


# --- Synthetic and real -----------------------------------------------------------------------


def test_synthetic_says_so() -> None:
    comments = load_comments("synthetic:500")
    assert len(comments.texts) == comments.source["kept"] == 500
    assert comments.source["synthetic"] is True
    assert comments.summary().startswith("SYNTHETIC")


@pytest.mark.parametrize("rows", ["0", "-5", "many", "1.5"])
def test_synthetic_rows_are_a_number(rows: str) -> None:
    assert error_of(lambda: load_comments(f"synthetic:{rows}")) == (
        f"synthetic:{rows} asks for {rows!r} rows, expected a number as in synthetic:5000"
    )


def test_too_few_synthetic_rows() -> None:
    assert error_of(lambda: load_comments("synthetic:1")).endswith("; ask for more rows")


@pytest.mark.parametrize(
    "name, rows, toxic_percent",
    [
        ("jigsaw_wiki_train", 60_222, 19.5),
        ("jigsaw_wiki_test", 9_990, 9.8),
        ("civil_comments_gender", 3_000, 52),
        ("civil_comments_reannotated", 15_835, 70),
        ("eval_nontoxic_identity_vs_random", 11_550, 0),
        ("eval_identity_swapped_pairs", 2_984, 16.6),
        ("eval_identity_templates", 30_240, 50),
    ],
)
def test_real_comments(name: str, rows: int, toxic_percent: float) -> None:
    path = REAL / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no real comments at {path}")
    comments = load_comments(str(path), both_classes=toxic_percent > 0)
    assert comments.source["rows"] == comments.source["kept"] == rows
    assert 100 * comments.labels.mean() == pytest.approx(toxic_percent, abs=0.5)
    expected = ["male", "female"] if name == "civil_comments_gender" else []
    assert list(comments.identities) == expected
