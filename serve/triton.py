"""One real `tritonserver` in the background, on this machine only: for measuring and for tests.

    python -m serve.triton start     # start it, or load a newer version into the running one
    python -m serve.triton status
    python -m serve.triton stop

`make serve` runs the same server under a supervisor and behind a balancer: `serve.door`. The server
is the one inside the nvidia-pytriton wheel; nothing else of that package is used. It serves a
private copy of the version (`serve.view`), and the model's backend lies in that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import GRPC_PORT, HOST, HTTP_PORT, METRICS_PORT, PUBLIC_MODEL, BadInput
from export.repository import current
from serve import probe, tritonserver, view
from serve.control import refused_load
from serve.launch import stack_limit
from serve.process import (
    alive,
    refuse_other_flag,
    refuse_taken_port,
    spawn,
    started_s,
    wait_or_kill,
)
from storage.files import write_atomically, write_json

PROCESS_FILE, _SECRET_FILE = "server.json", "control.key"
_POLL_S = 0.1


@dataclass(frozen=True)
class ServeConfig:
    """Flags of `python -m serve.triton`."""

    action: Literal["start", "stop", "status"] = Field(description="start, stop or status")
    repository: Path = Field(Path("model_repository"), description="filled model repository")
    run_dir: Path = Field(Path("runs/serve"), description="log and process file of the server")
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, description="port of HTTP requests")
    grpc_port: int = Field(GRPC_PORT, ge=1, le=65535, description="port of gRPC requests")
    metrics_port: int = Field(METRICS_PORT, ge=1, le=65535, description="port of /metrics")
    require_signature: Path | None = Field(
        None, description="public key; only a version signed for it is loaded"
    )
    ready_timeout_s: float = Field(120, gt=0, description="longest wait for a ready server")
    stop_timeout_s: float = Field(30, gt=0, description="longest wait for requests in flight")

    @property
    def log(self) -> Path:
        return self.run_dir / tritonserver.LOG_FILE

    @property
    def process_file(self) -> Path:
        return self.run_dir / PROCESS_FILE


@dataclass(frozen=True)
class Server:
    """A server, or the balancer before some, as its process file describes it."""

    pid: int
    started_s: float
    """See `serve.process.started_s`; with it a recycled process id is not taken for the server."""
    repository: str
    http_port: int
    grpc_port: int
    metrics_port: int
    metrics_path: str = "/metrics"
    replicas: tuple[Server, ...] = ()
    """The servers behind it, when it is a balancer."""
    beside: tuple[int, ...] = ()
    """Process ids of a balancer's other programs."""
    application: int = 0
    """Process id of the application behind it (serve/app), if there is one."""

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}{self.metrics_path}"


def main() -> None:
    config = parse_config(
        ServeConfig,
        None,
        prog="python -m serve.triton",
        description="Start, stop or look at one local Triton server.",
        positional="action",
    )
    {"start": start, "stop": stop, "status": status}[config.action](config)


def start(config: ServeConfig) -> None:
    """Serve the current version; return once it answers.

    Raises BadInput for a missing or damaged model, a taken port, an incomplete installation
    and a server that dies while it starts.
    """
    server = running(config)
    if server is None:
        server = launch(config)
    else:
        for flag in ("http_port", "grpc_port", "metrics_port"):
            refuse_other_flag(config.run_dir, flag, getattr(config, flag), getattr(server, flag))
        update(config, server)
    print_addresses(config.log, server)


def launch(config: ServeConfig, change: Callable[[Path], None] | None = None) -> Server:
    """Start a server where none runs and wait until it answers; raises as `start` does.

    `change`, for measuring, may change its view before it is loaded.
    """
    for flag in ("http_port", "grpc_port", "metrics_port"):
        refuse_taken_port(getattr(config, flag), flag)
    view.stage(config.repository, config.run_dir / view.FOLDER, public_key=config.require_signature)
    if change:
        change(config.run_dir / view.FOLDER)
    process = _spawn(config)
    server = Server(
        pid=process.pid,
        started_s=started_s(process.pid),
        repository=str(config.repository.resolve()),
        http_port=config.http_port,
        grpc_port=config.grpc_port,
        metrics_port=config.metrics_port,
    )
    write_json(config.process_file, dataclasses.asdict(server))
    try:
        _wait_until_ready(config, server, process)
    except BaseException:
        stop(config, quiet=True)
        raise
    return server


def stop(config: ServeConfig, *, quiet: bool = False) -> None:
    """End the server of `config.run_dir`: let requests in flight finish, then kill it."""
    say = (lambda _: None) if quiet else print
    server = running(config)
    if server is None:
        config.process_file.unlink(missing_ok=True)
        say(f"no server is running from {config.run_dir}")
        return
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    process.terminate()
    wait_or_kill(family, config.stop_timeout_s)
    config.process_file.unlink(missing_ok=True)
    say(f"stopped the server (process {server.pid})")


def status(config: ServeConfig) -> None:
    """Print what runs from `config.run_dir`."""
    server = running(config)
    if server is None:
        print(f"no server is running from {config.run_dir}; start it with `make serve`")
        return
    print(f"process {server.pid} serves version {served_version(server)} of {server.repository}")
    print_addresses(config.log, server)


def running(config: ServeConfig) -> Server | None:
    """The live server of `config.run_dir`, if there is one; a recycled process id is not it."""
    return read_running(config.process_file)


