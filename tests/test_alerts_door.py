"""Real Prometheus and Alertmanager over a real door and the monitor: break it, see who calls.

Behind haproxy a request is late from half a second on, ten times what the rules have: on a busy
machine those of a server that is well may take more than 50 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alerting import WORDS, Alerting, alerting, until
from app_door import ask, make_config, serving
from conftest import make_tiny_model

from contract import HOST, TEXT
from serve import door, haproxy
from serve.metrics_door import TURNED_AWAY
from serve.probe import INFER_PATH

pytestmark = pytest.mark.slow

LATE_S, PULSE_S = 0.5, 0.7
"""From when on a request is late here: on a busy machine those of a server that is well may take
more than 50 ms. And for how long the server of a slow version stands still."""
FEW, MANY, EACH = 20, 192, 4
"""Clients at once: what the server scores at once, and many more; requests of each of those."""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[door.DoorConfig]:
    """A door before a model that long comments keep busy."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("alerts")
    model = make_tiny_model(folder / "model", seed=0, d_model=128, n_layers=2, max_len=256)
    model.publish(folder / "repository")
    with serving(make_config(folder / "run", folder / "repository")) as config:
        yield config


@pytest.fixture
def watched(opened: door.DoorConfig, tmp_path: Path) -> Iterator[Alerting]:
    """What looks at it, by the example's own jobs."""

    def replicas(example: str) -> str:
        assert example.count("127.0.0.1:8002") == 2
        return example.replace("127.0.0.1:8002", f"{HOST}:{opened.metrics_port}")

    monitor = ("--run-dir", str(opened.run_dir), "--windows-s", "60", "--least-comments", "300")
    with alerting(tmp_path, replicas, *monitor, late=f"{LATE_S:g}") as found:
        yield found


def statuses(
    config: door.DoorConfig, clients: int, comments: int, words: str = "", each: int = 1
) -> Counter[int]:
    """How often clients at once get which status.

    No cache knows the comments: their first words differ.
    """

    def comment() -> str:
        return " ".join(WORDS[int(digit)] for digit in f"{next(_numbers):06}") + words

    def status(_: int) -> int:
        texts = [comment() for _ in range(comments)]
        tensor = {"name": TEXT, "datatype": "BYTES", "shape": [comments, 1], "data": texts}
        return ask(config, INFER_PATH, {"inputs": [tensor]})[0]

    with ThreadPoolExecutor(clients) as pool:
        return Counter(pool.map(status, range(clients * each)))


@contextlib.contextmanager
def repeated(act: Callable[[], object]) -> Iterator[None]:
    """Again and again meanwhile; what it raises is raised at the end."""
    done = threading.Event()

    def act_on() -> None:
        while not done.wait(0.2):
            act()

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act_on)
        try:
            yield
        finally:
            done.set()
        acting.result()


def replica_of(opened: door.DoorConfig) -> int:
    """Process of the only server; 0 while there is none."""
    server = door.running(opened.run_dir)
    return server.replicas[0].pid if server and server.replicas else 0


def ask_few(config: door.DoorConfig, times: int = 1) -> None:
    """What every server can do, and none refuses."""
    assert statuses(config, FEW, 1, each=times).keys() == {200}


def ask_while_it_stands_still(config: door.DoorConfig) -> None:
    pid = replica_of(config)
    os.kill(pid, signal.SIGSTOP)
    try:
        goes_on = threading.Timer(PULSE_S, os.kill, (pid, signal.SIGCONT))
        goes_on.start()
        ask_few(config)
        goes_on.join()
    finally:
        os.kill(pid, signal.SIGCONT)


def ask_too_much(config: door.DoorConfig) -> int:
    """How many of the requests were refused."""
    found = statuses(config, MANY, 24, " you" * 250, EACH)
    assert found.keys() <= {200, 503}
    return found[503]


@pytest.mark.timeout(600)
def test_a_slow_version_calls_and_a_quick_one_does_not(
    opened: door.DoorConfig, watched: Alerting
) -> None:
    with repeated(lambda: ask_few(opened)):
        until(lambda: watched.value("toxicity:requests:increase1h") > 300)  # enough to be judged
        watched.wait_for()
    with repeated(lambda: ask_while_it_stands_still(opened)):
        watched.wait_for("ToxicityLatencyBurnsFast")
    assert watched.pages() == {"ToxicityLatencyBurnsFast"}


@pytest.mark.timeout(600)
def test_what_the_door_turns_away_calls(opened: door.DoorConfig, watched: Alerting) -> None:
    """No server counts it. What is scored meanwhile may well be late."""

    def most_of_it() -> bool:
        turned_away = watched.value(f'{TURNED_AWAY}{{proxy="http"}}')
        refused = watched.value("sum(toxicity_requests_refused_total)")
        return turned_away > refused

    watched.wait_for()
    late = "ToxicityLatencyBurnsFast"
    with repeated(lambda: ask_too_much(opened)):
        watched.wait_for("ToxicityRefusalsBurnFast", perhaps=(late,))
        until(most_of_it)
        until(lambda: watched.value('toxicity_monitor_alarm{check="refusals",version=""}') == 1)
    assert watched.value("toxicity_monitor_turned_away_requests") > 0
    assert {"ToxicityRefusalsBurnFast"} <= watched.pages() <= {"ToxicityRefusalsBurnFast", late}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_tenth_of_late_requests_waits_for_the_morning(
    opened: door.DoorConfig, watched: Alerting
) -> None:
    def a_tenth_is_late() -> None:
        ask_few(opened, 9)
        ask_while_it_stands_still(opened)

    with repeated(a_tenth_is_late):
        watched.wait_for("ToxicityLatencyBurnsSlowly")
    assert not watched.pages()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_tenth_of_refused_requests_waits_for_the_morning(
    opened: door.DoorConfig, watched: Alerting
) -> None:
    """What is scored while others are refused may well be late."""
    refused = ask_too_much(opened)  # how many it will be

    def a_tenth_is_refused() -> None:
        nonlocal refused
        ask_few(opened, 1 + 9 * refused // FEW)
        refused = ask_too_much(opened)

    with repeated(a_tenth_is_refused):
        watched.wait_for("ToxicityRefusalsBurnSlowly", perhaps=("ToxicityLatencyBurnsSlowly",))
    assert not watched.pages()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_server_that_falls_again_and_again_calls(
    opened: door.DoorConfig, watched: Alerting
) -> None:
    """While it is down another page may say so."""
    known, killed = "toxicity_server_starts", 0

    def fall_when_it_is_seen_again() -> None:
        nonlocal killed
        starts = watched.value(known)
        if starts > killed and watched.value(f"time() - timestamp({known})") < 2:
            os.kill(replica_of(opened), signal.SIGKILL)
            killed = starts

    watched.wait_for()
    restarts, down = "ToxicityReplicaRestarts", "ToxicityReplicaDown"
    with repeated(fall_when_it_is_seen_again):
        until(lambda: restarts in watched.pages())
    assert watched.pages() <= {restarts, down}
    watched.wait_for()
