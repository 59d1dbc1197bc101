"""From old scores to this server: thresholds of known answers, kinds, refusals, no text told."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import free_port
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

import migrate.__main__ as migrate_main
from console.options import make_config, run
from contract import BadInput
from migrate.agreement import ALARMS, OLD, PRECISION, RECALL, agreement, points_of
from migrate.changes import changes
from migrate.collect import Collected
from migrate.config import MigrateConfig
from migrate.disagreement import by_kind
from migrate.kinds import CUT, KINDS, NONE, kinds_of
from migrate.log import Columns
from migrate.thresholds import Point, keeping_alarms, shortest_between
from serve import triton

MARKER = "zqxmarker"
"""In every comment, and never said otherwise."""


def config_of(scores: Path, **fields: Any) -> MigrateConfig:
    given_fields = {"source": "perspective", "scores": scores, "resamples": 100, **fields}
    return make_config(MigrateConfig, given_fields)


def collected(
    old: np.ndarray, new: np.ndarray, labels: np.ndarray | None = None, kinds: Any = None
) -> Collected:
    """Comments without a file behind them."""
    count = len(old)
    return Collected(
        rows=np.arange(count),
        old=old,
        new=new,
        labels=np.full(count, np.nan) if labels is None else labels.astype(np.float64),
        kinds=np.zeros(count, np.uint32) if kinds is None else np.array(kinds, np.uint32),
        columns=Columns("text", "score", None),
        source={},
        model={},
        knows_cuts=True,
    )


# --- Thresholds --------------------------------------------------------------------------
units = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(units, min_size=2, max_size=60, unique=True), st.data())
def test_a_monotone_transform_is_carried_over_exactly(scores: list[float], data: Any) -> None:
    old = np.array(scores)
    places = np.argsort(np.argsort(old))
    new = np.float32((places + 1) / (len(old) + 1)).astype(np.float64) ** 3
    threshold = data.draw(st.sampled_from(sorted(scores)[1:]))
    flagged = old >= threshold
    kept = keeping_alarms(int(flagged.sum()), new)
    assert kept is not None
    assert ((new >= kept) == flagged).all()
    assert ((new > kept) == flagged).all(), "a site may act above a score as well as from it on"


@given(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=2, max_size=40), st.data())
def test_of_equal_scores_the_nearest_count_is_kept(scores: list[float], data: Any) -> None:
    new = np.array(scores)
    wanted = data.draw(st.integers(1, len(new) - 1))
    counts = [int((new >= value).sum()) for value in np.unique(new)]
    nearest = min(abs(count - wanted) for count in counts)
    kept = keeping_alarms(wanted, new)
    if kept is None:  # to flag all is nearest, or the only choice
        assert abs(len(new) - wanted) == nearest
    else:
        assert abs(int((new >= kept).sum()) - wanted) == nearest


@given(units, units)
def test_the_shortest_threshold_lies_between(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = shortest_between(low, high)
    assert found == high or low < found < high
    if high - low > 0.1001:
        assert found == round(found, 2)


def test_a_short_threshold_is_found() -> None:
    assert shortest_between(0.4361, 0.4419) == 0.44
    assert shortest_between(0.4361, 0.4379) == 0.437
    assert shortest_between(0.0, 1.0) == 0.1
    assert shortest_between(0.3, math.nextafter(0.3, 1)) == math.nextafter(0.3, 1)


def test_precision_and_recall_are_kept_on_known_labels() -> None:
    old = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    labels = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0])  # old: precision and recall of 3/4
    new = np.array([0.95, 0.90, 0.35, 0.80, 0.70, 0.60, 0.2, 0.1, 0.05, 0.01])
    points = {point.name: point for point in points_of(collected(old, new, labels), 0.5)}
    # From 0.70 on: three of four are toxic; from 0.35 on, four of six.
    assert points[PRECISION].threshold == pytest.approx(0.65, abs=0.05)
    assert points[RECALL].threshold == pytest.approx(0.65, abs=0.05)
    assert points[ALARMS].decided is not None and points[ALARMS].decided.sum() == 4
    worse = {p.name: p for p in points_of(collected(old, 1 - new, labels), 0.5)}
    assert worse[PRECISION].threshold is None and worse[PRECISION].decided is None
    assert worse[RECALL].decided is not None and (worse[RECALL].decided @ labels) == 3


def test_without_two_classes_nothing_is_said_of_labels() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.random(50), rng.random(50)
    one_class = collected(old, new, np.ones(50))
    assert {point.name for point in points_of(one_class, 0.5)}.isdisjoint((PRECISION, RECALL))
    config = config_of(Path("x"), threshold=0.5)
    assert agreement(one_class, points_of(one_class, 0.5), config)["auroc"] is None


# --- Agreement ---------------------------------------------------------------------------
def test_agreement_is_that_of_the_libraries() -> None:
    rng = np.random.default_rng(1)
    old = rng.random(400).round(2)  # with ties
    new = np.clip(old**2 + 0.1 * rng.standard_normal(400), 0, 1)
    labels = (rng.random(400) < old).astype(float)
    labels[:50] = np.nan
    found, config = collected(old, new, labels), config_of(Path("x"), threshold=0.6)
    points = points_of(found, 0.6)
    document = agreement(found, points, config)
    correlation = document["correlation"]
    assert correlation["spearman"]["value"] == pytest.approx(spearmanr(old, new).statistic)
    assert correlation["pearson"]["value"] == pytest.approx(pearsonr(old, new).statistic)
    assert correlation["pearson"]["low"] < correlation["pearson"]["value"]
    kept = next(point for point in points if point.name == ALARMS)
    decisions = document["decisions"][ALARMS]
    assert decisions["kappa"]["value"] == pytest.approx(cohen_kappa_score(old >= 0.6, kept.decided))
    assert decisions["only_old"] == decisions["only_new"], "one alarm rate"
    auroc, known = document["auroc"], ~np.isnan(labels)
    expected = [roc_auc_score(labels[known], scores[known]) for scores in (old, new)]
    assert [auroc[name]["value"] for name in ("old", "new")] == pytest.approx(expected)
    assert auroc["difference"]["value"] == pytest.approx(expected[1] - expected[0])
    threshold = document["alarm_threshold"]
    assert threshold["low"] <= threshold["value"] <= threshold["high"]
    assert agreement(found, points, config) == document, "the seed draws the same comments"


def test_a_threshold_of_one_half_is_measured_on_the_other() -> None:
    rng = np.random.default_rng(2)
    old = rng.random(2000)
    found = collected(old, old**3, (rng.random(2000) < old).astype(float))
    document = agreement(found, points_of(found, 0.7), config_of(Path("x"), threshold=0.7))
    halves = {point["name"]: point for point in document["other_half"]}
    assert halves[OLD]["flagged"]["of"] == 1000
    gap = abs(halves[ALARMS]["flagged"]["count"] - halves[OLD]["flagged"]["count"])
    assert gap <= 3, "the scores of the two halves lie as close as 2,000 random ones do"
    assert halves[RECALL]["recall"]["value"] == pytest.approx(
        halves[OLD]["recall"]["value"], abs=0.02
    )


def test_constant_scores_have_no_correlation() -> None:
    found = collected(np.linspace(0, 1, 20), np.full(20, 0.3))
    points = points_of(found, 0.5)
    document = agreement(found, points, config_of(Path("x"), threshold=0.5))
    assert document["correlation"]["spearman"]["value"] is None
    assert document["alarm_threshold"]["value"] is None
    assert ALARMS not in document["decisions"] and document["curve"] == []


# --- Kinds -------------------------------------------------------------------------------
def names_of(text: str) -> set[str]:
    bits = kinds_of(text)
    return {kind for bit, kind in enumerate(KINDS) if bits >> bit & 1}


SWEAR, HIDDEN = "with a swear word or insult", "with one in disguise"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("the weather is fine today", set()),
        ("thanks", {"up to 3 words"}),
        ("word " * 101, {"over 100 words"}),
        ("STOP SHOUTING AT PEOPLE", {"in capitals"}),
        ("the USA is a state", set()),
        ("you are a fucking liar", {SWEAR}),
        ("the Scunthorpe class assessed it", set()),
        ("you are such a f*ck , mate", {HIDDEN}),
        ("you are such a sh1t , mate", {HIDDEN}),
        ("you are such a $hit , mate", {HIDDEN}),
        ("you are such an idiooot , mate", {HIDDEN}),
        ("you are such an i d i o t , mate", {HIDDEN}),
        ("you are such an i.d.i.o.t , mate", {HIDDEN}),
        ("plan a b c d e f is good", set()),
        ("buy 3 mp3s on 2024 and 5 * 4 is 20", set()),
        ("this *is* emphasis in the text", set()),
        ("a t* or *on or *at is fine", set()),
        ("many Muslims and gay people live here", {"with an identity term"}),
        ("it is not a question of taste", {"with a negation"}),
        ("they don't and they won't care", {"with a negation"}),
        ('he said "come here at once" to her', {"with a quotation"}),
        ("> what you wrote before\nand an answer", {"with a quotation"}),
        ("see https://example.org/x for more here", {"with a link"}),
        ("well done \U0001f600 my dear friend", {"with an emoji"}),
        ("это совсем не интересно никому", {"in Cyrillic"}),
        ("هذا تعليق طويل جدا هنا", {"in Arabic script"}),
        ("これは とても 長い コメント です", {"in Chinese, Japanese or Korean script"}),
        ("αυτό είναι ένα σχόλιο εδώ", {"in another script than Latin"}),
        ("12 + 30 = 42 !", {"without a letter"}),
        ("naïve café résumé is Latin too", set()),
    ],
)
def test_kinds_by_their_rules(text: str, kinds: set[str]) -> None:
    assert names_of(text) == kinds


@given(st.text())
def test_every_text_has_kinds(text: str) -> None:
    assert 0 <= kinds_of(text) < 1 << len(KINDS) <= 1 << 32
    assert kinds_of(text, cut=True) == kinds_of(text) | 1 << KINDS.index(CUT)


def test_disagreement_is_counted_by_kind() -> None:
    capitals = 1 << KINDS.index("in capitals")
    kinds = [capitals] * 4 + [0] * 6
    old = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0]) >= 0.5
    new = np.array([0, 1, 1, 1, 1, 0, 0, 0, 0, 0]) >= 0.5
    labels = np.array([1, 1, 0, 1, 1, 0, 0, 0, 0, np.nan])
    found = collected(old.astype(float), new.astype(float), labels, kinds)
    rows = {row["kind"]: row for row in by_kind(found, Point(OLD, 1, old), Point(ALARMS, 1, new))}
    assert set(rows) == {"in capitals", NONE}
    shouted = rows["in capitals"]
    assert (shouted["disagree"]["count"], shouted["disagree"]["of"]) == (3, 4)
    assert (shouted["only_old"], shouted["only_new"]) == (1, 2)
    assert shouted["precision_only_old"]["value"] == 1
    assert shouted["precision_only_new"]["value"] == 0.5
    assert rows[NONE]["disagree"]["count"] == 0
    assert next(iter(rows)) == "in capitals" and shouted["few"]


# --- A whole run -------------------------------------------------------------------------
@pytest.fixture(scope="module")
def repository(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrate") / "model_repository"
    tiny_model.publish(folder)
    return folder


@pytest.fixture(scope="module")
def scored(tiny_model: Any, comments: list[str]) -> list[tuple[str, float]]:
    """Comments, each with an old score that is a monotone transform of the new one."""
    words = [f"{text} {MARKER} {row % 7}" for row, text in enumerate(comments[:120])]
    words[0] = f"<script>alert(1)</script> | {MARKER} \x1b[31m"
    texts = list(dict.fromkeys(words))
    return [(text, 1 / (1 + math.exp(-tiny_model.logit(text) / 3))) for text in texts]


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...]) -> Path:
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def answer(text: str, score: float) -> dict[str, Any]:
    """A line of a log of Perspective's answers."""
    summary = {"summaryScore": {"value": score, "type": "PROBABILITY"}}
    return {"text": text, "attributeScores": {"TOXICITY": summary}, "languages": ["en"]}


