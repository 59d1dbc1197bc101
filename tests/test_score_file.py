"""serve.score_file: every form and every row, what cannot be read, going on after a kill."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import functools
import gzip
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyModel

from console.options import make_config, run
from contract import (
    LOGIT,
    MAX_COMMENT_BYTES,
    MODEL_VERSION,
    PROBABILITY,
    TEXT,
    BadInput,
    ToxicityError,
)
from core.binding import probability
from export.repository import load_scorer, version_folder
from serve import score as score_command
from serve import score_file
from serve.offline.config import ScoreFileConfig
from serve.offline.forms import ROW, csv_line
from serve.offline.job import Done, Job, Part, packed, write_part
from serve.offline.join import Output
from serve.offline.parts import STATE_FILE
from serve.offline.records import CHUNK_BYTES, CHUNK_ROWS
from serve.offline.rows import Chunk, open_source
from serve.offline.run import Report
from serve.offline.worker import open_scorer
from serve.offline.workers import CHUNKS_A_WORKER, Workers, scored
from train.data import tables

ROOT = Path(__file__).parent.parent
HOSTILE = ['a "quoted", one', "two\nlines", "a\rreturn", "x\0y", "", " ", "é😀", "\u2028", "=1+1"]


@pytest.fixture(scope="module")
def repository(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model_repository"
    tiny_model.publish(folder)
    return folder


@pytest.fixture(scope="module")
def logit(repository: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Logits of the scorer itself."""
    scorer = open_scorer(version_folder(repository))
    return lambda texts: scorer.score(texts).logit


@pytest.fixture
def score(repository: Path) -> Callable[..., Report]:
    """Score a file in this process, by one worker."""

    def run(file: Path, **flags: Any) -> Report:
        flags = {"repository": repository, "processes": 1, **flags}
        return score_file.score_file(make_config(ScoreFileConfig, {"file": str(file), **flags}))

    return run


def command(*flags: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve.score", *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        **options,
    )


def csv_bytes(rows: Sequence[Sequence[str]], end: str = "\r\n") -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


def read_csv(path: Path) -> list[dict[str, str]]:
    limit = csv.field_size_limit(1 << 20)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    finally:
        csv.field_size_limit(limit)


def quarantine(out: Path) -> list[dict[str, Any]]:
    path = Path(f"{out}.quarantine.jsonl")
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


# --- Forms -------------------------------------------------------------------------------
def write_input(path: Path, texts: list[str]) -> None:
    table = csv_bytes([("id", "comment_text"), *((str(i), t) for i, t in enumerate(texts))])
    if path.name.endswith(".csv"):
        path.write_bytes(b"\xef\xbb\xbf" + table)
    elif path.name.endswith(".csv.gz"):
        path.write_bytes(gzip.compress(table))
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/._a.csv", b"junk")
            archive.writestr("a.csv", table)
    elif path.name.endswith(".parquet"):
        ids, raw = pa.array(range(len(texts))), [text.encode() for text in texts]
        kind = pa.binary() if "bytes" in path.name else pa.string()
        column = pa.array(raw, pa.binary()).cast(kind)
        if "words" in path.name:
            column = column.dictionary_encode()
        pq.write_table(pa.table({"id": ids, "comment_text": column}), path, row_group_size=7)
    else:
        data = "".join(f"{text}\r\n" for text in texts).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


INPUTS = ("a.csv", "a.csv.gz", "a.zip", "a.parquet", "bytes.parquet", "words.parquet")
LINES = ("a.txt", "a.txt.gz")


