"""Background processes that outlive the command which started them, and the ports they need."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from contract import HOST, BadInput


def spawn(command: list[str], environment: dict[str, str], log: Path) -> psutil.Process:
    """Start `command` in a session of its own; what it says replaces the file `log`."""
    pid = os.posix_spawn(
        command[0],
        command,
        environment,
        setsid=True,  # a Ctrl-C in this terminal is not for the server
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    return psutil.Process(pid)


def started_s(pid: int) -> float:
    """Seconds from the machine's start to that of a process: field 22 of proc(5)'s stat.

    A time of day would move with the machine's clock. Raises psutil.NoSuchProcess.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError as error:
        raise psutil.NoSuchProcess(pid) from error
    after_name = stat.rpartition(b")")[2].split()
    return int(after_name[22 - 3]) / os.sysconf("SC_CLK_TCK")


def alive(pid: int, started: float) -> psutil.Process | None:
    """The process of that id which began at `started_s`, unless it ended."""
    try:
        same = started_s(pid) == started
        process = psutil.Process(pid)
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def started_with(*arguments: str) -> set[int]:
    """Ids of the processes that have all of these arguments; one that has ended has none."""
    wanted = {os.fsencode(argument) for argument in arguments}
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if wanted.issubset(path.read_bytes().split(b"\0")):
                found.add(int(path.parent.name))
    return found


def wait_or_kill(family: Sequence[psutil.Process], timeout_s: float) -> None:
    """Wait for processes that were told to end; kill those that do not."""
    _, left = psutil.wait_procs(family, timeout=timeout_s)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)


def refuse_taken_port(port: int, flag: str) -> None:
    """Raise BadInput that names the port, its owner and the flag that sets it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            owner = _listener(port)
            raise BadInput(
                f"port {port} is taken{f' by process {owner}' if owner else ''}, expected a free "
                f"one; stop that process or set --{flag.replace('_', '-')}"
            ) from None


def _listener(port: int) -> str | None:
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        if listens and connection.pid:
            return f"{connection.pid} ({psutil.Process(connection.pid).name()})"
    return None


def refuse_other_flag(run_dir: Path, name: str, wanted: object, used: object) -> None:
    """Raise BadInput unless a flag says what serves from the run folder already."""
    if wanted != used:
        raise BadInput(
            f"--{name.replace('_', '-')} is {wanted}, expected {used}, with which {run_dir} "
            "serves; run `make stop` first"
        )
