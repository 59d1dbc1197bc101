"""Real Prometheus and Alertmanager over two real servers and the monitor: break it, see who calls.

Behind haproxy: tests/test_alerts_door.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from alerting import WORDS, Alerting, alerting, until
from conftest import TinyModel

from contract import HOST, PUBLIC_MODEL, ToxicityError
from serve import triton
from serve.client import score_comments

pytestmark = pytest.mark.slow

BATCH = 64
"""Comments of a request. There are few requests, so that no alert of latency can come of how busy
the machine of the tests is: those need 300 in a minute, an hour of the true rules."""
LENGTH = 8
"""Words of a comment."""
FLAGGED_FROM = 0.09
"""The version's threshold: about half of the comments reach it."""


@dataclass
class Traffic:
    """What the clients send, until a test changes it."""

    urls: list[str]
    draw: Callable[[np.random.Generator], list[str]]
    done: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        rng = np.random.default_rng(0)
        while not self.done.wait(0.5):
            for url in list(self.urls):
                with contextlib.suppress(ToxicityError):
                    score_comments(self.draw(rng), url=url)


def usual(rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.choice(WORDS, LENGTH)) for _ in range(BATCH)]


@dataclass
class Stack(Alerting):
    """All that runs."""

    servers: list[triton.ServeConfig]
    traffic: Traffic
    labels: Path
    curated: Path


