"""What the door turns away while a server refuses. All parts are real."""

from __future__ import annotations

import itertools
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from app_door import add_key, ask, make_config, serving
from conftest import make_tiny_model

from contract import HOST, OVERLOADED_REQUESTS, OVERLOADED_S, TEXT
from serve import balancer, control, door, haproxy
from serve.app.settings import HEALTH_PATH, OVERLOADED
from serve.metrics_door import BALANCER_METRICS, READY
from serve.probe import INFER_PATH
from serve.supervisor import Supervisor

pytestmark = pytest.mark.slow

_CLIENTS, _EACH, _COMMENTS = 3 * OVERLOADED_REQUESTS[1], 4, 12
_numbers = itertools.count()
_TURNED_AWAY = 'haproxy_frontend_requests_denied_total{proxy="http"}'
_DOWN = 'haproxy_server_check_up_down_total{proxy="http_replicas",server="replica-1"}'
_REFUSED = 'toxicity_requests_refused_total{reason="overloaded",version="1"}'


@pytest.fixture(scope="module", params=["open", "keyed"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[door.DoorConfig, dict[str, str]]]:
    """A door before a slow model, and the headers that it asks for."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    folder = tmp_path_factory.mktemp("overload")
    model = make_tiny_model(folder, seed=0, d_model=128, n_layers=2, max_len=256)
    model.publish(folder / "repository")
    headers: dict[str, str] = {}
    more: dict[str, Path] = {}
    if request.param == "keyed":
        listed = folder / "keys.json"
        headers = {"Authorization": f"Bearer {add_key(listed, 'site')}"}
        more = {"keys": listed}
    with serving(make_config(folder / "run", folder / "repository", **more)) as config:
        yield config, headers


def test_an_overloaded_server_is_asked_less_and_is_not_taken_for_a_dead_one(
    opened: tuple[door.DoorConfig, dict[str, str]],
) -> None:
    config, headers = opened
    before = _counted(config)
    loaded = threading.Event()

    def client(_: int) -> list[tuple[int, bool]]:
        found = []
        for _ in range(_EACH):
            texts = [_long_comment() for _ in range(_COMMENTS)]
            status, answer, told = ask(config, INFER_PATH, _request(texts), headers)
            if status == 200:
                assert len(answer["outputs"][0]["data"]) == _COMMENTS
            else:
                assert status == 503 and answer["error"] == OVERLOADED, answer
            found.append((status, "retry-after" in told))
        return found

    def watch() -> list[bool]:
        """Of what looks after a server: the container's check, its door's, the application's."""
        folder = Supervisor(config.run_dir).program_folder(haproxy.NAME)
        found = []
        while not loaded.wait(0.1):
            found.append(control.scores(balancer.inner_socket(folder)))
            found.append(_status(config, READY) == 200)
            found.append(ask(config, HEALTH_PATH, headers=headers)[0] == 200)
        return found

    with ThreadPoolExecutor(1) as watching, ThreadPoolExecutor(_CLIENTS) as pool:
        seen = watching.submit(watch)
        answers = [one for found in pool.map(client, range(_CLIENTS)) for one in found]
        loaded.set()
    turned_away, refused, went_down = (
        now - then for now, then in zip(_counted(config), before, strict=True)
    )
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) == {200, 503}
    assert went_down == 0 and all(seen.result())
    # Those that the server refused itself, its checks among them, are few.
    assert 0 < statuses[503] - turned_away <= refused < turned_away
    assert sum(told for _, told in answers) == turned_away

    # Soon after, as many as had to be turned away are let in again.
    time.sleep(OVERLOADED_S + 0.2)
    with ThreadPoolExecutor(_CLIENTS) as pool:
        calm = pool.map(
            lambda k: ask(config, INFER_PATH, _request([f"calm {k}"]), headers)[0], range(_CLIENTS)
        )
        assert set(calm) == {200}
    live = ask(config, "/ui/api/live", headers=headers)[1]
    assert live["turned_away"] == _counted(config)[0] == turned_away + before[0]


def _long_comment() -> str:
    """No two are alike, or the cache would know the second one."""
    words = "you are a kind awful person and the idea is".split()
    return " ".join(words[int(digit)] for digit in f"{next(_numbers):06}") + " you" * 250


def _request(texts: list[str]) -> dict[str, object]:
    return {
        "inputs": [{"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}]
    }


def _counted(config: door.DoorConfig) -> list[int]:
    """Turned away by haproxy, refused by the server, and how often haproxy took it for dead."""
    found = []
    for path, series in (
        (BALANCER_METRICS, _TURNED_AWAY),
        ("/metrics", _REFUSED),
        (BALANCER_METRICS, _DOWN),
    ):
        url = f"http://{HOST}:{config.metrics_port}{path}"
        with urllib.request.urlopen(url) as answer:
            line = re.search(rf"^{re.escape(series)} (\d+)", answer.read().decode(), re.MULTILINE)
        assert line, series
        found.append(int(line[1]))
    return found


def _status(config: door.DoorConfig, path: str) -> int:
    """Of the metrics' port."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{config.metrics_port}{path}") as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_clock_that_was_set_back_keeps_nobody_out(
    opened: tuple[door.DoorConfig, dict[str, str]],
) -> None:
    config, headers = opened
    front = Supervisor(config.run_dir).program_folder(haproxy.NAME)

    def refused(ago_s: float) -> int:
        """Status of a request, a refusal having been noted at a time and none being let in."""
        at_ms = int(1e3 * (time.time() - ago_s))
        for name, value in (("proc.most_requests", 0), ("proc.refused_at", at_ms)):
            said = haproxy._tell_master(
                front, f"experimental-mode on; @1 set var {name} int({value})"
            )
            assert not said.strip(), said
        return ask(config, INFER_PATH, _request(["fine"]), headers)[0]

    assert [refused(ago_s) for ago_s in (0, 3600, -3600)] == [503, 200, 200]
