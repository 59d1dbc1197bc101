"""What the monitor keeps of comments: nothing, or a bounded, redacted sample where told to."""

from __future__ import annotations

import json
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from contract import HOST, BadInput
from monitor.__main__ import run_monitor
from monitor.config import MonitorConfig
from monitor.labels import read_labels
from monitor.redact import MOST_BYTES, redacted
from monitor.sample import FILE, FOLDER, MOST_VERSIONS, CommentSample, LabelledComment, forget
from monitor.state import MonitorState

ROOT = Path(__file__).parent.parent
MARKER = "zqxmarker"
DAY_S = 86400.0


def judged(text: str, version: str = "1") -> LabelledComment:
    return LabelledComment(version, text, 0.5, 1.0)


def texts(path: Path, version: str = "1") -> list[str]:
    rows = json.loads(path.read_text("utf-8"))["versions"][version]["kept"]
    return [row["text"] for row in rows]


# --- Redaction ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("write to john.o'hara+x@mail.example.org now", "write to [email] now"),
        ("write to john (at) example [dot] org", "write to [email]"),
        ("jo\u200bhn@exam\u00adple.org", "[email]"),
        ("ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｏｒｇ", "[email]"),
        ("mailto:john@example.org?", "mailto:[email]?"),
        ("see https://u:p@example.org/a?b=c#d idiot", "see [url] idiot"),
        ("see(hxxp://example.org", "[url]"),
        ("www.example.org/john?x=1 and example.co.uk.", "[url] and [url]."),
        ("...example.org", "...[url]"),
        ("from 192.168.0.17:8080, 10.0.0.1.", "from [ip], [ip]."),
        ("at 2001:db8::8a2e:370:7334. and ::1 or fe80::1%eth0", "at [ip]. and [ip] or [ip]"),
        ("see john@example.org...john@example.org", "see [email][email]"),
        ("addr:2001:db8::1, ...10.1.2.3.10.1.2.3", "addr[ip], ...[ip].[ip]"),
        ("@john_doe you @jane.doe@example.social fool", "[name] you @[email] fool"),
        ("john @ example.org, in 2024, 100,000", "[email], in [number]"),
        ("call +49 (0)170 / 123-45-67 or 555.123.4567", "call [number] or [number]"),
        ("card 4111 1111 1111 1111, born 1970-01-31", "card [number], born [number]"),
        ("٠١٢٣٤٥٦٧", "[number]"),
        ("a\nb\x00c\t d", "a b c d"),
        # What stays.
        ("at 12:30 he scored 3.5 of 10, in 2024 or 100,000 times", None),
        ("you are sh@t, b@stard :: e.g. U.S.A.", None),
        ("I ... hate you -- (all) of you @ noon!", None),
        ("ты идиот 你是白痴 😀", None),
    ],
)
def test_forms_that_name_somebody_are_taken_out(said: str, kept: str | None) -> None:
    assert redacted(said) == (said if kept is None else kept)


_PARTS = st.sampled_from(
    ["john@example.org", "https://a.b/c", "10.1.2.3", "@you", "5551234567", "::1", "a.b.cd", "…"]
)


@given(st.lists(_PARTS | st.text(max_size=20), max_size=20), st.sampled_from(["", " ", "\n", "."]))
def test_whatever_stands_around_them(parts: list[str], between: str) -> None:
    found = redacted(between.join(parts))
    assert len(found.encode()) <= MOST_BYTES
    assert not re.search(r"\d{7}|://|[\w.]@\w+\.\w|[\x00-\x1f]", found), found


@pytest.mark.parametrize("part", ["a", "1", "1 ", "a.", "@", "a@", "://", ":", "a:1", "(", "'"])
def test_no_comment_takes_long(part: str) -> None:
    """A pattern that grows with the square of a megabyte would not end."""
    assert len(redacted(part * (1 << 20)).encode()) <= MOST_BYTES


def test_what_is_cut_is_no_half_of_a_form() -> None:
    filler = "x " * 1990
    for form in ("john.somebody@example.org", "+49 170 1234 5678 90 12 34 56 78"):
        for at in range(len(form)):
            whole = redacted("y" * at + " " + filler + form)
            assert "john" not in whole and "170" not in whole and "1234" not in whole
    assert redacted("y" * 5000) == ""


# --- The sample --------------------------------------------------------------------------
def test_it_is_bounded_private_and_of_the_newest_versions(tmp_path: Path) -> None:
    sample = CommentSample(tmp_path, 5, DAY_S)
    for version in ("9", "10", "11", "12"):
        sample.offer([judged('"\\ ' * 1300, version) for _ in range(40)], 0.0)
    sample.save(1.0)
    document = json.loads(sample.path.read_text("utf-8"))["versions"]
    assert list(document) == ["10", "11", "12"] and len(document) == MOST_VERSIONS
    assert {(one["offered"], len(one["kept"])) for one in document.values()} == {(40, 5)}
    assert all(len(text) <= MOST_BYTES for text in texts(sample.path, "12"))
    assert sample.path.stat().st_size < MOST_VERSIONS * 5 * (2 * MOST_BYTES + 200) + 1000
    assert stat.S_IMODE(sample.path.stat().st_mode) == 0o600