@pytest.mark.parametrize("name", [*INPUTS, *LINES])
def test_every_input_gives_the_scorers_own_scores_in_order(
    name: str, tmp_path: Path, score: Any, logit: Any, comments: list[str]
) -> None:
    texts = [*HOSTILE, *comments]
    if name in LINES:
        texts = [text.replace("\n", " ") for text in texts if not text.endswith("\r")]
    write_input(tmp_path / name, texts)
    report = score(tmp_path / name)
    rows = read_csv(tmp_path / f"{name.partition('.')[0]}.scored.csv")
    column = TEXT if name in LINES else "comment_text"
    assert [row[column] for row in rows] == texts
    if name not in LINES:
        assert [row["id"] for row in rows] == [str(i) for i in range(len(texts))]
    expected = logit(texts)
    np.testing.assert_array_equal([np.float32(row[LOGIT]) for row in rows], expected)
    found = [np.float32(row[PROBABILITY]) for row in rows]
    np.testing.assert_array_equal(found, probability(expected))
    assert {row[MODEL_VERSION] for row in rows} == {"1"}
    assert (report.rows, report.quarantined) == (len(texts), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [name, f"{name.partition('.')[0]}.scored.csv"]
    )


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "bytes.parquet"])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_every_output_has_the_same_rows(
    name: str, form: str, tmp_path: Path, score: Any, logit: Any
) -> None:
    write_input(tmp_path / name, HOSTILE)
    out = tmp_path / f"out.{form}"
    score(tmp_path / name, out=out)
    if form == "parquet":
        rows = pq.read_table(out).to_pylist()
    else:
        rows = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    texts = [row["comment_text"] for row in rows]
    assert [t.decode() if isinstance(t, bytes) else t for t in texts] == HOSTILE
    assert [int(row["id"]) for row in rows] == list(range(len(HOSTILE)))
    np.testing.assert_array_equal(
        np.array([row[LOGIT] for row in rows], np.float32), logit(HOSTILE)
    )
    if form == "parquet":
        kinds = pq.read_schema(out)
        assert kinds.field(LOGIT).type == kinds.field(PROBABILITY).type == pa.float32()
        assert kinds.field("id").type == (pa.string() if name == "a.csv" else pa.int64())


def test_the_offline_scorer_is_the_servers(repository: Path, comments: list[str]) -> None:
    opened = open_scorer(version_folder(repository)).score(comments).logit
    np.testing.assert_array_equal(opened, load_scorer(repository).score(comments).logit)


def test_columns_can_be_chosen(tmp_path: Path, score: Any) -> None:
    file, out = tmp_path / "a.csv", tmp_path / "out.csv"
    file.write_bytes(csv_bytes([("a", "Body", "b"), ("1", "you", "2"), ("3", "kind", "4")]))
    score(file, out=out, text_column="body", keep_columns=("b",))
    assert [list(row) for row in read_csv(out)] == [["b", PROBABILITY, LOGIT, MODEL_VERSION]] * 2
    score(file, out=out, text_column="body", ids_only=True, overwrite=True)
    assert [row[ROW] for row in read_csv(out)] == ["0", "1"]
    parquet = tmp_path / "out.parquet"
    score(file, out=parquet, text_column="body", ids_only=True)
    assert pq.read_table(parquet).column(ROW).to_pylist() == [0, 1]


