"""The native road from text to score beside a Python backend and one that does nothing.

    python -m bench.serving.road --repository model_repository --rounds 2

Three servers of the same release, one after the other and back again (ABBA), each loaded over HTTP
by the generator of `bench/generator/` on the same cores, one comment a request and none that an
earlier request had: `native` is the published version, `python` the same files behind Triton's
Python backend (bench/serving/python_backend.py), `noop` a backend that answers without a look
(bench/noop). Closed loops at several numbers of connections, an open loop (Poisson, latency from
the intended send), comments that repeat, memory and start-up. Every bar is a ratio within the run.
Prints a table and writes `road.json`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tritonclient.grpc import model_config_pb2 as pb

from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_least,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from bench.serving.capacity import CapacityConfig, Rung, make_repository, meets
from bench.serving.servers import Served, artifact_of, serving
from bench.serving.visits import best, loader, open_loops, ratio
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.counters import family, process_counters, server_counters
from bench.traffic.one_run import Result
from console.options import make_config, run
from contract import PUBLIC_MODEL
from core import build
from export.model_config import CONFIG_FILE, Tuning
from export.repository import served_tuning
from serve import haproxy, tritonserver
from storage.files import write_atomically

_NATIVE, _DOOR, _PYTHON, _NOOP = "native", "door", "python", "noop"
_ORDER = (_NOOP, _NATIVE, _DOOR, _PYTHON)
_OPEN_SHARES = (0.85, 0.75, 0.65)
"""Rates of the open loop over the closed loop's, until one is valid and meets the objective."""
_WARM_UP_S = 2
_PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB = "triton_python_backend_stub"
_Value = Callable[["Visit"], float]


@pydantic_dataclasses.dataclass(frozen=True)
class RoadConfig(ResultOptions):
    """Flags of `python -m bench.serving.road`."""

    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    connections: tuple[int, ...] = Field(
        (64, 256), description="of the closed loops", json_schema_extra=LOAD
    )
    seconds: int = Field(8, ge=2, description="length of one run", json_schema_extra=RUNS)
    rounds: int = Field(
        2,
        ge=1,
        description="visits to each server, forwards and backwards",
        json_schema_extra=RUNS,
    )
    p99_ms: float = Field(50, gt=0, description="objective", json_schema_extra=RUNS)
    instances: int | None = Field(
        None, ge=1, description="sessions; left out: as tuned", json_schema_extra=SERVER
    )
    window_ms: float | None = Field(
        None,
        ge=0,
        description="wait for others of a batch; left out: as tuned",
        json_schema_extra=SERVER,
    )


@dataclass
class Visit:
    """What one visit to one server measured."""

    start_s: float
    memory_mib: float
    closed: dict[int, Result] = field(default_factory=dict)
    """By connections."""
    repeats: Result | None = None
    """Half of the comments repeat one of a hundred."""
    hits: Result | None = None
    """All but one in a hundred do."""
    open: list[Result] = field(default_factory=list)


def main() -> None:
    config = begin(RoadConfig, "bench.serving.road", "The road without the model.")
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    visits: dict[str, list[Visit]] = {name: [] for name in _ORDER}
    described: dict[str, Any] = {}
    for turn in range(config.rounds):
        for name in _ORDER if turn % 2 == 0 else reversed(_ORDER):
            if reason := lacking(name):
                print(f"{name}: left out, {reason}", flush=True)
                continue
            with _served(config, name) as served:
                if name == _NATIVE:
                    described = artifact_of(served.server)
                visits[name].append(_visit(config, name, served))
    found = document(
        "road",
        config,
        objective={"p99_ms": config.p99_ms, "errors": 0},
        tuning=asdict(_tuning(config)),
        comments=pool.to_json(),
        artifact=described,
        core=build.described(),
        servers={name: [asdict(visit) for visit in of] for name, of in visits.items()},
        bars=bars(visits, config.p99_ms),
    )
    report(config, found, table(visits))


