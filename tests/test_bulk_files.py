"""`score --file`: JSON lines and the quarantine file; S3, by a real server that speaks it."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TinyModel
from fleet_tools import TOOLS

from console.options import make_config
from contract import LOGIT, PROBABILITY, BadInput, ToxicityError
from export.repository import version_folder
from serve import score_file
from serve.offline.config import ScoreFileConfig
from serve.offline.join import Output
from serve.offline.parts import STATE_FILE
from serve.offline.records import CHUNK_ROWS
from serve.offline.worker import open_scorer
from storage import remote
from storage.remote import RemotePath, is_remote, place_of

ROOT = Path(__file__).parent.parent
MOTO = shutil.which("moto_server", path=str(TOOLS))
needs_s3 = pytest.mark.skipif(
    MOTO is None, reason=f"moto_server is not in {TOOLS}: run `make fleet-tools`"
)


@pytest.fixture(scope="module")
def repository(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model_repository"
    tiny_model.publish(folder)
    return folder


@pytest.fixture
def score(repository: Path) -> Callable[..., Any]:
    def run(file: Any, **flags: Any) -> Any:
        flags = {"repository": repository, "processes": 1, "file": str(file), **flags}
        return score_file.score_file(make_config(ScoreFileConfig, flags))

    return run


LINES: list[Any] = [
    b'{"id": 7, "text": "you are kind", "more": {"tags": ["a", "\\u00e9"], "ok": true}}',
    b'{"id": 8, "text": "you',
    b"",
    b'["you"]',
    b'{"text": null, "x": NaN}',
    b'{"text": 3}',
    b'{"text": "\\ud800"}',
    b'{"text": "\xff"}',
    b'{"text": "awful", "id": 9}',
]
REASONS = {
    1: "row 1 is not JSON, at character 22",
    2: "row 2 is no JSON object",
    3: "the comment is missing (null)",
    4: "the comment is a int, expected text",
    5: "row 5 has half of a character (a lone surrogate)",
    6: "row 6 is not UTF-8",
}


# --- JSON lines --------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_json_lines_are_scored_and_bad_ones_are_named(
    name: str, tmp_path: Path, score: Any, repository: Path
) -> None:
    data = b"\n".join(LINES)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    report = score(tmp_path / name, out=out, quarantine=bad)
    assert (report.rows, report.quarantined) == (8, 6)
    assert not Path(f"{out}.quarantine.jsonl").exists()
    found = [json.loads(line) for line in bad.read_text("utf-8").splitlines()]
    assert found == [{"row": row, "reason": reason} for row, reason in REASONS.items()]
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 8
    assert [row["id"] for row in rows] == [7, None, None, None, None, None, None, 9]
    assert rows[0]["more.tags"] == ["a", "é"] and rows[0]["more.ok"] is True
    assert rows[3]["x"] is None and rows[4]["text"] == 3
    expected = open_scorer(version_folder(repository)).score(["you are kind", "awful"]).logit
    np.testing.assert_array_equal([np.float32(rows[0][LOGIT]), rows[-1][LOGIT]], expected)
    assert [row[PROBABILITY] is None for row in rows] == [False, *[True] * 6, False]


def test_json_lines_to_the_other_forms(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(LINES))
    score(tmp_path / "a.jsonl", out=tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == ["7", *[None] * 6, "9"]
    assert table.column("more.tags").to_pylist()[0] == '["a", "é"]'
    score(tmp_path / "a.jsonl")
    with (tmp_path / "a.scored.csv").open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["7", *[""] * 6, "9"]


def test_a_file_without_an_object_is_refused(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.jsonl").write_text("you are kind\n")
    with pytest.raises(BadInput, match="it has no line with an object"):
        score(tmp_path / "a.jsonl")


# --- Quarantine --------------------------------------------------------------------------
def test_the_quarantine_file_is_told_and_goes_when_nothing_is_bad(
    tmp_path: Path, repository: Path, score: Any
) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nyou\n\xff\n")
    flags = ["--file", tmp_path / "a.csv", "--quarantine", tmp_path / "bad.jsonl"]
    flags += ["--repository", repository, "--processes", 1]
    done = subprocess.run(
        [sys.executable, "-m", "serve.score", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"1 rows have no score; {tmp_path / 'bad.jsonl'} says which" in done.stdout
    assert json.loads((tmp_path / "bad.jsonl").read_text())["row"] == 1
    (tmp_path / "a.csv").write_text("text\nyou\n")
    score(tmp_path / "a.csv", overwrite=True, quarantine=tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_quarantine_file_that_is_there_stays(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.csv").write_text("text\nyou\n")
    (tmp_path / "mine.jsonl").write_text("of another job\n")
    with pytest.raises(BadInput, match=r"mine\.jsonl is there already, expected no file"):
        score(tmp_path / "a.csv", quarantine=tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "of another job\n"


@pytest.mark.parametrize("name", ["a.csv", "a.scored.csv", "no/bad.jsonl", "."])
def test_a_place_that_is_taken_is_refused(name: str, tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.csv").write_text("text\nyou\n")
    with pytest.raises(BadInput, match="--quarantine is"):
        score(tmp_path / "a.csv", quarantine=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


# --- S3 ----------------------------------------------------------------------------------
def test_a_url_outlasts_a_path() -> None:
    place = place_of(Path("s3://bucket/some/a.csv"))
    assert place == RemotePath("bucket/some/a.csv") and str(place) == "s3://bucket/some/a.csv"
    assert place.with_name("b.csv.parts") / "0" == RemotePath("bucket/some/b.csv.parts/0")
    assert not is_remote("s3.csv") and isinstance(place_of("s3.csv"), Path)
    with pytest.raises(BadInput, match="expected s3://BUCKET/KEY"):
        place_of("s3://bucket")


def answers(port: int) -> bool:
    with socket.socket() as door:
        return not door.connect_ex(("127.0.0.1", port))


@pytest.fixture(scope="module")
def bucket() -> Iterator[RemotePath]:
    """A bucket of moto's server, a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(MOTO), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        from pyarrow import fs

        remote._store.cache_clear()
        fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True
        ).create_dir("comments")
        yield RemotePath("comments")
    finally:
        os.environ.clear()
        os.environ |= before
        remote._store.cache_clear()
        server.kill()
        server.wait()


