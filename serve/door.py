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

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import HOST, BadInput, ToxicityError
from export.repository import current, verify
from serve import balancer, control, haproxy, keys, triton, view
from serve.process import refuse_taken_port
from serve.supervisor import Program, State, Supervisor
from serve.triton import ServeConfig, Server
from storage.files import read_json, write_atomically, write_json
from storage.locks import LOCK_FILE, locked

_STATE_FILE, _KEYS_MAP = "serve.json", "keys.map"
_GRPC = "grpc"
_POLL_S = 0.05
_LOCK_WAIT_S = 300


@dataclass(frozen=True)
class DoorConfig(ServeConfig):
    """Flags of `python -m serve.door`."""

    replicas: int | None = Field(
        None, ge=1, le=64, description="servers behind haproxy; as many as there are, or one"
    )
    grpc: bool | None = Field(None, description="also serve gRPC, from a server of its own")
    address: str | None = Field(
        None, description="address to listen on, 127.0.0.1 by default; another one needs haproxy"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of certificates and private key: HTTPS, and gRPC over TLS"
    )
    keys: Path | None = Field(
        None, description="file of API keys (`python -m serve.keys`); one is asked for then"
    )
    allow_origin: tuple[str, ...] = Field(
        (), description="origins of web pages that may ask, such as https://site.example"
    )
    haproxy: bool = Field(True, description="put haproxy before the server when it is installed")
    foreground: bool = Field(False, description="stay until a signal, then stop; for systemd")


@dataclass(frozen=True)
class Settings:
    """How the door was started: serve.json in the run folder."""

    repository: str
    http_port: int
    grpc_port: int
    metrics_port: int
    address: str
    replicas: int
    grpc: bool
    balanced: bool
    tls_certificate: str | None = None
    keys: str | None = None
    allow_origin: tuple[str, ...] = ()
    require_signature: str | None = None

    @property
    def public_key(self) -> Path | None:
        return Path(self.require_signature) if self.require_signature else None


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
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with locked(config.run_dir / LOCK_FILE, str(config.run_dir), "wait for it", _LOCK_WAIT_S):
        supervisor = Supervisor(config.run_dir)
        alive = supervisor.running()
        before = read_settings(config.run_dir) if alive else None
        settings = _settings(config, before)
        verify(config.repository, public_key=settings.public_key)
        try:
            if before is None:
                _refuse_taken(settings)
            _bring_up(config, settings, supervisor, before)
        except BaseException:
            if before is None:
                supervisor.stop()
            raise
        write_json(config.run_dir / _STATE_FILE, dataclasses.asdict(settings))
    _print_replicas(settings, supervisor)
    _print_addresses(config, settings)
    if config.foreground:
        _stay(config)


def stop(config: DoorConfig) -> None:
    """Take no more requests, finish those in flight, end everything and remove its sockets."""
    supervisor = Supervisor(config.run_dir)
    if not supervisor.running():
        print(f"no server is running from {config.run_dir}")
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
    _print_replicas(settings, supervisor)
    _print_addresses(config, settings, example=False)


def running(run_dir: Path) -> Server | None:
    """What serves from a run folder, as benches want it; None when nothing does."""
    settings = read_settings(run_dir)
    states = Supervisor(run_dir).states() if settings else {}
    if settings is None or not states:
        return None

    def server(name: str, path: str, replicas: tuple[Server, ...] = ()) -> Server | None:
        try:
            process = psutil.Process(states[name].pid)
            created = process.create_time()
        except (KeyError, psutil.NoSuchProcess):
            return None
        return Server(
            pid=process.pid,
            create_time=created,
            repository=settings.repository,
            http_port=settings.http_port,
            grpc_port=settings.grpc_port if settings.grpc else 0,
            metrics_port=settings.metrics_port,
            metrics_path=path,
            replicas=replicas,
        )

    if not settings.balanced:
        return server(_replica(1), "/metrics")
    found = [server(name, f"/{name}/metrics") for name in _names(settings)]
    front = server(haproxy.NAME, balancer.BALANCER_METRICS, tuple(one for one in found if one))
    large = states.get(haproxy.LARGE_NAME)
    return dataclasses.replace(front, beside=(large.pid,)) if front and large else front


