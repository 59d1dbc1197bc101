"""Load a server with the C++ generator of `bench/generator/`, in place of Locust.

Locust takes several times the CPU time for a request, from the same cores as what it measures.
`load` has the arguments and the result of `bench.traffic.with_locust.load`, so that a bench can
take either; HTTP only. All bodies are made before the start, a different comment in each but for
`repeat_share`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.traffic import arrivals
from bench.traffic.arrivals import Arrivals
from bench.traffic.bodies import EncodedComments
from bench.traffic.comments import load_pool
from bench.traffic.counters import CountersOf, server_counters, settled
from bench.traffic.one_run import LoadConfig, Result, result_of
from contract import HOST, PROBABILITY, BadInput, ToxicityError
from serve.client import Protocol
from serve.probe import INFER_PATH
from serve.triton import Server

PROGRAM = "OPEN_LOOP"
"""Environment variable with the path of another build of the generator."""
OPEN_CONNECTIONS = 512
"""Most requests in flight in an open loop."""
CLOSED_RPS = 16_000
"""Bodies a second that are made for a closed loop, whose rate nobody knows before; one that is
faster ends when they are used up."""
_DRAIN_S = 20.0
_NICE = -10
"""Priority of a closed loop where it may be raised, as Locust has. An open loop runs
round-robin in real time there: on two cores with six busy processes, 1,000 requests/s, its lag p99
was 0.06 ms in place of 4.2 ms, near MAX_LAG_MS."""
_ARRAYS = ("latencies_ms", "sent_at_s", "failed_ms", "failed_at_s", "lags_ms", "waits_ms")
"""Of the record file, in its order; see bench/generator/tally.h."""


@dataclass(frozen=True)
class Measured:
    """One run: the generator's own document, and every time of it as float64 [n]."""

    document: dict[str, Any]
    latencies_ms: np.ndarray
    """Of good answers; they count from the intended send."""
    sent_at_s: np.ndarray
    """Intended send of each after the start."""
    failed_ms: np.ndarray
    failed_at_s: np.ndarray
    lags_ms: np.ndarray
    """Of each send of an open loop: when the generator looked at it, minus the intended time."""
    waits_ms: np.ndarray
    """From there until a connection was free."""

    @property
    def errors(self) -> Counter[str]:
        return Counter(self.document["errors"])

    def check(self) -> dict[str, Any]:
        """`bench.traffic.arrivals.self_check` of this run, and the wait for a free connection.

        A run whose requests waited for one is invalid, too: the server was not sent in time what
        the schedule says.
        """
        document = self.document
        check = arrivals.self_check(self.lags_ms, document["busy"], document["missed"], 0)
        wait_ms = float(np.percentile(self.waits_ms, 99)) if len(self.waits_ms) else 0.0
        if wait_ms > arrivals.MAX_LAG_MS:
            check["invalid"].append(
                f"wait for a connection p99 {wait_ms:.1f} ms > {arrivals.MAX_LAG_MS:g} ms"
            )
        if document["interrupted"]:
            check["invalid"].append("interrupted")
        return {
            **check,
            "wait_p99_ms": round(wait_ms, 3),
            "max_in_flight": document["max_in_flight"],
            "ran_out": document["ran_out"],
        }


@dataclass(frozen=True)
class RequestForm:
    """How another API asks."""

    path: str
    body: Callable[[Sequence[bytes]], bytes]
    """Body of comments that are escaped for JSON."""
    must_contain: str
    """What an answer has that is one."""


def load(
    config: LoadConfig,
    protocol: Protocol,
    server: Server,
    counters_of: CountersOf = server_counters,
    form: RequestForm | None = None,
    connections: int = OPEN_CONNECTIONS,
) -> Result:
    """Run the generator once on `server`, as `bench.traffic.with_locust` runs Locust.

    `form` is that of the requests where they are not KServe's; an open loop has so many
    `connections`, and what is due waits for a free one. Raises BadInput for gRPC, and
    ToxicityError when nothing was answered.
    """
    if protocol != "http":
        raise BadInput(f"protocol is {protocol}, expected http; Locust sends the others")
    comments = EncodedComments(load_pool(config.comments).texts, config.payload)
    form = form or RequestForm(INFER_PATH, comments.body, f'"{PROBABILITY}"')
    bodies = make_bodies(config, comments, first_pass=int(time.time()), body=form.body)
    before = settled(counters_of, server)
    measured = drive(
        bodies,
        port=server.http_port,
        path=form.path,
        must_contain=form.must_contain,
        headers=comments.headers,
        rate=config.rate,
        arrivals=config.arrivals,
        seconds=config.seconds,
        connections=connections if config.rate else config.users,
    )
    after = settled(counters_of, server)
    document, errors = measured.document, measured.errors
    kept = measured.latencies_ms[measured.sent_at_s >= config.skip_s]
    if not len(kept):
        reason = f"; the first reason is {next(iter(errors))}" if errors else ""
        raise ToxicityError(
            f"http: {document['requests']} requests were sent and none was answered that "
            f"counts{reason}"
        )
    used = {name: after[name] - before[name] for name in after}
    return result_of(
        protocol,
        latencies_ms=kept,
        answered=len(measured.latencies_ms),
        check=measured.check(),
        batch=config.batch,
        failed_ms=measured.failed_ms,
        last_send=document["last_send"],
        errors=errors,
        used={**used, "generator_cpu_s": document["cpu_s"]},
        seconds=document["seconds"],
        busiest=document["busy"],
    )


