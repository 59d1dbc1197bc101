"""Scores of repeated comments: bounded memory, the same bits, one version, both protocols."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyModel

from bench.serving.cache import bars
from bench.serving.paired import PairedMeasurement, in_turns
from contract import (
    FP32_INVARIANCE_ATOL,
    FP32_LOGIT_ATOL,
    HOST,
    MAX_BATCH_SIZE,
)
from export.scorer import Scorer
from serve import triton
from serve.client import Protocol, score_comments

MakeConfig = Callable[[Path], triton.ServeConfig]
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")


def _cached(model: TinyModel, cache_bytes: int) -> Scorer:
    return Scorer(model.onnx_path, model.tokenizer, cache_bytes=cache_bytes)


def test_least_recently_used_goes_first_and_the_bound_holds(tiny_model: TinyModel) -> None:
    one, two, three = "you are kind", "bad idea not", "thanks for work"  # as many ids each
    probe = _cached(tiny_model, 1 << 20)
    probe.score([one])
    entry = probe.cached_bytes
    assert entry > 0
    scorer = _cached(tiny_model, 2 * entry)
    for text, hits in ((one, 0), (two, 0), (one, 1), (three, 0), (one, 1), (two, 0)):
        assert scorer.score([text]).hits == hits, text
    assert scorer.cached_bytes == 2 * entry
    nothing = _cached(tiny_model, entry - 1)  # each is larger than the whole cache
    assert [nothing.score([one]).hits for _ in range(2)] == [0, 0]
    assert nothing.cached_bytes == 0


FILL = """
import itertools, json, psutil, sys
from pathlib import Path
from export.scorer import Scorer
from train.data.tokenizer import Tokenizer
tokenizer = Tokenizer.from_json(Path(sys.argv[2]).read_text("utf-8"))
ways = itertools.islice(itertools.product(tokenizer.vocabulary[3:], repeat=6), 90_000)
texts = [" ".join(words) for words in ways]
scorer = Scorer(Path(sys.argv[1]), tokenizer, cache_bytes=16 << 20)
scorer.score(texts[:500])
before = psutil.Process().memory_info().rss
for at in range(0, len(texts), 500):
    scorer.score(texts[at : at + 500])
