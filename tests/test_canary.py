"""A second version beside the first, behind the real haproxy: nobody notices but the comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import psutil
import pytest
from app_door import ask, make_config, serving
from clients import Load, loading
from conftest import TinyModel
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import binomtest

from console.options import make_config as checked
from contract import (
    ARTIFACT_FILE,
    FP32_LOGIT_ATOL,
    HOST,
    LOGIT,
    PUBLIC_MODEL,
    TEXT,
    BadInput,
    GateFailed,
)
from export.repository import current
from export.switch import serve_version
from serve import canary, control, door, haproxy, mirror, view
from serve.app.decisions import Versions
from serve.canary import CanaryConfig
from serve.canary_backend import SERVER, STABLE_HEADER
from serve.comparison import BINS, PairComparison, percentile, psi
from serve.mirror_settings import MirrorSettings
from serve.probe import INFER_PATH
from serve.programs import write_balancers
from serve.promotion import Bounds, judged
from serve.settings import CANARY, MIRROR, Canary, Settings
from serve.supervisor import Supervisor
from serve.telling import comparison

needs_haproxy = pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
COMMENT = "you are a kind person and thanks for your work"


@pytest.fixture(scope="module")
def running(
    tiny_model: TinyModel, other_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    """Version 1 of `tiny_model` serves; version 2 of `other_model` is published."""
    folder = tmp_path_factory.mktemp("canary")
    tiny_model.publish(folder / "repository")
    config = make_config(folder / "run", folder / "repository", stop_timeout_s=8)
    with serving(config):
        other_model.publish(folder / "repository")
        let_serve(config, 1)
        yield config


def let_serve(config: door.DoorConfig, number: int) -> None:
    serve_version(config.repository, number)


def flags(config: door.DoorConfig, **more: Any) -> CanaryConfig:
    return checked(
        CanaryConfig, {"run_dir": config.run_dir, "repository": config.repository, **more}
    )


def body(*texts: str) -> bytes:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    return json.dumps({"inputs": [tensor]}).encode()


@contextlib.contextmanager
def asking(config: door.DoorConfig, clients: int = 2) -> Iterator[Load]:
    """Clients that ask for COMMENT on kept connections.

    As HTTP clients do, they open another when a kept one was closed before it began to answer; no
    answer on a fresh one is a lost request.
    """

    def client(load: Load, done: threading.Event) -> None:
        connection, kept = HTTPConnection(HOST, config.http_port, timeout=30), False
        while not done.is_set():
            try:
                connection.request("POST", INFER_PATH, body(COMMENT))
                answer = connection.getresponse()
            except (BrokenPipeError, ConnectionResetError, RemoteDisconnected) as error:
                (load.retried if kept else load.lost).append(repr(error))
                connection.close()
                kept = False
                continue
            found, kept = json.loads(answer.read()), True
            if answer.status != 200:
                load.lost.append(f"{answer.status} {found}")
                continue
            logit = next(one["data"][0] for one in found["outputs"] if one["name"] == LOGIT)
            load.answers.append((found["model_version"], logit))
        connection.close()

    with loading(*[client] * clients) as load:
        yield load


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def compared(config: door.DoorConfig) -> dict[str, Any]:
    return comparison(Supervisor(config.run_dir)) or {}


# --- The real door -----------------------------------------------------------------------
@needs_haproxy
@pytest.mark.slow
def test_a_share_is_drawn_a_kill_costs_nothing_and_the_end_neither(
    running: door.DoorConfig,
    tiny_model: TinyModel,
    other_model: TinyModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth = {"1": tiny_model.logit(COMMENT), "2": other_model.logit(COMMENT)}
    supervisor = Supervisor(running.run_dir)
    before = {name: state.pid for name, state in supervisor.states().items()}
    with asking(running) as load:
        canary.begin(flags(running, version=2, share=0.3))
    assert not load.lost
    assert {version for version, _ in load.answers} == {"1", "2"}  # once it was there
    for version, logit in load.answers:
        assert logit == pytest.approx(truth[version], abs=FP32_LOGIT_ATOL)

    # A client has no say in it.
    drawn = Counter(ask_version(running, {STABLE_HEADER: "1"}) for _ in range(600))
    assert binomtest(drawn["2"], 600, 0.3).pvalue > 1e-6, drawn
    until(lambda: compared(running)["comments"] > 0)
    capsys.readouterr()
    door.status(running)
    assert "canary:        answers 0.3 of requests, scores, version 2" in capsys.readouterr().out

    with asking(running) as load:
        pid = supervisor.states()[CANARY].pid
        psutil.Process(pid).kill()
        until(lambda: supervisor.states()[CANARY].pid not in (0, pid))
        front = supervisor.program_folder(haproxy.NAME)
        until(lambda: haproxy.states(front)[SERVER] == "UP")
        mirror_pid = supervisor.states()[MIRROR].pid
        psutil.Process(mirror_pid).kill()
        until(lambda: supervisor.states()[MIRROR].pid not in (0, mirror_pid))
    assert not load.lost

    with asking(running) as load:
        canary.end(flags(running, end=True))
    assert not load.lost
    assert {ask_version(running) for _ in range(30)} == {"1"}
    after = {name: state.pid for name, state in supervisor.states().items()}
    assert after == before, "nothing else was started again"
    assert not (supervisor.program_folder(CANARY) / view.FOLDER).exists()


@needs_haproxy
@pytest.mark.slow
def test_a_reload_has_happened_when_its_call_returns(running: door.DoorConfig) -> None:
    """The same file again is nothing that the state of the servers would tell."""
    supervisor = Supervisor(running.run_dir)
    master = psutil.Process(supervisor.states()[haproxy.NAME].pid)
    before = {worker.pid for worker in master.children()}
    master.suspend()  # it is slow to begin
    resume = threading.Timer(3, master.resume)
    resume.start()
    try:
        door.start(running)  # which reloads
        assert {worker.pid for worker in master.children()} - before
    finally:
        resume.join()
    for share in (0.1, 0.2, 0.3):  # one after another, none is lost
        canary.begin(flags(running, version=2, share=share))
    canary.end(flags(running, end=True))
    assert CANARY not in haproxy.states(supervisor.program_folder(haproxy.NAME))


def test_the_current_version_is_not_a_canarys(tmp_path: Path) -> None:
    for folder, version in (("replica", "1"), ("canary", "2")):
        path = tmp_path / folder / PUBLIC_MODEL / version / ARTIFACT_FILE
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"thresholds": {PUBLIC_MODEL: int(version) / 10}}))
    versions = Versions([str(tmp_path / "replica")], [str(tmp_path / "canary")])
    assert versions.current().threshold_of(PUBLIC_MODEL) == 0.1
    assert versions.of("2").threshold_of(PUBLIC_MODEL) == 0.2


def ask_version(config: door.DoorConfig, headers: dict[str, str] | None = None) -> str:
    url = f"http://{HOST}:{config.http_port}{INFER_PATH}"
    asked = urllib.request.Request(url, body(COMMENT), headers or {})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return str(json.load(answer)["model_version"])


@needs_haproxy
@pytest.mark.slow
def test_a_shadow_changes_no_answer_and_its_comparison_is_exact(
    running: door.DoorConfig, tiny_model: TinyModel, other_model: TinyModel, comments: list[str]
) -> None:
    texts = [text for text in comments if len(text) < 500 and "\0" not in text][:120]
    with asking(running) as load:
        canary.begin(flags(running, version=2, share=1.0, shadow=True))
        for text in texts:
            status, answer, _ = ask(running, INFER_PATH, body(text))
            assert status == 200 and answer["model_version"] == "1"
            found = next(one["data"][0] for one in answer["outputs"] if one["name"] == LOGIT)
            assert found == pytest.approx(tiny_model.logit(text), abs=FP32_LOGIT_ATOL)
    assert not load.lost
    assert {version for version, _ in load.answers} == {"1"}
    until(lambda: compared(running)["comments"] >= len(texts))

    # A restart of the mirror begins a new comparison: of these comments alone.
    supervisor = Supervisor(running.run_dir)
    supervisor.stop(MIRROR)
    status, answer, _ = ask(running, INFER_PATH, body(COMMENT))
    assert status == 200, "without a mirror, too"
    canary.begin(flags(running, version=2, share=1.0, shadow=True))
    for text in texts:
        ask(running, INFER_PATH, body(text))
    long = "a" * 26_000  # the comparison has no place for it
    status, answer, _ = ask(running, INFER_PATH, body(long))
    assert status == 200, answer
    status, answer, _ = ask(running, "/score", {"text": COMMENT})  # by way of the application
    assert status == 200, answer
    until(lambda: compared(running)["comments"] == len(texts) + 1)
    found = compared(running)

    def probabilities(model: TinyModel) -> list[float]:
        return [1 / (1 + math.exp(-model.logit(text))) for text in [*texts, COMMENT]]

    stable, other = probabilities(tiny_model), probabilities(other_model)
    assert found["flips"] == {
        "to_flagged": sum(a < 0.5 <= b for a, b in zip(stable, other, strict=True)),
        "to_passed": sum(b < 0.5 <= a for a, b in zip(stable, other, strict=True)),
    }
    shift = sum(other) / len(other) - sum(stable) / len(stable)
    assert found["mean_shift"] == pytest.approx(shift, abs=1e-4)
    assert found["stable"]["versions"] == ["1"] and found["canary"]["versions"] == ["2"]
    assert found["dropped"] == {"long": 1}

    url = f"http://{HOST}:{running.metrics_port}/mirror/metrics"
    with urllib.request.urlopen(url, timeout=10) as answered:
        text = answered.read().decode()
    samples = {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }
    assert samples["toxicity_canary_comments_total",] == len(texts) + 1
    assert samples["toxicity_canary_flips_total", "flagged"] == found["flips"]["to_flagged"]
    assert samples["toxicity_canary_score_count", "canary"] == len(texts) + 1
    assert COMMENT not in text

    # One that hangs: its socket is full before the last of these, and nobody waits for it.
    stuck = psutil.Process(supervisor.states()[MIRROR].pid)
    stuck.suspend()
    try:
        for _ in range(300):
            assert ask(running, INFER_PATH, body("you are a kind person " * 900))[0] == 200
    finally:
        stuck.resume()
    url = f"http://{HOST}:{running.metrics_port}/balancer/metrics"
    with urllib.request.urlopen(url, timeout=10) as answered:
        text = answered.read().decode()
    lost = re.search(r"^haproxy_process_dropped_logs_total ([1-9]\d*)", text, re.MULTILINE)
    assert lost
    until(lambda: compared(running)["dropped"].get("lost") == int(lost[1]))


@needs_haproxy
@pytest.mark.slow
def test_what_only_the_canary_refuses_is_its_failure(running: door.DoorConfig) -> None:
    canary.begin(flags(running, version=2, share=1.0))
    wrong = json.dumps({"inputs": [{"name": "no such", "shape": [1, 1], "datatype": "BYTES"}]})
    for _ in range(5):
        assert ask(running, INFER_PATH, wrong.encode())[0] == 400
    until(lambda: compared(running)["dropped"].get("refused") == 5)
    assert "failed" not in compared(running)["dropped"], "both refuse the client's own mistake"

    # It refuses all until haproxy's next check finds it out.
    sock = Supervisor(running.run_dir).program_folder(CANARY) / control.HTTP_SOCKET
    control.ask(sock, f"/v2/repository/models/{PUBLIC_MODEL}/unload", {})
    statuses = Counter(ask(running, INFER_PATH, body(COMMENT))[0] for _ in range(100))
    refused = statuses[400] + statuses[404]
    assert refused and refused + statuses[200] == 100, statuses
    until(lambda: compared(running)["dropped"].get("failed", 0) >= refused)
    late = judged(compared(running), Bounds(), over=True)
    assert any("requests failed" in words for words in late.failed) and not late.promote
    canary.end(flags(running, end=True))


@needs_haproxy
@pytest.mark.slow
def test_promote_and_rollback_fail_no_request(running: door.DoorConfig) -> None:
    canary.begin(flags(running, version=2, share=0.5))  # whatever runs already
    with pytest.raises(BadInput, match="--version is 3, expected 2, which is the canary already"):
        canary.begin(flags(running, version=3))
    with asking(running) as load:
        canary.promote(flags(running, action="promote"))
    assert not load.lost
    assert current(running.repository) == 2
    assert CANARY not in Supervisor(running.run_dir).states()
    assert {ask_version(running) for _ in range(20)} == {"2"}

    with asking(running) as load:
        canary.roll_back(flags(running, action="rollback"))
    assert not load.lost
    assert current(running.repository) == 1
    assert {ask_version(running) for _ in range(20)} == {"1"}
    with pytest.raises(BadInput, match="no second version serves, expected one; start it with"):
        canary.promote(flags(running, action="promote"))


@needs_haproxy
@pytest.mark.slow
def test_a_rule_ends_what_flips_and_promotes_what_does_not(
    running: door.DoorConfig, tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = {"least_comments": 20, "most_flips": 0.5, "for_minutes": 0.05}
    bad = flags(running, version=2, share=1.0, shadow=True, most_shift=1e-9, **rule)
    with asking(running) as load:
        canary.begin(bad)
        with pytest.raises(GateFailed, match="version 2 was not promoted: mean score shifted by"):
            canary.watch(bad)
    assert not load.lost
    assert current(running.repository) == 1 and not compared(running)

    tiny_model.publish(running.repository)  # the same scores
    let_serve(running, 1)
    good = flags(running, version=3, share=0.5, p99_ms=60_000, **rule)
    with asking(running) as load:
        canary.begin(good)
        canary.watch(good)
    assert not load.lost
    assert current(running.repository) == 3
    assert "holds  p99" in capsys.readouterr().out
    assert {ask_version(running) for _ in range(20)} == {"3"}


@needs_haproxy
@pytest.mark.slow
def test_a_version_that_cannot_serve_is_refused_and_nothing_is_left(
    running: door.DoorConfig, other_model: TinyModel, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="version is 99, expected one of"):
        canary.begin(flags(running, version=99))
    now = current(running.repository)
    with pytest.raises(BadInput, match=r"--version is .*, expected another than the current one"):
        canary.begin(flags(running, version=now))
    broken = dataclasses.replace(other_model, ragged_path=tmp_path / "broken.onnx")
    broken.ragged_path.write_bytes(b"no model")
    number = broken.publish(running.repository)
    let_serve(running, now)
    with asking(running) as load, pytest.raises(BadInput, match="canary ended before it was ready"):
        canary.begin(flags(running, version=number))
    assert not load.lost
    assert CANARY not in Supervisor(running.run_dir).states()
    assert not flags_of(running)["canary"]


@needs_haproxy
@pytest.mark.slow
def test_what_fails_leaves_what_was(
    running: door.DoorConfig, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """A change of a canary's share, and a step back to a version that no server can load."""
    now = current(running.repository)
    number = tiny_model.publish(running.repository)
    let_serve(running, now)
    canary.begin(flags(running, version=number, share=1.0))
    supervisor = Supervisor(running.run_dir)
    pid = supervisor.states()[CANARY].pid
    told = (supervisor.program_folder(MIRROR) / "mirror.json").read_text("utf-8")
    os.kill(pid, signal.SIGSTOP)  # it lives and does not score
    try:
        with pytest.raises(BadInput, match="canary is not ready after 8 s"):
            canary.begin(flags(running, version=number, share=0.5, ready_timeout_s=8))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert flags_of(running)["canary"] == {"version": number, "share": 1.0, "shadow": False}
    assert (supervisor.program_folder(MIRROR) / "mirror.json").read_text("utf-8") == told
    front = supervisor.program_folder(haproxy.NAME)
    until(lambda: haproxy.states(front).get(SERVER) == "UP")
    assert supervisor.states()[CANARY].pid == pid
    assert {ask_version(running) for _ in range(20)} == {str(number)}
    canary.end(flags(running, end=True))

    broken = dataclasses.replace(tiny_model, ragged_path=tmp_path / "broken.onnx")
    broken.ragged_path.write_bytes(b"no model")
    broken.publish(running.repository)  # which makes it current
    let_serve(running, now)
    with pytest.raises(BadInput, match="could not load the new version"):
        canary.roll_back(flags(running, action="rollback"))
    assert current(running.repository) == now
    assert {ask_version(running) for _ in range(20)} == {str(now)}