# --- Servers -----------------------------------------------------------------------------
def lacking(name: str) -> str:
    """Why the server of `name` cannot run here; empty where it can."""
    if name == _DOOR and not haproxy.found():
        return "haproxy is not installed"
    if name == _PYTHON and not _stub().exists():
        return f"this Triton has no Python backend for Python {_PYTHON_VERSION}"
    if name == _PYTHON and int(np.__version__.split(".")[0]) >= 2:
        return f"this Triton's Python backend crashes under NumPy 2, here is {np.__version__}"
    return ""


def _stub() -> Path:
    """The program with which Triton's Python backend runs this interpreter's release."""
    return tritonserver.wheel() / "python_backend_stubs" / _PYTHON_VERSION / _STUB


def _tuning(config: RoadConfig) -> Tuning:
    tuning = served_tuning(config.repository)
    return replace(
        tuning,
        instances=config.instances or tuning.instances,
        window_ms=tuning.window_ms if config.window_ms is None else config.window_ms,
    )


@contextlib.contextmanager
def _served(config: RoadConfig, name: str) -> Iterator[Served]:
    """A server of `name`; stopped at the end."""

    def make(folder: Path) -> Path:
        source = make_config(CapacityConfig, {"repository": config.repository})
        make_repository(source, Rung(name, tuning=_tuning(config)), folder / "model_repository")
        return folder / "model_repository"

    def prepare(run_dir: Path) -> None:
        if name == _PYTHON:
            _lay_out_python(run_dir / "backends" / "python")

    with contextlib.ExitStack() as server:
        with _environment(name):
            found = server.enter_context(
                serving(
                    make,
                    through_door=name == _DOOR,
                    prepare=prepare,
                    change=lambda models: _use_backend(models, name),
                )
            )
        yield found


def _use_backend(models: Path, name: str) -> None:
    """Let what a server loads be answered by another backend."""
    if name == _NATIVE:
        return
    path = models / PUBLIC_MODEL / CONFIG_FILE
    served = text_format.Parse(path.read_text("utf-8"), pb.ModelConfig())
    served.backend = name
    write_atomically(path, text_format.MessageToString(served))
    version = path.parent / "1"
    if name == _NOOP:
        shutil.copy(build.executable(build.NOOP), version)
    else:
        shutil.copy(Path(__file__).with_name("python_backend.py"), version / "model.py")


def _lay_out_python(target: Path) -> None:
    """Triton's Python backend with the stub of this interpreter beside it."""
    shutil.copytree(tritonserver.wheel() / "backends" / "python", target)
    (target / _STUB).unlink(missing_ok=True)
    shutil.copy(_stub(), target)
    (target / _STUB).chmod(0o755)


@contextlib.contextmanager
def _environment(name: str) -> Iterator[None]:
    """The Python backend's stub finds this interpreter, its library and this project by these."""
    changed = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
    }
    before = {key: os.environ.get(key) for key in changed}
    if name == _PYTHON:
        os.environ.update(changed)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


# --- Measuring ---------------------------------------------------------------------------
def _visit(config: RoadConfig, name: str, served: Served) -> Visit:
    server = served.server
    counted = name in (_NATIVE, _DOOR)
    counters_of = server_counters if counted else process_counters

    load = loader(name, server, counters_of, seconds=config.seconds, comments=config.comments)
    load(users=64, seconds=_WARM_UP_S)
    visit = Visit(served.start_s, 0)
    for users in config.connections:
        visit.closed[users] = load(users=users)
    if counted:
        fullest = max(config.connections)
        visit.repeats = load(users=fullest, repeat_share=0.5)
        visit.hits = load(users=fullest, repeat_share=0.99)
        closed = max(result.rate_rps for result in visit.closed.values())
        visit.open = open_loops(load, closed, _OPEN_SHARES, config.p99_ms)
    every = [process for one in (server, *server.replicas) for process in family(one)]
    resident = sum(process.memory_info().rss for process in every)
    visit.memory_mib = resident / 2**20
    return visit


def _cpu_us(result: Result, *, generator: bool = True) -> float:
    used = sum(result.cpu_us.values())
    return used if generator else used - result.cpu_us["generator"]


