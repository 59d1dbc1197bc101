"""serve.offline.records and columns: raw blocks end where rows end, and are read as Python's csv
reads the whole file, wherever a block or a read of the file ends.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.offline import records
from serve.offline.columns import read_chunk
from serve.offline.encode import csv_fields, float_texts, json_values, lines
from serve.offline.job import Job
from serve.offline.records import RawBlock, RawBlocks, lines_as_written
from serve.offline.rows import Chunk, open_source
from serve.offline.worker import texts_of
from train.data.tables import Unreadable

ALPHABET = ["a", "é", "😀", " ", ",", '"', "\n", "\r", "\r\n", "\0", "\ufeff", "xyz" * 5]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows, and reads that end within them."""
    monkeypatch.setattr(records, "CHUNK_ROWS", 7)
    monkeypatch.setattr(records, "CHUNK_BYTES", 150)
    monkeypatch.setattr(records, "_READ_BYTES", 64)


def blocks(data: bytes, header: bool = True, kind: Any = "csv") -> list[RawBlock]:
    raw = RawBlocks(kind, io.BytesIO(data), None)
    raw.begin(has_header=header)
    return list(raw)


def by_python(data: bytes) -> list[list[str]]:
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
    return [row for row in csv.reader(text, strict=True) if row][1:]


def random_csv(rng: random.Random, odd: bool) -> bytes:
    def field() -> str:
        text = "".join(rng.choices(ALPHABET, k=rng.choice([0, 1, 2, 9])))
        if any(mark in text for mark in ',"\r\n') or rng.random() < 0.1:
            return '"' + text.replace('"', '""') + '"'
        return text + ('"' + text if odd and text and rng.random() < 0.05 else "")

    end = rng.choice(["\n", "\r\n", *(["\r"] if odd else [])])
    rows = ["id,text", *(f"{field()},{field()}" for _ in range(rng.choice([0, 1, 60])))]
    rows += [""] * rng.choice([0, 0, 2])
    rng.shuffle(rest := rows[1:])
    data = end.join([rows[0], *rest]) + rng.choice(["", end])
    return rng.choice([b"", records.BOM]) + data.encode()


@pytest.mark.parametrize("odd", [False, True])
def test_blocks_hold_the_rows_of_the_whole_file(odd: bool, tmp_path: Path) -> None:
    rng, path = random.Random(odd), tmp_path / "a.csv"
    job = Job(Path("1"), tmp_path, "csv", ("id", "text"), "text", ("id", "text"))
    regular = 0
    for _ in range(150):
        data = random_csv(rng, odd)
        path.write_bytes(data)
        expected = by_python(data)
        with open_source(str(path)) as source:
            chunks = list(source.chunks(("text",)))
        assert [text for chunk in chunks for text in texts_of(chunk, job)] == [
            row[1] for row in expected
        ]
        assert sum(chunk.rows for chunk in chunks) == len(expected)
        assert [chunk.first_row for chunk in chunks] == [
            *np.cumsum([0, *(chunk.rows for chunk in chunks)])[:-1].tolist()
        ]
        assert max((chunk.rows for chunk in chunks), default=0) <= records.CHUNK_ROWS
        for chunk in chunks:
            assert isinstance(chunk.payload, RawBlock)
            assert chunk.payload.without_data().read() == chunk.payload.read()  # where it lies
            assert pickle.loads(pickle.dumps(chunk)).payload.read() == chunk.payload.read()
            regular += chunk.payload.regular
    assert regular > 100  # else nothing of the fast way was tested


def test_a_quoted_line_end_at_the_border_of_a_read_ends_no_row() -> None:
    for before in range(130):
        data = b'id,text\n1,"' + b"a" * before + b'\n""b""\r\n"\n2,c\n'
        found = blocks(data)
        assert sum(block.rows for block in found) == 2
        assert b"".join(block.read() for block in found) == data[8:]


def test_an_odd_quote_moves_no_border() -> None:
    """A quote within an unquoted field is a character: it opens nothing."""
    rows = [f'{i},5" wide' if i % 10 == 3 else f'{i},"a\n{i}"' for i in range(60)]
    data = ("id,text\n" + "\n".join(rows) + "\n").encode()
    plain = ("id,text\n" + "\n".join(rows).replace('5" ', "5' ") + "\n").encode()
    odd, same = blocks(data), blocks(plain)
    assert [block.rows for block in odd] == [block.rows for block in same]
    assert not all(block.regular for block in odd) and all(block.regular for block in same)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('"so" so,x', "has a quote within quotes that is not doubled"),
        ('"so,x', "opens a quote that nothing closes"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_number(row: str, words: str) -> None:
    lines = ["id,text", *(f'{i},"a\n{i}"' for i in range(40)), row, "41,b"]
    with pytest.raises(Unreadable) as told:
        blocks("\n".join(lines).encode())
    assert str(told.value).startswith("row 40 ") and str(told.value).endswith(words)
    if "not doubled" in words:
        assert "(up to line 82)" in str(told.value)


def test_json_lines_keep_their_numbers(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"a{i}"}) for i in range(40)]
    rows[33] = '{"text": '
    data = "\n \n".join(rows).encode()
    job = Job(Path("1"), tmp_path, "csv", ("text",), "text", None)
    first, found, reasons = 0, [], []
    for number, block in enumerate(blocks(data, False, "json")):
        read = read_chunk(Chunk(number, first, block.rows, block, 0), job)
        found += read.rows or []
        reasons += read.reasons.values()
        first += block.rows
    assert reasons == ["row 33 is not JSON, at character 10"]
    assert [row[0] for row in found if row] == [f"a{i}" for i in range(40) if i != 33]


def test_lines_stand_as_they_are_only_if_a_writer_would_write_them_so() -> None:
    def kept(text: bytes) -> list[str] | None:
        (block,) = blocks(b"id,text\n" + text)
        assert block.ends is not None
        column = lines_as_written(text, block.ends)
        return None if column is None else list(column.to_pylist())

    assert kept(b'1,a\n2,"b,c"\n3,"d""e"\n4,"\n"\n5,""""\n') == [
        *("1,a", '2,"b,c"', '3,"d""e"', '4,"\n"', '5,""""')
    ]
    assert kept(b'1,a\r\n2,"\r"\r\n') == ["1,a", '2,"\r"']
    for other in (b'1,"a"\n', b'1,"b,c"\n2,""\n', b"1,\xff\n", b"1,a", b"1,a\r\n2,b\n"):
        assert kept(other) is None


def test_texts_of_numbers_are_pythons() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(-20, 40, 20_000)) * rng.choice([-1, 1], 20_000)
    values = np.concatenate([values.astype(np.float32), [0.0, -0.0, 1.0, 1e-4, 1e16, 0.1]])
    values = values.astype(np.float64)
    assert float_texts(values).to_pylist() == list(map(repr, values.tolist()))


def test_values_are_written_as_pythons_own_writers_do() -> None:
    texts = ["", "a", 'b"\\', "c,\n\r", "\x00\x1f\x7f\u2028é😀", None]
    encoded = bytes(lines([json_values(texts)], "")).decode().split("\n")[:-1]
    assert encoded == [json.dumps(text, ensure_ascii=False) for text in texts]
    written = bytes(lines([csv_fields([text]) for text in texts], ",")).decode()
    assert next(csv.reader(io.StringIO(written, newline=""))) == [
        "" if t is None else t for t in texts
    ]