def make_bodies(
    config: LoadConfig,
    comments: EncodedComments,
    *,
    first_pass: int,
    body: Callable[[Sequence[bytes]], bytes] | None = None,
) -> Iterable[bytes]:
    """As many bodies as a run can send, each of `config.batch` comments."""
    body = body or comments.body
    rng = np.random.default_rng(first_pass)
    hot = arrivals.hot_rows(len(comments), config.repeat_share)
    numbers = arrivals.rows(len(comments), 0, 1, config.repeat_share, rng)
    for _ in range(bodies_needed(config.rate or CLOSED_RPS, config.seconds)):
        items = itertools.islice(numbers, config.batch)
        yield body([comments.item(number, hot, first_pass) for number in items])


def bodies_needed(rate: float, seconds: float) -> int:
    """Sends of a Poisson schedule, and eight standard deviations more."""
    expected = rate * seconds
    return int(expected + 8 * np.sqrt(expected)) + 8


def drive(
    bodies: Iterable[bytes],
    *,
    port: int,
    host: str = HOST,
    path: str = INFER_PATH,
    headers: dict[str, str] | None = None,
    rate: float = 0,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
    seconds: float = 10,
    connections: int = OPEN_CONNECTIONS,
    timeout_s: float = 60,
    drain_s: float = _DRAIN_S,
    must_contain: str = f'"{PROBABILITY}"',
    program: Path | None = None,
) -> Measured:
    """Send `bodies`, one a request, to a server; an open loop of `rate` a second, 0 for a closed.

    An answer without `must_contain` counts as failed. Raises ToxicityError with the generator's
    words when it refuses its flags or dies.
    """
    with tempfile.TemporaryDirectory() as folder:
        written, record = Path(folder) / "bodies", Path(folder) / "record"
        write_bodies(written, bodies)
        flags: dict[str, object] = {
            "host": host,
            "port": port,
            "path": path,
            "bodies": written,
            "record": record,
            "rate": rate,
            "arrivals": arrivals,
            "seed": seed,
            "seconds": seconds,
            "connections": connections,
            "timeout-s": timeout_s,
            "drain-s": drain_s,
            "must-contain": must_contain,
        }
        command = [str(program or find_program())]
        for name, value in flags.items():
            command += [f"--{name}", str(value)]
        for name, text in (headers or {}).items():
            command += ["--header", f"{name}: {text}"]
        document = json.loads(_run(command, real_time=rate > 0))
        return Measured(document, **read_record(record))


def write_bodies(path: Path, bodies: Iterable[bytes]) -> int:
    """Write the generator's file: u32 count, then u32 length and bytes of each; the count."""
    count = 0
    with path.open("wb") as file:
        file.write(struct.pack("<I", 0))
        for body in bodies:
            file.write(struct.pack("<I", len(body)))
            file.write(body)
            count += 1
        file.seek(0)
        file.write(struct.pack("<I", count))
    return count


def read_record(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a record file by name, float64 [n] each."""
    data, at, arrays = path.read_bytes(), 0, {}
    for name in _ARRAYS:
        (count,) = struct.unpack_from("<Q", data, at)
        arrays[name] = np.frombuffer(data, "<f8", count, at + 8)
        at += 8 + 8 * count
    return arrays


def find_program() -> Path:
    """The generator: of the environment variable `PROGRAM`, or of this project's build."""
    if given := os.environ.get(PROGRAM):
        return Path(given)
    from core.build import GENERATOR, executable

    return executable(GENERATOR)


def _run(command: Sequence[str], *, real_time: bool) -> str:
    """What the generator prints; whoever interrupts this leaves no process behind."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        with contextlib.suppress(psutil.Error, OSError):  # more than one's own share takes root
            psutil.Process(process.pid).nice(_NICE)
            if real_time:
                os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        why = stderr.strip().removeprefix("error: ")
        if process.returncode < 0:
            why = f"{signal.Signals(-process.returncode).name} {why}"
        raise ToxicityError(f"the load generator ended with {process.returncode}: {why}")
    return stdout
