"""The native road from text to score beside a Python backend and one that does nothing.

    python -m bench.serving.road --repository model_repository --rounds 2

Three servers of the same release, one after the other and back again (ABBA), each loaded over HTTP
by the generator of `bench/generator/` on the same cores, one comment a request and none that an
earlier request had: `native` is the published version, `python` the same files behind Triton's
Python backend (bench/serving/python_backend.py), `noop` a backend that answers without a look
(bench/noop). Closed loops at several numbers of connections, an open loop (Poisson, latency from
the intended send), comments that repeat, memory and start-up. Every bar is a ratio within the run.
Prints a table and writes `road.json`; `--json` prints that document, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tritonclient.grpc import model_config_pb2 as pb

from bench.run import (
    BenchConfig,
    Result,
    artifact_of,
    find_server,
    hardware,
    report_broken_bars,
)
from bench.serving.capacity import CapacityConfig, Rung, make_repository
from bench.traffic import open_loop
from bench.traffic.comments import default_source, load_pool
from bench.traffic.counters import family, process_counters, server_counters
from console.options import make_config, parse_config, run
from contract import PUBLIC_MODEL, BadInput
from core import build
from export.model_config import CONFIG_FILE, Tuning
from export.repository import served_tuning
from serve import door, haproxy, triton, tritonserver
from train.artifacts import write_atomically, write_json

_NATIVE, _DOOR, _PYTHON, _NOOP = "native", "door", "python", "noop"
_ORDER = (_NOOP, _NATIVE, _DOOR, _PYTHON)
_OPEN_SHARES = (0.85, 0.75, 0.65)
"""Rates of the open loop over the closed loop's, until one is valid and meets the objective."""
_WARM_UP_S = 2


@pydantic_dataclasses.dataclass(frozen=True)
class RoadConfig:
    """Flags of `python -m bench.serving.road`."""

    repository: Path = Field(Path("model_repository"), description="published repository")
    comments: str = Field(default_source(), description="labelled file, or 'synthetic'")
    connections: tuple[int, ...] = Field((64, 256), description="of the closed loops")
    seconds: int = Field(8, ge=2, description="length of one run")
    rounds: int = Field(2, ge=1, description="visits to each server, forwards and backwards")
    p99_ms: float = Field(50, gt=0, description="objective")
    instances: int | None = Field(None, ge=1, description="sessions; left out: as tuned")
    window_ms: float | None = Field(None, ge=0, description="wait for batch-mates; else as tuned")
    http_port: int = Field(8100, ge=1, le=65500, description="first of three free ports")
    out: Path = Field(Path("bench/out"), description="folder of road.json")
    json: bool = Field(False, description="print the document as the last line")


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
    config = parse_config(
        RoadConfig,
        None,
        prog="python -m bench.serving.road",
        description="The road without the model.",
    )
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    visits: dict[str, list[Visit]] = {name: [] for name in _ORDER}
    described: dict[str, Any] = {}
    for turn in range(config.rounds):
        for name in _ORDER if turn % 2 == 0 else reversed(_ORDER):
            if name == _DOOR and not haproxy.found():
                print("door: left out, haproxy is not installed", flush=True)
                continue
            with _served(config, name) as (server, start_s):
                if name == _NATIVE:
                    described = artifact_of(server)
                visits[name].append(_visit(config, name, server, start_s))
    document: dict[str, Any] = {
        "bench": "road",
        "objective": {"p99_ms": config.p99_ms, "errors": 0},
        "seconds": config.seconds,
        "connections": config.connections,
        "tuning": asdict(_tuning(config)),
        "comments": pool.to_json(),
        "artifact": described,
        "core": build.described(),
        "hardware": hardware(),
        "servers": {name: [asdict(visit) for visit in of] for name, of in visits.items()},
        "bars": bars(visits, config.p99_ms),
    }
    write_json(config.out / "road.json", document)
    print(table(visits))
    for name, bar in document["bars"].items():
        verdict = "holds" if bar["holds"] else "MISSED"
        print(f"{name:24} {bar['value']:7.3f} {bar['spread']}, bar {bar['bar']:g}: {verdict}")
    if config.json:
        print(json.dumps(document))
    report_broken_bars(document)