def flags_of(config: door.DoorConfig) -> dict[str, Any]:
    settings = door.read_settings(config.run_dir)
    assert settings
    return dataclasses.asdict(settings)


def test_without_a_server_each_command_says_so(tmp_path: Path) -> None:
    for command in (canary.begin, canary.end, canary.promote, canary.show):
        with pytest.raises(BadInput, match=r"no server is running from .*; start it with"):
            command(CanaryConfig(run_dir=tmp_path, version=2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": 0.1}, "--share is given without --version, expected both"),
        ({"shadow": True}, "--shadow is given without --version"),
        ({"version": 2, "end": True}, "--version and --end are given"),
        ({"version": 2, "for_minutes": 1}, "--for-minutes goes with a bound"),
        ({"version": 2, "most_flips": 0.1}, "--for-minutes goes with a bound"),
        ({"version": 2, "share": 1.5}, "--share is 1.5"),
    ],
)
def test_flags_that_do_not_go_together_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        checked(CanaryConfig, values)


# --- The comparison ----------------------------------------------------------------------
def filled(stable: list[float], other: list[float]) -> PairComparison:
    found = PairComparison()
    found.add(
        scores={"stable": stable, "canary": other},
        thresholds={"stable": 0.5, "canary": 0.7},
        versions={"stable": "1", "canary": "2"},
        seconds={"stable": 0.001, "canary": 0.002},
    )
    return found