def write_log(kind: str, folder: Path, rows: list[tuple[str, float]]) -> Path:
    path = folder / f"log.{kind}"
    if kind.startswith("csv"):
        return write_csv(path, rows, ("comment_text", "TOXICITY"))
    if kind == "parquet":
        texts, scores = zip(*rows, strict=True)
        pq.write_table(pa.table({"text": texts, "score": scores}), path)
        return path
    lines = "".join(json.dumps(answer(*row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode())
    return path


def middle(scored: list[tuple[str, float]]) -> float:
    return float(np.median([score for _, score in scored]))


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "jsonl", "jsonl.gz"])
def test_a_log_of_any_form_gives_the_exact_threshold(
    kind: str, repository: Path, scored: list[tuple[str, float]], tmp_path: Path
) -> None:
    log = write_log(kind, tmp_path, scored)
    out = tmp_path / "report"
    config = config_of(log, repository=repository, threshold=middle(scored), out=out)
    document = migrate_main.migrate(config)
    points = {point["name"]: point for point in document["points"]}
    assert points[ALARMS]["flagged"]["count"] == points[OLD]["flagged"]["count"]
    decisions = document["decisions"][ALARMS]
    assert (decisions["only_old"], decisions["only_new"]) == (0, 0)
    assert document["correlation"]["spearman"]["value"] == pytest.approx(1)
    assert document["log"]["used"] == len(scored)
    assert json.loads((out / "migration.json").read_text("utf-8")) == document
    assert {path.name for path in out.iterdir()} == {
        f"migration.{suffix}" for suffix in ("json", "html", "md")
    }
    cut = next(row for row in document["kinds"] if row["kind"] == CUT)
    assert cut["comments"]["count"] > 0, "the tiny model reads 16 tokens"


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """Exit status, and what a command says."""
    monkeypatch.setattr(sys, "argv", ["toxicity migrate", "perspective", *argv])
    with pytest.raises(SystemExit) as ended:
        run(migrate_main.main)
    return ended.value.code, capsys.readouterr()