def table(rows: int) -> bytes:
    rng, words = random.Random(0), "you are a kind awful person".split()
    lines = [f"{i},{' '.join(rng.choices(words, k=i % 30))}" for i in range(rows)]
    lines[1] = "1,\N{LATIN SMALL LETTER E WITH ACUTE},one too many"
    return ("id,text\n" + "\n".join(lines) + "\n").encode()


@needs_s3
@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_s3_gives_the_bytes_of_a_local_file(
    form: str, bucket: RemotePath, tmp_path: Path, score: Any
) -> None:
    data = gzip.compress(table(CHUNK_ROWS + 100))
    (tmp_path / "a.csv.gz").write_bytes(data)
    (bucket / "a.csv.gz").write_bytes(data)
    local, out = tmp_path / f"out.{form}", bucket / f"out.{form}"
    score(tmp_path / "a.csv.gz", out=local)
    report = score(bucket / "a.csv.gz", out=str(out))
    assert report.out == str(out) and (report.rows, report.quarantined) == (CHUNK_ROWS + 100, 1)
    assert out.read_bytes() == local.read_bytes()
    bad = Path(f"{local}.quarantine.jsonl").read_bytes()
    assert (bucket / f"out.{form}.quarantine.jsonl").read_bytes() == bad
    assert not (bucket / f"out.{form}.parts").names()
    with pytest.raises(BadInput, match="is there already"):
        score(bucket / "a.csv.gz", out=str(out))
    again = bucket / "again.parquet"
    if form == "parquet":  # which is read from there, too, with a quarantine file here
        score(out, out=again_csv(tmp_path), keep_columns=("id",), quarantine=tmp_path / "bad")
        assert len(again_csv(tmp_path).read_text().splitlines()) == CHUNK_ROWS + 101
        assert not again.is_file()


def again_csv(folder: Path) -> Path:
    return folder / "again.csv"