def test_values_of_other_types_become_text_or_json(tmp_path: Path, score: Any) -> None:
    table = pa.table(
        {
            "text": ["a", "b"],
            "n": [1, None],
            "x": [0.5, float("nan")],
            "tags": [["p", "q"], []],
            "raw": [b"ok", b"\xff"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    score(tmp_path / "a.parquet", out=tmp_path / "a.jsonl")
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text("utf-8").splitlines())
    assert (first["n"], first["x"], first["tags"]) == (1, 0.5, ["p", "q"])
    assert (second["n"], second["x"], second["tags"]) == (None, None, [])
    assert (first["raw"], second["raw"]) == ("ok", "\\xff")
    report = score(tmp_path / "a.parquet")
    assert report.escaped == 1
    assert read_csv(tmp_path / "a.scored.csv")[0]["tags"] == '["p", "q"]'
    score(tmp_path / "a.parquet", out=tmp_path / "b.parquet")
    kept = pq.read_table(tmp_path / "b.parquet").select(table.column_names)
    assert kept.schema.equals(table.schema) and kept.column("raw").equals(table.column("raw"))


def test_a_field_that_needs_quotes_has_them() -> None:
    fields = [*HOSTILE, "plain", '"', "\n", ","]
    line = csv_line(fields)
    assert next(csv.reader(io.StringIO(line, newline=""))) == fields
    assert csv_line([None, 1, 0.5]) == ",1,0.5\n"


# --- Rows that cannot be read ------------------------------------------------------------
def test_unreadable_rows_are_named_and_keep_their_place(
    tmp_path: Path, score: Any, logit: Any
) -> None:
    long = "a" * (MAX_COMMENT_BYTES + 1)
    lines = [b"id,text", b"0,you", b"1,ab\xff", b"2," + long.encode(), b"3", b"4,a,b", b""]
    lines += [b"\xff,kind", b"6,\xed\xa0\x80", b"7," + b"e" * MAX_COMMENT_BYTES]
    file, out = tmp_path / "a.csv", tmp_path / "out.csv"
    file.write_bytes(b"\n".join(lines) + b"\n")
    report = score(file, out=out)
    rows = read_csv(out)
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4", "\\xff", "6", "7"]
    assert [bool(row[LOGIT]) for row in rows] == [True, *[False] * 4, True, False, True]
    assert rows[1] == {
        **{"id": "1", "text": "ab\\xff"},
        **{PROBABILITY: "", LOGIT: "", MODEL_VERSION: ""},
    }
    assert rows[2]["text"] == long
    assert np.float32(rows[5][LOGIT]) == logit(["kind"])[0]
    assert quarantine(out) == [
        {"row": 1, "reason": "the comment is not valid UTF-8 (byte 0xff at 2)"},
        {"row": 2, "reason": "the comment is 262145 bytes long, expected at most 262144"},
        {"row": 3, "reason": "the row has 1 fields, expected 2", "fields": ["3"]},
        {"row": 4, "reason": "the row has 3 fields, expected 2", "fields": ["4", "a", "b"]},
        {"row": 6, "reason": "the comment is not valid UTF-8 (byte 0xed at 0)"},
    ]
    assert (report.rows, report.quarantined, report.escaped, report.blank_lines) == (8, 5, 1, 1)
    for form in ("parquet", "jsonl"):
        score(file, out=tmp_path / f"out.{form}")
        assert quarantine(tmp_path / f"out.{form}") == quarantine(out)
    assert pq.read_table(tmp_path / "out.parquet").column(LOGIT).null_count == 5


def test_parquet_and_lines_are_quarantined_too(tmp_path: Path, score: Any) -> None:
    raw = [b"you", None, b"\xff", b"a" * (MAX_COMMENT_BYTES + 1)]
    for kind in (pa.binary(), pa.string()):
        column = pa.array(raw, pa.binary())
        column = column if kind == pa.binary() else column.view(pa.string())
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        out = tmp_path / f"{kind}.parquet"
        assert score(tmp_path / "a.parquet", out=out).quarantined == 3
        assert [entry["row"] for entry in quarantine(out)] == [1, 2, 3]
        assert pq.read_table(out).column("text").cast(pa.binary()).to_pylist() == raw
    (tmp_path / "a.txt").write_bytes(b"you\n\xff\n\n")
    assert score(tmp_path / "a.txt").quarantined == 1
    assert [row[TEXT] for row in read_csv(tmp_path / "a.scored.csv")] == ["you", "\\xff", ""]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_the_number_of_workers_changes_no_byte(form: str, tmp_path: Path, score: Any) -> None:
    bad = [0, CHUNK_ROWS - 1, CHUNK_ROWS, 2 * CHUNK_ROWS + 500]
    rows = [f'{i},"you\n""{i}""\r\nkind"' for i in range(3 * CHUNK_ROWS)]
    for row in bad:
        rows[row] += ",one too many"
    data = ("id,text\n" + "\n".join(rows) + "\n").encode()
    (tmp_path / "a.csv").write_bytes(data)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(data))
    found = []
    for name, processes in (("a.csv", 1), ("a.csv", 2), ("b.csv.gz", 2)):
        out = tmp_path / f"{name}.{processes}.{form}"
        assert score(tmp_path / name, out=out, processes=processes).rows == len(rows)
        assert [entry["row"] for entry in quarantine(out)] == bad
        found.append(out.read_bytes())
    assert found[0] == found[1] == found[2]


# --- Going on ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks, some rows of them unreadable."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("long") / "long.csv"
    words = "you are a kind awful person".split()
    rows = [(str(i), " ".join(rng.choices(words, k=i % 30))) for i in range(20 * CHUNK_ROWS)]
    path.write_bytes(csv_bytes([("id", "text"), *rows], "\n").replace(b'"77"', b'"77",""'))
    return path


@pytest.fixture(scope="module")
def whole_of(
    long_file: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`long_file` in a form, scored without an interruption."""

    @functools.cache
    def whole(form: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / f"whole.{form}"
        flags = {"file": str(long_file), "repository": repository, "processes": 1, "out": out}
        assert score_file.score_file(make_config(ScoreFileConfig, flags)).resumed_rows == 0
        return out

    return whole


def begun(*flags: Any) -> subprocess.Popen[str]:
    """The command, once some of its chunks are done."""
    out = Path(flags[flags.index("--out") + 1])
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.score", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(Path(f"{out}.parts").glob("0*"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "signum"),
    [("csv", signal.SIGKILL), ("parquet", signal.SIGKILL), ("csv", signal.SIGINT)],
)
def test_what_was_ended_goes_on_to_the_same_bytes(
    form: str,
    signum: int,
    long_file: Path,
    whole_of: Callable[[str], Path],
    tmp_path: Path,
    repository: Path,
    score: Any,
) -> None:
    whole, out = whole_of(form), tmp_path / f"out.{form}"
    flags = ("--file", long_file, "--out", out, "--repository", repository)
    process = begun(*flags)
    workers = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
    printed, said = process.communicate(timeout=60)
    assert not out.exists(), "it was over too early for this test"
    if signum == signal.SIGINT:
        assert process.returncode == 130
        assert "rows are done and kept in" in said and "the same command goes on" in said
        assert "Traceback" not in said and not printed, said
    assert not psutil.wait_procs(workers, timeout=30)[1]  # nobody stays behind
    report = score(long_file, out=out)
    assert 2 * CHUNK_ROWS <= report.resumed_rows < report.rows == 20 * CHUNK_ROWS
    assert out.read_bytes() == whole.read_bytes()
    assert quarantine(out) == quarantine(whole) and len(quarantine(out)) == 1
    left_over = {path.name for path in tmp_path.iterdir()}
    assert left_over == {out.name, f"{out.name}.quarantine.jsonl"}


@pytest.fixture
def left(long_file: Path, tmp_path: Path, score: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Output whose command was ended after its last chunk."""
    out = tmp_path / "out.csv"

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Output, "finish", end)
        with pytest.raises(KeyboardInterrupt):
            score(long_file, out=out)
    return out


@pytest.mark.slow
def test_runs_that_differ_are_not_mixed(
    left: Path,
    long_file: Path,
    tmp_path: Path,
    score: Any,
    repository: Path,
    other_model: TinyModel,
) -> None:
    other = tmp_path / "long.csv"
    other.write_bytes(long_file.read_bytes() + b'"x","y"\n')
    for file, flags, words in (
        (other, {}, "was begun with input"),
        (long_file, {"ids_only": True}, "was begun with columns"),
        (long_file, {"text_column": "id"}, "was begun with text_column"),
    ):
        with pytest.raises(BadInput, match=f"{words} .* --overwrite to begin again"):
            score(file, out=left, **flags)
    state = json.loads((Path(f"{left}.parts") / STATE_FILE).read_text())
    assert state["version"] == 1 and len(state["artifact_sha256"]) == 64
    assert state["input"]["bytes"] == long_file.stat().st_size
    copied = tmp_path / "repository"
    subprocess.run(["cp", "-r", repository, copied], check=True)
    other_model.publish(copied)
    with pytest.raises(BadInput, match="was begun with version 1, and now it is 2"):
        score(long_file, out=left, repository=copied)
    report = score(long_file, out=left, repository=copied, version=1)
    assert report.resumed_rows == report.rows


@pytest.mark.slow
def test_a_state_of_other_weights_is_refused(left: Path, long_file: Path, score: Any) -> None:
    path = Path(f"{left}.parts") / STATE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "onnx_sha256": "0" * 64}))
    with pytest.raises(BadInput, match="was begun with onnx_sha256"):
        score(long_file, out=left)
    assert score(long_file, out=left, overwrite=True).resumed_rows == 0


