"""The supervisor of what `make serve` starts: supervisord, from a generated configuration.

It starts again whatever ends, at once or, when it does not stay up for a second, after a pause that
grows by a second each time. `serve.door` writes the configuration and talks to it over a socket in
the run folder, which only the user can open.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError
from xmlrpc.client import Error, Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from contract import ToxicityError
from serve.launch import CONFIG_FILE, LAUNCH_FILE, STARTS_FILE
from serve.process import started_with
from serve.run_folder import plain
from storage.files import write_atomically, write_json

_MODULE = "supervisor.supervisord"
_SOCKET, _PID_FILE, _LOG_FILE = "supervisor.sock", "supervisord.pid", "supervisord.log"
_NO_ANSWER = (OSError, HTTPException, Error, ExpatError, ToxicityError)
"""What a call to a supervisor that is not there, or ends meanwhile, may raise."""
_DOWN = ("STOPPED", "EXITED", "FATAL")
"""States of programs that nothing starts again."""
_HEAD = string.Template("""\
[unix_http_server]
file=$folder/$socket
chmod=0600

[supervisord]
pidfile=$folder/$pid_file
logfile=$folder/$log_file
logfile_maxbytes=1MB
logfile_backups=1
minfds=$descriptors
identifier=toxicity

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
""")
_PROGRAM = string.Template("""
[program:$name]
command=$command
directory=$directory
stopsignal=$stop_signal
stopwaitsecs=$stop_timeout_s
autorestart=true
startsecs=1
startretries=1000000
redirect_stderr=true
stdout_logfile=$folder/$name/$log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
""")
"""Keywords as in supervisor's manual, "Configuration File"."""
_ROOT = Path(__file__).parent.parent
_POLL_S = 0.05
_END_TIMEOUT_S = 300
"""Longest that a supervisor may take to end, whose programs end one after another."""
_DESCRIPTORS = 16384