@needs_s3
@pytest.mark.slow
def test_what_was_killed_goes_on_from_s3(
    bucket: RemotePath, tmp_path: Path, repository: Path, score: Any
) -> None:
    data = table(12 * CHUNK_ROWS)
    (tmp_path / "long.csv").write_bytes(data)
    (bucket / "long.csv").write_bytes(data)
    out, parts = bucket / "long.out.csv", bucket / "long.out.csv.parts"
    flags = ["--file", bucket / "long.csv", "--out", out, "--repository", repository]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.score", *map(str, flags), "--processes", "1"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(parts.names()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert STATE_FILE in parts.names() and not out.is_file()
    report = score(bucket / "long.csv", out=str(out))
    assert 2 * CHUNK_ROWS <= report.resumed_rows < 12 * CHUNK_ROWS
    score(tmp_path / "long.csv", out=tmp_path / "long.out.csv")
    assert out.read_bytes() == (tmp_path / "long.out.csv").read_bytes()
    assert not parts.names()


@pytest.fixture
def ended(
    bucket: RemotePath, tmp_path: Path, score: Any, monkeypatch: pytest.MonkeyPatch
) -> RemotePath:
    """Output of which three parts lie on S3: its command was ended before they were joined."""
    for folder in (bucket, tmp_path):
        (folder / "ended.csv").write_bytes(table(3 * CHUNK_ROWS))

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Output, "finish", end)
        with pytest.raises(KeyboardInterrupt):
            score(bucket / "ended.csv", out=str(bucket / "ended.out.csv"), overwrite=True)
    return bucket / "ended.out.csv"


@needs_s3
@pytest.mark.slow
@pytest.mark.parametrize("damaged", [b"", b'{"input": ', b"\xff", b"[" * 100_000, b"[]", b"null"])
def test_a_damaged_state_on_s3_is_one_line_and_nothing_is_merged(
    damaged: bytes, ended: RemotePath, bucket: RemotePath, tmp_path: Path, score: Any
) -> None:
    state = bucket / "ended.out.csv.parts" / STATE_FILE
    state.write_bytes(damaged)
    with pytest.raises(
        BadInput, match=rf"{state} (is not valid|holds a) JSON.*--overwrite"
    ) as told:
        score(bucket / "ended.csv", out=str(ended))
    assert "\n" not in str(told.value) and not ended.is_file()
    assert score(bucket / "ended.csv", out=str(ended), overwrite=True).resumed_rows == 0
    score(tmp_path / "ended.csv", out=tmp_path / "whole.csv")
    assert ended.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    ended.unlink()


@needs_s3
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "cut", "no JSON", "another score"])
def test_a_damaged_part_on_s3_is_scored_again(
    damage: str, ended: RemotePath, bucket: RemotePath, tmp_path: Path, score: Any
) -> None:
    part = bucket / "ended.out.csv.parts" / "00000001"
    data = part.read_bytes()
    changed = {"empty": b"", "cut": data[:-1], "no JSON": b"x" + data[1:]}
    part.write_bytes(changed.get(damage, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]))
    report = score(bucket / "ended.csv", out=str(ended))
    assert report.resumed_rows == 2 * CHUNK_ROWS
    score(tmp_path / "ended.csv", out=tmp_path / "whole.csv")
    assert ended.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    ended.unlink()


@needs_s3
@pytest.mark.slow
def test_a_part_that_is_damaged_later_is_not_merged(
    ended: RemotePath, bucket: RemotePath, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, add = bucket / "ended.out.csv.parts" / "00000001", Output.add

    def damaged(output: Output, number: int) -> None:
        if number == 1:
            part.write_bytes(part.read_bytes()[:-1])
        add(output, number)

    monkeypatch.setattr(Output, "add", damaged)
    with pytest.raises(ToxicityError, match=rf"{part} is damaged, .* the same command scores"):
        score(bucket / "ended.csv", out=str(ended))
    assert not ended.is_file()


@needs_s3
@pytest.mark.slow
def test_what_is_not_there_is_one_line(bucket: RemotePath, tmp_path: Path, score: Any) -> None:
    with pytest.raises(BadInput, match=r"no file at s3://comments/none\.csv") as error:
        score(bucket / "none.csv")
    assert "\n" not in str(error.value)
    (tmp_path / "a.csv").write_text("text\nyou\n")
    with pytest.raises(BadInput, match=r"s3://nowhere/a\.csv") as error:
        score(tmp_path / "a.csv", out="s3://nowhere/a.csv")
    assert "\n" not in str(error.value)
