"""The servers that benches load: one that runs already, and ones of a bench's own.

A server of a bench's own has a run folder, private files and ports that nobody else uses, and ends
with the bench, whatever ends that.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report.result import artifact_named
from bench.serving import guard
from console.options import make_config
from contract import HOST, BadInput
from serve import door, triton
from serve.client import Protocol, score_comments

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """A server of a bench's own."""

    server: triton.Server
    config: triton.ServeConfig
    """A DoorConfig of one behind the door."""
    start_s: float
    """Until it scored."""


# --- One that runs -------------------------------------------------------------------------
def find_server(run_dir: Path) -> triton.Server:
    """The server or the balancer that runs from `run_dir`. Raises BadInput without one."""
    settings = make_config(triton.ServeConfig, {"action": "status", "run_dir": run_dir})
    server = triton.running(settings) or door.running(run_dir)
    if server is None:
        raise BadInput(f"no server runs from {run_dir}, expected one; run `make serve`")
    return server


def artifact_of(server: triton.Server) -> dict[str, Any]:
    """What the server really serves: the newest version that it answers for."""
    number = triton.served_version(server)
    if number is None:
        raise BadInput(
            f"the server at {server.http_url} does not answer, expected a ready one; "
            "run `make stop serve`"
        )
    return artifact_named(Path(server.repository), number)


def warm_up(protocol: Protocol, server: triton.Server, texts: list[str]) -> None:
    """Send `texts` once, so that no first request is in what follows."""
    port = server.http_port if protocol == "http" else server.grpc_port
    score_comments(texts, protocol=protocol, url=f"{HOST}:{port}")


# --- One's own -----------------------------------------------------------------------------
@contextlib.contextmanager
def serving(
    make_repository: Callable[[Path], Path],
    *,
    through_door: bool = False,
    prepare: Callable[[Path], None] | None = None,
    change: Callable[[Path], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Served]:
    """A server on free ports, ended with the block and, should this process be killed, without it.

    `make_repository` gets an empty folder and gives what is to be served, made in there or not;
    `through_door` starts `serve.door`, else `serve.triton`; `settings` are more of its config;
    `prepare` may put files into its run folder, `change` change its view before it is loaded (not
    through the door). Raises as its start does.
    """
    with tempfile.TemporaryDirectory(prefix="bench-server-") as name:
        folder = Path(name)
        repository = make_repository(folder)
        ports = free_ports(3)
        config = make_config(
            door.DoorConfig if through_door else triton.ServeConfig,
            {
                "action": "start",
                "repository": repository,
                "run_dir": folder / "run",
                **dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True)),
                **(settings or {}),
            },
        )
        config.run_dir.mkdir()
        if prepare:
            prepare(config.run_dir)
        with _guarded("door" if through_door else "triton", folder):
            began = time.monotonic()
            if isinstance(config, door.DoorConfig):
                quietly(door.start, config)
                server = find_server(config.run_dir)
            else:
                server = triton.launch(config, change)
            yield Served(server, config, time.monotonic() - began)


@contextlib.contextmanager
def _guarded(kind: str, folder: Path) -> Iterator[None]:
    """Stop the server after the block; another process does it when this one is killed."""
    command = [sys.executable, "-m", "bench.serving.guard", kind, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, cwd=_ROOT, start_new_session=True, text=True
    ) as watching:
        try:
            yield
        finally:
            guard.stop(kind, folder / "run")
            watching.communicate("stopped\n")


def quietly(action: Callable[[door.DoorConfig], None], config: door.DoorConfig) -> None:
    """Run a command of `serve.door` without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        action(config)


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