def read_settings(run_dir: Path) -> Settings | None:
    """How what serves from there was started, if something was."""
    try:
        return Settings(**read_json(run_dir / _STATE_FILE, "run `make serve`"))
    except (ToxicityError, TypeError, ValueError):
        return None


# --- Settings ----------------------------------------------------------------------------
def _settings(config: DoorConfig, before: Settings | None) -> Settings:
    """What to run: the flags, and for those left out what runs already."""
    replicas = config.replicas or (before.replicas if before else 1)
    grpc = config.grpc if config.grpc is not None else bool(before and before.grpc)
    address = config.address or (before.address if before else HOST)
    certificate, key_file = (
        str(path.resolve()) if path else None for path in (config.tls_certificate, config.keys)
    )
    signed = str(config.require_signature.resolve()) if config.require_signature else None
    origins = tuple(config.allow_origin)
    if before:
        certificate = certificate or before.tls_certificate
        key_file, origins = key_file or before.keys, origins or before.allow_origin
        signed = signed or before.require_signature
    needs = replicas > 1 or grpc or address != HOST or certificate or key_file or origins
    balanced = before.balanced if before else config.haproxy and haproxy.found() is not None
    if needs and not balanced:
        haproxy.executable()
        raise BadInput(
            "haproxy is not in front, expected it for more than one replica, gRPC, another "
            "address, TLS, keys and origins; leave out --no-haproxy, after `make stop`"
        )
    settings = Settings(
        repository=str(config.repository.resolve()),
        http_port=config.http_port,
        grpc_port=config.grpc_port,
        metrics_port=config.metrics_port,
        address=address,
        replicas=replicas,
        grpc=grpc,
        balanced=balanced,
        tls_certificate=certificate,
        keys=key_file,
        allow_origin=origins,
        require_signature=signed,
    )
    for name in ("repository", "http_port", "grpc_port", "metrics_port", "address"):
        wanted, used = getattr(settings, name), getattr(before or settings, name)
        if wanted != used:
            raise BadInput(
                f"--{name.replace('_', '-')} is {wanted}, expected {used}, with which "
                f"{config.run_dir} serves; run `make stop` first"
            )
    return settings


def _refuse_taken(settings: Settings) -> None:
    for flag in ("http_port", "metrics_port", *(["grpc_port"] if settings.grpc else [])):
        refuse_taken_port(getattr(settings, flag), flag)


def _replica(number: int) -> str:
    return f"replica-{number}"


def _names(settings: Settings) -> list[str]:
    """Programs that are servers."""
    names = [_replica(number) for number in range(1, settings.replicas + 1)]
    return [*names, _GRPC] if settings.grpc else names


# --- Bringing up -------------------------------------------------------------------------
def _bring_up(
    config: DoorConfig, settings: Settings, supervisor: Supervisor, before: Settings | None
) -> None:
    known = set(_names(before)) if before else set()
    views = {name: supervisor.program_folder(name) / view.FOLDER for name in _names(settings)}
    for name, folder in views.items():
        if name not in known:
            others = [other for other in views.values() if other != folder]
            view.stage(config.repository, folder, others, settings.public_key)
    if settings.balanced:
        _write_balancers(settings, supervisor)
    supervisor.start(_programs(config, settings, supervisor))
    for name in views:
        _wait_until_it_scores(config, settings, supervisor, name)
    for name in sorted(known & set(views)):
        _update(config, settings, supervisor, name)
    if settings.balanced:
        if before:
            for name in haproxy.NAMES:
                supervisor.signal(name, "USR2")  # the old worker finishes what it began
        _wait_until_up(config, settings, supervisor)


def _programs(config: DoorConfig, settings: Settings, supervisor: Supervisor) -> list[Program]:
    programs = [_server(config, settings, supervisor, name) for name in _names(settings)]
    if settings.balanced:
        programs += [_balancer(config, supervisor, name) for name in haproxy.NAMES]
    return programs


def _balancer(config: DoorConfig, supervisor: Supervisor, name: str) -> Program:
    file = supervisor.program_folder(name) / haproxy.CONFIG_FILE
    return Program(
        name=name,
        command=[haproxy.executable(), "-W", "-f", str(file)],
        environment=haproxy.ENVIRONMENT,
        files={},
        sockets=[],
        stop_signal="USR1",
        stop_timeout_s=int(config.stop_timeout_s) + 5,
    )