def test_no_text_is_told_unless_asked_for(
    repository: Path,
    scored: list[tuple[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = write_log("csv", tmp_path, scored)
    out = tmp_path / "report"
    argv = ["--scores", str(log), "--repository", str(repository), "--out", str(out)]
    argv += ["--threshold", str(middle(scored)), "--resamples", "100"]
    status, said = told(monkeypatch, capsys, *argv)
    assert status == 0 and "Lines to change" in said.out and "the new threshold is" in said.out
    files = [path.read_text("utf-8") for path in out.iterdir()]
    assert len(files) == 3 and not any(MARKER in text for text in (said.out, said.err, *files))
    assert not said.out.rstrip().endswith("}"), "JSON is printed only with --json"

    status, said = told(monkeypatch, capsys, *argv, "--show-text", "500", "--json")
    assert json.loads(said.out.splitlines()[-1])["disputed"]
    assert "\x1b" not in said.out
    for path in out.iterdir():
        text = path.read_text("utf-8")
        assert MARKER in text
        if path.suffix in (".html", ".md"):
            assert "<script>" not in text and "&lt;script&gt;" in text
    page = (out / "migration.html").read_text("utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)", page), "it needs no other file"


def test_labels_and_what_is_left_out_are_counted(
    repository: Path, scored: list[tuple[str, float]], tmp_path: Path
) -> None:
    rows: list[tuple[Any, ...]] = [
        (text, score, "rejected" if row % 3 == 0 else "approved")
        for row, (text, score) in enumerate(scored)
    ]
    rows += [("", 0.5, "approved"), ("a text", "", "approved"), ("x" * 300_000, 0.5, "")]
    rows += [("no label", 0.4, ""), ("nul \0 within", 0.6, "rejected")]
    log = write_csv(tmp_path / "log.csv", rows, ("body", "perspective", "decision"))
    document = migrate_main.migrate(
        config_of(
            log,
            repository=repository,
            threshold=0.5,
            label_column="decision",
            label_map=("rejected=1", "approved=0"),
            out=tmp_path / "report",
        )
    )
    counts = document["log"]
    assert (counts["rows"], counts["used"]) == (len(rows), len(rows) - 3)
    dropped = [counts[f"dropped_{name}"] for name in ("no_text", "no_score", "too_long")]
    assert dropped == [1, 1, 1]
    assert counts["labelled"] == len(scored) + 1
    assert document["auroc"]["difference"]["low"] is not None
    assert {PRECISION, RECALL} <= {point["name"] for point in document["points"]}


HEADER = ("text", "score")
GOOD = [("fine words", "0.2"), ("other words", "0.9")]


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([*GOOD, ("x", "1.2")], HEADER, r"row 2 of .* has 1.2 as its score in 'score', expected"),
        ([*GOOD, ("x", "-0.1")], HEADER, r"row 2 of .* has -0.1 as its score"),
        ([*GOOD, ("x", "nan")], HEADER, r"row 2 of .* has nan as its score"),
        ([*GOOD, ("x", "inf")], HEADER, r"row 2 of .* has inf as its score"),
        ([*GOOD, ("x", "87")], HEADER, r"row 2 .* has 87 .*divide percentages by 100"),
        ([*GOOD, ("x", f"{MARKER} is a text")], HEADER, r"row 2 .* has a text of 19 characters"),
        ([*GOOD, ("x",)], HEADER, r"row 2 of .* has 1 fields, expected 2"),
        ([], HEADER, r"no usable row of 0"),
        ([("", "0.5"), ("x", "")], HEADER, r"1 without text, 1 without a score"),
        (GOOD[:1], HEADER, r"--threshold is 0.8, and 0 of 1 old scores reach it"),
        (GOOD[1:], HEADER, r"--threshold is 0.8, and 1 of 1 old scores reach it"),
        (GOOD, ("words", "score"), r"expected one of comment_text, .* for the text"),
        (GOOD, ("text", "points"), r"expected one of score, TOXICITY, .* for the old score"),
        (
            [(*GOOD[0], "0"), (*GOOD[1], "maybe")],
            (*HEADER, "label"),
            r"holds the labels .*'maybe' \(1\), the first that is none in row 1",
        ),
    ],
)
def test_a_bad_log_is_one_line_and_leaves_nothing(
    rows: list[tuple[str, ...]],
    header: tuple[str, ...],
    words: str,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log, out = write_csv(tmp_path / "log.csv", rows, header), tmp_path / "report"
    argv = ["--scores", str(log), "--repository", str(repository), "--out", str(out)]
    status, said = told(monkeypatch, capsys, *argv)
    assert status == 2 and said.out == "" and not out.exists()
    assert said.err.count("\n") == 1 and re.search(words, said.err), said.err
    assert MARKER not in said.err and f"has {MARKER}" not in said.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", b"", "is empty, without a header"),
        ("log.csv", b"text,score\n\xff\xfe,0.5\n", r"row 0 of .* is not UTF-8 in 'text'"),
        ("log.csv", b'text,score\n"open,0.5\n', "opens a quote that nothing closes"),
        ("log.jsonl", b"", "is empty, without an object"),
        ("log.jsonl", b'{"text": "a", "score": 0.5}\n{"text"\n', "row 1 is not JSON"),
        ("log.jsonl", b"[1]\n", "row 0 is no JSON object"),
        ("log.jsonl", b'{"text": "\\ud800", "score": 0.5}\n', "row 0 has half of a character"),
        ("log.jsonl", b'{"text": "a", "score": NaN}\n', r"row 0 .* has NaN as its score"),
        ("log.jsonl", b'{"text": "a", "score": true}\n', r"row 0 .* has true as its score"),
        ("log.jsonl", b'{"text": ["a"], "score": 0.5}\n', "row 0 has a list in 'text'"),
        ("log.jsonl", b"{" * 100_000, "row 0 is not"),
        ("log.jsonl.gz", b"no gzip", "cannot be read"),
        ("log.parquet", b"PAR1", "cannot be read"),
        ("log.txt", b"a\n", "expected a name that ends in .csv"),
        ("nothing.csv", None, "no file at"),
    ],
)
def test_a_damaged_file_is_refused(
    name: str, content: bytes | None, words: str, repository: Path, tmp_path: Path
) -> None:
    log = tmp_path / name
    if content is not None:
        log.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        migrate_main.migrate(config_of(log, repository=repository, out=tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_a_row_far_into_the_file_is_named(repository: Path, tmp_path: Path) -> None:
    rows = [(f"text {row}", row % 10 / 10, row % 2) for row in range(5000)]
    rows[4321] = ("text", 0.5, "maybe")
    log = write_csv(tmp_path / "log.csv", rows, (*HEADER, "label"))
    with pytest.raises(BadInput, match="the first that is none in row 4321"):
        migrate_main.migrate(config_of(log, repository=repository, out=tmp_path / "report"))


def test_a_file_in_place_of_the_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.touch()
    with pytest.raises(BadInput, match="a file, expected a folder"):
        migrate_main.migrate(config_of(tmp_path / "nothing.csv", out=out))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"threshold": 0}, "--threshold is 0"),
        ({"address": "127.0.0.1:8000"}, "--address is .*expected http://HOST:PORT"),
        ({"url": "127.0.0.1:8000", "version": 1}, "--version is of a repository"),
        ({"url": "https://h:1"}, "--url is 'https://h:1': expected HOST:PORT, http://"),
        ({"source": "other"}, "--source is 'other'"),
        ({"label_map": ("x",)}, "--label-map has 'x'"),
        ({"out": Path("a"), "student": Path("a")}, "--student is a, expected another folder"),
    ],
)
def test_flags_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        config_of(Path("x"), **fields)