# --- Servers -----------------------------------------------------------------------------
def _tuning(config: RoadConfig) -> Tuning:
    tuning = served_tuning(config.repository)
    return replace(
        tuning,
        instances=config.instances or tuning.instances,
        window_ms=tuning.window_ms if config.window_ms is None else config.window_ms,
    )


@contextlib.contextmanager
def _served(config: RoadConfig, name: str) -> Iterator[tuple[triton.Server, float]]:
    """A server of `name` and the seconds until it was ready; stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        source = make_config(CapacityConfig, {"repository": config.repository})
        make_repository(source, Rung(name, tuning=_tuning(config)), repository)
        settings = make_config(
            door.DoorConfig if name == _DOOR else triton.ServeConfig,
            {
                "action": "start",
                "repository": repository,
                "run_dir": Path(folder) / "serve",
                "http_port": config.http_port,
                "grpc_port": config.http_port + 1,
                "metrics_port": config.http_port + 2,
            },
        )
        if name == _PYTHON:
            _lay_out_python(settings.run_dir / "backends" / "python")
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        with _environment(name), contextlib.redirect_stdout(io.StringIO()):
            began = time.monotonic()
            server = _start(settings, name)
            start_s = time.monotonic() - began
        try:
            yield server, start_s
        finally:
            if isinstance(settings, door.DoorConfig):
                with contextlib.redirect_stdout(io.StringIO()):
                    door.stop(settings)
            else:
                triton.stop(settings, quiet=True)


def _start(settings: triton.ServeConfig, name: str) -> triton.Server:
    if not isinstance(settings, door.DoorConfig):
        return triton.launch(settings, lambda models: _use_backend(models, name))
    door.start(settings)
    return find_server(settings.run_dir)


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
    wheel = tritonserver.wheel()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise BadInput(
            f"Python is {python}, expected one that this Triton has a Python backend for; make the "
            "environment with 3.11 or 3.12"
        )
    shutil.copytree(wheel / "backends" / "python", target)
    (target / stub.name).unlink(missing_ok=True)
    shutil.copy(stub, target)
    (target / stub.name).chmod(0o755)


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
def _visit(config: RoadConfig, name: str, server: triton.Server, start_s: float) -> Visit:
    counted = name in (_NATIVE, _DOOR)
    counters_of = server_counters if counted else process_counters

    def load(**changed: Any) -> Result:
        settings = {"seconds": config.seconds, "comments": config.comments, "processes": 1}
        result = open_loop.load(
            make_config(BenchConfig, {**settings, **changed}), "http", server, counters_of
        )
        kind = f"open loop {changed['rate']:.0f}/s" if changed.get("rate") else "closed loop"
        print(
            f"{name}: {kind}, {changed.get('users', '-')} connections: {result.rate_rps:.0f}/s, "
            f"p99 {result.latency_ms['p99']:.1f} ms, {_cpu_us(result):.0f} us of CPU a request, "
            f"{result.failures} failed {'; '.join(result.check['invalid'])}",
            flush=True,
        )
        return result

    load(users=64, seconds=_WARM_UP_S)
    visit = Visit(start_s, 0)
    for users in config.connections:
        visit.closed[users] = load(users=users)
    if counted:
        fullest = max(config.connections)
        visit.repeats = load(users=fullest, repeat_share=0.5)
        visit.hits = load(users=fullest, repeat_share=0.99)
        closed = max(result.rate_rps for result in visit.closed.values())
        for share in _OPEN_SHARES:
            visit.open.append(load(rate=share * closed, skip_s=1))
            if _meets(visit.open[-1], config.p99_ms):
                break
    every = [process for one in (server, *server.replicas) for process in family(one)]
    resident = sum(process.memory_info().rss for process in every)
    visit.memory_mib = resident / 2**20
    return visit


def _meets(result: Result, p99_ms: float) -> bool:
    return not (result.failures or result.check["invalid"] or result.latency_ms["p99"] > p99_ms)


def _cpu_us(result: Result, *, generator: bool = True) -> float:
    used = sum(result.cpu_us.values())
    return used if generator else used - result.cpu_us["generator"]


# --- Telling -----------------------------------------------------------------------------
def _best(visit: Visit, p99_ms: float) -> Result:
    """The closed loop with the highest rate that meets the objective, or with the highest."""
    results = sorted(visit.closed.values(), key=lambda result: -result.rate_rps)
    return next((r for r in results if r.latency_ms["p99"] <= p99_ms), results[0])


def bars(visits: dict[str, list[Visit]], p99_ms: float) -> dict[str, dict[str, Any]]:
    """Ratios by name, each the median over the rounds, with their least and greatest."""

    def ratios(of: Any, to: Any) -> list[float]:
        return [of(a) / max(to(b), 1e-9) for a, b in of_and_to(of, to)]

    def of_and_to(of: Any, to: Any) -> list[tuple[Visit, Visit]]:
        return list(zip(visits[of.name], visits[to.name], strict=True))

    @dataclass(frozen=True)
    class Of:
        name: str
        value: Any

        def __call__(self, visit: Visit) -> float:
            return float(self.value(visit))

    def rate(name: str) -> Of:
        return Of(name, lambda visit: _best(visit, p99_ms).rate_rps)

    def open_rate(visit: Visit) -> float:
        last = visit.open[-1]
        return last.rate_rps if _meets(last, p99_ms) else 0.0

    fullest = max(visits[_NATIVE][0].closed)
    cpu = {name: Of(name, lambda visit: _cpu_us(visit.closed[fullest])) for name in _ORDER}
    server_cpu = Of(_NOOP, lambda visit: _cpu_us(visit.closed[fullest], generator=False))
    wanted: dict[str, tuple[list[float], float, bool]] = {
        "native_over_python": (ratios(rate(_NATIVE), rate(_PYTHON)), 3, True),
        "native_over_noop": (ratios(rate(_NATIVE), rate(_NOOP)), 0.62, True),
        "open_loop_over_noop": (ratios(Of(_NATIVE, open_rate), rate(_NOOP)), 9 / 16, True),
        "cpu_over_noop": (ratios(cpu[_NATIVE], cpu[_NOOP]), 190 / 120, False),
        "repeats_over_uncached": (
            [v.repeats.rate_rps / v.closed[fullest].rate_rps for v in visits[_NATIVE] if v.repeats],
            1,
            True,
        ),
        "hit_cpu_over_noop": (
            ratios(Of(_NATIVE, lambda v: _cpu_us(v.hits, generator=False)), server_cpu),
            1.1,
            False,
        ),
        "memory_over_python": (
            ratios(*(Of(n, lambda v: v.memory_mib) for n in (_NATIVE, _PYTHON))),
            1,
            False,
        ),
        "start_over_python": (
            ratios(*(Of(n, lambda v: v.start_s) for n in (_NATIVE, _PYTHON))),
            1,
            False,
        ),
    }
    if visits[_DOOR]:
        wanted["door_over_native"] = (ratios(rate(_DOOR), rate(_NATIVE)), 0.6, True)
        wanted["door_open_loop_over_native"] = (
            ratios(Of(_DOOR, open_rate), Of(_NATIVE, open_rate)),
            0.6,
            True,
        )
    return {
        name: {
            "value": round(value := statistics.median(found), 3),
            "spread": [round(min(found), 3), round(max(found), 3)],
            "bar": round(bar, 3),
            "holds": value >= bar if at_least else value <= bar,
        }
        for name, (found, bar, at_least) in wanted.items()
    }


def table(visits: dict[str, list[Visit]]) -> str:
    """A line for each run."""
    lines = [
        f"{'server':8} {'load':26} {'req/s':>7} {'p50':>6} {'p99':>6} {'batch':>6}  CPU us: "
        f"{'all':>5}  by part"
    ]
    for name, of in visits.items():
        for visit in of:
            runs = [(f"closed, {n} connections", r) for n, r in visit.closed.items()]
            runs += [("closed, 50 % repeats", visit.repeats)] if visit.repeats else []
            runs += [("closed, 99 % repeats", visit.hits)] if visit.hits else []
            runs += [("open, Poisson", r) for r in visit.open]
            for words, r in runs:
                parts = ", ".join(f"{part} {us:.0f}" for part, us in r.cpu_us.items())
                lines.append(
                    f"{name:8} {words:26} {r.rate_rps:7.0f} {r.latency_ms['p50']:6.1f} "
                    f"{r.latency_ms['p99']:6.1f} {r.mean_batch:6.1f}          {_cpu_us(r):5.0f}  "
                    f"{parts} {'INVALID' if r.check['invalid'] else ''}"
                )
            lines.append(f"{name:8} {visit.memory_mib:.0f} MiB, ready after {visit.start_s:.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