def _server(config: DoorConfig, settings: Settings, supervisor: Supervisor, name: str) -> Program:
    folder = supervisor.program_folder(name)
    http, metrics, grpc = (
        (f"unix:{folder / socket}", control.GRPC_PORT)
        for socket in (control.HTTP_SOCKET, control.METRICS_SOCKET, control.GRPC_SOCKET)
    )
    command = triton.command(
        folder,
        http=http if settings.balanced else (HOST, settings.http_port),
        metrics=metrics if settings.balanced else (HOST, settings.metrics_port),
        # Where HTTP is open to others, loads come over this private socket.
        grpc=grpc if name == _GRPC or not settings.balanced else None,
        http_key=None if settings.balanced else triton.CLOSED,
        grpc_key=None,
        exit_timeout_s=int(config.stop_timeout_s),
    )
    names = [control.HTTP_SOCKET, control.METRICS_SOCKET, _grpc_socket(folder).name]
    return Program(
        name=name,
        command=command,
        environment=triton.environment(os.environ),
        files=_files(folder),
        sockets=names,
        stop_signal="TERM",
        stop_timeout_s=int(config.stop_timeout_s) + 5,
        stack_bytes=triton.STACK_BYTES,
        log=triton.LOG_FILE,
    )


def _files(folder: Path) -> dict[str, str]:
    hashes = view.hashes(folder / view.FOLDER)
    return {f"{view.FOLDER}/{name}": sha256 for name, sha256 in hashes.items()}


def _grpc_socket(folder: Path) -> Path:
    return folder / f"{control.GRPC_SOCKET}:{control.GRPC_PORT}"


def _write_balancers(settings: Settings, supervisor: Supervisor) -> None:
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
    def replica(name: str) -> balancer.Replica:
        folder = supervisor.program_folder(name)
        return balancer.Replica(
            name=name,
            http_socket=str(folder / control.HTTP_SOCKET),
            metrics_socket=str(folder / control.METRICS_SOCKET),
            grpc_socket=str(_grpc_socket(folder)),
        )

    folders = [supervisor.program_folder(name) for name in haproxy.NAMES]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    clients = keys.read(Path(settings.keys)) if settings.keys else []
    keys_file = folders[0] / _KEYS_MAP
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
        replicas=[replica(_replica(n)) for n in range(1, settings.replicas + 1)],
        front_folder=folders[0],
        large_folder=folders[1],
        grpc=replica(_GRPC) if settings.grpc else None,
        certificate=certificate,
        keys=clients,
        keys_file=keys_file,
        origins=settings.allow_origin,
    )


def _wait_until_it_scores(
    config: DoorConfig, settings: Settings, supervisor: Supervisor, name: str
) -> None:
    folder = supervisor.program_folder(name)
    deadline = time.monotonic() + config.ready_timeout_s
    while not _scores(settings, folder):
        state = supervisor.states().get(name)
        # It ended before it was ready: what the supervisor would repeat is no better.
        if state and state.words in ("BACKOFF", "FATAL", "EXITED"):
            raise BadInput(
                f"{name} ended before it was ready: {triton.reason(folder / triton.LOG_FILE)}; the "
                f"whole log is {folder / triton.LOG_FILE}"
            )
        if time.monotonic() > deadline:
            raise BadInput(
                f"{name} is not ready after {config.ready_timeout_s:g} s: "
                f"{triton.reason(folder / triton.LOG_FILE)}; the whole log is "
                f"{folder / triton.LOG_FILE}, the limit is --ready-timeout-s"
            )
        time.sleep(_POLL_S)


def _scores(settings: Settings, folder: Path) -> bool:
    if settings.balanced:
        return control.scores(folder / control.HTTP_SOCKET)
    return triton.scores_at(f"http://{HOST}:{settings.http_port}")


def _update(config: DoorConfig, settings: Settings, supervisor: Supervisor, name: str) -> None:
    """Load the current version into one running server."""
    folder = supervisor.program_folder(name)
    wanted, served = current(config.repository), view.newest(folder / view.FOLDER)
    if wanted == served:
        print(f"{name}: already serving version {served}")
        return
    print(
        f"{name}: loading version {wanted}; version {served} answers until it is ready", flush=True
    )
    others = [
        supervisor.program_folder(other) / view.FOLDER
        for other in _names(settings)
        if other != name
    ]
    with view.changed(config.repository, folder / view.FOLDER, others, settings.public_key):
        if settings.balanced:
            control.load(folder / control.HTTP_SOCKET)
        else:
            control.load_over_grpc(_grpc_socket(folder))
    supervisor.start(_programs(config, settings, supervisor))  # with the new files' hashes


