"""A door of its own for a bench that must not harm another's, and how it looks from outside."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.serving.servers import serving
from bench.traffic.background import Background
from contract import HOST, PUBLIC_MODEL, BadInput
from serve import door, haproxy
from serve.app import settings as app
from serve.supervisor import Supervisor

REPLICA, GRPC = "replica-1", "grpc"
"""Names of the programs, as `serve.door` calls them."""
_CACHE = f"{PUBLIC_MODEL}_cache_bytes"


# --- The door ------------------------------------------------------------------------------
@contextlib.contextmanager
def opened(repository: Path, *, grpc: bool) -> Iterator[door.DoorConfig]:
    """A door on free ports, in a temporary run folder; it ends with this, whatever ends it.

    Raises BadInput without haproxy and as `serve.door.start` does.
    """
    haproxy.executable()
    with serving(lambda _: repository, through_door=True, settings={"grpc": grpc}) as served:
        assert isinstance(served.config, door.DoorConfig)
        yield served.config


# --- Looking at it -------------------------------------------------------------------------
@dataclass
class Sample:
    """One look at the door."""

    at_s: float
    """Monotonic time."""
    memory_bytes: dict[str, int]
    """Resident memory by program, of a server without the logits that it keeps."""
    pids: dict[str, int]
    starts: dict[str, int]


class Watch(Background):
    """Samples of the door at an interval."""

    def __init__(self, config: door.DoorConfig, interval_s: float = 1.0) -> None:
        self.samples: list[Sample] = []
        self._metrics = f"http://{HOST}:{config.metrics_port}"
        self._supervisor = Supervisor(config.run_dir)
        super().__init__(interval_s)

    def starts(self) -> dict[str, int]:
        """How often each program was started until now."""
        return {name: state.starts for name, state in self._supervisor.states().items()}

    def memory(self, names: Sequence[str], since_s: float = 0.0) -> list[tuple[float, int]]:
        """Time and memory of these programs together, where all of them were there."""
        return [
            (sample.at_s, sum(sample.memory_bytes[name] for name in names))
            for sample in self.samples
            if sample.at_s >= since_s and set(names) <= sample.memory_bytes.keys()
        ]

    def look(self) -> None:
        states = self._supervisor.states()
        memory = {}
        for name, state in states.items():
            with contextlib.suppress(psutil.Error, OSError):
                if state.pid:
                    memory[name] = _resident(state.pid) - self._cached(name)
        self.samples.append(
            Sample(
                time.monotonic(),
                memory,
                {name: state.pid for name, state in states.items()},
                {name: state.starts for name, state in states.items()},
            )
        )

    def _cached(self, name: str) -> int:
        if name in (*haproxy.NAMES, app.NAME):
            return 0
        url = f"{self._metrics}/{name}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return sum(
                int(sample.value)
                for family in families
                for sample in family.samples
                if sample.name == _CACHE
            )


def _resident(pid: int) -> int:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(int(one.memory_info().rss) for one in family)


def growth(memory: Sequence[tuple[float, int]]) -> float:
    """Largest memory of the last tenth over that of the second tenth of the samples.

    Raises BadInput for fewer than ten.
    """
    values = _enough(memory)
    tenth = len(values) // 10
    return max(values[-tenth:]) / max(values[tenth : 2 * tenth])


def _enough(memory: Sequence[tuple[float, int]]) -> list[int]:
    if len(memory) < 10:
        raise BadInput(
            f"memory was seen {len(memory)} times, expected 10 or more; make the run longer"
        )
    return [value for _, value in memory]


def level(memory: Sequence[tuple[float, int]]) -> float:
    """Median memory of the last tenth over that of the second tenth; raises as `growth` does."""
    values = _enough(memory)
    tenth = len(values) // 10
    return float(np.median(values[-tenth:]) / np.median(values[tenth : 2 * tenth]))


def ends_mib(memory: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """MiB at the second tenth of the samples, and at the last."""
    values = [round(value / 2**20, 1) for _, value in memory] or [0.0]
    return values[len(values) // 10], values[-1]


def open_connections(config: door.DoorConfig) -> int:
    """Connections that haproxy has on the door's ports."""
    states, found = Supervisor(config.run_dir).states(), 0
    for name in haproxy.NAMES:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(states[name].pid)
            found += sum(
                connection.laddr.port in (config.http_port, config.grpc_port)
                and connection.status != psutil.CONN_LISTEN
                for one in (process, *process.children(recursive=True))
                for connection in one.net_connections("tcp")
            )
    return found


def closed_after_s(config: door.DoorConfig, most_s: float) -> tuple[float, int]:
    """Seconds until haproxy has no connection left, at most so many; and how many it has then."""
    began = time.monotonic()
    while (left := open_connections(config)) and time.monotonic() - began < most_s:
        time.sleep(0.25)
    return time.monotonic() - began, left
