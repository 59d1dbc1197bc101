"""The real `tritonserver` in the background, on this machine only: `make serve`, `make stop`.

    python -m serve.triton start     # start it, or load a newer version into the running one
    python -m serve.triton status
    python -m serve.triton stop

The server is the one inside the nvidia-pytriton wheel; nothing else of that package is used. The
model's backend lies in the version's own folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import sys
import time
import urllib.error
import urllib.request
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import GRPC_PORT, HOST, HTTP_PORT, METRICS_PORT, PUBLIC_MODEL, TEXT, BadInput
from export.repository import verify, versions
from serve.process import alive, refuse_taken_port, spawn, wait_or_kill
from train.artifacts import write_json
from train.cli import parse_config, run

_EXAMPLE = "Thank you, that was a kind and thoughtful answer."
PROCESS_FILE = "server.json"
_POLL_S = 0.1
_STACK_BYTES = 1 << 30
"""Stack of each server thread. A JSON body of 8 MB ended the whole of release 24.10 under the usual
limit of 8 MB, and did not under this one. Address space only; a page counts once it is touched."""


@dataclass(frozen=True)
class ServeConfig:
    """Flags of `python -m serve.triton`."""

    action: Literal["start", "stop", "status"] = Field(description="start, stop or status")
    repository: Path = Field(Path("model_repository"), description="filled model repository")
    run_dir: Path = Field(Path("runs/serve"), description="log and process file of the server")
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, description="port of HTTP requests")
    grpc_port: int = Field(GRPC_PORT, ge=1, le=65535, description="port of gRPC requests")
    metrics_port: int = Field(METRICS_PORT, ge=1, le=65535, description="port of /metrics")
    ready_timeout_s: float = Field(120, gt=0, description="longest wait for a ready server")
    stop_timeout_s: float = Field(30, gt=0, description="longest wait for requests in flight")

    @property
    def log(self) -> Path:
        return self.run_dir / "tritonserver.log"

    @property
    def process_file(self) -> Path:
        return self.run_dir / PROCESS_FILE


@dataclass(frozen=True)
class Server:
    """A server, or the balancer before some, as its process file describes it."""

    pid: int
    create_time: float
    repository: str
    http_port: int
    grpc_port: int
    metrics_port: int
    replicas: tuple[Server, ...] = ()
    """The servers behind it, when it is a balancer."""

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self.http_port}"


def main() -> None:
    config = parse_config(
        ServeConfig,
        None,
        prog="python -m serve.triton",
        description="Start, stop or look at the local Triton server.",
        positional="action",
    )
    {"start": start, "stop": stop, "status": status}[config.action](config)


def start(config: ServeConfig) -> None:
    """Serve the newest published version; return once it answers.

    Raises BadInput for a missing or damaged model, a taken port, an incomplete installation
    and a server that dies while it starts.
    """
    verify(config.repository)
    server = running(config)
    if server is None:
        server = launch(config)
    else:
        update(config, server)
    print_addresses(config.log, server)


def launch(config: ServeConfig) -> Server:
    """Start a server where none runs and wait until it answers; raises as `start` does."""
    for flag in ("http_port", "grpc_port", "metrics_port"):
        refuse_taken_port(getattr(config, flag), flag)
    process = _spawn(config)
    server = Server(
        pid=process.pid,
        create_time=process.create_time(),
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
    return server if alive(server.pid, server.create_time) else None


def served_version(server: Server) -> int | None:
    """Newest version of the public model that answers, or None when none does."""
    try:
        metadata = _get_json(f"{server.http_url}/v2/models/{PUBLIC_MODEL}")
    except OSError:
        return None
    return max((int(version) for version in metadata["versions"]), default=None)


# --- Starting ----------------------------------------------------------------------------
def _spawn(config: ServeConfig) -> psutil.Process:
    installed = wheel()
    environment = _environment(installed)
    backends = config.run_dir / "backends"  # none but the model's own
    backends.mkdir(parents=True, exist_ok=True)
    command = [
        str(_executable(installed / "bin" / "tritonserver")),
        f"--model-repository={config.repository.resolve()}",
        f"--backend-directory={backends.resolve()}",
        "--model-control-mode=explicit",
        f"--load-model={PUBLIC_MODEL}",
        "--disable-auto-complete-config",
        *(f"--{service}-address={HOST}" for service in ("http", "grpc", "metrics")),
        f"--http-port={config.http_port}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-port={config.metrics_port}",
        f"--exit-timeout-secs={int(config.stop_timeout_s)}",
    ]
    limits = resource.getrlimit(resource.RLIMIT_STACK)
    stack = _STACK_BYTES if limits[1] == resource.RLIM_INFINITY else min(_STACK_BYTES, limits[1])
    resource.setrlimit(resource.RLIMIT_STACK, (stack, limits[1]))  # the server inherits it
    try:
        return spawn(command, environment, config.log)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, limits)


def wheel() -> Path:
    """The server in its package. Raises BadInput without it."""
    spec = find_spec("pytriton")
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (wheel := Path(root) / "tritonserver").is_dir():
            return wheel
    raise BadInput(
        f"nvidia-pytriton is not installed for {sys.executable}, expected its tritonserver; "
        "run `make serve`, or `pip install --no-deps nvidia-pytriton==0.7.0`"
    )


def _environment(wheel: Path) -> dict[str, str]:
    libraries = [
        str(wheel.parent.parent / "nvidia_pytriton.libs"),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}
    if allocator := find_library("jemalloc"):
        environment["LD_PRELOAD"] = " ".join(
            filter(None, [os.environ.get("LD_PRELOAD"), allocator])
        )
    return environment


def _executable(path: Path) -> Path:
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return path


def _wait_until_ready(config: ServeConfig, server: Server, process: psutil.Process) -> None:
    deadline = time.monotonic() + config.ready_timeout_s
    while not _is_ready(server):
        if process.status() == psutil.STATUS_ZOMBIE:
            raise BadInput(
                f"tritonserver ended with status {process.wait()} before it was ready: "
                f"{_reason(config.log)}; the whole log is {config.log}"
            )
        if time.monotonic() > deadline:
            raise BadInput(
                f"tritonserver is not ready after {config.ready_timeout_s:g} s: "
                f"{_reason(config.log)}; the whole log is {config.log}, the limit is "
                "--ready-timeout-s"
            )
        time.sleep(_POLL_S)


def _is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(
            f"{server.http_url}/v2/models/{PUBLIC_MODEL}/ready", timeout=5
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _reason(log: Path) -> str:
    """The most telling line of a Triton log: why it ended, else its last error, else its end."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    for start in (r"error: ", r"E\d{4} ", r"."):
        if found := [line for line in lines if re.match(start, line)]:
            return found[-1].split("] ", 1)[-1].strip('"').split("\\n")[0]
    return "its log is empty"


