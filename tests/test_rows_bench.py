"""`bench.model.rows`: its files, its bar, and one real run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.model.rows import RowsMeasured, bars, write_comments
from train.data.synthetic import generate


def test_no_two_comments_of_a_file_are_alike(tmp_path: Path) -> None:
    write_comments(tmp_path / "a.parquet", 70_000)
    table = pq.read_table(tmp_path / "a.parquet")
    texts = table["text"].to_pylist()
    assert len(set(texts)) == len(texts) == 70_000
    assert 0.2 < sum(share >= 0.5 for share in table["toxic"].to_pylist()) / len(texts) < 0.8
    words = {word for text in generate(20_000)[0] for word in text.split()}
    assert {word for text in texts for word in text.split()} <= words  # no vocabulary of its own


def test_memory_that_grows_misses_the_bar() -> None:
    few = RowsMeasured(rows=10, file_mib=1, seconds=1, peak_mib=500, mapped_mib=0)
    for peak, holds in ((549, True), (600, False)):
        many = RowsMeasured(rows=100, file_mib=10, seconds=1, peak_mib=peak, mapped_mib=0)
        assert bars([few, many])["memory_growth"]["holds"] is holds


@pytest.mark.parametrize("rows", [["100"], ["200", "100"], ["100", "100"]])
def test_rows_that_do_not_ascend_are_refused(rows: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.model.rows", "--rows", *rows, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "ascending" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.long
def test_it_measures_a_training(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.model.rows", "--rows", "20000", "40000", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["rows"] for row in found["results"]] == [20000, 40000]
    assert all(row["peak_mib"] > 100 and row["seconds"] > 1 for row in found["results"])