def read_running(process_file: Path) -> Server | None:
    """What a process file describes, if it still runs."""
    try:
        fields = json.loads(process_file.read_text("utf-8"))
        replicas = tuple(Server(**one) for one in fields.pop("replicas"))
        server = Server(**fields, replicas=replicas)
    except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError):
        return None
    return server if alive(server.pid, server.started_s) else None


def served_version(server: Server) -> int | None:
    """Newest version of the public model that answers, or None when none does."""
    return version_at(server.http_url)


def version_at(http_url: str) -> int | None:
    """`served_version` at an address."""
    try:
        return probe.newest_version(_get_json(http_url + probe.METADATA_PATH))
    except (OSError, ValueError, HTTPException):
        return None


def scores_at(http_url: str) -> bool:
    """Whether the server at an address really scores a comment, or is overloaded."""
    try:
        body = probe.request(text=probe.fresh())
        return probe.works(200, _get_json(http_url + probe.INFER_PATH, body))
    except urllib.error.HTTPError as error:
        return probe.works(error.code, _json_of(error.read()))
    except (OSError, ValueError, HTTPException):
        return False


# --- Starting ----------------------------------------------------------------------------
def _spawn(config: ServeConfig) -> psutil.Process:
    secret = secrets.token_hex(16)
    write_atomically(config.run_dir / _SECRET_FILE, secret, 0o600)
    arguments = tritonserver.command(
        config.run_dir.resolve(),
        http=(HOST, config.http_port),
        grpc=(HOST, config.grpc_port),
        metrics=(HOST, config.metrics_port),
        http_key=secret,
        grpc_key=secret,
        exit_timeout_s=int(config.stop_timeout_s),
    )
    limits = resource.getrlimit(resource.RLIMIT_STACK)
    soft = stack_limit(tritonserver.STACK_BYTES, limits[1])
    resource.setrlimit(resource.RLIMIT_STACK, (soft, limits[1]))  # the server inherits it
    try:
        return spawn(arguments, {**os.environ, **tritonserver.environment(os.environ)}, config.log)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, limits)


def _wait_until_ready(config: ServeConfig, server: Server, process: psutil.Process) -> None:
    deadline = time.monotonic() + config.ready_timeout_s
    while not scores_at(server.http_url):
        if process.status() == psutil.STATUS_ZOMBIE:
            raise BadInput(
                f"tritonserver ended with status {process.wait()} before it was ready: "
                f"{tritonserver.reason(config.log)}; the whole log is {config.log}"
            )
        if time.monotonic() > deadline:
            raise BadInput(
                f"tritonserver is not ready after {config.ready_timeout_s:g} s: "
                f"{tritonserver.reason(config.log)}; the whole log is {config.log}, the limit is "
                "--ready-timeout-s"
            )
        time.sleep(_POLL_S)


# --- A server that already runs ----------------------------------------------------------
def update(config: ServeConfig, server: Server) -> None:
    """Load the current version into a running server, which keeps answering meanwhile.

    Raises BadInput when it cannot; the old version still answers then.
    """
    wanted_repository = str(config.repository.resolve())
    refuse_other_flag(config.run_dir, "repository", wanted_repository, server.repository)
    wanted, served = current(config.repository), served_version(server)
    if wanted == served:
        print(f"already serving version {served}")
        return
    print(f"loading version {wanted}; version {served} answers until it is ready")
    load_version(
        config,
        lambda: reload(server.http_url, (config.run_dir / _SECRET_FILE).read_text("utf-8")),
    )
    if (now := served_version(server)) != wanted:
        raise BadInput(
            f"the server answers with version {now}, expected {wanted}; see {config.log}"
        )


def load_version(config: ServeConfig, ask: Callable[[], None]) -> None:
    """Stage the current version in the server's view and have it loaded by `ask`.

    When that raises BadInput, the view is again what it was.
    """
    folder = config.run_dir / view.FOLDER
    with view.changed(config.repository, folder, public_key=config.require_signature):
        ask()


def reload(http_url: str, key: str) -> None:
    """Ask a running server to load what its view holds; on BadInput the old version answers."""
    url = f"{http_url}/v2/repository/models/{PUBLIC_MODEL}/load"
    request = urllib.request.Request(url, data=b"{}", headers={tritonserver.KEY_HEADER: key})
    try:
        with urllib.request.urlopen(request, timeout=300):
            pass
    except urllib.error.HTTPError as error:
        raise refused_load(_json_of(error.read())) from error
    except OSError as error:
        raise BadInput(f"{http_url} does not answer ({error}); run `make stop serve`") from error


# --- Telling -----------------------------------------------------------------------------
def print_addresses(log: Path, server: Server) -> None:
    """Where the server listens, and an example request with its answer."""
    print(f"HTTP     {server.http_url}")
    print(f"gRPC     {HOST}:{server.grpc_port}")
    print(f"metrics  {server.metrics_url}")
    print(f"log      {log}")
    print_example(server.http_url)


def print_example(http_url: str) -> None:
    """A request to copy, and what it answers."""
    url, body = http_url + probe.INFER_PATH, probe.request()
    print(f"$ curl -s {url} -d '{json.dumps(body)}'")
    print(json.dumps(_get_json(url, body)))


def _get_json(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data=data, timeout=10) as answer:
        return json.load(answer)


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


if __name__ == "__main__":
    run(main)
