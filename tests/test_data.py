"""The loader: the same comments from every form, no row lost unseen, errors that name a way out."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import LABEL_THRESHOLD, BadInput
from quality.curated import load_curated
from serve.offline.columns import csv_rows
from serve.offline.rows import open_source
from train.artifacts import sha256_of
from train.data.load import IDENTITY_COLUMNS, load_comments, load_texts

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


def error_of(load: Callable[[], Any]) -> str:
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
        "label_map": [],
        "rows": 10,
        "dropped_no_text": 0,
        "dropped_no_label": 0,
        "dropped_by_label_map": 0,
        "kept": 10,
        "positives": 4,
        "identities": ["male"],
        "identities_of_words": [],
    }


writable = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
target = st.one_of(st.floats(0, 1, width=32), st.none())


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
    kept = [(text, t) for text, t in rows if text.strip() and t is not None]
    assert comments.texts == [text for text, _ in kept]
    assert [rows[row][0] for row in comments.rows] == comments.texts
    np.testing.assert_array_equal(comments.targets, np.array([t for _, t in kept], np.float32))
    source = comments.source
    assert source["dropped_no_text"] == sum(not text.strip() for text, _ in rows)
    assert source["kept"] == len(kept)
    assert source["kept"] + source["dropped_no_text"] + source["dropped_no_label"] == len(rows)
    assert source["rows"] == len(rows)
    assert source["positives"] == int(comments.labels.sum())


def test_dropped_rows_are_counted_by_their_reason(tmp_path: Path) -> None:
    rows = "fine,0\nbad,1\n,1\n   ,1\nno label,\n\n   \ngap,nan\nspace,  \n"
    comments = load_comments(csv_file(tmp_path, "text,label\n" + rows))
    assert comments.texts == ["fine", "bad"]
    source = comments.source
    assert (source["rows"], source["dropped_no_text"], source["dropped_no_label"]) == (7, 2, 3)
    summary = comments.summary()
    assert "2 comments" in summary and "50.0 % toxic" in summary
    assert "dropped 2 without text and 3 without a label" in summary
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


def test_identities_of_words_are_said_and_not_used(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label,male,female\na,1,yes,0.5\nb,0,no,true\n")
    comments = load_comments(source)
    assert comments.source["identities_of_words"] == ["male"]
    assert comments.identities["female"].tolist() == [0.5, 1]
    assert "no numbers, so not used: male" in comments.summary()


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
        ("c.csv", b"", "it is empty, without a header"),
        ("c.csv", b"text,label\ncaf\xe9,1\nb,0\n", "row 0 is not UTF-8 (byte 0xe9 at 3)"),
        ("c.csv", b"text,label\n" + b"a,1\n" * 20_000 + b"b", "row 20000 has 1 fields, the header"),
        ("c.csv", "text,label\na,1\n".encode("utf-16"), "its header is not UTF-8 (byte 0xff at 0)"),
        ("c.csv", b'text,label\n"open,1\nb,0\n', "row 0 opens a quote that nothing closes"),
        ("c.csv", b'text,label\nb,0\n"op,1\n"en",0\n', "row 1 (up to line 4) has a quote within"),
        ("c.csv", b'text,label\n"he "said" so",1\nb,0\n', "row 0 (up to line 2) has a quote"),
        ("c.csv", b"text,label\na,1\nb, c,0\n", "row 1 has 3 fields, the header 2 names"),
        ("c.csv", b"text,label\na,1\nlone\rreturn,0\n", "row 1 has 1 fields, the header 2 names"),
        ("c.csv", b"text,label\na,1\nb,0\n\0\0\0\0", "row 2 has 1 fields, the header 2 names"),
        ("c.csv.gz", b"text,label\na,1\nb,0\n", "Not a gzipped file"),
        ("c.csv.gz", gzip.compress(b"text,label\na,1\n" * 99, mtime=0)[:-12], "ended before"),
        ("c.zip", b"PK\x03\x04 no zip", "not a zip file"),
        ("c.parquet", b"PAR1 no parquet", "Parquet"),
    ],
)
def test_what_cannot_be_read_whole_is_refused_by_row(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for message in (
        error_of(lambda: load_comments(str(path))),
        error_of(lambda: load_curated([str(path)])),
        error_of(lambda: load_texts(str(path))),
    ):
        assert message.startswith(f"{path} cannot be read (") and said in message
        assert "), expected a whole file of its kind in UTF-8; " in message


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'text,label\n"good\0bad",0\nb\0,1\n', ["good\0bad", "b\0"]),
        (b"\xef\xbb\xbftext,label\na,0\nb,1\n", ["a", "b"]),
        (b'\xef\xbb\xbf"text",label\n\xef\xbb\xbfa,0\nb,1\n', ["\ufeffa", "b"]),
        (b"text,label\ra,0\rb,1\r", ["a", "b"]),
        (b"text,label\r\na,0\r\nb,1", ["a", "b"]),
        (b'text,label\n"a\r\nb\rc\nd",0\nb,1\n', ["a\r\nb\rc\nd", "b"]),
        (b'text,label\nshe said "no",0\n"""b""",1\n', ['she said "no"', '"b"']),
        (b"\n\ntext,label\n\na,0\n\t\nb,1\n\n", ["a", "b"]),
        ("text,label\na\u2028b\x85c\x1cd\x0b,0\nb,1\n".encode(), ["a\u2028b\x85c\x1cd\x0b", "b"]),
    ],
)
def test_no_character_is_lost(data: bytes, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(data)
    assert load_comments(str(path)).texts == load_texts(str(path)) == texts
    with open_source(str(path)) as source:  # as `score --file` reads it
        rows = [
            row for chunk in source.chunks(source.names) for row in csv_rows(chunk.payload.read())
        ]
    assert [row[0] for row in rows if len(row) == 2] == texts


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.large_string()])
@pytest.mark.parametrize("words", [False, True])
def test_parquet_texts_of_every_type(kind: Any, words: bool, tmp_path: Path) -> None:
    """Exporters of public data sets write bytes."""
    texts, labels = ["café 🙂", "x\0y", "b", "", None], [b"1", b"0", b"false", b"1", b"1"]
    column = pa.array([t if t is None else t.encode() for t in texts], pa.binary()).cast(kind)
    path = tmp_path / "c.parquet"
    table = {"text": column.dictionary_encode() if words else column, "label": labels}
    pq.write_table(pa.table(table), path)
    comments = load_comments(str(path))
    assert comments.texts == load_texts(str(path)) == texts[:3]
    assert comments.labels.tolist() == [1, 0, 0]
    assert comments.source["dropped_no_text"] == 2


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_parquet_bytes_that_are_no_text_are_refused_by_row(kind: Any, tmp_path: Path) -> None:
    column = pa.array([b"fine", b"caf\xe9"], pa.binary()).cast(kind, safe=False)
    for name, other in (("text", "label"), ("label", "text")):
        pq.write_table(pa.table({name: column, other: ["1", "0"]}), tmp_path / "c.parquet")
        message = error_of(lambda: load_comments(str(tmp_path / "c.parquet")))
        assert f"row 1 of the column '{name}' is not UTF-8 (byte 0xe9 at 3)" in message
        assert "caf" not in message


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": [1, 2], "label": [1, 0]}), path)
    assert "column 'text' of" in (message := error_of(lambda: load_comments(str(path))))
    assert "holds int64, expected text; name another with --text-column" in message
    pq.write_table(pa.table({"text": ["a", "b"], "label": [[1], [0]]}), path)
    assert "the column 'label' holds list" in error_of(lambda: load_comments(str(path)))


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
        f"{source} cannot be read (row 0 has 3 fields, the header 2 names), expected a whole file "
        "of its kind in UTF-8; put comments that hold a comma or a line end in quotes"
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
        f"no file at {source}, expected comments; name another, or 'synthetic' for generated ones"
    )


def test_an_unknown_ending(tmp_path: Path) -> None:
    path = tmp_path / "comments.xlsx"
    path.write_bytes(b"x")
    assert error_of(lambda: load_comments(str(path))) == (
        f"{path} ends in .xlsx, expected .csv, .csv.gz, .zip, .jsonl, .jsonl.gz or .parquet; "
        "convert or rename it"
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


@pytest.mark.parametrize(
    "first",
    ['"' + "secret words\n" * 500 + '",toxic', "secret,1", "a secret word,toxic", '"secret\n",x'],
)
def test_a_file_without_a_header_shows_no_comment(first: str, tmp_path: Path) -> None:
    source = csv_file(tmp_path, f"{first}\nb,0\n")
    message = error_of(lambda: load_comments(source))
    assert "--text-column" in message and len(message) < 700
    assert "secret" not in message


def test_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label,text\na,1,x\nb,0,y\n")
    message = error_of(lambda: load_comments(source))
    assert message == f"{source} has 2 columns 'text', expected one; rename them"


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
        f"{source} has {found} a label, 0 dropped by their label), expected both classes; check "
        "the columns 'text' and 'label', or name others with --text-column and --label-column"
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
