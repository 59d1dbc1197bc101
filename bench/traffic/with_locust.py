"""Load a server with Locust in processes of its own, which run bench/load.py."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

from bench.traffic import records
from bench.traffic.counters import CountersOf, server_counters, settled
from bench.traffic.one_run import LoadConfig, Result, result_of
from contract import HOST, ToxicityError
from serve import triton
from serve.client import Protocol

_USER_CLASS = {"http": "HttpCommentUser", "grpc": "GrpcCommentUser"}
_GENERATOR_NICE = -10
"""Priority of Locust where it may be raised: on one machine the server must not starve what
measures it, which would have a machine of its own."""
_ROOT = Path(__file__).parents[2]


def load(
    config: LoadConfig,
    protocol: Protocol,
    server: triton.Server,
    counters_of: CountersOf = server_counters,
) -> Result:
    """Run Locust once on `server`. Raises ToxicityError when nothing was answered.

    `counters_of` is another than `server_counters` for a server that is not ours.
    """
    with tempfile.TemporaryDirectory() as record:
        before = settled(counters_of, server)
        _run_locust(config, protocol, server, record)
        after = settled(counters_of, server)
        parts = records.read(Path(record))
    used = {name: after[name] - before[name] for name in after}
    errors = records.errors_of(parts)
    # With several processes there is one more, which sends nothing and ends a second late.
    senders = [part for part in parts if len(part["latencies_ms"])]
    kept = {id(part): part["latencies_ms"][part["sent_at_s"] >= config.skip_s] for part in senders}
    if not senders:
        reason = f"the first reason is {next(iter(errors))}; " if errors else ""
        raise ToxicityError(
            f"{protocol}: {errors.total()} requests were sent and none was answered; "
            f"{reason}see {config.out / protocol}.log"
        )
    began, ended = min(part["began"] for part in senders), max(part["ended"] for part in senders)
    return result_of(
        protocol,
        latencies_ms=np.concatenate(list(kept.values())),
        answered=sum(len(part["latencies_ms"]) for part in senders),
        check=records.check(parts, config.processes),
        batch=config.batch,
        failed_ms=records.joined(parts, "failed_ms"),
        last_send=max(
            float(part["began"] + np.max([*part["sent_at_s"], *part["failed_at_s"]]))
            for part in senders
        ),
        errors=errors,
        used={**used, "generator_cpu_s": sum(float(part["cpu_s"]) for part in parts)},
        seconds=float(ended - began),
        busiest=max(map(records.busy, senders)),
    )


def _run_locust(config: LoadConfig, protocol: Protocol, server: triton.Server, record: str) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(_ROOT / "bench/load.py")]
    command += [_USER_CLASS[protocol], "--headless", "--only-summary"]
    users = config.processes if config.rate else config.users  # a source a process
    command += ["--users", str(users), "--spawn-rate", str(users)]
    command += ["--rate", str(config.rate), "--arrivals", config.arrivals]
    command += ["--repeat-share", str(config.repeat_share), "--batch", str(config.batch)]
    command += ["--payload", config.payload]
    command += ["--run-time", f"{config.seconds}s", "--stop-timeout", "30"]
    command += ["--host", server.http_url, "--grpc-address", f"{HOST}:{server.grpc_port}"]
    command += ["--comments", config.comments, "--record", record]
    # Failed requests are counted below; they are not a failed command.
    command += ["--exit-code-on-error", "0"]
    if config.processes > 1:
        command += ["--processes", str(config.processes)]
    config.out.mkdir(parents=True, exist_ok=True)
    log = config.out / f"{protocol}.log"
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with log.open("wb") as file:
        locust = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        with contextlib.suppress(psutil.AccessDenied):  # more than one's own share takes root
            psutil.Process(locust.pid).nice(_GENERATOR_NICE)
        try:
            status = locust.wait()
        except BaseException:
            for process in [*psutil.Process(locust.pid).children(recursive=True), locust]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            locust.wait()
            raise
    if status != 0:
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        raise ToxicityError(f"locust ended with status {status}: {''.join(last)}; see {log}")
