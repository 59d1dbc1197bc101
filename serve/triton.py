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
import re
import resource
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from ctypes.util import find_library
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import GRPC_PORT, HOST, HTTP_PORT, METRICS_PORT, PUBLIC_MODEL, TEXT, BadInput
from export.repository import current
from serve import view
from serve.process import alive, refuse_taken_port, spawn, wait_or_kill
from storage.files import write_json

_EXAMPLE = "Thank you, that was a kind and thoughtful answer."
PROCESS_FILE = "server.json"
_POLL_S = 0.1
STACK_BYTES = 1 << 30
"""Stack of each server thread. A JSON body of 8 MB ended the whole of release 24.10 under the usual
limit of 8 MB, and did not under this one. Address space only; a page counts once it is touched."""
RESTRICTED = "model-repository,model-config,shared-memory,trace,logging"
"""What `--http-restricted-api` and `--grpc-restricted-protocol` call all but inference, metadata,
health and statistics."""
KEY_HEADER = "toxicity-key"
CLOSED = "\n"
"""A key that no request can carry: a header's value has no line feed."""


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
        return self.run_dir / LOG_FILE

    @property
    def process_file(self) -> Path:
        return self.run_dir / PROCESS_FILE


LOG_FILE = "tritonserver.log"


@dataclass(frozen=True)
class Server:
    """A server, or the balancer before some, as its process file describes it."""

    pid: int
    create_time: float
    repository: str
    http_port: int
    grpc_port: int
    metrics_port: int
    metrics_path: str = "/metrics"
    replicas: tuple[Server, ...] = ()
    """The servers behind it, when it is a balancer."""
    beside: tuple[int, ...] = ()
    """Process ids of a balancer's other programs."""

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
        _refuse_other_ports(config, server)
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
    return version_at(server.http_url)


def version_at(http_url: str) -> int | None:
    """`served_version` at an address."""
    try:
        metadata = _get_json(f"{http_url}/v2/models/{PUBLIC_MODEL}")
        return max((int(version) for version in metadata["versions"]), default=None)
    except (OSError, ValueError, LookupError, TypeError, HTTPException):
        return None


def scores_at(http_url: str) -> bool:
    """Whether the server at an address really scores a comment."""
    try:
        url = f"{http_url}/v2/models/{PUBLIC_MODEL}/infer"
        answer = _get_json(url, json.dumps(_request(_EXAMPLE)).encode())
        return all(output["data"] for output in answer["outputs"])
    except (OSError, ValueError, LookupError, TypeError, HTTPException):
        return False


# --- Starting ----------------------------------------------------------------------------
def _spawn(config: ServeConfig) -> psutil.Process:
    secret = secrets.token_hex(16)
    write_secret(config.run_dir / _SECRET_FILE, secret)
    arguments = command(
        config.run_dir.resolve(),
        http=(HOST, config.http_port),
        grpc=(HOST, config.grpc_port),
        metrics=(HOST, config.metrics_port),
        http_key=secret,
        grpc_key=secret,
        exit_timeout_s=int(config.stop_timeout_s),
    )
    limits = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (stack_limit(limits[1]), limits[1]))  # inherited
    try:
        return spawn(arguments, {**os.environ, **environment(os.environ)}, config.log)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, limits)


Address = tuple[str, int]
"""Host and port, or ("unix:/path", any port)."""
_SECRET_FILE = "control.key"


def command(
    folder: Path,
    *,
    http: Address,
    metrics: Address,
    grpc: Address | None,
    http_key: str | None,
    grpc_key: str | None,
    exit_timeout_s: int,
) -> list[str]:
    """Arguments of a server of the model that `view.stage` put into `folder`.

    A key opens the control plane of its protocol to requests that carry it in KEY_HEADER; CLOSED
    opens it to nobody, None to everybody: only for a socket that nobody else can open. Raises
    BadInput for an incomplete installation.
    """
    backends = folder / "backends"  # none but the model's own
    backends.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_executable(wheel() / "bin" / "tritonserver")),
        f"--model-repository={folder / view.FOLDER}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        f"--load-model={PUBLIC_MODEL}",
        "--disable-auto-complete-config",
        f"--allow-grpc={str(grpc is not None).lower()}",
        f"--exit-timeout-secs={exit_timeout_s}",
    ]
    for service, address in (("http", http), ("metrics", metrics), ("grpc", grpc)):
        if address:
            arguments += [f"--{service}-address={address[0]}", f"--{service}-port={address[1]}"]
    if http_key:
        arguments.append(f"--http-restricted-api={RESTRICTED}:{KEY_HEADER}={http_key}")
    if grpc and grpc_key:
        arguments.append(f"--grpc-restricted-protocol={RESTRICTED}:{KEY_HEADER}={grpc_key}")
    return arguments


