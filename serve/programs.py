"""The programs that `serve.door` has supervised: servers, and the two balancers before them."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from contract import HOST, BadInput, ToxicityError
from export.repository import current
from serve import balancer, canary_backend, control, haproxy, keys, traces, tritonserver, view
from serve import mirror_settings as mirror
from serve.app import settings as app
from serve.app.decisions import Versions
from serve.app.refusals import Refusal
from serve.settings import (
    CANARY,
    GRPC,
    MIRROR,
    MONITOR_FILE,
    DoorConfig,
    Settings,
    replica,
    server_names,
)
from serve.supervisor import Program, Supervisor
from storage.files import json_text, write_atomically

KEYS_MAP = "keys.map"


def programs(config: DoorConfig, settings: Settings, supervisor: Supervisor) -> list[Program]:
    """All of them; the servers' views and the balancers' files are there already."""
    found = [_server(config, settings, supervisor, name) for name in server_names(settings)]
    if settings.balanced:
        found += [_balancer(config, supervisor, name) for name in haproxy.NAMES]
        found.append(_app(config, supervisor))
    if settings.canary:
        found += [_server(config, settings, supervisor, CANARY), _mirror(supervisor)]
    return found


def _mirror(supervisor: Supervisor) -> Program:
    folder = supervisor.program_folder(MIRROR)
    return Program(
        name=MIRROR,
        command=[sys.executable, "-m", mirror.MODULE, str(folder / mirror.SETTINGS_FILE)],
        environment={},
        files={},
        sockets=[mirror.LINES_SOCKET, mirror.HTTP_SOCKET],
        stop_signal="TERM",
        stop_timeout_s=10,
    )


def write_mirror(settings: Settings, supervisor: Supervisor) -> bool:
    """Write what the mirror is told of the canary; whether that is something new."""
    assert settings.canary
    folder = supervisor.program_folder(MIRROR)
    servers = {name: supervisor.program_folder(name) for name in _replica_names(settings)}
    canary, front = (supervisor.program_folder(name) for name in (CANARY, haproxy.NAME))
    told = mirror.MirrorSettings(
        lines=str(folder / mirror.LINES_SOCKET),
        http=str(folder / mirror.HTTP_SOCKET),
        canary=str(canary / control.HTTP_SOCKET),
        stable=tuple(str(path / control.HTTP_SOCKET) for path in servers.values()),
        views=tuple(str(path / view.FOLDER) for path in (*servers.values(), canary)),
        balancer=str(balancer.metrics_socket(front)),
        share=settings.canary.share,
        shadow=settings.canary.shadow,
    )
    return _write_if_new(folder / mirror.SETTINGS_FILE, json_text(dataclasses.asdict(told)))


def _replica_names(settings: Settings) -> list[str]:
    return [replica(number) for number in range(1, settings.replicas + 1)]


def _app(config: DoorConfig, supervisor: Supervisor) -> Program:
    folder = supervisor.program_folder(app.NAME)
    return Program(
        name=app.NAME,
        command=[sys.executable, "-m", app.MODULE, str(folder / app.SETTINGS_FILE)],
        environment={},
        files={},
        sockets=[app.SOCKET],
        stop_signal="TERM",
        stop_timeout_s=int(config.stop_timeout_s) + 5,
    )


def write_app(settings: Settings, supervisor: Supervisor) -> bool:
    """Write what the application is told; whether that is something new."""
    folder = supervisor.program_folder(app.NAME)
    front, large = (supervisor.program_folder(name) for name in haproxy.NAMES)
    views = (supervisor.program_folder(name) / view.FOLDER for name in server_names(settings))
    canary_view = supervisor.program_folder(CANARY) / view.FOLDER  # there may be one later
    told = app.AppSettings(
        socket=str(folder / app.SOCKET),
        servers=str(balancer.inner_socket(front)),
        large=str(balancer.large_socket(large)),
        views=tuple(map(str, views)),
        canary_views=(str(canary_view),),
        repository=settings.repository,
        public_key=settings.require_signature,
        metrics=str(balancer.metrics_socket(front)),
        labels=settings.labels,
        monitor=str(folder.parent / MONITOR_FILE),
        get_score=settings.get_score,
    )
    return _write_if_new(folder / app.SETTINGS_FILE, json_text(dataclasses.asdict(told)))


def _write_if_new(path: Path, text: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.read_text("utf-8") != text
    if new:
        write_atomically(path, text)
    return new


def _balancer(config: DoorConfig, supervisor: Supervisor, name: str) -> Program:
    return Program(
        name=name,
        command=haproxy.command(supervisor.program_folder(name)),
        environment=haproxy.ENVIRONMENT,
        files={},
        sockets=[haproxy.MASTER_SOCKET],
        stop_signal="USR1",
        stop_timeout_s=int(config.stop_timeout_s) + 5,
    )


def _server(config: DoorConfig, settings: Settings, supervisor: Supervisor, name: str) -> Program:
    folder = supervisor.program_folder(name)
    http, metrics, grpc = (
        (f"unix:{folder / socket}", control.GRPC_PORT)
        for socket in (control.HTTP_SOCKET, control.METRICS_SOCKET, control.GRPC_SOCKET)
    )
    command = tritonserver.command(
        folder,
        http=http if settings.balanced else (HOST, settings.http_port),
        metrics=metrics if settings.balanced else (HOST, settings.metrics_port),
        # Where HTTP is open to others, loads come over this private socket.
        grpc=grpc if name == GRPC or not settings.balanced else None,
        http_key=None if settings.balanced else tritonserver.CLOSED,
        grpc_key=None,
        exit_timeout_s=int(config.stop_timeout_s),
    )
    if settings.balanced:
        command += traces.server_arguments(os.environ)
    names = [control.HTTP_SOCKET, control.METRICS_SOCKET, grpc_socket(folder).name]
    return Program(
        name=name,
        command=command,
        environment=tritonserver.environment(os.environ),
        files=_files(folder),
        sockets=names,
        stop_signal="TERM",
        stop_timeout_s=int(config.stop_timeout_s) + 5,
        stack_bytes=tritonserver.STACK_BYTES,
        log=tritonserver.LOG_FILE,
    )


def _files(folder: Path) -> dict[str, str]:
    hashes = view.hashes(folder / view.FOLDER)
    return {f"{view.FOLDER}/{name}": sha256 for name, sha256 in hashes.items()}


def grpc_socket(folder: Path) -> Path:
    """Where a server of this folder listens for gRPC."""
    return folder / f"{control.GRPC_SOCKET}:{control.GRPC_PORT}"


def write_balancers(settings: Settings, supervisor: Supervisor) -> None:
    """Write what the balancers are told, once haproxy itself takes it.

    Raises BadInput for keys and certificates that cannot be used.
    """
    door = _door(settings, supervisor)
    texts = {haproxy.NAME: balancer.front(door), haproxy.LARGE_NAME: balancer.large(door)}
    candidates = {}
    for name, text in texts.items():
        path = supervisor.program_folder(name) / haproxy.CONFIG_FILE
        candidates[path] = path.with_name(f"{path.name}.new")
        write_atomically(candidates[path], text)
        haproxy.check(candidates[path])
    for path, candidate in candidates.items():
        candidate.replace(path)


def _door(settings: Settings, supervisor: Supervisor) -> balancer.Door:
    def sockets(name: str) -> balancer.Replica:
        folder = supervisor.program_folder(name)
        return balancer.Replica(
            name=name,
            http_socket=str(folder / control.HTTP_SOCKET),
            metrics_socket=str(folder / control.METRICS_SOCKET),
            grpc_socket=str(grpc_socket(folder)),
        )

    folders = [supervisor.program_folder(name) for name in haproxy.NAMES]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    clients = keys.read(Path(settings.keys)) if settings.keys else []
    keys_file = folders[0] / KEYS_MAP
    keys.write_map(keys_file, clients)
    if settings.keys and not clients:
        raise BadInput(f"{settings.keys} has no key, expected one; run `python -m serve.keys add`")
    certificate = Path(settings.tls_certificate) if settings.tls_certificate else None
    if certificate and not certificate.is_file():
        raise BadInput(f"--tls-certificate is {certificate}, expected a PEM file; make one")
    return balancer.Door(
        address=settings.address,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        metrics_port=settings.metrics_port,
        replicas=[sockets(name) for name in _replica_names(settings)],
        front_folder=folders[0],
        large_folder=folders[1],
        app_socket=str(supervisor.program_folder(app.NAME) / app.SOCKET),
        grpc=sockets(GRPC) if settings.grpc else None,
        certificate=certificate,
        keys=clients,
        keys_file=keys_file,
        origins=settings.allow_origin,
        metrics_address=settings.metrics_address,
        canary=_canary_route(settings, supervisor),
    )


def _canary_route(settings: Settings, supervisor: Supervisor) -> canary_backend.CanaryRoute | None:
    if settings.canary is None:
        return None
    server, compares = (supervisor.program_folder(name) for name in (CANARY, MIRROR))
    return canary_backend.CanaryRoute(
        version=settings.canary.version,
        http_socket=str(server / control.HTTP_SOCKET),
        metrics_socket=str(server / control.METRICS_SOCKET),
        mirror_socket=str(compares / mirror.LINES_SOCKET),
        mirror_http_socket=str(compares / mirror.HTTP_SOCKET),
        share=settings.canary.share,
        shadow=settings.canary.shadow,
        same_attributes=same_attributes(settings, supervisor),
    )


def same_attributes(settings: Settings, supervisor: Supervisor) -> bool:
    """Whether the canary and the current version have the same; not where one of them is gone."""
    assert settings.canary
    own = supervisor.program_folder(CANARY) / view.FOLDER
    versions = Versions([settings.repository], [str(own)])  # they lie there as in a view
    try:
        now = current(Path(settings.repository))
        both = [versions.of(str(number)).attributes for number in (now, settings.canary.version)]
    except (ToxicityError, Refusal):
        return False
    return both[0] == both[1]