@dataclass(frozen=True)
class Program:
    """One process that is kept alive."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    files: Mapping[str, str]
    """Path within its folder -> sha256 of what must not change between two starts."""
    sockets: Sequence[str]
    """Names within its folder, removed before a start."""
    stop_signal: str
    stop_timeout_s: int
    stack_bytes: int = 0
    log: str = "log"


@dataclass(frozen=True)
class State:
    """What the supervisor says of a program."""

    name: str
    words: str
    """RUNNING, STARTING, BACKOFF, STOPPED, FATAL, ... as supervisor calls them."""
    pid: int
    up_s: int
    starts: int
    """Since `make serve` started it first."""


class Supervisor:
    """The supervisor of one run folder, whether it runs or not."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = plain(run_dir)

    def start(self, programs: Sequence[Program]) -> None:
        """Run exactly these programs: start the missing ones, stop the others.

        What runs already and is meant to run on is left alone. Hold the run folder's lock, as for
        `stop`: the supervisor waits for ever for the end of a program that somebody else starts
        again. Raises ToxicityError when the supervisor does not start.
        """
        for program in programs:
            self._write_launch(program)
        text = self._configuration(programs)
        path = self.folder / CONFIG_FILE
        if not self.running():
            self._end()
            for program in programs:
                (self.folder / program.name / STARTS_FILE).unlink(missing_ok=True)
            write_atomically(path, text)
            self._spawn()
            return
        wanted = {program.name for program in programs}
        write_atomically(path, text)
        with self._calls() as call:
            self._wait_for_stopping(call)
            added, changed, removed = call.reloadConfig()[0]
            for name in (*removed, *(name for name in changed if name in wanted)):
                call.stopProcessGroup(name)
                call.removeProcessGroup(name)
            for name in (*changed, *added):
                call.addProcessGroup(name)
            for one in call.getAllProcessInfo():
                if one["statename"] == "BACKOFF":  # its pause may have become long
                    with contextlib.suppress(Fault):  # it is over
                        call.stopProcess(one["name"])
                if one["statename"] in (*_DOWN, "BACKOFF"):  # by a stop that was killed, say
                    with contextlib.suppress(Fault):  # it runs by now
                        call.startProcess(one["name"], False)

    def stop(self, name: str | None = None) -> None:
        """End one program, or all of them and the supervisor; each finishes what is in flight.

        All have ended when this returns, the supervisor of a start or stop that was killed, too.
        """
        if self.running():
            with contextlib.suppress(Fault, *(() if name else _NO_ANSWER)), self._calls() as call:
                if name:
                    call.stopProcess(name)  # a Fault: it does not run
                else:
                    call.stopAllProcesses()
                    call.shutdown()
        if not name:
            self._end()

    def running(self) -> bool:
        """Whether the supervisor answers."""
        try:
            with self._calls() as call:
                call.getState()
        except _NO_ANSWER:
            return False
        return True

    def states(self) -> dict[str, State]:
        """Of every program, by name; empty when the supervisor does not answer."""
        try:
            with self._calls() as call:
                found: Any = call.getAllProcessInfo()
        except _NO_ANSWER:
            return {}
        return {
            one["name"]: State(
                name=one["name"],
                words=one["statename"],
                pid=one["pid"],
                up_s=max(0, one["now"] - one["start"]) if one["pid"] else 0,
                starts=self._starts(one["name"]),
            )
            for one in found
        }

    def pid(self) -> int | None:
        """Process id of the supervisor, if it runs."""
        if not self.running():
            return None
        with self._calls() as call:
            return int(call.getPID())

    def program_folder(self, name: str) -> Path:
        """Where a program's files, sockets and log lie, by a path without special characters."""
        return self.folder / name

    # --- Inside --------------------------------------------------------------------------
    def _end(self) -> None:
        """End every supervisor of this folder, and wait for it.

        One of a start that was killed may not answer yet, and one that is ending not any more: it
        would remove the socket of the next one.
        """
        told: set[int] = set()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while left := started_with(_MODULE, str(self.folder / CONFIG_FILE)):
            late = time.monotonic() > deadline
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    if late or pid not in told:
                        os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            told |= left
            time.sleep(_POLL_S)

    def _wait_for_stopping(self, call: Any) -> None:
        """Wait for programs that a stop told to end before it was killed."""
        while any(one["statename"] == "STOPPING" for one in call.getAllProcessInfo()):
            time.sleep(_POLL_S)

    def _starts(self, name: str) -> int:
        try:
            return int((self.folder / name / STARTS_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return 0

    def _configuration(self, programs: Sequence[Program]) -> str:
        text = _HEAD.substitute(
            folder=self.folder,
            socket=_SOCKET,
            pid_file=_PID_FILE,
            log_file=_LOG_FILE,
            descriptors=_DESCRIPTORS,
        )
        for program in programs:
            command = [sys.executable, "-m", "serve.launch", str(self.folder / program.name)]
            text += _PROGRAM.substitute(
                name=program.name,
                command=_escaped(shlex.join(command)),
                directory=_escaped(str(_ROOT)),
                folder=self.folder,
                stop_signal=program.stop_signal,
                stop_timeout_s=program.stop_timeout_s,
                log=program.log,
            )
        return text

    def _write_launch(self, program: Program) -> None:
        folder = self.folder / program.name
        folder.mkdir(parents=True, exist_ok=True)
        launch = {
            "command": program.command,
            "environment": dict(program.environment),
            "files": dict(program.files),
            "sockets": list(program.sockets),
            "stack_bytes": program.stack_bytes,
        }
        path = folder / LAUNCH_FILE
        if not path.exists() or json.loads(path.read_text("utf-8")) != launch:
            write_json(path, launch)

    def _spawn(self) -> None:
        path = self.folder / CONFIG_FILE
        (self.folder / _SOCKET).unlink(missing_ok=True)
        command = [sys.executable, "-W", "ignore", "-m", _MODULE, "-c", str(path)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise ToxicityError(f"supervisord does not start: {lines[-1]}; see {path}")
        deadline = time.monotonic() + 10
        while not self.running():
            if time.monotonic() > deadline:
                raise ToxicityError(
                    f"supervisord does not answer, expected it on {self.folder / _SOCKET}; "
                    f"see {self.folder / _LOG_FILE}"
                )
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def _calls(self) -> Iterator[Any]:
        address = self.folder / _SOCKET
        if not address.exists():
            raise ToxicityError(f"no supervisor runs from {self.run_dir}; start it: `make serve`")
        transport = SupervisorTransport("", "", f"unix://{address}")
        proxy = ServerProxy("http://supervisor", transport=transport)
        try:
            yield proxy.supervisor
        finally:
            transport.close()


def _escaped(text: str) -> str:
    """As a value of supervisor's configuration, where % begins an expansion."""
    return text.replace("%", "%%")