def test_pairs_are_judged_each_at_its_own_threshold() -> None:
    document = filled([0.1, 0.6, 0.6, 0.2], [0.1, 0.6, 0.8, 0.9]).document()
    assert document["flips"] == {"to_flagged": 1, "to_passed": 1}
    assert document["mean_shift"] == pytest.approx(0.225)
    assert document["largest_shift"] == pytest.approx(0.7)
    assert document["canary"]["p99_ms"] == pytest.approx(2)
    assert json.loads(json.dumps(document)) == document


def test_psi_is_that_of_its_formula() -> None:
    assert psi([5, 5], [5, 5]) == 0
    assert psi([50, 50], [25, 75]) == pytest.approx(-0.25 * math.log(0.5) + 0.25 * math.log(1.5))
    assert psi([1] * BINS, [0] * BINS) is None
    assert 1 < psi([1, 0], [0, 1]) < math.inf  # type: ignore[operator]


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"drawn <NOSRV> 400 - - - - -", ""),
        (b"drawn replica-1 200 5 - - - e30=", "long"),
        (b"drawn replica-1 503 5 - - e30= e30=", "refused"),
        (b"drawn canary 503 5 - - e30= e30=", "failed"),
        (b"drawn canary 504 - - - e30= -", "failed"),
        (b"drawn canary 400 5 - - - e30=", "long"),
        (b"drawn replica-1 400 5 - - e30= e30=", "refused"),
        (b"drawn replica-1 200 5 - - e30= -", "long"),
        (b"drawn replica-1 200 5 - - e3 e30=", "unreadable"),
        (b"drawn replica-1 200 five - - e30= e30=", "unreadable"),
        (b"drawn \xff\xfe", "unreadable"),
        (b"Proxy http started.", ""),
        (b"", ""),
    ],
)
def test_a_line_that_says_nothing_is_dropped_with_its_reason(line: bytes, reason: str) -> None:
    assert mirror.read_line(line) == reason


