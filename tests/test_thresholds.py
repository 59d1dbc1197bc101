"""Where a version decides: intervals, the curve, what is chosen on it; published and served."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from app_door import MODERATIONS, ask, make_config, served, serving
from conftest import Exported, TinyModel
from hypothesis import given
from hypothesis import strategies as st

from contract import (
    ARTIFACT_FILE,
    DECISION_THRESHOLD,
    HOST,
    PUBLIC_MODEL,
    REQUIRE_SIGNATURE,
    THRESHOLDS_FILE,
    BadInput,
    GateFailed,
)
from export import publish as publishing
from export import rethreshold, switch
from export.manifest import decision_threshold
from export.model_config import CONFIG_FILE
from export.repository import current, load_scorer, read_artifact, served_files, verify
from export.rethreshold import publish_thresholds, published_thresholds
from export.signing import make_keys
from serve import door, haproxy
from storage.files import sha256_of
from train.operating.choice import Goal, Labelled, Wish, default_threshold
from train.operating.curve import counts_at, curve_of
from train.operating.document import (
    Thresholds,
    decided_by,
    goals_at,
    read_thresholds,
    thresholds_of,
)
from train.operating.intervals import Estimate, Share, mixed, precision_at, ratio
from train.operating.words import summary, table, told
from train.validation import probability_of

ROOT = Path(__file__).parent.parent
shares = st.integers(1, 400).flatmap(lambda n: st.integers(0, n).map(lambda count: Share(count, n)))
prevalences = st.floats(1e-4, 0.9999)


def inside(found: Estimate) -> bool:
    value = math.inf if found.value is None else found.value
    low = -math.inf if found.low is None else found.low
    high = math.inf if found.high is None else found.high
    return low <= value <= high


# --- Intervals ---------------------------------------------------------------------------
@given(shares, shares, prevalences)
def test_a_value_is_inside_its_interval(a: Share, b: Share, prevalence: float) -> None:
    assert inside(a.estimate())
    assert inside(mixed(prevalence, a, b))
    found, precision = ratio(a, b), precision_at(prevalence, a, b)
    if a.count or b.count:
        assert inside(found) and found.low is not None
        assert (found.value is None) == (b.count == 0) == (found.high is None)
        assert precision.value is not None and inside(precision)
        assert precision.low is not None and precision.high is not None
        assert 0 <= precision.low <= precision.high <= 1
    else:
        assert found == precision == Estimate(None, None, None)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """Values as in Brown, Cai and DasGupta (2001) and by hand."""
    none_of_ten = Share(0, 10).to_json()
    assert none_of_ten["low"] == 0 and none_of_ten["high"] == pytest.approx(0.2775, abs=1e-4)
    half = Share(5, 10).to_json()
    assert (half["count"], half["of"], half["value"]) == (5, 10, 0.5)
    assert (half["low"], half["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    nothing = {"count": 0, "of": 0, "value": None, "low": None, "high": None}
    assert Share(0, 0).to_json() == nothing


def test_the_ratios_interval_is_the_published_one() -> None:
    """The example of Koopman 1984: 36 of 40 over 16 of 80."""
    found = ratio(Share(36, 40), Share(16, 80))
    assert (found.value, found.low, found.high) == pytest.approx((4.5, 2.94, 7.15), abs=0.005)
    back = ratio(Share(16, 80), Share(36, 40))
    assert found.high is not None and back.low == pytest.approx(1 / found.high, rel=1e-6)


def test_the_intervals_cover_what_they_promise() -> None:
    rng, covered, n = np.random.default_rng(0), np.zeros(2), 300
    for _ in range(n):
        top, bottom = (Share(int(rng.binomial(200, p)), 200) for p in (0.3, 0.05))
        for at, (found, truth) in enumerate(
            [
                (ratio(top, bottom), 6.0),
                (mixed(0.1, top, bottom), 0.1 * 0.3 + 0.9 * 0.05),
            ]
        ):
            assert found.low is not None
            high = math.inf if found.high is None else found.high
            covered[at] += found.low <= truth <= high
    assert ((covered / n > 0.92) & (covered / n < 0.99)).all(), covered / n


def test_precision_elsewhere_is_bayes() -> None:
    found = precision_at(0.01, Share(80, 100), Share(20, 1000))
    assert found.value == pytest.approx(0.008 / (0.008 + 0.99 * 0.02))
    assert precision_at(0.01, Share(80, 100), Share(0, 1000)).value == 1


# --- The curve ---------------------------------------------------------------------------
def scored(n: int = 3000, toxic: float = 0.1, offset: float = -3.0) -> tuple[np.ndarray, ...]:
    """Labels and calibrated probabilities of comments that two normal distributions made."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < toxic).astype(float)
    return labels, probability_of(1.5 * rng.normal(size=n) + 3 * labels + offset)


