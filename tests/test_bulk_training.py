"""Training comments that do not fit in memory: the same comments, split and ids as in it."""

from __future__ import annotations

import csv
import gzip
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv as arrow_csv

from console.options import make_config
from contract import BadInput
from train.config import TrainConfig
from train.data import stored_texts
from train.data.batches import pretokenize
from train.data.load import load_comments
from train.data.sources import given_sources, load_all
from train.data.split import split_comments
from train.data.stored_texts import StoredTexts, joined, store_texts
from train.data.synthetic import generate
from train.data.tokenizer import build_tokenizer
from train.loop import train
from train.methods import embeddings
from train.terminal import StopRequest

ROOT = Path(__file__).parent.parent


def comments_file(path: Path) -> Path:
    texts, targets = generate(3000)
    odd = [None, "", " ", "é😀", "a\0b", *texts[:5]]
    shares = [0.5, 0.5, 0.5, 1.0, 0.0, *targets[:4], None]
    table = {"id": range(len(texts) + 10), "text": odd + texts, "toxicity": [*shares, *targets]}
    pq.write_table(pa.table(table), path, row_group_size=501)
    return path


def test_the_same_comments_split_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(comments_file(tmp_path / "a.parquet"))
    whole = load_comments(file, extra_columns=("id",))
    monkeypatch.setattr(stored_texts, "LARGE_BYTES", 0)
    stored = load_comments(file, extra_columns=("id",))
    assert isinstance(whole.texts, list) and isinstance(stored.texts, StoredTexts)
    assert list(stored.texts) == whole.texts and stored.texts[-3:] == whole.texts[-3:]
    assert stored.source == whole.source and whole.source["dropped_no_text"] == 3
    for name in ("rows", "labels", "targets"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(whole, name))
    np.testing.assert_array_equal(stored.extra["id"], whole.extra["id"])
    one, other = (split_comments(c.texts, c.labels, seed=3) for c in (whole, stored))
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.train, other.train)
    tokenizer = build_tokenizer(whole.texts, max_vocab=300, max_len=16)
    assert build_tokenizer(stored.texts, max_vocab=300, max_len=16) == tokenizer
    for texts, folder in ((whole.texts, "whole"), (stored.texts, "stored")):
        pretokenize(texts, tokenizer, tmp_path / folder)
    for path in (tmp_path / "whole").rglob("*.npy"):  # under the same key, too
        assert (
            path.read_bytes()
            == (tmp_path / "stored" / path.relative_to(tmp_path / "whole")).read_bytes()
        )
    assert len(list((tmp_path / "stored").rglob("*.npy"))) == 3


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.zip"])
def test_csv_is_the_same_from_the_disk(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, targets = generate(3000)
    texts[:4] = ["", " ", "é😀,\n", 'a"b']
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(("id", "comment", "toxicity"))
    writer.writerows(zip(range(3000), texts, [None, 1, 0.5, *targets[3:]], strict=True))
    data, path = stream.getvalue().encode(), tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside.csv", data)
    else:
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    whole = load_comments(str(path), extra_columns=("id", "comment"))
    monkeypatch.setattr(stored_texts, "LARGE_BYTES", 0)
    stored = load_comments(str(path), extra_columns=("id", "comment"))
    assert isinstance(whole.texts, list) and isinstance(stored.texts, StoredTexts)
    assert list(stored.texts) == whole.texts and stored.source == whole.source
    for of in ("rows", "labels", "targets"):
        np.testing.assert_array_equal(getattr(stored, of), getattr(whole, of))
    for of in ("id", "comment"):
        np.testing.assert_array_equal(stored.extra[of], whole.extra[of])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff,1", r"row 2 is not UTF-8 \(byte 0xff at 0\)"),
        (b"a,1,2", "row 2 has 3 fields, the header 2 names"),
        (b'"a,1', "row 2 opens a quote that nothing closes"),
    ],
)
def test_a_row_of_a_large_csv_is_named(
    line: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\na,0\nb,1\n" + line + b"\n")
    for large in (1 << 30, 0):  # in the same words
        monkeypatch.setattr(stored_texts, "LARGE_BYTES", large)
        with pytest.raises(BadInput, match=words):
            load_comments(str(tmp_path / "a.csv"))


def test_sources_of_which_one_is_large_stay_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = comments_file(tmp_path / "a.parquet"), tmp_path / "b.csv"
    small.write_text("text,toxicity\nyou are kind,0\nyou are awful,1\n")
    sources, _ = given_sources(
        [str(small), str(large)], None, text_column=None, label_column=None, label_map=()
    )
    whole = load_all(sources)
    monkeypatch.setattr(stored_texts, "LARGE_BYTES", small.stat().st_size + 1)
    stored = load_all(sources)
    assert isinstance(whole.texts, list) and isinstance(stored.texts, StoredTexts)
    assert list(stored.texts) == whole.texts and stored.texts[0] == "you are kind"
    assert stored.source == whole.source
    for of in ("rows", "labels", "targets", "origin"):
        np.testing.assert_array_equal(getattr(stored, of), getattr(whole, of))


def test_texts_are_joined_where_some_are() -> None:
    assert joined(["a"], ["b"]) == ["a", "b"]
    stored = store_texts(["a", "\ud800", ""])
    assert joined(stored, []) is stored and joined([], stored) is stored
    assert list(joined(["é"], stored, stored)) == ["é", *["a", "\ud800", ""] * 2]
    assert list(joined(stored, ["é"])) == ["a", "\ud800", "", "é"]
    assert not list(store_texts([])) and list(store_texts([""])) == [""]


def test_a_row_that_is_not_utf_8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = [b"you"] * 5000
    raw[4321] = b"\xff"
    table = {"text": pa.array(raw, pa.binary()), "toxicity": [0.0, 1.0] * 2500}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    monkeypatch.setattr(stored_texts, "LARGE_BYTES", 0)
    with pytest.raises(BadInput, match="row 4321 of the column 'text' is not UTF-8"):
        load_comments(str(tmp_path / "a.parquet"))


_LIMITED = """
import gc, re, resource, sys
from pathlib import Path
from train.data import stored_texts
from train.data.batches import pretokenize
from train.data.sources import given_sources, load_all
from train.data.split import split_comments
from train.data.tokenizer import build_tokenizer
files, folder, large, room = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tokenizer = build_tokenizer(["you are kind"], max_vocab=20, max_len=8)
stored_texts.LARGE_BYTES = large
shared = dict.fromkeys(("text_column", "label_column"))
sources, _ = given_sources(files.split(), None, label_map=(), **shared)
now = 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (now + room, now + room))
comments = load_all(sources)
split = split_comments(comments.texts, comments.labels)
print(len(comments.texts), len(split.train), len(pretokenize(comments.texts, tokenizer, folder)))
"""


@pytest.mark.slow
def test_what_does_not_fit_is_loaded_split_and_tokenized(tmp_path: Path) -> None:
    rows, size = 80_000, 2500
    rng = np.random.default_rng(0)
    pool = " ".join(rng.choice("you are a kind awful person".split(), 50_000).tolist())
    starts = rng.integers(0, len(pool) - size, rows)
    texts = pa.array((pool[at : at + size] for at in starts.tolist()), pa.large_string())
    targets = rng.integers(0, 2, rows).astype(np.float32)
    table = pa.table({"text": texts, "toxicity": targets})
    files = [tmp_path / "large.parquet", tmp_path / "large.csv"]
    pq.write_table(table[: rows // 2], files[0], row_group_size=2000)
    arrow_csv.write_csv(table[rows // 2 :], files[1])
    del texts, table

    def child(large: int) -> subprocess.CompletedProcess[str]:
        # The texts are 200 MB.
        flags = [" ".join(map(str, files)), tmp_path / "ids", large, 100 << 20]
        # Arrow's own allocator reserves a GiB at once, whatever it needs of it.
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
        return subprocess.run(
            [sys.executable, "-c", _LIMITED, *map(str, flags)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
        )

    done = child(0)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded, training, tokenized = map(int, done.stdout.split())
    assert loaded == tokenized == rows and abs(training - 0.8 * rows) < 0.01 * rows  # some twice
    whole = child(1 << 60)
    assert whole.returncode != 0 and (
        "MemoryError" in whole.stderr or "alloc of size" in whole.stderr
    ), whole.stderr[-2000:]


@pytest.mark.long
@pytest.mark.slow
def test_a_training_holds_less_than_its_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python and NumPy have until the first step, against the bytes of the comments."""
    rows, size = 6_000, 20_000
    words = generate(1_000)[0]
    long = " ".join(words)
    texts = [f"{words[row % 1_000]} {long[row : row + size]}" for row in range(rows)]
    table = {"text": texts, "toxicity": [float(row % 2) for row in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=500)
    del texts, table
    monkeypatch.setattr(stored_texts, "LARGE_BYTES", 0)
    monkeypatch.setattr(stored_texts, "_BATCH_ROWS", 100)
    monkeypatch.setattr(embeddings, "_PIECE", 1 << 14)
    config = make_config(
        TrainConfig,
        {
            "data": (str(tmp_path / "a.parquet"),),
            "out": tmp_path / "run",
            "embeddings": "spelling",
            **{"max_vocab": 200, "max_len": 16, "d_model": 16, "n_heads": 2},
        },
    )
    stop = StopRequest()
    stop.requested = True
    tracemalloc.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, torch.device("cpu"), stop=stop)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < 0.6 * rows * size, held / rows