def test_what_the_mirror_has_no_room_for_is_dropped_and_counted() -> None:
    compares = mirror.Mirror(
        MirrorSettings(
            **{"lines": "", "http": "", "canary": "", "balancer": "", "stable": ("",)},
            **{"views": (), "share": 1, "shadow": True},
        )
    )
    haproxys, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with haproxys, own:
        own.setblocking(False)
        for _ in range(300):
            haproxys.send(b"drawn replica-1 200 5 - - e30= e30=")
            compares.receive(own)
    assert compares.found.dropped == {"behind": 300 - 256}
    for count in (7, 9, 9, 4):  # of haproxy, which was reloaded before the last
        compares.note_lost(count)
    assert compares.found.dropped["lost"] == 2 + 4


@needs_haproxy
@pytest.mark.parametrize("shadow", [False, True])
def test_haproxy_takes_the_rules_beside_keys_and_grpc(tmp_path: Path, shadow: bool) -> None:
    keys_file = tmp_path / "keys.json"
    key = {"name": "site", "sha256": "0" * 64, "requests_per_s": 5}
    keys_file.write_text(json.dumps({"keys": [key]}), "utf-8")
    settings = Settings(
        **{"repository": str(tmp_path), "http_port": 1, "grpc_port": 2, "metrics_port": 3},
        **{"address": HOST, "replicas": 2, "grpc": True, "balanced": True},
        keys=str(keys_file),
        canary=Canary(2, 0.1, shadow),
    )
    supervisor = Supervisor(tmp_path / "run")
    write_balancers(settings, supervisor)  # raises when haproxy refuses them
    texts = [
        (supervisor.program_folder(name) / haproxy.CONFIG_FILE).read_text("utf-8")
        for name in haproxy.NAMES
    ]
    assert [text.count("use-server canary") for text in texts] == ([0, 0] if shadow else [4, 2])
    write_balancers(dataclasses.replace(settings, canary=None), supervisor)
    for name in haproxy.NAMES:
        path = supervisor.program_folder(name) / haproxy.CONFIG_FILE
        text = path.read_text("utf-8").replace(str(tmp_path), "")
        assert CANARY not in text, "without one nothing of it is there"