def labelled(labels: np.ndarray, probability: np.ndarray) -> Labelled:
    return Labelled.of(labels, probability, [str(row) for row in range(len(labels))])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60).filter(
        lambda rows: len({toxic for toxic, _ in rows}) == 2
    )
)
def test_each_points_counts_are_those_of_its_threshold(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([toxic for toxic, _ in rows], float)
    probability = np.array([score / 21 for _, score in rows])
    curve = curve_of(labels, probability)
    assert DECISION_THRESHOLD in curve.threshold
    assert (np.diff(curve.threshold) < 0).all()
    for threshold, hits, false in zip(
        curve.threshold, curve.true_positives, curve.false_positives, strict=True
    ):
        recall, fpr = counts_at(labels, probability, float(threshold))
        assert (recall.count, fpr.count) == (hits, false)
    assert curve.true_positives[-1] == curve.toxic == labels.sum()


def test_a_thin_curve_has_the_same_points_and_fewer_of_them() -> None:
    curve = curve_of(*scored(20_000, 0.2))
    thin = curve.thinned(200)
    assert len(curve.threshold) > 1000 and 100 < len(thin.threshold) <= 201
    where = np.searchsorted(-curve.threshold, -thin.threshold)
    assert (curve.true_positives[where] == thin.true_positives).all()
    assert DECISION_THRESHOLD in thin.threshold


# --- What is chosen ----------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["precision", "alarms"])
def test_a_goal_gets_the_lowest_threshold_that_reaches_it(kind: Any) -> None:
    labels, probability = scored()
    goal = Goal(kind, 0.8 if kind == "precision" else 10, 0.02)

    def reached(threshold: float) -> bool:
        recall, fpr = counts_at(labels, probability, threshold)
        flagged = 0.02 * recall.value + 0.98 * fpr.value
        return flagged > 0 and (
            0.02 * recall.value / flagged >= 0.8 if kind == "precision" else 1000 * flagged <= 10
        )

    threshold = goal.threshold(curve_of(labels, probability))
    assert threshold is not None and reached(threshold)
    lower = np.unique(probability[(labels > 0) & (probability < threshold)])
    assert not any(reached(float(below)) for below in lower)


def test_what_cannot_be_reached_is_said_and_no_threshold_made_up() -> None:
    labels, probability = scored()
    found = thresholds_of(labelled(labels, probability), source="here", scores="these")
    by_goal = {(one.goal, one.target, one.prevalence): one for one in found.goals}
    assert len(by_goal) == 4 * (4 + 4)
    rare = by_goal["precision", 0.95, 0.001]
    assert (rare.threshold, rare.effect, rare.why) == (None, None, "not reachable")
    assert "not reachable" in table(found)
    # The few highest scores are all of toxic comments: that says nothing of 1 in 1,000.
    best = curve_of(labels, probability)
    assert best.precision(0.001)[best.true_positives + best.false_positives >= 5].max() == 1
    noise = labelled(labels, np.random.default_rng(1).random(len(labels)))
    useless = thresholds_of(noise, source="here", scores="noise")
    assert not [
        o for o in useless.goals if o.goal == "precision" and o.threshold and o.target > 0.5
    ]


def test_thresholds_are_judged_on_comments_that_they_were_not_chosen_on() -> None:
    """Scores that learned their labels by heart in copies: a fold has all copies of a text."""
    rng = np.random.default_rng(0)
    labels, scores = (
        np.repeat(rng.random(200) < 0.3, 3).astype(float),
        np.repeat(rng.random(200), 3),
    )
    found = Labelled.of(labels, scores, [str(row // 3) for row in range(600)])
    assert len(found.folds) == 5
    for chosen_on, judged_on in found.folds:
        assert not {row // 3 for row in chosen_on} & {row // 3 for row in judged_on}
        assert len(chosen_on) + len(judged_on) == 600
    goal = Goal("precision", 0.38, 0.3)
    threshold = goal.threshold(found.curve)
    assert threshold is not None  # by chance, on the comments that it was chosen on
    judged = found.judged(goal.threshold)
    assert judged is not None and judged.threshold == threshold
    same = counts_at(labels, scores, threshold)
    assert judged.effect(0.3).precision.value < same[0].count / (same[0].count + same[1].count)
    again = Labelled.of(labels, scores, [str(row // 3) for row in range(600)])
    assert again.judged(goal.threshold) == judged


def test_the_default_is_a_half_where_scores_reach_it() -> None:
    rule, decided = default_threshold(labelled(*scored()), Wish())
    assert decided.threshold == DECISION_THRESHOLD and "default" in rule


def test_where_no_score_reaches_a_half_that_is_said_and_another_threshold_decides() -> None:
    labels, probability = scored(offset=-6.0)
    low = 0.49 * probability / probability.max()
    found = thresholds_of(labelled(labels, low), source="here", scores="these")
    assert 0 < found.decision.threshold < 0.5
    assert found.decision.rule == "precision 0.5 where 10.6 % are toxic, as no score reaches 0.5"
    assert found.counted.highest < 0.5
    said = "\n".join(told(found))
    assert "no score of it reaches 0.5" in said and "at most" not in said
    assert "precision 0.9" in said and "alarms 10 of 1,000" in said
    inverse = labelled(labels, 0.4 * (1 - probability))
    assert default_threshold(inverse, Wish())[0] == "the highest F1, as no score reaches 0.5"


def test_a_wish_is_met_or_refused_with_what_can_be() -> None:
    these = labelled(*scored())
    found = thresholds_of(these, source="here", scores="these", wish=Wish(0.8, 0.05))
    assert found.decision.rule == "precision 0.8 where 5 % are toxic"
    assert found.decision.at[0].prevalence == 0.05
    assert found.decision.at[0].precision.value == pytest.approx(0.8, abs=0.1)
    with pytest.raises(BadInput, match=r"is 0.99, not reachable where 0.1 % are toxic, expected"):
        thresholds_of(these, source="here", scores="these", wish=Wish(0.99, 0.001))


def test_few_comments_say_so() -> None:
    labels, probability = scored(120)
    found = thresholds_of(labelled(labels, probability), source="here", scores="these")
    assert any(line.startswith("few comments: ") for line in summary(found))
    one = np.array([1.0, 0, 0]), np.array([0.9, 0.2, 0.1])
    found = thresholds_of(labelled(*one), source="here", scores="these")
    assert found.counted.folds == 0 and "they are too few" in summary(found)[0]
    with pytest.raises(BadInput, match="0 of 5 labelled comments are toxic, expected some of each"):
        labelled(np.zeros(5), np.arange(5) / 5)


# --- The file ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def thresholds() -> Thresholds:
    return thresholds_of(labelled(*scored()), source="validation split", scores="these")


def test_the_file_comes_back_and_serves_any_prevalence(
    thresholds: Thresholds, tmp_path: Path
) -> None:
    path = tmp_path / THRESHOLDS_FILE
    path.write_text(thresholds.to_text())
    read = read_thresholds(path, "mend it")
    assert read == thresholds
    more = goals_at(read, 0.03)
    assert [one.prevalence for one in more] == [0.03] * 8
    goal = Goal("precision", 0.5, 0.03)
    assert more[0].threshold == goal.threshold(curve_of(*scored()))
    again = decided_by(read, 0.5, 0.03)
    assert again.decision.threshold == more[0].threshold
    assert dataclasses.replace(again, decision=read.decision) == read
    with pytest.raises(BadInput, match=r"--threshold-precision is 0\.99"):
        decided_by(read, 0.99, 0.001)
    path.write_text(thresholds.to_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BadInput, match=r"is not valid: format: .*; mend it$"):
        read_thresholds(path, "mend it")


# --- A published version -----------------------------------------------------------------
def decided(thresholds: Thresholds, threshold: float) -> Thresholds:
    decision = dataclasses.replace(thresholds.decision, threshold=threshold, rule="a test's")
    return dataclasses.replace(thresholds, decision=decision)


@pytest.fixture
def repository(tiny_model: TinyModel, thresholds: Thresholds, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    tiny_model.publish(folder, thresholds=decided(thresholds, 0.62))
    return folder


def test_the_manifest_covers_the_thresholds(
    repository: Path, tiny_model: TinyModel, thresholds: Thresholds
) -> None:
    folder = repository / PUBLIC_MODEL / "1"
    assert decision_threshold(verify(repository)) == 0.62
    assert published_thresholds(repository) == decided(thresholds, 0.62)
    assert served_files(repository)[THRESHOLDS_FILE] == sha256_of(folder / THRESHOLDS_FILE)
    config = (repository / PUBLIC_MODEL / CONFIG_FILE).read_text()
    assert 'key: "threshold"' in config and '"0.62"' in config
    (folder / THRESHOLDS_FILE).write_text(thresholds.to_text())
    with pytest.raises(BadInput, match=r"thresholds\.json is damaged"):
        verify(repository)
    (folder / THRESHOLDS_FILE).unlink()
    with pytest.raises(BadInput, match=r"thresholds\.json is missing"):
        verify(repository)
    # An older version has none, and none is asked for.
    assert tiny_model.publish(repository) == 2
    assert published_thresholds(repository) is None
    assert decision_threshold(read_artifact(repository)) == DECISION_THRESHOLD
    assert "threshold" not in (repository / PUBLIC_MODEL / CONFIG_FILE).read_text()


def test_new_thresholds_are_a_new_version_that_differs_in_nothing_else(
    repository: Path, thresholds: Thresholds
) -> None:
    before = read_artifact(repository)
    assert publish_thresholds(repository, 1, decided(thresholds, 0.3)) == current(repository) == 2
    after = verify(repository)
    changed = {"version", "created", "files", "thresholds", "rethresholded"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert after["rethresholded"] == 1 and decision_threshold(after) == 0.3
    other = {name for name in after["files"] if after["files"][name] != before["files"][name]}
    assert other == {THRESHOLDS_FILE}
    texts = ["you are kind", "awful person"]
    scores = [load_scorer(repository, version).score(texts).logit for version in (1, 2)]
    assert (scores[0] == scores[1]).all()
    assert decision_threshold(read_artifact(repository, 1)) == 0.62


def test_a_version_that_may_not_serve_gets_no_thresholds(
    tiny_model: TinyModel,
    repository: Path,
    thresholds: Thresholds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    red = {**tiny_model.artifact, "measured": {"fp32_shapes": 1.0}}
    tiny_model.publish(repository, artifact=red)
    with pytest.raises(GateFailed, match="fp32_shapes"):
        publish_thresholds(repository, 2, thresholds)
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    make_keys(private, public)
    monkeypatch.setenv(REQUIRE_SIGNATURE, str(public))
    with pytest.raises(BadInput, match="--sign-key"):
        publish_thresholds(repository, 1, thresholds)
    monkeypatch.delenv(REQUIRE_SIGNATURE)
    (repository / PUBLIC_MODEL / "1" / "model.onnx").write_bytes(b"other")
    with pytest.raises(BadInput, match="damaged"):
        publish_thresholds(repository, 1, thresholds)
    assert sorted(p.name for p in (repository / PUBLIC_MODEL).iterdir() if p.is_dir()) == ["1", "2"]
    assert current(repository) == 2


@pytest.mark.parametrize(
    ("module", "step", "call"),
    [
        *((rethreshold, "link_or_copy", n) for n in (1, 4)),
        (rethreshold, "write_atomically", 1),
        *((publishing, step, 1) for step in ("write_atomically", "announce", "put_folder")),
        (switch, "write_atomically", 2),
    ],
)
def test_a_failure_at_any_step_changes_nothing(
    repository: Path,
    thresholds: Thresholds,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    call: int,
) -> None:
    def everything() -> dict[Path, bytes]:
        files = (path for path in sorted(repository.rglob("*")) if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != ".lock"}

    before, real, calls = everything(), getattr(module, step), 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device", str(args[0]))
        return real(*args)

    monkeypatch.setattr(module, step, failing)
    with pytest.raises(BadInput, match="No space left on device"):
        publish_thresholds(repository, 1, thresholds)
    monkeypatch.undo()
    assert everything() == before
    assert publish_thresholds(repository, 1, thresholds) == 2


# --- The command -------------------------------------------------------------------------
def command(*flags: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toxicity", "thresholds", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture
def labels_file(tiny_model: TinyModel, comments: list[str], tmp_path: Path) -> Path:
    """Labels that mostly follow the model's own scores, each comment three times."""
    rng = np.random.default_rng(0)
    texts = [text for text in dict.fromkeys(comments) if text.strip()][:80]
    noisy = np.array([tiny_model.logit(text) for text in texts])
    noisy += rng.normal(scale=noisy.std() / 2, size=len(texts))
    path = tmp_path / "own.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text, value in zip(texts, noisy, strict=True):
            writer.writerows([[text, int(value > np.median(noisy))]] * 3)
    return path


@pytest.mark.slow
def test_a_sites_own_labels_give_a_version_of_its_own(repository: Path, labels_file: Path) -> None:
    done = command(
        *("--repository", repository, "--data", labels_file, "--publish", "--json"),
        *("--threshold-precision", "0.7", "--prevalence", "0.4"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counted"]["source"] == "own.csv" and document["counted"]["folds"] == 5
    assert document["calibration"]["slope"] > 0
    assert document["decision"]["rule"] == "precision 0.7 where 40 % are toxic"
    assert current(repository) == 2
    found = published_thresholds(repository)
    assert found is not None and found.decision.threshold == document["decision"]["threshold"]
    text = (repository / PUBLIC_MODEL / "2" / THRESHOLDS_FILE).read_text()
    assert "awful" not in text and str(labels_file.parent) not in text
    shown = command("--repository", repository, "--prevalence", "0.25")
    assert shown.returncode == 0 and "calibration of these comments" in shown.stdout
    assert shown.stdout.count("25 %   ") == 8


@pytest.mark.slow
def test_mistakes_are_one_line_and_an_older_version_says_what_it_is(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    tiny_model.publish(folder)
    done = command("--repository", folder)
    assert done.returncode == 0
    assert "has no thresholds.json: it decides from 0.5 on" in done.stdout
    one_class = tmp_path / "one.csv"
    one_class.write_text("text,label\na,0\nb,0\n")
    for flags, words in (
        (("--publish",), "--publish is given, expected --data or --threshold-precision with it"),
        (("--prevalence", "0.1"), "has no thresholds.json, expected it"),
        (("--threshold-precision", "2"), "--threshold-precision is"),
        (("--data", one_class), "one.csv"),
    ):
        done = command("--repository", folder, *flags)
        assert done.returncode == 2, flags
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr
    assert sorted(p.name for p in (folder / PUBLIC_MODEL).iterdir() if p.is_dir()) == ["1"]
    assert (folder / PUBLIC_MODEL / "1" / ARTIFACT_FILE).is_file()


@pytest.mark.slow
def test_a_training_and_its_export_write_their_thresholds(
    trained_run: Path, exported_of: Callable[[str], Exported]
) -> None:
    of_run = read_thresholds(trained_run / THRESHOLDS_FILE, "")
    assert of_run.counted.source == "validation split"
    config, _ = exported_of("int8")
    found = published_thresholds(config.repository)
    assert found is not None and found.counted.scores == "the INT8 graph"
    assert (found.counted.toxic, found.counted.harmless) == (
        of_run.counted.toxic,
        of_run.counted.harmless,
    )
    assert decision_threshold(read_artifact(config.repository)) == found.decision.threshold


# --- Served ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, thresholds: Thresholds, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("thresholds")
    texts = ["you are kind", "awful person and the idea"]
    at = float(np.mean(probability_of(np.array([tiny_model.logit(text) for text in texts]))))
    tiny_model.publish(folder / "repository", thresholds=decided(thresholds, at))
    config = make_config(folder / "run", folder / "repository", grpc=True)
    with serving(config):
        yield config


@pytest.mark.slow
def test_the_server_decides_by_its_versions_threshold(opened: door.DoorConfig) -> None:
    texts = ["you are kind", "awful person and the idea"]
    threshold = decision_threshold(read_artifact(opened.repository))
    scores = served(opened, *texts)
    flagged = [score >= threshold for score in scores]
    assert sorted(flagged) == [False, True]
    said = {"probability": scores, "model_version": "1", "flagged": flagged, "threshold": threshold}
    assert ask(opened, "/score", {"text": texts, "decide": True})[:2] == (200, said)
    own = {"probability": scores[0], "model_version": "1", "flagged": True, "threshold": 0.0}
    assert ask(opened, "/score", {"text": texts[0], "threshold": 0})[:2] == (200, own)
    for bad in (1.5, "high", None):
        status, answer, _ = ask(opened, "/score", {"text": "a", "decide": bad, "threshold": bad})
        assert status == 400 and '"threshold": a number from 0 to 1' in answer["error"]
    _, moderated, _ = ask(opened, MODERATIONS, {"input": texts})
    assert [one["flagged"] for one in moderated["results"]] == flagged


@pytest.mark.slow
def test_a_client_of_triton_can_read_the_threshold(opened: door.DoorConfig) -> None:
    threshold = decision_threshold(read_artifact(opened.repository))
    http = tritonclient.http.InferenceServerClient(f"{HOST}:{opened.http_port}")
    found = http.get_model_config(PUBLIC_MODEL)["parameters"]["threshold"]["string_value"]
    assert float(found) == threshold
    http.close()
    with tritonclient.grpc.InferenceServerClient(f"{HOST}:{opened.grpc_port}") as client:
        config = client.get_model_config(PUBLIC_MODEL).config
    assert float(config.parameters["threshold"].string_value) == threshold


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_score_command_shows_the_decision(opened: door.DoorConfig, protocol: str) -> None:
    texts = ["you are kind", "awful person and the idea"]
    threshold = decision_threshold(read_artifact(opened.repository))
    port = opened.http_port if protocol == "http" else opened.grpc_port
    address = ("--protocol", protocol, "--url", f"{HOST}:{port}")
    done = subprocess.run(
        [sys.executable, "-m", "serve.score", *address, "--json", *texts],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["flagged"] for row in rows] == [row["probability"] >= threshold for row in rows]
    assert {row["threshold"] for row in rows} == {threshold}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_scored_file_has_the_decision_where_it_is_asked_for(
    repository: Path, tmp_path: Path, form: str
) -> None:
    import pandas as pd

    texts = tmp_path / "comments.csv"
    texts.write_text("text\nyou are kind\nawful person and the idea\n")
    out = tmp_path / f"scored.{form}"

    def score(*flags: Any) -> subprocess.CompletedProcess[str]:
        given_ = ("--file", texts, "--repository", repository, "--out", out, "--processes", 1)
        return subprocess.run(
            [sys.executable, "-m", "serve.score", *map(str, (*given_, *flags))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
        )

    readers = {
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    for flags, threshold in ((("--decide",), 0.62), (("--threshold", 0.01), 0.01), ((), None)):
        done = score(*flags, "--overwrite")
        assert done.returncode == 0, done.stderr
        frame = readers[form](out)
        assert ("flagged" in frame) == (threshold is not None)
        if threshold is not None:
            assert f"flagged from {threshold:g} on" in done.stdout
            assert frame["flagged"].dtype == bool
            assert (frame["flagged"] == (frame["probability"] >= threshold)).all()