@pytest.fixture
def stack(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_model: TinyModel,
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> Iterator[Stack]:
    """Two servers with a repository each, load, monitor, Prometheus, Alertmanager.

    The parameter is more flags of the monitor, `{curated}` the file of a curated set.
    """
    servers = []
    for number in (1, 2):
        stated = {**tiny_model.artifact, "thresholds": {PUBLIC_MODEL: FLAGGED_FROM}}
        tiny_model.publish(tmp_path / f"repository-{number}", artifact=stated)
        servers.append(make_server_config(tmp_path / f"repository-{number}"))
        triton.start(servers[-1])

    def replicas(example: str) -> str:
        """Servers of their own, with no haproxy in front."""
        blocks = "".join(
            f'      - targets: ["{HOST}:{server.metrics_port}"]\n'
            f"        labels: {{replica: replica-{number}}}\n"
            for number, server in enumerate(servers, 1)
        )
        block = r"      - targets: \[\"127.0.0.1:8002\"\]\n        labels: .*\n"
        example, found = re.subn(block, blocks, example)
        assert found == 1
        example, found = re.subn(r"  - job_name: toxicity-balancer\n(?:    .*\n)+", "", example)
        assert found == 1
        return example

    urls = [f"{HOST}:{server.http_port}" for server in servers]
    traffic = Traffic(urls, usual)
    labels, curated = tmp_path / "labels.jsonl", tmp_path / "groups.csv"
    labels.touch()
    write_curated(curated, tiny_model)
    monitor = (
        *("--metrics-url", *(f"http://{HOST}:{one.metrics_port}/metrics" for one in servers)),
        *("--url", urls[0], "--repository", str(servers[0].repository), "--windows-s", "15"),
        *("--reference-comments", "1500", "--least-comments", "400", "--labels", str(labels)),
        *(words.format(curated=curated) for words in getattr(request, "param", ())),
    )
    with contextlib.ExitStack() as running_now:
        sender = threading.Thread(target=traffic.send)
        sender.start()
        running_now.callback(sender.join)
        running_now.callback(traffic.done.set)
        found = running_now.enter_context(alerting(tmp_path, replicas, *monitor))
        yield Stack(**vars(found), servers=servers, traffic=traffic, labels=labels, curated=curated)


def write_curated(path: Path, model: TinyModel, *, wrong: bool = False) -> None:
    """Two groups with labels that the model gives them, or in the second group the others.

    Half of each is flagged: of a group without harmless comments there is no false-positive rate.
    """
    rng, wanted = (
        np.random.default_rng(2),
        {(group, flagged): 30 for group in "ab" for flagged in (0, 1)},
    )
    lines = ["text,label,group"]
    for _ in range(20_000):
        text = " ".join(rng.choice([one for one in WORDS if one != ","], LENGTH))
        flagged = int(model.logit(text) >= math.log(FLAGGED_FROM / (1 - FLAGGED_FROM)))
        group = max("ab", key=lambda name: wanted[name, flagged])
        if wanted[group, flagged]:
            wanted[group, flagged] -= 1
            lines.append(f"{text},{flagged ^ (wrong and group == 'b')},{group}")
        if not any(wanted.values()):
            break
    assert not any(wanted.values()), f"the model flags all or none: {wanted}"
    path.with_suffix(".new").write_text("\n".join(lines) + "\n")
    path.with_suffix(".new").replace(path)


def labelled(toxic: Callable[[float], int]) -> str:
    scores = np.linspace(0.05, 0.95, 400).round(3).tolist()
    rows = [
        {"id": row, "score": score, "version": 1, "label": toxic(score)}
        for row, score in enumerate(scores)
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.timeout(900)
def test_what_breaks_calls_the_right_one_and_nobody_else(
    stack: Stack, other_model: TinyModel
) -> None:
    rng = np.random.default_rng(0)
    time.sleep(15)  # of usual traffic
    stack.wait_for()

    with stack.labels.open("a") as file:  # labels that disagree, then are corrected
        file.write(labelled(lambda score: int(score < 0.5)))
    stack.wait_for("ToxicityMiscalibrated")
    with stack.labels.open("a") as file:
        file.write(labelled(lambda score: int(rng.random() < score)))
    stack.wait_for()

    _, second = stack.servers  # a version that only one replica took
    other_model.publish(second.repository)
    triton.start(second)
    stack.wait_for("ToxicityVersionsDiffer")

    server = triton.running(second)
    assert server is not None
    stack.traffic.urls.pop()
    os.kill(server.pid, signal.SIGKILL)
    stack.wait_for("ToxicityReplicaDown")
    assert set(stack.notified) == {
        ("/ticket", "ToxicityMiscalibrated"),
        ("/ticket", "ToxicityVersionsDiffer"),
        ("/page", "ToxicityReplicaDown"),
    }


@pytest.mark.timeout(600)
def test_shifted_traffic_is_told(stack: Stack) -> None:
    """The same words and lengths as before, but the comments that score highest."""
    time.sleep(20)
    stack.wait_for()
    rng = np.random.default_rng(1)
    texts = [text for _ in range(10) for text in usual(rng)]
    order = np.argsort(score_comments(texts, url=stack.traffic.urls[0]).probability)
    highest = [texts[row] for row in order[-BATCH:]]
    stack.traffic.draw = lambda _: highest
    stack.wait_for("ToxicityScoreDrift")
    stack.traffic.draw = usual
    stack.wait_for()


def scored_as_usual(url: str, draw: Callable[[np.random.Generator], str]) -> list[str]:
    """Of the comments that `draw` gives those whose scores are spread as those of the usual ones.

    Raises AssertionError where there are none.
    """
    rng = np.random.default_rng(1)
    texts = [text for _ in range(10) for text in usual(rng)]
    wanted = np.sort(score_comments(texts, url=url).probability)
    others = [draw(rng) for _ in range(40 * BATCH)]
    scores = score_comments(others, url=url).probability
    nearest = np.abs(scores[None, :] - wanted[:, None]).argmin(axis=1)
    assert np.abs(scores[nearest] - wanted).max() < 0.01, "no such comments"
    return [others[row] for row in nearest]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_other_lengths_and_words_are_told_as_such(stack: Stack) -> None:
    """Shorter comments, then unknown words; scores stay as they were."""
    url = stack.traffic.urls[0]

    def shorter(rng: np.random.Generator) -> str:
        return " ".join(rng.choice(WORDS, LENGTH // 2))

    def unknown(rng: np.random.Generator) -> str:
        words = rng.choice(WORDS, LENGTH)
        words[rng.random(LENGTH) < 0.3] = "zqxjkvwzq"
        return " ".join(words)

    time.sleep(20)
    stack.wait_for()
    for draw, alert in ((shorter, "ToxicityLengthDrift"), (unknown, "ToxicityWordsDrift")):
        others = scored_as_usual(url, draw)
        stack.traffic.draw = lambda rng, others=others: list(rng.choice(others, BATCH))  # type: ignore[misc]
        stack.wait_for(alert)
        stack.traffic.draw = usual
        stack.wait_for()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stack", [("--curated", "{curated}", "--curated-every-s", "2")], indirect=True
)
def test_a_worse_group_and_a_monitor_that_fails_are_told(
    stack: Stack, tiny_model: TinyModel
) -> None:
    """A group gets comments that the version does not understand; a set that cannot be read; a
    monitor that hangs.
    """
    group_errors = 'toxicity_monitor_alarm{check="group_errors"} == 0'
    until(lambda: stack.value(f"count({group_errors})") > 0)
    stack.wait_for()
    write_curated(stack.curated, tiny_model, wrong=True)
    stack.wait_for("ToxicityGroupErrors")
    assert stack.pages() == {"ToxicityGroupErrors"}
    write_curated(stack.curated, tiny_model)
    stack.wait_for()

    stack.curated.write_text("text,label\nyou,1\n")
    stack.wait_for("ToxicityMonitorErrors")
    write_curated(stack.curated, tiny_model)
    stack.wait_for()

    os.kill(stack.monitor, signal.SIGSTOP)
    try:
        stack.wait_for("ToxicityMonitorStale")
    finally:
        os.kill(stack.monitor, signal.SIGCONT)
    stack.wait_for()
    assert stack.pages() == {"ToxicityGroupErrors"}