def test_the_lines_to_change_hold_address_and_threshold() -> None:
    lines = [
        line for change in changes("https://s.example", 0.437, "INSULT") for line in change.lines
    ]
    assert "TALK_PERSPECTIVE_API_ENDPOINT=https://s.example/v1alpha1" in lines
    assert "TALK_TOXICITY_THRESHOLD=0.437" in lines and "Toxicity threshold: 43.7 %" in lines
    assert "TALK_PERSPECTIVE_MODEL=INSULT" in lines
    assert not any(
        "None" in line for change in changes("http://x", None, "T") for line in change.lines
    )


def test_a_running_server_gives_the_same(
    served: triton.ServeConfig,
    repository: Path,
    scored: list[tuple[str, float]],
    tmp_path: Path,
) -> None:
    log = write_log("csv", tmp_path, scored)
    documents = [
        migrate_main.migrate(
            config_of(log, threshold=middle(scored), out=tmp_path / f"report{number}", **by)
        )
        for number, by in enumerate(
            ({"repository": repository}, {"url": f"127.0.0.1:{served.http_port}"})
        )
    ]
    same = ("points", "correlation", "decisions", "curve", "log")
    assert [documents[0][name] for name in same] == [documents[1][name] for name in same]
    assert CUT not in {row["kind"] for row in documents[1]["kinds"]}, "a server does not say"


def test_no_server_is_one_line(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", GOOD, HEADER)
    with pytest.raises(BadInput, match="no server answers at"):
        migrate_main.migrate(
            config_of(log, url=f"127.0.0.1:{free_port()}", out=tmp_path / "report")
        )