print(json.dumps([psutil.Process().memory_info().rss - before, scorer.cached_bytes]))
"""


def test_bytes_are_those_that_the_entries_take(tiny_model: TinyModel) -> None:
    """In a new process: this one has memory to spare that it asked for earlier."""
    command = [sys.executable, "-c", FILL, tiny_model.onnx_path, tiny_model.tokenizer_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    taken, cached_bytes = json.loads(done.stdout)
    assert 15.9 * 2**20 < cached_bytes <= 16 << 20
    assert taken == pytest.approx(cached_bytes, rel=0.35)


def test_a_hit_has_the_computed_bits_and_a_repeat_runs_once(tiny_model: TinyModel) -> None:
    texts = ["you are kind", "bad idea", "YOU are  kind"]  # the same ids to the encoder
    tokens = [len(tiny_model.tokenizer.encode(text)) for text in texts]
    plain = Scorer(tiny_model.onnx_path, tiny_model.tokenizer).score(texts)
    assert (plain.hits, plain.tokens) == (0, sum(tokens))
    scorer = _cached(tiny_model, 1 << 20)
    first = scorer.score(texts)
    assert (first.hits, first.tokens) == (1, sum(tokens[:2]))
    assert first.logit[0] == first.logit[2] != first.logit[1]
    np.testing.assert_allclose(first.logit, plain.logit, atol=FP32_INVARIANCE_ATOL, rtol=0)
    again = scorer.score([*texts, ""])
    assert (again.hits, again.tokens) == (3, 1)
    np.testing.assert_array_equal(again.logit[:3], first.logit)
    assert scorer.score(texts).tokens == 0


def _counted(config: triton.ServeConfig, version: int = 1) -> dict[str, int]:
    time.sleep(0.3)  # the counters are a moment behind
    url = f"http://{HOST}:{config.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = str(answer.read(), "utf-8")
    found = re.findall(rf'^toxicity_(\w+){{version="{version}"}} (\d+)', text, re.MULTILINE)
    return {name.removesuffix("_total"): int(value) for name, value in found}


def _score(config: triton.ServeConfig, texts: list[str], protocol: Protocol) -> np.ndarray:
    port = config.http_port if protocol == "http" else config.grpc_port
    return score_comments(texts, protocol=protocol, url=f"{HOST}:{port}").logit


def test_repeats_over_both_protocols_and_the_reloaded_version_scores_anew(
    tiny_model: TinyModel,
    other_model: TinyModel,
    tmp_path: Path,
    make_server_config: MakeConfig,
) -> None:
    tiny_model.publish(tmp_path)
    config = make_server_config(tmp_path)
    triton.start(config)
    began = _counted(config)
    text = "you are a kind person and the idea is not so bad"
    answers = [_score(config, [spelled], protocol)[0] for protocol in PROTOCOLS
               for spelled in (text, f"  {text.upper()} ")]  # fmt: skip  # the same ids
    assert len(set(answers)) == 1
    assert answers[0] == pytest.approx(tiny_model.logit(text), abs=FP32_LOGIT_ATOL)
    used = {name: value - began[name] for name, value in _counted(config).items()}
    assert (used["requests"], used["comments"]) == (4, 4)
    assert (used["cache_hits"], used["cache_misses"]) == (3, 1)
    assert used["tokens"] == len(tiny_model.tokenizer.encode(text))
    assert used["cache_bytes"] > 0

    batch = [f"you {text}"] * MAX_BATCH_SIZE
    assert set(_score(config, [text, *batch[1:]], "http")) >= {answers[0]}
    used = {name: value - began[name] for name, value in _counted(config).items()}
    assert (used["cache_hits"], used["cache_misses"]) == (3 + MAX_BATCH_SIZE - 1, 2)

    other_model.publish(tmp_path)
    triton.start(config)
    for protocol in PROTOCOLS:
        after = _score(config, [text], protocol)[0]
        assert after == pytest.approx(other_model.logit(text), abs=FP32_LOGIT_ATOL)
        assert abs(after - answers[0]) > 0.01
    assert _counted(config, version=2)["cache_misses"] == 2  # with the example of `start`
    deadline = time.monotonic() + 20  # the old process ends a while after the new one serves
    while _counted(config).get("cache_bytes", 0):
        assert time.monotonic() < deadline
    triton.stop(config)


def test_size_0_turns_it_off(
    tiny_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig
) -> None:
    tiny_model.publish(tmp_path, cache_bytes=0)
    config = make_server_config(tmp_path)
    triton.start(config)
    for _ in range(3):
        _score(config, ["you are kind"], "http")
    used = _counted(config)
    assert used["comments"] == 4  # with the example
    assert used["tokens"] > 3 * 4
    assert used["cache_hits"] == used["cache_misses"] == used["cache_bytes"] == 0
    triton.stop(config)


# --- bench.serving.cache -------------------------------------------------------------------------
def _measured(cpu_us: float, hit_share: float) -> list[PairedMeasurement]:
    return [PairedMeasurement(1000.0, cpu_us, 1.0, 2.0, hit_share)]


@pytest.mark.parametrize(
    ("cpu_us", "holds"), [((102.9, 70.0), [True, True]), ((103.1, 80.1), [False, False])]
)
def test_bars_of_the_bench(cpu_us: tuple[float, float], holds: list[bool]) -> None:
    off = _measured(100.0, 0.0)
    taken = {
        (0, True): _measured(cpu_us[0], 0.0),
        (0, False): off,
        (50, True): _measured(cpu_us[1], 0.4),
        (50, False): off,
    }
    assert [bar["holds"] for bar in bars(taken).values()] == holds


def test_neither_of_a_pair_is_always_measured_first() -> None:
    asked: list[tuple[str, bool]] = []

    def measure(case: str, on: bool) -> PairedMeasurement:
        asked.append((case, on))
        return PairedMeasurement(1.0, float(len(asked)), 1.0, 1.0)

    taken = in_turns(2, ("a", "b"), measure)
    first = [("a", True), ("a", False), ("b", True), ("b", False)]
    assert asked == [*first, *((case, not on) for case, on in first)]
    assert [row.cpu_us for row in taken["b", False]] == [4, 7]


@pytest.mark.slow
def test_the_bench_runs_and_finds_repeats(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path / "repository")
    flags = ["--seconds", "0.5", "--rounds", "1", "--clients", "2", "--comments", "synthetic"]
    flags += ["--repository", str(tmp_path / "repository"), "--out", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving.cache", *flags],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr  # whatever its bars say
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    found = {(row["repeats_percent"], row["cache"]): row["hit_share"] for row in results}
    assert found[0, False] == found[20, False] == found[50, False] == 0
    assert found[50, True] > 0.3  # this model's few words make others the same ids too