def test_a_finished_output_is_not_replaced_unasked(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.txt").write_text("you\n")
    score(tmp_path / "a.txt")
    with pytest.raises(BadInput, match=r"a\.scored\.csv is there already"):
        score(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("you\nare\n")
    assert score(tmp_path / "a.txt", overwrite=True).rows == 2


def test_two_commands_do_not_write_one_output(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.txt").write_text("you\n")
    with (tmp_path / ".a.scored.csv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="is in use by another process"):
            score(tmp_path / "a.txt")
    score(tmp_path / "a.txt")


# --- Bounds ------------------------------------------------------------------------------
def test_chunks_in_flight_are_bounded(tmp_path: Path, repository: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    job = Job(version_folder(repository), parts, "csv", ("text",), "text", None)
    taken = finished = most = 0

    def chunks() -> Iterator[Chunk]:
        nonlocal taken, most
        for number in range(30):
            taken += 1
            most = max(most, taken - finished)
            yield Chunk(number, 10 * number, 10, [["you are kind"]] * 10, 0)

    with Workers(job, 2) as workers:
        for done in scored(chunks(), workers):
            assert isinstance(done, Done) and isinstance(done.part, Part)
            finished += 1
    assert finished == 30 and most <= 2 * CHUNKS_A_WORKER + 1


def test_a_worker_takes_a_chunk_while_its_answer_waits(tmp_path: Path, repository: Path) -> None:
    """Both are larger than what a pipe holds; answers are not read while chunks are given."""
    job = Job(version_folder(repository), tmp_path, "csv", ("text", "b"), "text", ("text",))

    def chunk(number: int) -> Chunk:
        rows = [["you", f"{number} {row} {'x' * 1000}", "too many"] for row in range(CHUNK_ROWS)]
        return Chunk(number, number * CHUNK_ROWS, CHUNK_ROWS, rows, 0)

    with Workers(job, 1) as workers:
        found = sorted(scored(map(chunk, range(6)), workers), key=lambda done: done.number)
    assert [done.number for done in found] == list(range(6))
    assert all(len(done.part.quarantine) == CHUNK_ROWS for done in found)


def test_an_idle_worker_comes_before_one_with_a_chunk(tmp_path: Path, repository: Path) -> None:
    job = Job(version_folder(repository), tmp_path, "csv", ("text",), "text", None)
    with Workers(job, 2) as workers:
        while len(workers.idle) < 2 * CHUNKS_A_WORKER:
            assert not list(workers.wait())
        for number in range(2):
            workers.give(Chunk(number, 0, 1, [["you"]], 0))
        assert len(set(workers.idle)) == 2  # each has one


def test_parts_are_put_together_while_others_are_missing(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    job = Job(Path("1"), tmp_path / "parts", "csv", ("a",), "a", ("a",))
    out, bad = tmp_path / "out.csv", tmp_path / "bad.jsonl"

    def put(output: Output, number: int) -> None:
        part = Part(number, 1, 1, 0, 0, 0, ({"row": number, "reason": "none"},) * (number == 2))
        write_part(job.parts, number, packed(part, b"%d\n" % number))
        output.add(number)

    def taken(output: Output) -> list[str]:
        output._thread.submit(output._file.flush).result()  # behind all that was asked of it
        return (tmp_path / ".out.csv.partial").read_text().splitlines()[1:]

    with Output(job, out, bad, None) as output:
        for number, rows in ((2, ""), (0, "0"), (3, "0"), (1, "0123"), (4, "01234")):
            put(output, number)
            assert taken(output) == list(rows) and not out.exists()
        with pytest.raises(ToxicityError, match=r"5 parts of .*out\.csv .*expected 6"):
            output.finish(6)
        assert not out.exists()
        output.finish(5)
    assert out.read_text() == "a,probability,logit,model_version\n0\n1\n2\n3\n4\n"
    assert json.loads(bad.read_text())["row"] == 2
    out.unlink()
    bad.unlink()
    with Output(job, out, bad, None) as output:
        put(output, 0)
        (job.parts / "00000001").write_bytes(b"damaged")
        output.add(1)
        taken(output)
        with pytest.raises(ToxicityError, match="00000001 is damaged"):
            put(output, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_chunks_are_bounded_and_reading_is_lazy(tmp_path: Path) -> None:
    big = "a" * (MAX_COMMENT_BYTES - 1)
    texts = [*["x"] * (2 * CHUNK_ROWS + 5), *[big] * 20]
    for name in ("a.csv", "a.txt", "a.parquet"):
        write_input(tmp_path / name, texts)
        with open_source(str(tmp_path / name)) as source:
            chunks = list(source.chunks(source.names))
            if source.total:
                assert sum(chunk.span for chunk in chunks) == source.total
        assert max(chunk.rows for chunk in chunks) <= CHUNK_ROWS
        assert sum(chunk.rows for chunk in chunks) == len(texts)
        sizes = [len(chunk.payload) for chunk in chunks if isinstance(chunk.payload, bytes)]
        assert max(sizes, default=0) < 2 * CHUNK_BYTES
        ends = np.cumsum([0, *(chunk.rows for chunk in chunks)])
        assert [chunk.first_row for chunk in chunks] == ends[:-1].tolist()
        assert len(chunks) >= 7


def test_a_worker_that_dies_ends_the_command(tmp_path: Path, repository: Path) -> None:
    job = Job(version_folder(repository), tmp_path, "csv", ("text",), "text", None)
    with Workers(job, 1) as workers:
        while not workers.idle:
            list(workers.wait())
        (process,) = workers._processes.values()
        process.kill()
        process.join()
        with pytest.raises(Exception, match="a worker ended with status -9"):
            list(scored([Chunk(0, 0, 1, [["you"]], 0)], workers))


# --- The command -------------------------------------------------------------------------
@pytest.mark.slow
def test_lines_from_stdin(repository: Path, tmp_path: Path, logit: Any) -> None:
    out = tmp_path / "out.jsonl"
    flags = ("--file", "-", "--out", out, "--repository", repository, "--processes", "1")
    done = command(*flags, input="you are kind\n\na\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 rows of - by version 1") and not done.stderr
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row[TEXT] for row in rows] == ["you are kind", "", "a"]
    expected = logit(["you are kind", "", "a"])
    np.testing.assert_array_equal(np.array([row[LOGIT] for row in rows], np.float32), expected)


def test_errors_are_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("you\n")
    flags = ("--file", tmp_path / "a.txt", "--repository")
    for arguments in (
        ("--file", tmp_path / "none.csv"),
        (*flags, tmp_path / "empty"),
        (*flags, tmp_path, "text"),
    ):
        monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            score_command.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2, said
        assert said.startswith("error: ") and said.count("\n") == 1, said


BAD: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "no such column": ("a.csv", b"a,b\n1,2\n", {}, "are a, b, expected one of comment_text"),
    "column asked for": ("a.csv", b"a,b\n1,2\n", {"text_column": "c"}, "expected 'c'"),
    "empty": ("a.csv", b"", {}, "it is empty"),
    "open quote": ("a.csv", b'text\nyou\n"are\nkind\n', {}, "row 1 opens a quote"),
    "single quote": ("a.csv", b'text\nyou\n"are "so" kind"\n', {}, "row 1 (up to line 3) has a"),
    "no header": ("a.csv", b"you are kind\nb\n", {}, "are (one of 3 words), expected one of"),
    "two texts": ("a.csv", b"text,text\na,b\n", {}, "has 2 columns 'text', expected one"),
    "not UTF-8": ("a.csv", "text\nyou\n".encode("utf-16"), {}, "header is not UTF-8"),
    "cut gzip": ("a.csv.gz", gzip.compress(b"text\n" + os.urandom(99))[:-20], {}, "cannot be read"),
    "no gzip": ("a.txt.gz", b"you\n", {}, "cannot be read"),
    "no zip": ("a.zip", b"you\n", {}, "cannot be read"),
    "no parquet": ("a.parquet", b"you\n", {}, "cannot be read"),
    "suffix": ("a.tsv", b"text\n", {}, "ends in .tsv, expected .csv"),
    "out": ("a.txt", b"you\n", {"out": "a.xlsx"}, "expected a name that ends in .csv"),
    "out is in": ("a.csv", b"text\n", {"out": "a.csv"}, "expected another file than --file"),
    "scored before": ("a.csv", b"text,logit\n", {}, "has a column 'logit' already"),
    "twice": ("a.csv", b"text,a,a\n", {}, "has 2 columns 'a', expected one"),
    "keep": ("a.csv", b"text\n", {"keep_columns": ("b",)}, "--keep-columns names 'b'"),
    "both": ("a.csv", b"text\n", {"keep_columns": ("text",), "ids_only": True}, "drop one"),
    "stdin": ("-", b"", {}, "--out is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_named(
    case: str, tmp_path: Path, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, data, flags, words = BAD[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput) as error:
        score(Path(name), **flags)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def limited(size: int, *flags: Any) -> subprocess.CompletedProcess[str]:
    """The command, where no file may grow beyond `size` bytes: as on a full disk."""
    limit = (resource.RLIMIT_FSIZE, (size, size))
    return command(*flags, preexec_fn=lambda: resource.setrlimit(*limit))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    form: str, repository: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "a.txt", tmp_path / f"out.{form}"
    rng = random.Random(0)
    file.write_text("".join(f"you are {rng.random()} kind\n" for _ in range(2 * CHUNK_ROWS)))
    flags = ("--file", file, "--out", out, "--repository", repository, "--processes", 1)
    done = limited(6_000, *flags)  # room for the state of the job, and no part
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{out}.parts/00000000 cannot be used (File too large), expected" in done.stderr
    assert done.stderr.endswith("; nothing is kept; begin again\n")
    assert list(tmp_path.iterdir()) == [file]
    if form != "csv":
        return
    written = out.with_name(f".{out.name}.partial")
    done = limited(200_000, *flags)  # each part has room, the output has none
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{out} cannot be used (File too large), expected" in done.stderr
    assert done.stderr.endswith("the same command goes on\n")
    assert not out.exists() and not written.exists()
    assert Path(f"{out}.parts").is_dir()  # the same command goes on


def test_a_folder_in_place_of_the_output_is_seen_at_once(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.txt").write_text("you\n")
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(BadInput, match="a folder, expected a file; set another"):
        score(tmp_path / "a.txt", out=tmp_path / "out.csv", overwrite=True)


def test_a_worker_that_fails_says_so_in_one_line(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(version_folder(repository), tmp_path, "csv", (TEXT,), TEXT, None)

    def main() -> None:
        with Workers(job, 1) as workers:
            list(scored([Chunk(0, 0, 1, b"no payload", 1)], workers))

    with pytest.raises(SystemExit) as ended:
        run(main)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert said.startswith("error: a worker failed: internal error: Arrow") and said.endswith(
        "=1 to see where\n"
    )


def test_a_column_of_numbers_is_no_text(tmp_path: Path, score: Any) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="holds int64, expected text"):
        score(tmp_path / "a.parquet")


def test_a_field_beyond_all_bounds_is_an_error(
    tmp_path: Path, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_FIELD_BYTES", 1000)
    (tmp_path / "a.csv").write_text("text\n" + "a" * 2000 + "\n")
    with pytest.raises(BadInput, match="a line is longer than"):
        score(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text('text\n"' + "a\n" * 2000 + '"\n')
    with pytest.raises(BadInput, match="field larger than field limit"):
        score(tmp_path / "a.csv")
    assert csv.field_size_limit() != 1000


def test_an_empty_table_is_scored(tmp_path: Path, score: Any) -> None:
    for form in ("csv", "parquet", "jsonl"):
        (tmp_path / "a.csv").write_text("id,text\n")
        assert score(tmp_path / "a.csv", out=tmp_path / f"out.{form}").rows == 0
    assert (tmp_path / "out.csv").read_text() == "id,text,probability,logit,model_version\n"
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_the_report_is_json(tmp_path: Path, score: Any) -> None:
    (tmp_path / "a.txt").write_text("you\n")
    document = json.loads(json.dumps(dataclasses.asdict(score(tmp_path / "a.txt"))))
    assert document["rows"] == 1 and document["tokens"] == 2
