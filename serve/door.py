"""The servers of this machine behind one door, kept alive: `make serve`, `status`, `stop`.

    python -m serve.door start --replicas 2     # start, restart what ended, or update
    python -m serve.door status
    python -m serve.door stop

A supervisor keeps haproxy and the servers alive. The servers listen on sockets that only the user
can open, in folders of their own under the run folder; haproxy alone has ports. Without haproxy one
server listens on 127.0.0.1 itself. gRPC has a server of its own, and only where it is asked for:
release 24.10 ends when gRPC calls are cancelled (docs/security.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psutil

from console.options import parse_config, run
from contract import BODY_TIMEOUT_S, BadInput, ToxicityError
from export.repository import current, verify
from serve import control, haproxy, mirror_settings, tritonserver, view
from serve.app import settings as app
from serve.launch import STARTS_FILE
from serve.metrics_door import BALANCER_METRICS
from serve.process import refuse_taken_port, started_s
from serve.programs import (
    KEYS_MAP,
    grpc_socket,
    programs,
    write_app,
    write_balancers,
    write_mirror,
)
from serve.reload import reload, wait_until_up
from serve.run_folder import claim, is_ours
from serve.settings import CANARY, MIRROR, STATE_FILE, Settings, replica, server_names, settled
from serve.settings import DoorConfig as DoorConfig
from serve.settings import read_settings as read_settings
from serve.supervisor import State, Supervisor
from serve.telling import app_scores, print_addresses, print_replicas, scores, served_version
from serve.triton import Server
from storage.files import write_json
from storage.locks import LOCK_FILE, locked

_POLL_S = 0.05
_LOCK_WAIT_S = 300


def main() -> None:
    config = parse_config(
        DoorConfig,
        None,
        prog="python -m serve.door",
        description="Start, stop or look at the local Triton servers.",
        positional="action",
    )
    {"start": start, "stop": stop, "status": status}[config.action](config)


# --- Commands ----------------------------------------------------------------------------
def start(config: DoorConfig) -> None:
    """Serve the current version with every replica; return once all of them score.

    What ended is started, what runs is updated, one replica after the other; a version that one
    cannot load goes to none after it. Raises BadInput for a damaged model, a taken port, a flag
    that the running door does not have, and a server that does not start.
    """
    claim(config.run_dir)
    with alone(config.run_dir):
        supervisor = Supervisor(config.run_dir)
        before = read_settings(config.run_dir) if supervisor.running() else None
        if before is None:
            supervisor.stop()  # what a start that was killed left
        settings = settled(config, before)
        verify(config.repository, public_key=settings.public_key)
        try:
            if before is None:
                _refuse_taken(settings)
            bring_up(config, settings, supervisor, before)
        except BaseException:
            if before is None:
                supervisor.stop()
            raise
        write_settings(config.run_dir, settings)
        print_replicas(settings, supervisor)
        print_addresses(config, settings)
    if config.foreground:
        _stay(config)


def stop(config: DoorConfig) -> None:
    """Take no more requests, finish those in flight, end everything and remove its sockets.

    Waits for a start that is under way. Raises BadInput when that takes too long.
    """
    ours = is_ours(config.run_dir)
    with alone(config.run_dir) if ours else contextlib.nullcontext():
        _stop(config, ours=ours)


def _stop(config: DoorConfig, *, ours: bool) -> None:
    supervisor = Supervisor(config.run_dir)
    if not supervisor.running():
        supervisor.stop()  # one that does not answer yet, or any more
        print(f"no server is running from {config.run_dir}")
        if ours:
            _clean(config.run_dir)
        return
    for name in haproxy.NAMES:  # the front first: the other finishes what it was given
        if name in supervisor.states():
            supervisor.stop(name)
    supervisor.stop()
    _clean(config.run_dir)
    print(f"stopped what ran from {config.run_dir}")


def status(config: DoorConfig) -> None:
    """Print what runs from the run folder; never fails for what it finds there."""
    supervisor = Supervisor(config.run_dir)
    settings = read_settings(config.run_dir)
    if settings is None or not supervisor.running():
        print(f"no server is running from {config.run_dir}; start it with `make serve`")
        return
    print_replicas(settings, supervisor)
    print_addresses(config, settings, example=False)


def running(run_dir: Path) -> Server | None:
    """What serves from a run folder, as benches want it; None when nothing does."""
    settings = read_settings(run_dir)
    states = Supervisor(run_dir).states() if settings else {}
    if settings is None or not states:
        return None

    def server(name: str, path: str, replicas: tuple[Server, ...] = ()) -> Server | None:
        try:
            process = psutil.Process(states[name].pid)
            began = started_s(process.pid)
        except (KeyError, psutil.NoSuchProcess):
            return None
        return Server(
            pid=process.pid,
            started_s=began,
            repository=settings.repository,
            http_port=settings.http_port,
            grpc_port=settings.grpc_port if settings.grpc else 0,
            metrics_port=settings.metrics_port,
            metrics_path=path,
            replicas=replicas,
        )

    if not settings.balanced:
        return server(replica(1), "/metrics")
    found = [server(name, f"/{name}/metrics") for name in server_names(settings)]
    front = server(haproxy.NAME, BALANCER_METRICS, tuple(one for one in found if one))
    large, application = (states.get(name) for name in (haproxy.LARGE_NAME, app.NAME))
    if not front or not large or not application:
        return front
    return dataclasses.replace(front, beside=(large.pid,), application=application.pid)


def alone(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of all that starts or ends programs of this folder."""
    return locked(run_dir / LOCK_FILE, str(run_dir), "wait for it", _LOCK_WAIT_S)