# --- A server that already runs ----------------------------------------------------------
def update(config: ServeConfig, server: Server) -> None:
    """Load the newest version into a running server, which keeps answering meanwhile.

    Raises BadInput when it cannot; the old version still answers then.
    """
    if str(config.repository.resolve()) != server.repository:
        raise BadInput(
            f"the server of {config.run_dir} serves {server.repository}, expected "
            f"{config.repository.resolve()}; run `make stop` first"
        )
    newest, served = versions(config.repository)[-1], served_version(server)
    if newest == served:
        print(f"already serving version {served}")
    else:
        print(f"loading version {newest}; version {served} answers until it is ready")
        reload(server)
        if (now := served_version(server)) != newest:
            raise BadInput(
                f"the server answers with version {now}, expected {newest}; see {config.log}"
            )


def reload(server: Server) -> None:
    """Ask a running server to load what is newest; on BadInput the old version still answers."""
    url = f"{server.http_url}/v2/repository/models/{PUBLIC_MODEL}/load"
    try:
        with urllib.request.urlopen(url, data=b"{}", timeout=300):
            pass
    except urllib.error.HTTPError as error:
        reason = json.loads(error.read()).get("error", "no reason given").splitlines()[0]
        raise BadInput(
            f"the server could not load the new version ({reason}), the old one still answers; "
            "run `make export` again"
        ) from error
    except OSError as error:
        raise BadInput(
            f"{server.http_url} does not answer ({error}); run `make stop serve`"
        ) from error


# --- Telling -----------------------------------------------------------------------------
def print_addresses(log: Path, server: Server) -> None:
    """Where the server listens, and an example request with its answer."""
    url = f"{server.http_url}/v2/models/{PUBLIC_MODEL}/infer"
    body = json.dumps(
        {"inputs": [{"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [_EXAMPLE]}]}
    )
    print(f"HTTP     {server.http_url}")
    print(f"gRPC     {HOST}:{server.grpc_port}")
    print(f"metrics  http://{HOST}:{server.metrics_port}/metrics")
    print(f"log      {log}")
    print(f"$ curl -s {url} -d '{body}'")
    print(json.dumps(_get_json(url, body.encode())))


def _get_json(url: str, body: bytes | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    return document


if __name__ == "__main__":
    run(main)
