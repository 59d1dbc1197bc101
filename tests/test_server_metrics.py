"""What the server counts of itself: exact, by version, in the form that Prometheus wants."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_door import make_config, serving
from conftest import TinyModel
from prometheus_client.parser import text_string_to_metric_families

from bench.serving.histograms import histogram_bars
from contract import (
    ARRIVAL_HEADER,
    BATCH_BOUNDS,
    CHECK_COMMENT,
    DECISION_THRESHOLD,
    HISTOGRAMS,
    HOST,
    LARGE_BODY_BYTES,
    MAX_COMMENT_BYTES,
    PUBLIC_MODEL,
    SCORE_BINS,
    TEXT,
    TOKEN_BOUNDS,
)
from core.binding import Capacity
from export.reference import SCORE_BOUNDS, counts_upto
from export.repository import load_scorer
from export.scorer import probability
from serve import balancer, control, haproxy, triton
from serve.probe import INFER_PATH
from serve.supervisor import Supervisor

MakeConfig = Callable[[Path], triton.ServeConfig]
Labels = tuple[tuple[str, str], ...]
Scrape = dict[tuple[str, Labels], float]
HISTOGRAM_NAMES = (
    *("toxicity_request_duration_seconds", "toxicity_queue_duration_seconds"),
    *("toxicity_compute_duration_seconds", "toxicity_batch_comments"),
    *("toxicity_score", "toxicity_comment_tokens"),
)
COUNTER_NAMES = (
    *("toxicity_words_total", "toxicity_unknown_words_total", "toxicity_respelled_words_total"),
    *("toxicity_comments_cut_total", "toxicity_cache_hits_total", "toxicity_comments_total"),
    *("toxicity_requests_total", "toxicity_capacity_comments_per_second"),
)


QUEUED = "toxicity_queue_duration_seconds_count", (("version", "1"),)


def body(texts: list[str], **more: Any) -> bytes:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    return json.dumps({"inputs": [tensor], **more}).encode()


def post(port: int, content: bytes, headers: dict[str, str] | None = None) -> int:
    request = urllib.request.Request(f"http://{HOST}:{port}{INFER_PATH}", content, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def samples(text: str) -> Scrape:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def settled(url: str, name: str, expected: float, version: str = "1", **labels: str) -> Scrape:
    """The scrape in which a counter has its value; an answer is sent before it is counted."""
    key = name, tuple(sorted({"version": version, **labels}.items()))
    until = time.monotonic() + 15
    while (found := samples(scraped(url))).get(key) != expected:
        assert time.monotonic() < until, (key, expected, found.get(key))
        time.sleep(0.05)
    time.sleep(0.1)  # the rest of the same batch
    return samples(scraped(url))


def buckets(found: Scrape, name: str, version: str = "1") -> tuple[int, ...]:
    """Counts of a histogram's bins, the one beyond the last bound included."""
    by_bound = {
        float(dict(labels)["le"]): value
        for (sample, labels), value in found.items()
        if sample == f"{name}_bucket" and dict(labels)["version"] == version
    }
    cumulative = [by_bound[bound] for bound in sorted(by_bound)]
    return tuple(int(n) for n in np.diff([0, *cumulative]))


def url_of(config: triton.ServeConfig) -> str:
    return f"http://{HOST}:{config.metrics_port}/metrics"