def test_every_comment_has_the_same_chance(tmp_path: Path) -> None:
    """Also where the monitor ends between, and where the size becomes a smaller one."""
    offered, runs = 20, 400
    kept: Counter[str] = Counter()
    smaller: Counter[str] = Counter()
    for seed in range(runs):
        folder = tmp_path / str(seed)
        rng = random.Random(seed)
        for part in (range(8), range(8, 9), range(9, offered)):
            sample = CommentSample(folder, 5, DAY_S, rng)
            sample.offer([judged(f"c{row}") for row in part], 0.0)
            sample.save(0.0)
        kept.update(texts(sample.path))
        sample = CommentSample(folder, 2, DAY_S, rng)
        sample.save(0.0)
        smaller.update(texts(sample.path))
    assert kept.total() == 5 * runs and smaller.total() == 2 * runs
    for counts in (kept, smaller):
        assert len(counts) == offered
        assert chisquare(list(counts.values())).pvalue > 0.001
    biased = [2 * count if row < 5 else count for row, count in enumerate(kept.values())]
    assert chisquare(biased).pvalue < 0.001, "a difference is found"


def test_a_larger_sample_begins_anew_unless_nothing_was_left_out(tmp_path: Path) -> None:
    sample = CommentSample(tmp_path, 3, DAY_S)
    sample.offer([judged(f"c{row}") for row in range(9)], 0.0)
    sample.offer([judged(f"d{row}", "2") for row in range(3)], 0.0)
    sample.save(0.0)
    sample = CommentSample(tmp_path, 6, DAY_S)
    sample.save(0.0)
    assert texts(sample.path) == [] and texts(sample.path, "2") == ["d0", "d1", "d2"]


def test_no_comment_is_kept_for_longer_than_a_label(tmp_path: Path) -> None:
    sample = CommentSample(tmp_path, 3, DAY_S)
    sample.offer([judged("old")], 0.0)
    sample.save(DAY_S - 1)
    assert texts(sample.path) == ["old"]
    sample.save(DAY_S)
    assert b"old" not in sample.path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        *('{"format": 2}', "[]", "no", '{"format": 1, "versions": {"x": {}}}'),
        '{"format": 1, "versions": {"1": {"since_s": 0, "size": 1, "kept": "abc"}}}',
    ],
)
def test_a_file_that_is_no_sample_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / FILE).write_text(content)
    with pytest.raises(BadInput, match=r"comments\.json .*remove it, and the sample begins anew"):
        CommentSample(tmp_path, 3, DAY_S)
    with pytest.raises(BadInput, match="--sample is 3 without --labels, expected"):
        run_monitor(MonitorConfig(out=tmp_path, sample=3))


def test_what_a_killed_writer_left_goes_and_what_else_is_there_stays(tmp_path: Path) -> None:
    sample = CommentSample(tmp_path, 3, DAY_S)
    sample.offer([judged("kept")], 0.0)
    sample.save(0.0)
    left = sample.path.with_name(".writing-comments.json-x")
    left.write_text("half")
    CommentSample(tmp_path, 3, DAY_S)
    assert not left.exists() and sample.path.exists()
    left.write_text("half")
    forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
    forget(tmp_path)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "notes").touch()
    forget(tmp_path)
    assert (tmp_path / FOLDER / "notes").exists()


def test_each_comment_is_offered_once_however_often_it_is_written(tmp_path: Path) -> None:
    state, sample = MonitorState(tmp_path), CommentSample(tmp_path, 9, DAY_S)
    file = tmp_path / "labels.jsonl"
    score = 0.5

    def read() -> None:
        nonlocal score
        score += 0.01  # another batch, another last digit
        read_labels(state, file, 1.0, lambda rows: [(score, "1") for _ in rows], sample)
        sample.save(1.0)

    row = {"text": "a comment", "label": 1}
    whole = {"text": "another", "score": 0.2, "version": 1, "label": 0}
    file.write_text("".join(f"{json.dumps(one)}\n" for one in (row, row, whole)))
    read()
    with file.open("a") as more:
        more.write(f"{json.dumps({**row, 'label': 0})}\n{json.dumps(whole)}\n")
        more.write('{"text": "no label", "score": 0.1, "version": 1}\n{"id": "a", "label": 1}\n')
    read()
    file.write_bytes(file.read_bytes())
    (tmp_path / "again").write_bytes(file.read_bytes())
    (tmp_path / "again").replace(file)
    read()
    assert sorted(texts(sample.path)) == ["a comment", "another"]
    state.close()


