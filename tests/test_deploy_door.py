"""A server as a fleet has it: open to others, watched from outside, behind the door of Compose."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from app_door import make_config, serving
from conftest import TinyModel, free_port
from fleet_tools import DEPLOY, ROOT

from contract import HOST, BadInput
from serve import door, haproxy, tritonserver
from serve.client import score_comments
from serve.metrics_door import READY, TURNED_AWAY
from serve.supervisor import Supervisor

pytestmark = pytest.mark.slow
POD = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text("utf-8"))
(SERVER,) = POD["spec"]["template"]["spec"]["containers"]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")


@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    """Started as the image starts it."""
    folder = tmp_path_factory.mktemp("fleet")
    tiny_model.publish(folder / "repository")
    config = make_config(
        folder / "run", folder / "repository", address="0.0.0.0", metrics_address="0.0.0.0"
    )
    with serving(config):
        yield config


def status(port: int, path: str, host: str = HOST) -> int:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def scores(config: door.DoorConfig) -> subprocess.CompletedProcess[str]:
    """The check of the images and of Kubernetes' liveness, as they call it."""
    command = SERVER["livenessProbe"]["exec"]["command"]
    *module, flag, _ = command[1:]
    return subprocess.run(
        [sys.executable, *module, flag, str(config.run_dir)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60},
    )


def until(wanted: int, port: int, path: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            if status(port, path) == wanted:
                return
        time.sleep(0.1)
    raise AssertionError(f"{path} is never {wanted}")


def test_the_probes_of_kubernetes_are_answered(opened: door.DoorConfig) -> None:
    ports = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
    assert ports == {"http": 8000, "metrics": 8002}
    for name in ("startupProbe", "readinessProbe"):
        asked = SERVER[name]["httpGet"]
        assert asked["port"] == "metrics"
        assert status(opened.metrics_port, asked["path"], "127.0.0.2") == 200  # not only 127.0.0.1
    done = scores(opened)
    assert (done.returncode, done.stdout) == (0, "scores\n"), done.stderr


def test_what_the_rules_read_is_told(opened: door.DoorConfig) -> None:
    """Every metric in the chart's rules is one of a live server's, at a path that is scraped.

    And what the dashboard reads of haproxy.
    """
    objects = yaml.safe_load_all((DEPLOY / "kubernetes/base/monitoring.yaml").read_text("utf-8"))
    monitor, rules = objects
    told = set()
    for endpoint in monitor["spec"]["endpoints"]:
        address = f"http://{HOST}:{opened.metrics_port}{endpoint['path']}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            told |= set(re.findall(r"^(\w+)[{ ]", answer.read().decode(), re.MULTILINE))
    expressions = " ".join(
        rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]
    )
    read = set(re.findall(r"\b((?:nv|haproxy|toxicity)_\w+)\b", expressions))
    board = (DEPLOY / "grafana" / "toxicity.json").read_text("utf-8")
    shown = set(re.findall(r"\bhaproxy_\w+\b", board))
    assert shown == {TURNED_AWAY}
    read |= shown
    assert read and read <= told


def test_composes_door_spreads_to_what_scores(opened: door.DoorConfig, tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    environment = {
        **os.environ,
        **{"SERVER": "localhost", "SERVER_PORT": str(opened.http_port)},
        **{"READY_PORT": str(opened.metrics_port)},
        **{"DOOR": f"{HOST}:{port}", "DOOR_METRICS": f"{HOST}:{metrics}"},
    }
    log = (tmp_path / "log").open("wb")
    command = [haproxy.executable(), "-W", "-f", str(DEPLOY / "compose" / "haproxy.cfg")]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(200, port, "/v2/health/ready")
        scored = score_comments(["you are kind"], url=f"{HOST}:{port}")
        assert scored.model_version == ["1"]
        assert status(port, "/ui/") == 200
        assert status(metrics, "/metrics") == 200 and status(metrics, "/") == 404
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def test_a_server_that_does_not_score_is_not_ready(opened: door.DoorConfig) -> None:
    supervisor = Supervisor(opened.run_dir)
    supervisor.stop("replica-1")
    try:
        until(503, opened.metrics_port, READY)
        done = scores(opened)
        words = f"error: what serves from {opened.run_dir} does not score, expected a score; "
        assert done.returncode == 1 and done.stderr.startswith(words)
        assert done.stderr.count("\n") == 1
    finally:
        door.start(opened)
    until(200, opened.metrics_port, READY)


def test_the_server_of_another_installation_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the vendor's image, where it lies in /opt/tritonserver."""
    monkeypatch.setenv(tritonserver.TRITON_FOLDER, str(tmp_path))
    asked = {"http": (HOST, 1), "metrics": (HOST, 2), "grpc": None, "http_key": None}
    with pytest.raises(BadInput, match=r"expected a folder with bin/tritonserver"):
        tritonserver.command(tmp_path, **asked, grpc_key=None, exit_timeout_s=1)
    shutil.copytree(tritonserver.wheel() / "bin", tmp_path / "bin")
    command = tritonserver.command(tmp_path, **asked, grpc_key=None, exit_timeout_s=1)
    assert command[0] == str(tmp_path / "bin" / "tritonserver")
    libraries = tritonserver.environment(os.environ)["LD_LIBRARY_PATH"]
    assert libraries.split(os.pathsep)[0] == str(tmp_path / "lib")