def write_settings(run_dir: Path, settings: Settings) -> None:
    """Keep how the door runs now; hold its lock."""
    write_json(run_dir / STATE_FILE, dataclasses.asdict(settings))


def _refuse_taken(settings: Settings) -> None:
    for flag in ("http_port", "metrics_port", *(["grpc_port"] if settings.grpc else [])):
        refuse_taken_port(getattr(settings, flag), flag)


# --- Bringing up -------------------------------------------------------------------------
def bring_up(
    config: DoorConfig, settings: Settings, supervisor: Supervisor, before: Settings | None
) -> None:
    """Run what the settings say, where so far runs what `before` says; hold the door's lock.

    A canary is added; `take_down_canary` ends one. Raises as `start` does.
    """
    known = set(server_names(before)) if before else set()
    views = {name: supervisor.program_folder(name) / view.FOLDER for name in server_names(settings)}
    for name, folder in views.items():
        if name not in known:
            others = [other for other in views.values() if other != folder]
            view.stage(config.repository, folder, others, settings.public_key)
    if settings.canary:
        _prepare_canary(config, settings, supervisor, before)
    earlier = supervisor.states()
    if settings.balanced:
        write_balancers(settings, supervisor)
    told = settings.balanced and write_app(settings, supervisor)
    supervisor.start(programs(config, settings, supervisor))
    started = supervisor.states()
    for name in views:
        folder = supervisor.program_folder(name)
        _wait_until(partial(scores, settings, folder), config, supervisor, name)
    if settings.canary:
        _wait_for_canary(config, settings, supervisor)
    for name in sorted(known & set(views)):
        _update(config, settings, supervisor, name)
    if settings.balanced:
        # One that starts now reads the new file by itself.
        kept = [name for name in haproxy.NAMES if _same_process(earlier, started, name)]
        ending = reload(supervisor, kept, config.ready_timeout_s)
        wait_until_up(settings, supervisor, config.ready_timeout_s)
        if told and app.NAME in earlier:
            # It finishes what it began; others wait for the new one, in a worker that stays: one
            # that ends asks no more whether the application is back.
            psutil.wait_procs(ending, timeout=BODY_TIMEOUT_S)
            wanted = programs(config, settings, supervisor)  # which takes a while
            supervisor.stop(app.NAME)
            supervisor.start(wanted)
        sock = supervisor.program_folder(app.NAME) / app.SOCKET
        _wait_until(partial(app_scores, sock), config, supervisor, app.NAME)


def take_down_canary(config: DoorConfig, settings: Settings, supervisor: Supervisor) -> None:
    """End the canary once haproxy sends it nothing more; `settings` have none. Hold the lock."""
    write_balancers(settings, supervisor)
    ending = reload(supervisor, haproxy.NAMES, config.ready_timeout_s)
    wait_until_up(settings, supervisor, config.ready_timeout_s)
    psutil.wait_procs(ending, timeout=BODY_TIMEOUT_S)  # they finish what it was asked
    supervisor.start(programs(config, settings, supervisor))
    shutil.rmtree(supervisor.program_folder(CANARY) / view.FOLDER, ignore_errors=True)