def test_a_line_says_what_was_asked_and_answered() -> None:
    found = mirror.read_line(b"drawn canary 200 1500 12 - e30= e30=")
    assert not isinstance(found, str)
    assert (found.server, found.length, found.body) == ("canary", 12, b"{}")
    assert found.took_s == pytest.approx(0.0015)
    with pytest.raises(ValueError, match="cannot be read"):
        mirror.probabilities(b"no JSON", None)


# --- The rule ----------------------------------------------------------------------------
def test_nothing_is_promoted_early_and_a_sure_breach_ends_at_once() -> None:
    bounds = Bounds(most_flips=0.01, least_comments=100)
    none, few, many = (
        {"comments": 1000, "flips": {"to_flagged": n, "to_passed": 0}} for n in (0, 9, 100)
    )
    assert not judged(none, bounds, over=False).decided
    assert judged(none, bounds, over=True).promote
    assert not judged(few, bounds, over=False).decided
    late = judged(few, bounds, over=True)  # 0.9 %, but it may be 1.7 %
    assert late.decided and not late.promote and late.failed
    sure = judged(many, bounds, over=False)
    assert sure.decided and not sure.promote


def test_a_canary_that_fails_requests_is_not_promoted() -> None:
    found = {"comments": 500, "requests": 490, "dropped": {"failed": 10, "behind": 400}}
    late = judged(found, Bounds(), over=True)
    assert late.failed == ["10 of 500 requests failed, at most 1.00%"] and not late.promote
    assert judged({**found, "dropped": {"failed": 4}}, Bounds(), over=True).promote


def test_too_few_comments_prove_nothing() -> None:
    bounds = Bounds(p99_ms=50, most_shift=0.1, least_comments=100)
    found = {"comments": 99, "mean_shift": 0.0, "canary": {"p99_ms": 1.0}}
    assert not judged(found, bounds, over=True).promote
    assert judged({**found, "comments": 100}, bounds, over=True).promote
    assert not judged({}, bounds, over=True).promote