# --- One server --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def own(
    tiny_model: TinyModel,
    tmp_path_factory: pytest.TempPathFactory,
    make_server_config: MakeConfig,
    comments: list[str],
) -> Iterator[triton.ServeConfig]:
    """A server whose version decides at a score that comments have."""
    repository = tmp_path_factory.mktemp("metrics") / "repository"
    tiny_model.publish(repository)
    score = np.sort(probability(load_scorer(repository).score(comments).logit))
    threshold = float(score[len(score) // 3])
    tiny_model.publish(
        repository, artifact={**tiny_model.artifact, "thresholds": {PUBLIC_MODEL: threshold}}
    )
    shutil.rmtree(repository / PUBLIC_MODEL / "1")
    config = make_server_config(repository)
    triton.launch(config)
    yield config
    triton.stop(config, quiet=True)


def test_counts_are_exact(own: triton.ServeConfig, comments: list[str]) -> None:
    """Those of the same comments, scored without a server."""
    url, count = url_of(own), "toxicity_comments_total"
    before = settled(url, count, 0, "2")
    parts = [comments[at : at + 50] for at in range(0, len(comments), 50)]
    for part in parts:
        assert post(own.http_port, body(part)) == 200
    after = settled(url, count, len(comments), "2")

    def grown(name: str, **labels: str) -> float:
        key = name, tuple(sorted({"version": "2", **labels}.items()))
        return after[key] - before[key]

    def bins(name: str) -> tuple[int, ...]:
        found = zip(buckets(after, name, "2"), buckets(before, name, "2"), strict=True)
        return tuple(a - b for a, b in found)

    offline = load_scorer(own.repository).score(comments)
    score = probability(offline.logit).astype(np.float64)
    assert bins("toxicity_score") == counts_upto(score, SCORE_BOUNDS)
    assert len(set(bins("toxicity_score"))) > 3, "the scores are too alike to tell"
    assert bins("toxicity_comment_tokens") == counts_upto(offline.lengths, TOKEN_BOUNDS)
    assert grown("toxicity_comment_tokens_sum") == offline.lengths.sum()
    assert grown("toxicity_score_sum") == pytest.approx(score.sum(), rel=1e-6)
    assert bins("toxicity_batch_comments") == counts_upto([len(p) for p in parts], BATCH_BOUNDS)
    assert grown("toxicity_batch_comments_sum") == len(comments)
    for name in ("request", "compute"):
        assert grown(f"toxicity_{name}_duration_seconds_count") == len(parts)
    assert grown("toxicity_compute_duration_seconds_sum") > 0
    longer = grown("toxicity_request_duration_seconds_sum")
    assert longer >= grown("toxicity_compute_duration_seconds_sum")
    assert grown("toxicity_words_total") == offline.words
    assert grown("toxicity_unknown_words_total") == offline.unknown_words
    assert grown("toxicity_respelled_words_total") == offline.respelled_words
    assert grown("toxicity_comments_cut_total") == offline.cut
    threshold = float(np.sort(score)[len(score) // 3])
    flagged = int((score >= threshold).sum())
    assert 0 < flagged != int((score >= DECISION_THRESHOLD).sum())
    assert grown("toxicity_decisions_total", decision="flagged") == flagged
    assert grown("toxicity_decisions_total", decision="passed") == len(comments) - flagged
    assert after["toxicity_capacity_comments_per_second", (("version", "2"),)] > 0
    repeated = grown("toxicity_cache_hits_total")
    assert post(own.http_port, body(parts[0])) == 200
    again = settled(url, count, len(comments) + len(parts[0]), "2")
    hits = again["toxicity_cache_hits_total", (("version", "2"),)]
    assert hits - after["toxicity_cache_hits_total", (("version", "2"),)] == len(parts[0])
    assert repeated < len(comments)


def test_refusals_are_counted_by_their_reason(own: triton.ServeConfig) -> None:
    url, name = url_of(own), "toxicity_requests_refused_total"
    reasons = {dict(labels)["reason"] for sample, labels in samples(scraped(url)) if sample == name}
    assert reasons == {"overloaded", "invalid", "failed"}
    long = "a" * (MAX_COMMENT_BYTES + 1)
    for texts in (["fine", long], [long], ["fine"]):
        assert post(own.http_port, body(texts)) == (400 if long in texts else 200)
    found = settled(url, name, 2, "2", reason="invalid")
    assert found[name, (("reason", "overloaded"), ("version", "2"))] == 0
    assert found[name, (("reason", "failed"), ("version", "2"))] == 0


def test_every_name_is_there_and_promtool_takes_it(own: triton.ServeConfig) -> None:
    text = scraped(url_of(own))
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {name: kinds.get(name) for name in HISTOGRAM_NAMES} == dict.fromkeys(
        HISTOGRAM_NAMES, "histogram"
    )
    assert not {name.removesuffix("_total") for name in COUNTER_NAMES} - kinds.keys()
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (`apt-get install prometheus`)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr  # 3: names that it would choose otherwise
    own_lines = [line for line in done.stderr.splitlines() if line.startswith(PUBLIC_MODEL)]
    # Counters of an earlier release: renaming them would break who reads them.
    assert all(
        "_us_total metric names should not contain abbreviated units" in x for x in own_lines
    )
    assert len(own_lines) <= 3, own_lines


def test_promtool_finds_what_is_wrong() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (`apt-get install prometheus`)")
    wrong = '# HELP a b\n# TYPE a counter\na{le="1"} 1\n'
    done = subprocess.run(
        [promtool, "check", "metrics"], input=wrong, capture_output=True, text=True
    )
    assert done.returncode == 3 and "le" in done.stderr


def test_a_new_version_counts_for_itself(
    tiny_model: TinyModel, other_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig
) -> None:
    repository = tmp_path / "repository"
    tiny_model.publish(repository)
    config = make_server_config(repository)
    triton.launch(config)
    post(config.http_port, body(["you are kind"] * 3))
    settled(url_of(config), "toxicity_comments_total", 3)
    other_model.publish(repository)
    triton.start(config)
    post(config.http_port, body(["you are kind"] * 5))
    found = settled(url_of(config), "toxicity_score_count", 5 + 1, "2")  # and its example
    assert ("toxicity_score_count", (("version", "1"),)) not in found, "unloaded"
    score = probability(load_scorer(repository).score(["you are kind"]).logit)
    assert sum(buckets(found, "toxicity_score", "2")) == 6
    place = counts_upto(score.astype(np.float64), SCORE_BOUNDS).index(1)
    assert buckets(found, "toxicity_score", "2")[place] >= 5
    triton.stop(config, quiet=True)


def test_without_histograms_it_counts_the_rest(
    tiny_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_server_config(tmp_path / "repository")
    triton.launch(config, _without_histograms)
    post(config.http_port, body(["you are kind"]))
    found = settled(url_of(config), "toxicity_decisions_total", 1, decision="passed")
    assert not [name for name, _ in found if name.startswith(HISTOGRAM_NAMES)]
    triton.stop(config, quiet=True)


def _without_histograms(models: Path) -> None:
    with (models / PUBLIC_MODEL / "config.pbtxt").open("a", encoding="utf-8") as file:
        file.write(f'parameters {{ key: "{HISTOGRAMS}" value {{ string_value: "0" }} }}\n')


@pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
def test_what_only_checks_a_server_is_not_counted(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The door scores a comment twice a second. As traffic it would be drift, or hide some."""
    tiny_model.publish(tmp_path / "repository")
    with serving(make_config(tmp_path / "run", tmp_path / "repository")) as config:
        url = f"http://{HOST}:{config.metrics_port}/replica-1/metrics"
        before = samples(scraped(url))
        count = "toxicity_comments_total", (("version", "1"),)
        time.sleep(3)  # several checks
        now = samples(scraped(url))
        assert {key: now[key] for key in now if key[0].startswith("toxicity_")} == {
            key: before[key] for key in before if key[0].startswith("toxicity_")
        }
        assert control.scores(
            balancer.inner_socket(Supervisor(config.run_dir).program_folder("haproxy"))
        )
        traffic = [
            [f"{CHECK_COMMENT} 1 you are awful"],
            [f"{CHECK_COMMENT} "],
            [CHECK_COMMENT],
            [f"you are awful {CHECK_COMMENT} 12"],
            [f"{CHECK_COMMENT} 1", f"{CHECK_COMMENT} 2"],
        ]
        for texts in traffic:
            assert post(config.http_port, body(texts)) == 200
        settled(url, count[0], before[count] + 6)
        assert post(config.http_port, body([f"{CHECK_COMMENT} 12"])) == 200
        time.sleep(0.5)
        assert samples(scraped(url))[count] == before[count] + 6


# --- Behind haproxy ----------------------------------------------------------------------
def test_the_door_says_when_a_request_came_and_nobody_else(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """A client's word for it does not count."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    tiny_model.publish(tmp_path / "repository")
    with serving(make_config(tmp_path / "run", tmp_path / "repository")) as config:
        url = f"http://{HOST}:{config.metrics_port}/metrics"
        long_ago = str(round(1e6 * (time.time() - 1800)))
        long = body(["you are kind " * (LARGE_BODY_BYTES // 12)])
        assert len(long) > LARGE_BODY_BYTES
        requests: list[tuple[bytes, dict[str, str]]] = [
            (body(["you are kind"]), {}),
            (body(["you are kind"]), {ARRIVAL_HEADER: long_ago}),
            (long, {ARRIVAL_HEADER: long_ago}),
            (body(["you are kind"], parameters={ARRIVAL_HEADER: long_ago}), {}),
        ]
        before = samples(scraped(url))[QUEUED]
        for content, headers in 5 * requests:
            headers["Content-Type"] = "application/json"
            assert post(config.http_port, content, headers) == 200
        found = samples(scraped(url))
        assert found[QUEUED] >= before + len(5 * requests) - 1, "what is counted after its answer"
        assert found["toxicity_queue_duration_seconds_sum", (("version", "1"),)] < 600
        assert found["toxicity_request_duration_seconds_sum", (("version", "1"),)] < 600
        assert found["toxicity_requests_total", (("version", "1"),)] == found[QUEUED]


# --- In the core -------------------------------------------------------------------------
def test_capacity_is_the_comments_of_a_busy_second_of_the_last_minute() -> None:
    capacity = Capacity()
    assert capacity.after(0, 0.0, 100.0) == 0
    assert capacity.after(100, 0.5, 101.0) == pytest.approx(200)
    assert capacity.after(300, 0.5, 130.0) == pytest.approx(400)
    assert capacity.after(300, 0.5, 159.0) == pytest.approx(700 / 1.5)
    assert capacity.after(100, 1.0, 161.0) == pytest.approx(700 / 2.0), "the first has gone"
    assert capacity.after(10, 0.1, 1000.0) == pytest.approx(100), "all but the newest have"


def test_bins_are_prometheus_buckets() -> None:
    assert counts_upto(np.array([0.0, 0.05, 0.050001, 1.0]), SCORE_BOUNDS) == (
        2,
        1,
        *(0,) * (SCORE_BINS - 3),
        1,
        0,
    )
    assert counts_upto([8, 9, 4096, 4097], TOKEN_BOUNDS)[-2:] == (1, 1)


# --- bench.serving.histograms ----------------------------------------------------------------
def test_the_bench_bounds_what_histograms_cost() -> None:
    for on, holds in ((101, 102, 300), True), ((103, 103, 100), False):
        found = histogram_bars([(cpu_us, 100) for cpu_us in on])
        assert found["cpu_with_histograms"]["holds"] is holds


@pytest.mark.slow
def test_the_bench_runs(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path / "repository")
    flags = ["--seconds", "1", "--rounds", "2", "--rate", "100", "--comments", "synthetic"]
    flags += ["--repository", str(tmp_path / "repository"), "--out", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "bench.serving.histograms", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr  # whatever its bar says
    rows = json.loads(done.stdout.splitlines()[-1])["results"]
    assert [row["histograms"] for row in rows] == [True, False]
    assert all(50 < row["rate_rps"] < 200 and row["cpu_us"] > 0 for row in rows)
    assert not any(row["failures"] for row in rows)