# --- Telling -----------------------------------------------------------------------------
def bars(visits: dict[str, list[Visit]], p99_ms: float) -> Bars:
    """Ratios by name, each the median over the rounds, with their least and greatest."""
    fullest = max(visits[_NATIVE][0].closed)

    def rate(visit: Visit) -> float:
        return best(visit.closed, p99_ms).rate_rps

    def open_rate(visit: Visit) -> float:
        last = visit.open[-1]
        return last.rate_rps if meets(last, p99_ms) else 0.0

    def cpu(visit: Visit) -> float:
        return _cpu_us(visit.closed[fullest])

    def repeated(visit: Visit) -> float:
        return visit.repeats.rate_rps if visit.repeats else 0.0

    def hit_cpu(visit: Visit) -> float:
        """Of the server, for comments that it knows; of the one that does nothing, for all."""
        return _cpu_us(visit.hits or visit.closed[fullest], generator=False)

    def memory(visit: Visit) -> float:
        return visit.memory_mib

    def start(visit: Visit) -> float:
        return visit.start_s

    def rounds(
        ours: str, of: _Value, rival: str, to: _Value | None = None
    ) -> list[tuple[float, float]]:
        pairs = zip(visits[ours], visits[rival], strict=True)
        return [(of(a), (to or of)(b)) for a, b in pairs]

    fast = {
        "native_over_noop": (rounds(_NATIVE, rate, _NOOP), 0.62),
        "open_loop_over_noop": (rounds(_NATIVE, open_rate, _NOOP, rate), 9 / 16),
        "repeats_over_uncached": (
            rounds(_NATIVE, repeated, _NATIVE, lambda visit: visit.closed[fullest].rate_rps),
            1,
        ),
    }
    if visits[_DOOR]:
        fast["door_over_native"] = rounds(_DOOR, rate, _NATIVE), 0.6
        fast["door_open_loop_over_native"] = rounds(_DOOR, open_rate, _NATIVE), 0.6
    cheap = {
        "cpu_over_noop": (rounds(_NATIVE, cpu, _NOOP), 190 / 120),
        "hit_cpu_over_noop": (rounds(_NATIVE, hit_cpu, _NOOP), 1.1),
    }
    if visits[_PYTHON]:
        fast["native_over_python"] = rounds(_NATIVE, rate, _PYTHON), 3
        cheap["memory_over_python"] = rounds(_NATIVE, memory, _PYTHON), 1
        cheap["start_over_python"] = rounds(_NATIVE, start, _PYTHON), 1
    return {name: ratio(at_least, *pair) for name, pair in fast.items()} | {
        name: ratio(at_most, *pair) for name, pair in cheap.items()
    }


def table(visits: dict[str, list[Visit]]) -> str:
    """A line for each run."""
    lines = [["server", "load", "req/s", "p50 ms", "p99", "batch", "CPU us", "by part", "schedule"]]
    ends = []
    for name, of in visits.items():
        for visit in of:
            for words, r in _runs(visit):
                parts = ", ".join(f"{part} {us:.0f}" for part, us in r.cpu_us.items())
                lines.append(
                    [name, words, f"{r.rate_rps:.0f}"]
                    + [f"{r.latency_ms[at]:.1f}" for at in ("p50", "p99")]
                    + [f"{r.mean_batch:.1f}", f"{_cpu_us(r):.0f}", parts]
                    + ["INVALID" if r.check["invalid"] else "kept up"]
                )
            ends.append(f"{name}: {visit.memory_mib:.0f} MiB, ready after {visit.start_s:.1f} s")
    return "\n".join([aligned(lines, left=2), *ends])


def _runs(visit: Visit) -> list[tuple[str, Result]]:
    """All of a visit, each with words for what was sent."""
    runs = [(f"closed, {n} connections", r) for n, r in visit.closed.items()]
    runs += [("closed, 50 % repeats", visit.repeats)] if visit.repeats else []
    runs += [("closed, 99 % repeats", visit.hits)] if visit.hits else []
    return runs + [("open, Poisson", r) for r in visit.open]


if __name__ == "__main__":
    run(main)
