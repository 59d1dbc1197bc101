"""Starts and stops of the door that were killed or come together: the next one works. All real."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from app_door import ask, make_config, served, serving
from conftest import TinyModel

from serve import door, haproxy
from serve.launch import CONFIG_FILE, LAUNCH_FILE
from serve.supervisor import Supervisor
from storage.locks import LOCK_FILE, locked

ROOT = Path(__file__).parent.parent
slow = pytest.mark.slow


@pytest.fixture
def config(tiny_model: TinyModel, tmp_path: Path) -> door.DoorConfig:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    tiny_model.publish(tmp_path / "repository")
    return make_config(tmp_path / "run", tmp_path / "repository")


def _supervisors(config: door.DoorConfig) -> list[psutil.Process]:
    path, found = str(Supervisor(config.run_dir).folder / CONFIG_FILE), []
    for process in psutil.process_iter():
        try:
            if path in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@slow
def test_a_start_after_a_stop_that_was_killed_waits_for_what_is_ending(
    config: door.DoorConfig,
) -> None:
    with serving(config):
        with Supervisor(config.run_dir)._calls() as call:
            for one in call.getAllProcessInfo():
                call.stopProcess(one["name"], False)
        door.start(dataclasses.replace(config, ready_timeout_s=60))
        assert len(served(config, "fine")) == 1


@slow
def test_a_start_waits_for_a_supervisor_that_is_ending(config: door.DoorConfig) -> None:
    with serving(config):
        supervisor = Supervisor(config.run_dir)
        (before,) = _supervisors(config)
        with supervisor._calls() as call:
            call.shutdown()
        door.start(config)
        (now,) = _supervisors(config)
        assert now.pid != before.pid
        assert supervisor.pid() == now.pid
        assert len(served(config, "fine")) == 1
        door.stop(config)
        assert not _supervisors(config)


@slow
def test_stop_ends_a_supervisor_that_does_not_answer_yet(config: door.DoorConfig) -> None:
    with serving(config):
        pass
    path = Supervisor(config.run_dir).folder / CONFIG_FILE
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as begun:
        assert _supervisors(config)
        door.stop(config)
        assert not _supervisors(config)
        begun.wait(timeout=30)


@slow
def test_stop_waits_for_a_start_that_is_under_way(config: door.DoorConfig) -> None:
    with serving(config):
        stopping = threading.Thread(target=door.stop, args=(config,))
        with locked(config.run_dir / LOCK_FILE, "it", ""):  # as a start has it
            stopping.start()
            stopping.join(timeout=2)
            assert stopping.is_alive()
            assert ask(config, "/v2/health/ready")[0] == 200
        stopping.join(timeout=60)
        assert not stopping.is_alive() and not _supervisors(config)


def test_a_program_without_its_supervisor_is_not_begun(tmp_path: Path) -> None:
    """One that outlives it unseen for a moment would serve on with nobody to watch it."""
    folder, made = tmp_path / "program", tmp_path / "made"
    folder.mkdir()
    launch = {"command": ["/bin/touch", str(made)], "environment": {}, "files": {}}
    (folder / LAUNCH_FILE).write_text(json.dumps({**launch, "sockets": [], "stack_bytes": 0}))
    command = [sys.executable, "-m", "serve.launch", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no supervisor runs from" in done.stdout
    assert not made.exists()