# --- The monitor itself ------------------------------------------------------------------
def label_files(folder: Path) -> Path:
    """Every way in which a comment may come, and some in which none should."""
    folder.mkdir()
    (folder / "served.csv").write_text(f'text,label\n"{MARKER} one\nmore",1\n{MARKER} two,0\n')
    (folder / "no_header.csv").write_text(f"{MARKER} three,1\n{MARKER} four,0\n")
    (folder / "long_header.csv").write_text(f"{MARKER * 20000},1\n{MARKER},0\n")
    (folder / "other.csv").write_text(f"text,{MARKER},label\n{MARKER} 5,{MARKER},0\n{MARKER}\n")
    rows: list[dict[str, Any]] = [
        {"text": f"{MARKER} six", "score": 0.5, "version": 1, "label": 1},
        {"text": f"{MARKER} seven", "score": 0.5, "version": 1},
        {"text": f"{MARKER} eight", "score": MARKER, "version": MARKER, "label": MARKER},
        {"id": {"text": MARKER}, "label": 1},
        {"id": [MARKER], "label": 1, "time": MARKER},
        {"text_sha256": f"{MARKER}", "label": 1},
        {"id": "c-1", "text": f"{MARKER} nine", "label": 1, MARKER: MARKER},
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + f'\nno json {MARKER}\n"{MARKER}"\n')
    return folder


def with_marker(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and MARKER.encode() in path.read_bytes():
            yield path


def run_once(served: Any, labels: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    url = f"http://{HOST}:{served.metrics_port}/metrics"
    command = [sys.executable, "-m", "monitor", "--once", "--metrics-url", url, "--labels", labels]
    command += ["--url", f"{HOST}:{served.http_port}", "--repository", served.repository]
    command += ["--reference", "traffic", "--out", out, *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_no_comment_is_kept_anywhere_unless_told_to(served: Any, tmp_path: Path) -> None:
    labels, out = label_files(tmp_path / "labels"), tmp_path / "out"
    curated = tmp_path / "set.csv"
    curated.write_text(f"text,label,group\n{MARKER} fine,0,a\n{MARKER} awful,1,b\n")
    done = run_once(served, labels, out, "--curated", str(curated))
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "monitor.json").read_text("utf-8"))["labels"]
    assert found["joined"] == 5 and found["waiting"] == 1
    assert not list(with_marker(out)) and MARKER not in done.stdout + done.stderr

    done = run_once(served, labels, tmp_path / "sampled", "--sample", "3")
    assert done.returncode == 0, done.stderr
    (file,) = with_marker(tmp_path / "sampled")
    document = json.loads(file.read_text("utf-8"))["versions"]["1"]
    assert (document["offered"], len(document["kept"])) == (5, 3)
    assert not file.with_name("x").exists() and MARKER not in done.stdout + done.stderr
    again = run_once(served, labels, tmp_path / "sampled")
    assert again.returncode == 0, again.stderr
    assert not list(with_marker(tmp_path / "sampled"))


@pytest.mark.slow
def test_a_kill_at_any_moment_keeps_the_sample(served: Any, tmp_path: Path) -> None:
    labels, out = tmp_path / "labels.jsonl", tmp_path / "out"
    labels.touch()
    url = f"http://{HOST}:{served.metrics_port}/metrics"
    command = [sys.executable, "-m", "monitor", "--every-s", "0.02", "--metrics-url", url]
    command += ["--url", f"{HOST}:{served.http_port}", "--repository", str(served.repository)]
    command += ["--reference", "traffic", "--port", "0", "--labels", str(labels)]
    command += ["--sample", "8", "--out", str(out)]
    rng = random.Random(0)
    written, before = 0, 0
    file = out / FOLDER / FILE
    for _ in range(4):
        running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        at_least, end = before + 10, time.monotonic() + 120
        while not file.exists() or offered(file) < at_least:
            assert running.poll() is None and time.monotonic() < end
            with labels.open("a") as rows:
                row = {"text": f"n{written} a@b.cd", "score": 0.5, "version": 1, "label": 1}
                rows.write(f"{json.dumps(row)}\n")
            written += 1
            time.sleep(rng.random() / 50)
        running.send_signal(signal.SIGKILL)
        running.wait()
        before = offered(file)
        assert at_least <= before <= written
    kept = texts(file)
    assert len(set(kept)) == len(kept) == 8
    assert set(kept) <= {f"n{row} [email]" for row in range(written)}
    done = run_once(served, labels, out, "--sample", "8")
    assert done.returncode in (0, 1), done.stderr  # all are toxic, which half of them should be
    assert before <= offered(file) <= written and len(set(texts(file))) == 8


def offered(file: Path) -> int:
    return int(json.loads(file.read_text("utf-8"))["versions"]["1"]["offered"])


@pytest.mark.slow
def test_a_sample_that_cannot_be_written_is_told(served: Any, tmp_path: Path) -> None:
    labels, out = label_files(tmp_path / "labels"), tmp_path / "out"
    out.mkdir()
    (out / FOLDER).write_text("in the way")
    done = run_once(served, labels, out, "--sample", "3")
    assert done.returncode == 2
    assert re.search(r"^error: the sample was not written: .*sample", done.stderr, re.MULTILINE)
    assert done.stderr.count("\n") == 1 and MARKER not in done.stderr