def put_back(config: DoorConfig, settings: Settings, supervisor: Supervisor) -> None:
    """Have a canary as `settings` say, when a change of it failed; hold the lock.

    Waits for no server: it may be what failed.
    """
    if write_mirror(settings, supervisor):
        supervisor.stop(MIRROR)
    write_balancers(settings, supervisor)
    supervisor.start(programs(config, settings, supervisor))
    reload(supervisor, haproxy.NAMES, config.ready_timeout_s)


def _prepare_canary(
    config: DoorConfig, settings: Settings, supervisor: Supervisor, before: Settings | None
) -> None:
    assert settings.canary
    folder = supervisor.program_folder(CANARY) / view.FOLDER
    if before is None or before.canary is None:
        names = server_names(settings)
        others = [supervisor.program_folder(name) / view.FOLDER for name in names]
        version = settings.canary.version
        for name in (CANARY, MIRROR):
            (supervisor.program_folder(name) / STARTS_FILE).unlink(missing_ok=True)
        view.stage(config.repository, folder, others, settings.public_key, version)
    if write_mirror(settings, supervisor) and MIRROR in supervisor.states():
        supervisor.stop(MIRROR)  # it is started with the others


def _wait_for_canary(config: DoorConfig, settings: Settings, supervisor: Supervisor) -> None:
    folder = supervisor.program_folder(CANARY)
    _wait_until(partial(scores, settings, folder), config, supervisor, CANARY)
    sock = supervisor.program_folder(MIRROR) / mirror_settings.HTTP_SOCKET
    _wait_until(partial(haproxy.accepts, sock), config, supervisor, MIRROR)


def _wait_until(
    it_scores: Callable[[], bool], config: DoorConfig, supervisor: Supervisor, name: str
) -> None:
    other = name in (app.NAME, MIRROR)
    log = supervisor.program_folder(name) / ("log" if other else tritonserver.LOG_FILE)
    deadline = time.monotonic() + config.ready_timeout_s
    while not it_scores():
        state = supervisor.states().get(name)
        # It ended before it was ready: what the supervisor would repeat is no better.
        if state and state.words in ("BACKOFF", "FATAL", "EXITED"):
            raise BadInput(
                f"{name} ended before it was ready: {tritonserver.reason(log)}; the whole log is "
                f"{log}"
            )
        if time.monotonic() > deadline:
            raise BadInput(
                f"{name} is not ready after {config.ready_timeout_s:g} s: "
                f"{tritonserver.reason(log)}; the whole log is {log}, the limit is "
                "--ready-timeout-s"
            )
        time.sleep(_POLL_S)


def _update(config: DoorConfig, settings: Settings, supervisor: Supervisor, name: str) -> None:
    """Load the current version into one running server."""
    folder = supervisor.program_folder(name)
    wanted, served = current(config.repository), served_version(settings, folder)
    if wanted == served:
        print(f"{name}: already serving version {served}")
        return
    print(
        f"{name}: loading version {wanted}; version {served} answers until it is ready", flush=True
    )
    others = [
        supervisor.program_folder(other) / view.FOLDER
        for other in server_names(settings)
        if other != name
    ]
    with view.changed(config.repository, folder / view.FOLDER, others, settings.public_key):
        if settings.balanced:
            control.load(folder / control.HTTP_SOCKET)
        else:
            control.load_over_grpc(grpc_socket(folder))
    supervisor.start(programs(config, settings, supervisor))  # with the new files' hashes


def _same_process(earlier: Mapping[str, State], now: Mapping[str, State], name: str) -> bool:
    old, new = earlier.get(name), now.get(name)
    return bool(old and new and old.pid and old.pid == new.pid)


def _stay(config: DoorConfig) -> None:
    """Wait for a signal, or for the end of the supervisor; then stop."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: sys.exit(0))
    supervisor = Supervisor(config.run_dir)
    try:
        while supervisor.running():
            time.sleep(1)
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)  # once is enough
        stop(config)
    raise ToxicityError("the supervisor ended; see supervisord.log in the run folder")


def _clean(run_dir: Path) -> None:
    """Remove what only a running door needs: its state, secrets, sockets and private copies."""
    (run_dir / STATE_FILE).unlink(missing_ok=True)
    for path in run_dir.glob("*/*.sock*"):
        path.unlink(missing_ok=True)
    for path in run_dir.glob(f"*/{KEYS_MAP}"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