def stack_limit(hard: int) -> int:
    """Soft limit for the stacks of a server's threads under this hard one."""
    return STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)


def write_secret(path: Path, secret: str) -> None:
    """Put `secret` into a file that its owner alone can read, from the first moment on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secret)


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


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a server needs in its environment, beside the inherited one."""
    libraries = [
        str(wheel().parent.parent / "nvidia_pytriton.libs"),
        inherited.get("LD_LIBRARY_PATH", ""),
    ]
    own = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}
    if allocator := find_library("jemalloc"):
        own["LD_PRELOAD"] = " ".join(filter(None, [inherited.get("LD_PRELOAD"), allocator]))
    return own


def _executable(path: Path) -> Path:
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return path


def _wait_until_ready(config: ServeConfig, server: Server, process: psutil.Process) -> None:
    deadline = time.monotonic() + config.ready_timeout_s
    while not scores_at(server.http_url):
        if process.status() == psutil.STATUS_ZOMBIE:
            raise BadInput(
                f"tritonserver ended with status {process.wait()} before it was ready: "
                f"{reason(config.log)}; the whole log is {config.log}"
            )
        if time.monotonic() > deadline:
            raise BadInput(
                f"tritonserver is not ready after {config.ready_timeout_s:g} s: "
                f"{reason(config.log)}; the whole log is {config.log}, the limit is "
                "--ready-timeout-s"
            )
        time.sleep(_POLL_S)


def reason(log: Path) -> str:
    """The most telling line of a Triton log: why it ended, else its last error, else its end."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    for start in (r"error: ", r"E\d{4} ", r"."):
        if found := [line for line in lines if re.match(start, line)]:
            return found[-1].split("] ", 1)[-1].strip('"').split("\\n")[0]
    return "its log is empty"


# --- A server that already runs ----------------------------------------------------------
def update(config: ServeConfig, server: Server) -> None:
    """Load the current version into a running server, which keeps answering meanwhile.

    Raises BadInput when it cannot; the old version still answers then.
    """
    refuse_other_repository(config, server)
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


def refuse_other_repository(config: ServeConfig, server: Server) -> None:
    """Raise BadInput unless the running server is of this repository."""
    if str(config.repository.resolve()) != server.repository:
        raise BadInput(
            f"the server of {config.run_dir} serves {server.repository}, expected "
            f"{config.repository.resolve()}; run `make stop` first"
        )


def _refuse_other_ports(config: ServeConfig, server: Server) -> None:
    for flag in ("http_port", "grpc_port", "metrics_port"):
        wanted, used = getattr(config, flag), getattr(server, flag)
        if wanted != used:
            raise BadInput(
                f"--{flag.replace('_', '-')} is {wanted}, expected {used}, where the server of "
                f"{config.run_dir} listens; run `make stop` first"
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
    request = urllib.request.Request(url, data=b"{}", headers={KEY_HEADER: key})
    try:
        with urllib.request.urlopen(request, timeout=300):
            pass
    except urllib.error.HTTPError as error:
        raise refused_load(error.read()) from error
    except OSError as error:
        raise BadInput(f"{http_url} does not answer ({error}); run `make stop serve`") from error


def refused_load(answer: bytes) -> BadInput:
    """Why a server did not load a version, by its answer."""
    why = json.loads(answer).get("error", "no reason given").splitlines()[0]
    return BadInput(
        f"the server could not load the new version ({why}), the old one still answers; "
        "run `make export` again"
    )


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
    url = f"{http_url}/v2/models/{PUBLIC_MODEL}/infer"
    body = json.dumps(_request(_EXAMPLE))
    print(f"$ curl -s {url} -d '{body}'")
    print(json.dumps(_get_json(url, body.encode())))


def _request(text: str) -> dict[str, Any]:
    return {"inputs": [{"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}


def _get_json(url: str, body: bytes | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    return document


if __name__ == "__main__":
    run(main)