def _wait_until_up(config: DoorConfig, settings: Settings, supervisor: Supervisor) -> None:
    expected = {_replica(number): "UP" for number in range(1, settings.replicas + 1)}
    large = balancer.large_socket(supervisor.program_folder(haproxy.LARGE_NAME))
    deadline = time.monotonic() + config.ready_timeout_s
    while (found := haproxy.states(settings.metrics_port)) != expected or not haproxy.accepts(
        large
    ):
        states = supervisor.states()
        ended = [
            name
            for name in haproxy.NAMES
            if name not in states or states[name].words in ("BACKOFF", "FATAL", "EXITED")
        ]
        if ended or time.monotonic() > deadline:
            log = supervisor.program_folder((*ended, haproxy.NAME)[0]) / "log"
            lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line]
            raise BadInput(
                f"haproxy's replicas are {found or 'not there'}, expected {settings.replicas} that "
                f"are up; {lines[-1] if lines else 'it said nothing'}; the log is {log}"
            )
        time.sleep(_POLL_S)


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
    (run_dir / _STATE_FILE).unlink(missing_ok=True)
    for path in run_dir.glob("*/*.sock*"):
        path.unlink(missing_ok=True)
    for path in run_dir.glob(f"*/{_KEYS_MAP}"):
        path.unlink(missing_ok=True)


# --- Telling -----------------------------------------------------------------------------
def _print_replicas(settings: Settings, supervisor: Supervisor) -> None:
    states = supervisor.states()
    up = haproxy.states(settings.metrics_port) if settings.balanced else {}
    for name in _names(settings):
        print(f"{name + ':':14} {_described(settings, supervisor, states.get(name), name, up)}")
    if settings.balanced:
        for name in haproxy.NAMES:
            print(f"{name + ':':14} {_process(states.get(name))}")


def _described(
    settings: Settings,
    supervisor: Supervisor,
    state: State | None,
    name: str,
    up: dict[str, str],
) -> str:
    folder = supervisor.program_folder(name)
    ready = "scores" if _scores(settings, folder) else "DOES NOT SCORE"
    if settings.balanced:
        version = control.version(folder / control.HTTP_SOCKET)
    else:
        version = triton.version_at(f"http://{HOST}:{settings.http_port}")
    seen = f", {up[name]} for haproxy" if name in up else ""
    path = f"/{name}/metrics" if settings.balanced else "/metrics"
    return (
        f"{ready}, version {version or 'none'}{seen}, {_process(state)}, metrics "
        f"http://{HOST}:{settings.metrics_port}{path}"
    )


def _process(state: State | None) -> str:
    if state is None:
        return "not known to the supervisor"
    again = f", started {state.starts} times" if state.starts > 1 else ""
    if state.pid:
        return f"process {state.pid} up {state.up_s} s{again}"
    return f"{state.words}{again}; it is started again by itself"


def _print_addresses(config: DoorConfig, settings: Settings, *, example: bool = True) -> None:
    try:
        newest = f"version {current(config.repository)} is current in {settings.repository}"
    except ToxicityError as error:
        newest = f"{settings.repository}: {error}"
    scheme = "https" if settings.tls_certificate else "http"
    print(f"repository  {newest}")
    print(f"HTTP        {scheme}://{settings.address}:{settings.http_port}")
    if settings.grpc:
        print(f"gRPC        {settings.address}:{settings.grpc_port}")
    where = balancer.BALANCER_METRICS if settings.balanced else "/metrics"
    print(f"metrics     http://{HOST}:{settings.metrics_port}{where}")
    print(f"logs        {config.run_dir}")
    if not settings.balanced:
        print(
            "haproxy is not in front: bodies, headers, nesting, slow and foreign-origin requests "
            "are not bounded; `apt-get install haproxy`, then `make stop serve`"
        )
    if example and not settings.keys and not settings.tls_certificate:
        triton.print_example(f"http://{HOST}:{settings.http_port}")


if __name__ == "__main__":
    run(main)
