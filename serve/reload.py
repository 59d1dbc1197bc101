"""New configurations for the balancers that run: reloads that have happened when a call returns.

A signal tells nobody whether it was heard: the master process of haproxy starts itself anew for a
reload, and loses one that comes meanwhile. So it is asked on its own socket (`serve.haproxy`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil

from contract import BadInput
from serve import balancer, haproxy
from serve.settings import CANARY, Settings, replica
from serve.supervisor import Supervisor

_POLL_S = 0.05


def reload(
    supervisor: Supervisor, names: Iterable[str], timeout_s: float
) -> frozenset[psutil.Process]:
    """Have balancers read their files; return the workers of before once new ones have begun.

    Those finish what they began and end. Raises BadInput when a balancer does not reload in time.
    """
    before: set[psutil.Process] = set()
    for name in names:
        before |= _reload(supervisor, name, timeout_s)
    return frozenset(before)


def _reload(supervisor: Supervisor, name: str, timeout_s: float) -> set[psutil.Process]:
    folder = supervisor.program_folder(name)
    deadline = time.monotonic() + timeout_s
    before, processes = None, set[psutil.Process]()
    while True:
        found = haproxy.workers(folder)
        if found and before and before.failed_reloads < found.failed_reloads:
            raise BadInput(f"{name} does not take its new file; {_said(supervisor, name)}")
        if found and before and not found.pids & before.pids:
            return processes
        if found:
            if before is None:
                before, processes = found, _children(supervisor, name)
            haproxy.tell_to_reload(folder)
        else:
            _refuse_ended(supervisor, (name,))
            _refuse_without_socket(supervisor, name)
        if time.monotonic() > deadline:
            raise BadInput(
                f"{name} has not read its new file after {timeout_s:g} s, the limit is "
                f"--ready-timeout-s; {_said(supervisor, name)}"
            )
        time.sleep(_POLL_S)


def wait_until_up(settings: Settings, supervisor: Supervisor, timeout_s: float) -> None:
    """Wait until every server is up for haproxy. Raises BadInput when that takes too long."""
    expected = {replica(number): "UP" for number in range(1, settings.replicas + 1)}
    if settings.canary:
        expected[CANARY] = "UP"
    front, large = (supervisor.program_folder(name) for name in haproxy.NAMES)
    deadline = time.monotonic() + timeout_s
    while (found := haproxy.states(front)) != expected or not haproxy.accepts(
        balancer.large_socket(large)
    ):
        words = (
            f"haproxy's servers are {found or 'not there'}, expected {', '.join(expected)}, each UP"
        )
        _refuse_ended(supervisor, haproxy.NAMES, f"{words}; ")
        if time.monotonic() > deadline:
            raise BadInput(f"{words}; {_said(supervisor, haproxy.NAME)}")
        time.sleep(_POLL_S)


def _children(supervisor: Supervisor, name: str) -> set[psutil.Process]:
    """The workers of a balancer, those that are ending, too."""
    state = supervisor.states().get(name)
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process(state.pid).children()) if state and state.pid else set()
    return set()


def _refuse_without_socket(supervisor: Supervisor, name: str) -> None:
    state = supervisor.states().get(name)
    with contextlib.suppress(psutil.Error):
        line = psutil.Process(state.pid).cmdline() if state and state.pid else []
        if line[:1] == [haproxy.executable()] and "-S" not in line:
            raise BadInput(f"{name} was started by an earlier release; run `make stop serve`")


def _refuse_ended(supervisor: Supervisor, names: Iterable[str], words: str = "") -> None:
    states = supervisor.states()
    for name in names:
        if name not in states or states[name].words in ("BACKOFF", "FATAL", "EXITED"):
            raise BadInput(f"{words}{name} ended; {_said(supervisor, name)}")


def _said(supervisor: Supervisor, name: str) -> str:
    log = supervisor.program_folder(name) / "log"
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line]
    return f"{lines[-1] if lines else 'it said nothing'}; the log is {log}"
