"""Become one of the programs of `make serve`: the supervisor calls this at each start and restart.

    python -m serve.launch FOLDER

FOLDER/launch.json says what to run (`serve.supervisor.write_launch`). Before that: sockets and
processes that a killed run left are removed, the files that the program loads are compared with
their sha256, and the start is counted. Imports only what starts quickly: what ended is to be back
soon.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

from contract import STARTS_VARIABLE

CONFIG_FILE = "supervisord.conf"
"""Of the supervisor, in the folder above the programs'."""
LAUNCH_FILE = "launch.json"
STARTS_FILE = "starts"
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(folder: Path) -> NoReturn:
    """Replace this process by the program of `folder`; ends with status 2 where it must not run."""
    launch = json.loads((folder / LAUNCH_FILE).read_text("utf-8"))
    for name in launch["sockets"]:
        (folder / name).unlink(missing_ok=True)
    changed = _changed(folder, launch["files"])
    if changed:
        print(f"error: {folder / changed} is not what was staged; run `make stop serve`")
        sys.exit(2)
    _end_what_is_left(folder, launch["command"][0])
    environment = {**os.environ, **launch["environment"]}
    environment[STARTS_VARIABLE] = str(_count_start(folder / STARTS_FILE))
    # With the supervisor its programs end too: nothing is left that nobody watches.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if not _supervised(folder):  # it ended before that
        print(f"error: no supervisor runs from {folder.parent}; run `make serve`")
        sys.exit(2)
    if launch["stack_bytes"]:
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (stack_limit(launch["stack_bytes"], hard), hard))
    arguments = launch["command"]
    os.execve(arguments[0], arguments, environment)


def _supervised(folder: Path) -> bool:
    try:
        arguments = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(folder.parent / CONFIG_FILE) in arguments


def _end_what_is_left(folder: Path, program: str) -> None:
    """Kill what a program of this folder started and outlives it for a moment.

    A worker of a killed haproxy has the port, too, and drops the connections that it is given.
    """
    own = os.fsencode(f"{folder}/")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            started = arguments[0] == os.fsencode(program)
            if started and any(own in one for one in arguments[1:]):
                os.kill(int(path.parent.name), signal.SIGKILL)


def stack_limit(most: int, hard: int) -> int:
    """Soft limit for the stacks of a program's threads under this hard one, in bytes."""
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def _changed(folder: Path, files: dict[str, str]) -> str | None:
    for name, sha256 in files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return name
        if found != sha256:
            return name
    return None


def _count_start(path: Path) -> int:
    try:
        starts = int(path.read_text("utf-8")) + 1
    except (OSError, ValueError):
        starts = 1
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(str(starts), "utf-8")
    temporary.replace(path)
    return starts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
