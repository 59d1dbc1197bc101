"""The monitor: what it counts, what it joins, when it raises an alarm and when it does not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyModel, free_port
from counting_server import SCORE_BOUNDS, TOKEN_BOUNDS, Counting, CountingDoor
from hypothesis import given
from hypothesis import strategies as st

from contract import HOST, BadInput
from contract import PUBLIC_MODEL as MODEL
from monitor import drift, series
from monitor.__main__ import run_monitor
from monitor.calibration import calibration_of
from monitor.config import MonitorConfig
from monitor.curated import CuratedSet, errors_of, read_sets
from monitor.exporter import Exporter, metric_names, serve
from monitor.judge import CHECKS
from monitor.labels import OUTCOMES, read_labels, sha256_of_text
from monitor.report import page
from monitor.state import MonitorState
from monitor.targets import MetricsTarget, Watched, watched
from monitor.watch import Monitor
from storage.files import write_json

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)


def usual(n: int, rng: np.random.Generator = RNG) -> np.ndarray:
    """Scores as a classifier gives them: most near 0, some near 1."""
    return np.where(rng.random(n) < 0.1, rng.beta(4, 1.5, n), rng.beta(0.7, 9, n))


def profile(scores: np.ndarray, **more: Any) -> dict[str, Any]:
    """profile.json of a version whose validation split had these scores and 20 tokens each."""
    n = len(scores)
    tokens = [0] * (len(TOKEN_BOUNDS) + 1)
    tokens[2] = n
    bins = np.histogram(scores, [0, *SCORE_BOUNDS])[0].tolist()
    return {
        "format": 1,
        "version": 1,
        "comments": n,
        "score_bins": bins,
        "token_bins": tokens,
        "words": 10 * n,
        "unknown_words": n // 5,
        "respelled_words": 0,
        "comments_cut": 0,
        "threshold": 0.5,
        "flagged": int((scores >= 0.5).sum()),
        "calibration": [
            {"low": 0, "high": 1, "comments": n, "mean_score": 0.1, "positives": n // 10}
        ],
        "groups": [],
        **more,
    }


def repository_with(folder: Path, document: dict[str, Any]) -> Path:
    write_json(folder / "toxicity" / "1" / "profile.json", document)
    return folder


@pytest.fixture
def watching(tmp_path: Path) -> Iterable[Any]:
    """`start(targets, **flags)`: a monitor of these targets, with a profile of usual scores."""
    repository = repository_with(tmp_path / "repository", profile(usual(20_000)))
    states: list[MonitorState] = []

    def start(
        *targets: MetricsTarget, doors: Sequence[MetricsTarget] = (), **flags: Any
    ) -> Monitor:
        for state in states:
            state.close()
        config = MonitorConfig(out=tmp_path / "out", **flags)
        states.append(MonitorState(config.out))
        where = Watched(targets, repository, flags.get("url"), doors=tuple(doors))
        return Monitor(config, where, states[-1])

    yield start
    for state in states:
        state.close()


def alarms(document: dict[str, Any]) -> set[str]:
    return {one["check"] for one in document["checks"] if one["state"] == "alarm"}


# --- Counting ----------------------------------------------------------------------------
def test_what_was_counted_between_two_readings_is_exact() -> None:
    counting = Counting()
    counting.scored([0.01, 0.05, 0.051, 0.99], unknown=3, refused=2)
    with counting.serving() as target:
        with urllib.request.urlopen(target.url) as answer:
            before = series.totals_of(answer.read().decode())
        counting.scored([0.05, 0.7], unknown=1)
        with urllib.request.urlopen(target.url) as answer:
            now = series.totals_of(answer.read().decode())
    (new,) = series.added(before, now).values()
    bounds, bins = series.histogram(new, series.SCORE)  # type: ignore[misc]
    assert bins[0] == 1 and bins[13] == 1 and bins.sum() == 2 and bounds[0] == 0.05
    assert series.total(new, series.UNKNOWN) == 1 and series.total(new, series.REFUSED) == 0
    assert series.by_label(now["1"], series.DECISIONS, "decision") == {"flagged": 2, "passed": 4}
    assert series.added({}, now) == series.added(now | {"1": {series.STARTS: 7}}, now)


def test_a_server_that_was_started_anew_loses_nothing() -> None:
    a, b = f"{series.COMMENTS}", f"{series.REQUESTS}"
    before = {"1": {a: 100.0, b: 9.0, series.STARTS: 1}, "2": {a: 5.0, b: 5.0, series.STARTS: 1}}
    fewer = {"1": {a: 3.0, b: 2.0, series.STARTS: 1}, "2": {a: 6.0, b: 6.0, series.STARTS: 1}}
    assert series.added(before, fewer) == {"1": {a: 3, b: 2}, "2": {a: 1, b: 1}}
    more = {"1": {a: 300.0, b: 11.0, series.STARTS: 2}}
    assert series.added(before, more) == {"1": {a: 300, b: 11}}


@given(st.lists(st.floats(0, 0.4), min_size=1, max_size=300), st.sampled_from((0.5, 0.95, 0.99)))
def test_a_quantile_lies_in_the_bin_of_the_true_one(times: list[float], q: float) -> None:
    bounds = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, np.inf])
    counts = np.histogram(times, [-1, *bounds])[0]
    # The bins are closed above.
    counts = np.bincount(np.searchsorted(bounds, times), minlength=len(bounds))
    true = np.quantile(times, q, method="inverted_cdf")
    found = series.quantile(bounds, counts, q)
    assert found is not None
    place = int(np.searchsorted(bounds, true))
    low = bounds[place - 1] if place else 0.0
    assert low - 1e-12 <= found <= bounds[place] + 1e-12


# --- Drift -------------------------------------------------------------------------------
def test_a_small_window_is_no_drift() -> None:
    """A hundred comments of the same population look like drift to the plain index."""
    reference = np.histogram(usual(20_000), [0, *SCORE_BOUNDS])[0]
    found = []
    for seed in range(200):
        window = np.histogram(usual(600, np.random.default_rng(seed)), [0, *SCORE_BOUNDS])[0]
        found.append(drift.of_bins(reference, window))
    assert not [one for one in found if one.size >= 0.1 and one.p_value < 0.001]
    assert np.mean([one.p_value < 0.05 for one in found]) < 0.12
    assert np.mean([one.size for one in found]) < 0.02


def test_drift_is_found() -> None:
    reference = np.histogram(usual(20_000), [0, *SCORE_BOUNDS])[0]
    more = np.histogram(np.concatenate([usual(400), RNG.beta(4, 1.5, 200)]), [0, *SCORE_BOUNDS])[0]
    found = drift.of_bins(reference, more)
    assert found.size >= 0.1 and found.p_value < 1e-6
    shares = drift.of_shares((2000, 100_000), (700, 10_000), 1000, 10_000)
    assert 3.4 < shares.size < 3.6 and shares.p_value < 1e-6
    few = drift.of_shares((2000, 100_000), (7, 100), 10, 10_000)
    assert few.p_value > 0.05


def test_nothing_is_no_difference() -> None:
    assert drift.of_bins(np.zeros(20), np.ones(20)).p_value == 1
    assert drift.of_bins(np.ones(20), np.zeros(20)).size == 0
    assert drift.of_shares((0, 0), (1, 2), 2, 0).p_value == 1


# --- A reading ---------------------------------------------------------------------------
def test_usual_traffic_is_well_and_drift_is_told(watching: Any) -> None:
    counting = Counting()
    counting.scored(usual(50))
    with counting.serving() as target:
        monitor = watching(target)
        first = monitor.step()
        assert first["state"] == "ok" and first["servers"][0]["version"] == "1"
        counting.scored(usual(1500), unknown=300)
        counting.refused.labels("1", "invalid").inc(900)  # the client's own fault
        well = monitor.step()
        assert well["state"] == "ok", well["alarms"]
        assert well["versions"]["1"]["windows"]["3600"]["comments"] == 1500
        states = {(one["check"], one["window_s"]): one["state"] for one in well["checks"]}
        assert states["score_drift", 3600.0] == "ok" and states["latency", 3600.0] == "ok"
        counting.scored(RNG.beta(4, 1.5, 700), unknown=6000, tokens=200, seconds=0.3, refused=200)
        found = monitor.step()
    expected = {"score_drift", "length_drift", "unknown_words_drift", "latency", "refusals"}
    assert alarms(found) == expected
    assert expected < set(CHECKS)


def refusals(document: dict[str, Any]) -> dict[str, tuple[str, float, float]]:
    """State, share and requests of each version of the last hour; all of them under ""."""
    return {
        one["version"]: (one["state"], one["value"], one["comments"])
        for one in document["checks"]
        if one["check"] == "refusals" and one["window_s"] == 3600
    }


def test_what_the_door_turns_away_is_judged_once_for_all_versions(watching: Any) -> None:
    """No server counts it, so no version is blamed for it."""
    counting, door = Counting(), CountingDoor()
    for version in ("1", "2"):
        counting.scored(usual(10), version=version)
    with counting.serving() as target, door.serving() as front:
        monitor = watching(target, doors=[front])
        monitor.step()
        for version in ("1", "2"):
            counting.scored(usual(600), version=version, unknown=120)
        counting.refused.labels("2", "invalid").inc(900)
        well = monitor.step()
        assert alarms(well) == set() and well["turned_away"] == {"3600": 0, "86400": 0}
        assert refusals(well) == dict.fromkeys("12", ("ok", 0, 600)) | {"": ("ok", 0, 1200)}
        door.turned_away(290)
        counting.scored([], version="2", refused=10)
        found = monitor.step()
        assert alarms(found) == {"refusals"} and found["turned_away"]["3600"] == 290
        (all_of_it,) = (line for line in found["alarms"] if line.startswith("refusals (3600 s)"))
        assert all_of_it.endswith(
            "20.00 % of 1,500 requests refused, 290 of them turned away at the door"
        )
        assert refusals(found) == {
            "1": ("ok", 0, 600),
            "2": ("alarm", 10 / 610, 610),
            "": ("alarm", 0.2, 1500),
        }
        assert "Turned away at the door in 1 h: 290 requests" in page(found)
        assert found["servers"] == well["servers"] and found["doors"][0]["answers"]
        # haproxy is started anew: what it counted since is all new.
        door.asked.clear()
        door.denied.clear()
        door.turned_away(40)
        assert monitor.step()["turned_away"]["3600"] == 330


def test_a_door_that_cannot_be_read_is_told(watching: Any) -> None:
    counting = Counting()
    counting.scored([0.1])
    with counting.serving() as target:
        nobody = MetricsTarget("door", f"http://{HOST}:{free_port()}/balancer/metrics")
        for front in (nobody, dataclasses.replace(target, name="door")):
            document = watching(target, doors=[front]).step()
            assert document["state"] == "error" and not document["doors"][0]["answers"]
            (line,) = document["errors"]
            assert line.startswith("what a door turns away is not counted: ")
            assert [one["name"] for one in document["servers"]] == ["replica-1"]


def test_the_door_of_servers_behind_one_is_watched_too() -> None:
    behind = [f"http://a:8002/replica-{number}/metrics" for number in (1, 2)]
    for urls, doors in (
        (behind, ["http://a:8002/balancer/metrics?scope=frontend"]),
        (["http://a:8002/metrics"], []),
        ([*behind, "http://b:8002/replica-1/metrics"], ["http://a:8002", "http://b:8002"]),
    ):
        found = watched(MonitorConfig(metrics_url=tuple(urls)))
        assert len(found.targets) == len(urls)
        assert len(found.doors) == len(doors)
        for door, url in zip(found.doors, doors, strict=True):
            assert door.url.startswith(url)


def test_too_few_comments_are_no_alarm(watching: Any) -> None:
    counting = Counting()
    counting.scored([0.1])
    with counting.serving() as target:
        monitor = watching(target)
        monitor.step()
        counting.scored([0.99] * 100, tokens=2000, seconds=3, refused=100)
        found = monitor.step()
    assert found["state"] == "ok"
    assert {one["state"] for one in found["checks"] if one["window_s"]} == {"few"}


def test_a_version_without_a_profile_is_held_against_its_first_traffic(watching: Any) -> None:
    counting = Counting()
    counting.scored(usual(10), version="7")
    with counting.serving() as target:
        monitor = watching(target, reference="traffic", reference_comments=1000)
        monitor.step()
        counting.scored(usual(1200), version="7")
        assert monitor.step()["versions"]["7"]["reference"]["source"] == "first traffic"
        counting.scored(RNG.beta(4, 1.5, 1200), version="7")
        assert alarms(monitor.step()) == {"score_drift"}


def test_replicas_that_differ_or_are_gone_are_told(watching: Any) -> None:
    old, new = Counting(), Counting()
    old.scored([0.1])
    new.scored([0.1], version="2")
    with old.serving() as one:
        with new.serving("replica-2") as other:
            monitor = watching(one, other)
            assert alarms(monitor.step()) == {"versions_differ"}
        assert alarms(monitor.step()) == {"server_down"}


def test_a_killed_monitor_loses_no_count(watching: Any) -> None:
    counting = Counting()
    counting.scored([0.1])
    with counting.serving() as target:
        watching(target).step()
        counting.scored(usual(321))
        document = watching(target).step()
        assert document["versions"]["1"]["windows"]["3600"]["comments"] == 321


def test_a_monitor_that_is_killed_at_any_moment_goes_on(
    tmp_path: Path,
) -> None:
    """The process itself, by SIGKILL: each comment is counted once, whenever it ended."""
    repository = repository_with(tmp_path / "r", profile(usual(1000)))
    counting = Counting()
    counting.scored([0.1])
    with counting.serving() as target:
        command = [sys.executable, "-m", "monitor", "--metrics-url", target.url, "--port", "0"]
        command += ["--repository", str(repository), "--out", str(tmp_path / "out")]
        subprocess.run([*command, "--once"], cwd=ROOT, check=True, capture_output=True)
        for after in (2.0, 3.1):
            running = subprocess.Popen([*command, "--every-s", "0.05"], cwd=ROOT)
            end = time.monotonic() + after
            while time.monotonic() < end:
                counting.scored([0.2, 0.3])
                time.sleep(0.01)
            running.kill()
            running.wait()
        scored = counting.counters["comments"].labels("1")._value.get() - 1
        done = subprocess.run([*command, "--once"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    document = json.loads((tmp_path / "out" / "monitor.json").read_text("utf-8"))
    assert document["versions"]["1"]["windows"]["3600"]["comments"] == scored


# --- Labels ------------------------------------------------------------------------------
def no_score(_: Sequence[str]) -> list[tuple[float, str]]:
    raise AssertionError("nothing was to be scored")


def test_labels_join_whenever_they_come(tmp_path: Path) -> None:
    state = MonitorState(tmp_path)
    scored, judged = tmp_path / "scored.jsonl", tmp_path / "judged.csv"
    scored.write_text('{"id": "a", "score": 0.9, "version": 3}\n{"id": "b", "score": 0.2, "version')
    judged.write_text("id,label,version\na,1,4\nc,0,\n")
    found = read_labels(state, tmp_path, 100.0, no_score).outcomes
    assert found == dict.fromkeys(OUTCOMES, 0) | {"joined": 1, "waiting": 2}
    with scored.open("a") as file:  # the unfinished row is finished, and rows come twice
        file.write('": 3}\n{"id": "c", "score": 0.4, "version": 3}\nno json\n{"id": "z"}\n')
        file.write('{"id": "a", "score": 0.9, "version": 3}\n')
    with judged.open("a") as file:
        file.write("a,1,3\na,0,3\nb,2,\n")
    found = read_labels(state, tmp_path, 200.0, no_score).outcomes
    expected = {"joined": 1, "duplicate": 2, "corrected": 1, "waiting": 1, "unreadable": 3}
    assert found == expected
    labels, scores = state.labelled(0)["3"]
    assert dict(zip(scores, labels, strict=True)) == {0.9: 0, 0.4: 0}
    assert state.waiting() == 1
    assert not any(read_labels(state, tmp_path, 300.0, no_score).outcomes.values())
    state.close()


def test_a_replaced_file_of_labels_changes_nothing_twice(tmp_path: Path) -> None:
    state = MonitorState(tmp_path)
    file = tmp_path / "labels.csv"
    file.write_text('id,score,version,label\n"a\n1",0.5,1,1\nb,0.7,1,0\n')
    assert read_labels(state, file, 1.0, no_score).outcomes["joined"] == 2
    shutil.copy(file, tmp_path / "copy")
    os.replace(tmp_path / "copy", file)  # noqa: PTH105
    assert read_labels(state, file, 2.0, no_score).outcomes["duplicate"] == 2
    assert len(state.labelled(0)["1"][0]) == 2
    state.close()


def test_comments_with_a_label_are_scored_and_not_kept(tmp_path: Path) -> None:
    """The file that `toxicity serve --labels` writes."""
    from serve.app.labels import LabelFile

    file = tmp_path / "labels.csv"
    text = 'what a "secret"\n, line'
    LabelFile(file).append(text, 1.0)
    LabelFile(file).append("harmless", 0.0)
    state = MonitorState(tmp_path / "state")
    asked: list[str] = []

    def score(texts: Sequence[str]) -> list[tuple[float, str]]:
        asked.extend(texts)
        return [(0.8, "5"), (0.1, "5")]

    assert read_labels(state, file, 1.0, score).outcomes["joined"] == 2
    assert asked == [text, "harmless"]
    assert state.labelled(0)["5"][1].tolist() in ([0.8, 0.1], [0.1, 0.8])
    assert state.judge(f"sha256 {sha256_of_text(text)}", 2.0, label=1.0) == "duplicate"
    state.close()
    for path in (tmp_path / "state").iterdir():
        assert b"secret" not in path.read_bytes()


def test_a_label_whose_comment_cannot_be_scored_waits_for_the_next_reading(tmp_path: Path) -> None:
    state = MonitorState(tmp_path / "state")
    file = tmp_path / "labels.csv"
    file.write_text("text,label\nhello,0\n")

    def fails(_: Sequence[str]) -> list[tuple[float, str]]:
        raise BadInput("no server answers")

    with pytest.raises(BadInput):
        read_labels(state, file, 1.0, fails)
    assert read_labels(state, file, 2.0, lambda _: [(0.1, "1")]).outcomes["joined"] == 1
    state.close()


@given(st.binary(max_size=300))
def test_no_file_of_labels_ends_the_monitor(tmp_path_factory: Any, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("labels")
    state = MonitorState(folder)
    for suffix in (".csv", ".jsonl"):
        (folder / f"labels{suffix}").write_bytes(content + b"\n")
    read_labels(state, folder, 1.0, lambda texts: [(0.5, "1") for _ in texts])
    state.close()


# --- Calibration -------------------------------------------------------------------------
def test_a_calibrated_model_is_seldom_an_alarm_and_another_one_is() -> None:
    false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = usual(300, rng)
        labels = rng.random(300) < scores
        false += calibration_of(labels, scores, 0.5).p_value < 0.001
        found = calibration_of(rng.random(300) < scores / 3, scores, 0.5)
        assert found.error > found.by_chance
    assert false <= 1
    scores = np.full(400, 0.8)
    found = calibration_of(np.arange(400) % 4 == 0, scores, 0.5)
    assert found.p_value < 0.001 and abs(found.error - 0.55) < 0.001
    assert found.precision["value"] == 0.25


def test_labels_that_disagree_with_the_scores_are_an_alarm(watching: Any, tmp_path: Path) -> None:
    counting = Counting()
    counting.scored([0.1])
    labels = tmp_path / "labels.jsonl"
    rows = [
        {"id": i, "score": s, "version": 1, "label": int(RNG.random() < s)}
        for i, s in enumerate(usual(500).tolist())
    ]
    labels.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with counting.serving() as target:
        monitor = watching(target, labels=labels, url=f"{HOST}:1")
        found = monitor.step()
        assert found["state"] == "ok" and found["labels"]["joined"] == 500
        corrected = [{"id": row["id"], "label": int(row["score"] < 0.9)} for row in rows]
        with labels.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in corrected)
        assert alarms(monitor.step()) == {"calibration"}


def test_a_version_without_a_profile_is_judged_at_its_own_threshold(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, labels = tmp_path / "published", tmp_path / "labels.jsonl"
    tiny_model.publish(repository, artifact={**tiny_model.artifact, "thresholds": {MODEL: 0.62}})
    tiny_model.publish(repository)  # which states none
    counting = Counting()
    for version in ("1", "2", "3"):  # the last one is not in the repository
        counting.scored([0.1], version=version)
    rows = [(version, at) for version in (1, 2, 3) for at in (0.62, 0.6, 0.5, 0.3)]
    text = [
        json.dumps({"id": i, "score": at, "version": version, "label": int(at > 0.61)})
        for i, (version, at) in enumerate(rows)
    ]
    labels.write_text("\n".join(text) + "\n")
    with counting.serving() as target:
        config = MonitorConfig(
            metrics_url=(target.url,), repository=repository, out=tmp_path / "out", labels=labels
        )
        run_monitor(dataclasses.replace(config, url=f"{HOST}:1", once=True))
    found = json.loads((config.out / "monitor.json").read_text("utf-8"))["versions"]
    said = {v: (one["decides"]["threshold"], one["decides"]["source"]) for v, one in found.items()}
    assert said == {"1": (0.62, "manifest"), "2": (0.5, "default"), "3": (0.5, "default")}
    counted = {v: one["calibration"]["precision"] for v, one in found.items()}
    assert [counted[v]["of"] for v in ("1", "2", "3")] == [1, 3, 3]
    assert counted["1"]["value"] == 1.0
    for shown in (capsys.readouterr().out, (config.out / "monitor.html").read_text("utf-8")):
        assert "flags from 0.62 on (its manifest says so)" in shown
        assert "(the default, for no profile and no manifest of it states one)" in shown


def test_a_profile_says_from_where_its_version_flags(watching: Any) -> None:
    counting = Counting()
    counting.scored([0.1])
    with counting.serving() as target:
        decides = watching(target).step()["versions"]["1"]["decides"]
    assert (decides["threshold"], decides["source"]) == (0.5, "profile")


# --- Groups ------------------------------------------------------------------------------
def test_error_rates_of_groups_are_counted_by_version() -> None:
    texts = tuple(f"{score}" for score in (0.9, 0.1, 0.9, 0.1, 0.6))
    labels = np.array([False, False, True, True, False])
    one = CuratedSet("set", texts, labels, ("a", "a", "a", "b", "b"))
    rows = errors_of([one], lambda t: [(float(x), "2") for x in t], lambda _: 0.7)
    assert {row["group"]: row for row in rows} == {
        "a": {
            **{"version": "2", "set": "set", "group": "a", "negatives": 2, "false_positives": 1},
            **{"positives": 1, "false_negatives": 0},
        },
        "b": {
            **{"version": "2", "set": "set", "group": "b", "negatives": 1, "false_positives": 0},
            **{"positives": 1, "false_negatives": 1},
        },
    }


def curated_file(folder: Path, n: int = 60) -> Path:
    """Harmless and other comments of two groups."""
    words = "you are a kind awful person and the idea is not so bad".split()
    rows = [f"{' '.join(RNG.choice(words, 5))},{i % 2},{'a' if i % 3 else 'b'}" for i in range(n)]
    path = folder / "groups.csv"
    path.write_text("text,label,group\n" + "\n".join(rows) + "\n")
    return path


def target_of(served: Any) -> tuple[MetricsTarget, str]:
    """Metrics and scores of the real server."""
    metrics = f"http://{HOST}:{served.metrics_port}/metrics"
    return MetricsTarget("replica-1", metrics), f"{HOST}:{served.http_port}"


@pytest.mark.slow
def test_curated_comments_go_through_the_live_server(
    served: Any, tmp_path: Path, watching: Any
) -> None:
    """The real server; its own profile says that group b had no false positive."""
    path = curated_file(tmp_path)
    target, url = target_of(served)
    monitor = watching(target, curated=(str(path),), url=url, curated_rate=500.0)
    document = monitor.step()
    assert document["errors"] == [] and document["servers"][0]["version"] == "1"
    rows = document["versions"]["1"]["groups"]
    assert {row["group"] for row in rows} == {"a", "b"} and sum(row["of"] for row in rows) == 60
    window = document["versions"]["1"]["windows"]["3600"]
    assert window["comments"] == 0, "the monitor's own comments are nobody's traffic"
    assert window["requests"] > 0
    from serve.client import score_comments

    (one,) = read_sets((str(path),))
    scores = score_comments(one.texts, url=url).probability
    for row in rows:
        chosen = np.array(one.groups) == row["group"]
        chosen &= one.labels == (row["rate"] == "fnr")
        wrong = (scores[chosen] >= 0.5) != one.labels[chosen]
        assert row["count"] == wrong.sum()


@pytest.mark.slow
def test_a_curated_set_that_changes_is_read_anew(
    served: Any, tmp_path: Path, watching: Any
) -> None:
    path = curated_file(tmp_path)
    target, url = target_of(served)
    flags = {"url": url, "curated_rate": 1000.0, "curated_every_s": 0.001}
    monitor = watching(target, curated=(str(path),), **flags)

    def sent() -> tuple[int, list[str]]:
        document = monitor.step()
        rows = document["versions"]["1"]["groups"]
        return sum(row["of"] for row in rows), document["errors"]

    assert sent() == (60, [])
    curated_file(tmp_path, 30)
    assert sent() == (30, [])
    path.write_text("text,label\nyou,1\n")
    found, (error,) = sent()
    assert found == 30 and error.startswith("curated sets were not read: "), error
    curated_file(tmp_path)
    assert sent() == (60, [])


def test_a_group_that_is_decided_worse_is_an_alarm(tmp_path: Path) -> None:
    from monitor.judge import group_checks

    config = MonitorConfig(out=tmp_path)
    known = {"negatives": 200, "false_positives": 4, "positives": 0, "false_negatives": 0}
    errors = {"version": "1", "set": "s", "group": "g", **known}
    ((check, _),) = group_checks(config, errors, known, 10)
    assert check.state == "ok"
    ((check, row),) = group_checks(config, {**errors, "false_positives": 40}, known, 10)
    assert check.state == "alarm" and row["low"] < 0.2 < row["high"]
    ((check, _),) = group_checks(config, {**errors, "negatives": 20}, known, 10)
    assert check.state == "ok", "of twenty comments that may be chance"


# --- What comes out ----------------------------------------------------------------------
@pytest.fixture
def document(watching: Any, tmp_path: Path) -> dict[str, Any]:
    counting = Counting()
    counting.scored([0.1])
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"id": 1, "score": 0.9, "version": 1, "label": 0}\n')
    with counting.serving() as target, CountingDoor().serving() as front:
        monitor = watching(target, doors=[front], labels=labels, url=f"{HOST}:1")
        monitor.step()
        counting.scored(usual(600))
        document = monitor.step()
    row = {"set": "s", "group": '<b a="', "rate": "fpr", "value": 0.1, "low": 0.05, "high": 0.2}
    row |= {"count": 1, "of": 10, "reference": 0.1, "p_value": 1.0, "against": "profile"}
    document["versions"]["1"]["groups"].append(row)
    return document


def test_the_page_shows_what_was_found(document: dict[str, Any]) -> None:
    text = page({**document, "alarms": ["<script>"], "state": "alarm"})
    assert "&lt;script&gt;" in text and "<script>" not in text and "&lt;b a=&#34;" in text
    assert text.count("data:image/png;base64,") == 1
    assert "nan" not in re.sub('base64,[^"]*', "", text)


def test_every_metric_is_given_and_promtool_takes_them(document: dict[str, Any]) -> None:
    exporter = Exporter()
    assert not list(exporter.collect())
    exporter.show(document)
    port = free_port()
    serve(MonitorConfig(port=port), exporter)
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
        text = answer.read().decode()
    with_samples = {
        line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"
    }
    assert with_samples == metric_names()
    with pytest.raises(BadInput, match=r"--port is \d+ .*expected a free port"):
        serve(MonitorConfig(port=port), exporter)
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_once_ends_with_a_status_for_cron(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = repository_with(tmp_path / "r", profile(usual(1000)))
    counting = Counting()
    counting.scored([0.1])
    with counting.serving() as target:
        config = MonitorConfig(
            metrics_url=(target.url,), repository=repository, out=tmp_path / "out", once=True
        )
        run_monitor(config)
        assert "ok: 1 of 1 servers answer" in capsys.readouterr().out
        assert (config.out / "monitor.html").stat().st_size > 1000
        labels = dataclasses.replace(config, labels=tmp_path / "labels.csv", url=f"{HOST}:1")
        (tmp_path / "labels.csv").write_text("text,label\nhello,1\n")
        with pytest.raises(BadInput, match="labels were not read: no server answers"):
            run_monitor(labels)
    with pytest.raises(SystemExit) as ended:
        run_monitor(config)
    assert ended.value.code == 1
    assert "ALARM server_down" in capsys.readouterr().out
    (tmp_path / "r" / "toxicity" / "1" / "profile.json").write_text("{}")
    with counting.serving() as target, pytest.raises(BadInput, match=r"profile\.json is not valid"):
        run_monitor(dataclasses.replace(config, metrics_url=(target.url,), out=tmp_path / "o"))


def test_flags_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no running server, expected"):
        watched(MonitorConfig(run_dir=tmp_path))
    with pytest.raises(BadInput, match="--metrics-url is 'here', expected"):
        watched(MonitorConfig(metrics_url=("here",)))
    with pytest.raises(BadInput, match=r"--labels is x\.txt, expected"):
        read_labels(MonitorState(tmp_path), Path("x.txt"), 1.0, no_score)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "state.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(BadInput, match="is not a monitor's state"):
        MonitorState(tmp_path / "two")
    state = MonitorState(tmp_path / "three")
    with pytest.raises(BadInput, match=r"cannot be used .*end the other monitor"):
        MonitorState(tmp_path / "three")
    state.close()


def test_it_runs_where_pytorch_is_not() -> None:
    said = "import sys, monitor.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False, timeout=120).returncode == 0
