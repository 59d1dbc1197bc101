"""Load the running server with Locust, one protocol after the other: `make bench`.

    python -m bench.run --users 16 --seconds 20

Prints a table and, as its last line, one JSON document; the same goes to `bench/out/` as CSV,
JSON and PNG. With `--rate` in an open loop, else in a closed one (see bench/load.py). Exit status 1
when a bar does not hold, as when one request failed or the generator fell behind.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.comments import default_source, load_pool
from bench.plot import plot_results
from contract import (
    HOST,
    MAX_COMMENT_BYTES,
    MAX_REQUEST_COMMENTS,
    ONNX_FILE,
    PUBLIC_MODEL,
    BadInput,
    ToxicityError,
)
from export.repository import read_artifact
from serve import triton
from serve.client import Protocol, score_comments
from train.artifacts import write_atomically, write_json
from train.cli import make_config, parse_config, run

Load = Literal["http", "http-binary", "grpc"]
_USER_CLASS = {
    "http": "HttpCommentUser",
    "http-binary": "HttpBinaryCommentUser",
    "grpc": "GrpcCommentUser",
}
_LAG_MS = 10.0
"""Bar of the 99th percentile of how late an open loop's requests were sent. The lag is part of the
latency, but beyond this the generator is what a p99 of tens of ms measures."""
_WARM_UP_COMMENTS = 200
_SETTLE_S, _SETTLE_TRIES = 0.1, 20
_OWN = ("requests", "requests_refused", "comments", "tokens", "batches", "compute_us")
_COUNTERS = {
    **{f"{PUBLIC_MODEL}_{name}_total": name for name in _OWN},
    "nv_inference_request_success_total": "triton_requests",
    "nv_inference_queue_duration_us_total": "queue_us",
}
"""Counters on the metrics port, as the parser names them, by short name: the model's own, and
Triton's of the model."""
_REMEDY = {
    "failed_share": "the reasons are above, and in the log of the server",
    "answers_counted_by_server": "let nothing else send comments to it meanwhile",
    "generator_busy": "the generator was the limit, not the server: give more --processes",
    "generator_lag_p99_ms": "the generator fell behind, so the run is invalid: lower --rate, give "
    "more --processes, or send from another machine",
}
PERCENTILES = (50, 90, 95, 99, 99.9)


@pydantic_dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Flags of `python -m bench.run`."""

    rate: float = Field(0.0, ge=0, description="open loop: requests a second; 0: closed loop")
    arrivals: Literal["poisson", "constant"] = Field(
        "poisson", description="open loop: random times between requests, or all the same"
    )
    users: int = Field(16, ge=1, description="closed loop: users who send one request at a time")
    batch: int = Field(1, ge=1, le=MAX_REQUEST_COMMENTS, description="comments of one request")
    repeats: float = Field(
        0.0, ge=0, lt=1, description="share of comments drawn from a hundred hot ones (Zipf)"
    )
    seconds: int = Field(20, ge=1, description="length of the load, for each protocol")
    protocols: tuple[Load, ...] = Field(
        ("http", "grpc"), description="http, http-binary, grpc, one after the other"
    )
    processes: int = Field(
        max(1, (os.cpu_count() or 1) // 4), ge=1, description="Locust processes, of one core each"
    )
    comments: str = Field(
        default_source(), description="comments to send: a labelled file, or 'synthetic'"
    )
    run_dir: Path = Field(Path("runs/serve"), description="run folder of the server to load")
    out: Path = Field(Path("bench/out"), description="folder of the results")


@dataclass(frozen=True)
class Result:
    """One protocol's run. Times are per request unless they say otherwise."""

    protocol: Load
    requests: int
    failures: int
    rate_rps: float
    comments_per_s: float
    latency_ms: dict[str, float]
    """Of answered requests at the client, exact: mean, max and PERCENTILES by name."""
    errors: dict[str, int]
    """Failed requests by their reason."""
    server_requests: int
    """Scored by the server in that time, by its own count."""
    refused: int
    mean_batch: float
    queue_ms: float
    """Mean wait in Triton until the model's process took the request."""
    compute_ms: float
    """Mean time to score a batch; every request of it waits that long."""
    tokens: float
    """Mean tokens a comment as the encoder saw it: [CLS] counted, cut at max_len."""
    cpu_us: dict[str, float]
    """CPU time by who spent it: generator, front_end (tritonserver), model (its processes)."""
    generator_busy: float
    """CPU seconds a second of the busiest Locust process; near 1 it binds, not the server."""
    lag_ms: dict[str, float]
    """How late an open loop sent its requests: PERCENTILES and max. Empty in a closed loop."""


def main() -> None:
    config = parse_config(
        BenchConfig, None, prog="python -m bench.run", description="Load the running server."
    )
    # Both end Locust and leave no half-written file; a background job starts deaf to Ctrl-C.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    server = find_server(config.run_dir)
    artifact = artifact_of(server)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    # One that the server refuses is for the load to count, not for the warm-up to stop at.
    sendable = [text for text in pool.texts if len(text.encode()) <= MAX_COMMENT_BYTES]
    warm_up = sendable[:_WARM_UP_COMMENTS]
    results = []
    for protocol in config.protocols:
        print(f"{protocol}: {_load_words(config)} for {config.seconds} s", flush=True)
        _warm_up(protocol, server, warm_up)
        results.append(_load(config, protocol, server))
        print(f"{protocol}: {results[-1].requests} requests sent", flush=True)
    document: dict[str, Any] = {
        "bench": "load",
        "closed_loop": not config.rate,
        "load": _load_words(config),
        "batch": config.batch,
        "repeats": config.repeats,
        "users": config.users,
        "processes": config.processes,
        "seconds": config.seconds,
        "comments": pool.to_json(),
        "warm_up_comments": len(warm_up),
        "artifact": artifact,
        "hardware": hardware(),
        "versions": _versions(server),
        "results": [asdict(result) for result in results],
        "bars": bars(results),
    }
    _write(config.out, results, document)
    print(table(results))
    for result in results:
        for reason, count in result.errors.items():
            print(f"{result.protocol}: {count} failed: {reason}")
    print(f"wrote {config.out}/bench.csv, bench.json and bench.png")
    print(json.dumps(document))
    report_broken_bars(document, _REMEDY)


def find_server(run_dir: Path) -> triton.Server:
    """The server that runs from `run_dir`. Raises BadInput when there is none."""
    settings = {"action": "status", "run_dir": run_dir}
    server = triton.running(make_config(triton.ServeConfig, settings))
    if server is None:
        raise BadInput(f"no server runs from {run_dir}, expected one; run `make serve`")
    return server


def report_broken_bars(document: dict[str, Any], remedy: dict[str, str] | None = None) -> None:
    """Raise ToxicityError, exit status 1, that names the first bar which does not hold.

    `remedy` says what to do, by the bar's name.
    """
    for name, bar in document["bars"].items():
        if not bar["holds"]:
            advice = f"; {remedy[name]}" if remedy else ""
            raise ToxicityError(
                f"bar {name} does not hold: {bar['value']:g}, bar {bar['bar']}{advice}"
            )


# --- One run -----------------------------------------------------------------------------
def _load_words(config: BenchConfig) -> str:
    loop = f"{config.rate:g} requests/s ({config.arrivals}), open loop"
    words = loop if config.rate else f"{config.users} users, closed loop"
    return words + (f", {config.batch} comments a request" if config.batch > 1 else "")


def _warm_up(protocol: Load, server: triton.Server, texts: list[str]) -> None:
    client: Protocol = "grpc" if protocol == "grpc" else "http"
    port = server.http_port if client == "http" else server.grpc_port
    score_comments(texts, protocol=client, url=f"{HOST}:{port}")


def _load(config: BenchConfig, protocol: Load, server: triton.Server) -> Result:
    with tempfile.TemporaryDirectory() as record:
        before = _settled_counters(server)
        _run_locust(config, protocol, server, record)
        after = _settled_counters(server)
        parts = [np.load(path, allow_pickle=False) for path in Path(record).glob("*.npz")]
    used = {name: after[name] - before[name] for name in after}
    errors: Counter[str] = Counter()
    for part in parts:
        errors.update(json.loads(str(part["errors"])))
    # With several processes there is one more, which sends nothing and ends a second late.
    senders = [part for part in parts if len(part["latencies_ms"])]
    if not senders:
        reason = f"the first reason is {next(iter(errors))}; " if errors else ""
        raise ToxicityError(
            f"{protocol}: {errors.total()} requests were sent and none was answered; "
            f"{reason}see {config.out / protocol}.log"
        )
    began, ended = min(part["began"] for part in senders), max(part["ended"] for part in senders)
    return _result(
        protocol,
        batch=config.batch,
        latencies_ms=np.concatenate([part["latencies_ms"] for part in senders]),
        lags_ms=np.concatenate([part["lags_ms"] for part in senders]),
        errors=errors,
        used={**used, "generator_cpu_s": sum(float(part["cpu_s"]) for part in parts)},
        seconds=float(ended - began),
        busiest=max(float(part["cpu_s"] / (part["ended"] - part["began"])) for part in senders),
    )


def _result(
    protocol: Load,
    *,
    batch: int,
    latencies_ms: np.ndarray,
    lags_ms: np.ndarray,
    errors: Counter[str],
    used: dict[str, float],
    seconds: float,
    busiest: float,
) -> Result:
    answered = len(latencies_ms)
    sent = answered + errors.total()
    batches = max(1, used["batches"])
    return Result(
        protocol=protocol,
        requests=sent,
        failures=errors.total(),
        rate_rps=round(answered / seconds, 1),
        comments_per_s=round(batch * answered / seconds, 1),
        latency_ms={"mean": round(float(latencies_ms.mean()), 3), **_percentiles(latencies_ms)},
        lag_ms=_percentiles(lags_ms) if len(lags_ms) else {},
        errors=dict(errors.most_common()),
        server_requests=int(used["requests"]),
        refused=int(used["requests_refused"]),
        mean_batch=round(used["comments"] / batches, 3),
        queue_ms=round(used["queue_us"] / max(1, used["triton_requests"]) / 1e3, 3),
        compute_ms=round(used["compute_us"] / batches / 1e3, 3),
        tokens=round(used["tokens"] / max(1, used["comments"]), 1),
        cpu_us={
            name: round(1e6 * used[f"{name}_cpu_s"] / sent, 1)
            for name in ("generator", "front_end", "model")
        },
        generator_busy=round(busiest, 3),
    )


def _percentiles(values: np.ndarray) -> dict[str, float]:
    """PERCENTILES of values float64 [n] and their maximum, by name, to a thousandth."""
    points = {f"p{p:g}": np.percentile(values, p) for p in PERCENTILES}
    return {name: round(float(v), 3) for name, v in {**points, "max": values.max()}.items()}


def _run_locust(config: BenchConfig, protocol: Load, server: triton.Server, record: str) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "locust", "-f", str(root / "bench/load.py")]
    command += [_USER_CLASS[protocol], "--headless", "--only-summary"]
    users = config.processes if config.rate else config.users
    command += ["--users", str(users), "--spawn-rate", str(users)]
    command += ["--rate", str(config.rate), "--arrivals", config.arrivals]
    command += ["--batch", str(config.batch), "--repeats", str(config.repeats)]
    command += ["--run-time", f"{config.seconds}s", "--stop-timeout", "30"]
    command += ["--host", server.http_url, "--grpc-address", f"{HOST}:{server.grpc_port}"]
    command += ["--comments", config.comments, "--record", record]
    # Failed requests are counted below; they are not a failed command.
    command += ["--exit-code-on-error", "0"]
    if config.processes > 1:
        command += ["--processes", str(config.processes)]
    config.out.mkdir(parents=True, exist_ok=True)
    log = config.out / f"{protocol}.log"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with log.open("wb") as file:
        locust = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
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


def _settled_counters(server: triton.Server) -> dict[str, float]:
    """Counters once they stand still: the model publishes them a little later."""
    counters = _server_counters(server)
    for _ in range(_SETTLE_TRIES):  # somebody else's requests may never let them stand still
        time.sleep(_SETTLE_S)
        before, counters = counters, _server_counters(server)
        if counters["requests"] == before["requests"]:
            break
    return counters


def _server_counters(server: triton.Server) -> dict[str, float]:
    """Totals of _COUNTERS by short name, and the CPU seconds of the server's processes.

    Raises BadInput when the served model counts other things.
    """
    url = f"http://{HOST}:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    counters: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _COUNTERS and sample.labels.get("model") in (None, PUBLIC_MODEL):
                name = _COUNTERS[sample.name]
                counters[name] = counters.get(name, 0.0) + sample.value  # one a version
    if missing := _COUNTERS.values() - counters.keys():
        raise BadInput(
            f"{url} does not count {', '.join(sorted(missing))}, expected the counters of this "
            "release's model; run `make export serve`"
        )
    process = psutil.Process(server.pid)
    counters["front_end_cpu_s"] = _cpu_s(process)
    counters["model_cpu_s"] = sum(_cpu_s(child) for child in process.children(recursive=True))
    return counters


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# --- What it ran on ------------------------------------------------------------------------
def hardware() -> dict[str, Any]:
    """CPU model, cores and the instruction sets that decide the speed of INT8."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "isa": [name for name in known if flags and name in flags[1].split()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def artifact_of(server: triton.Server) -> dict[str, Any]:
    """What the server really serves: the newest version that it answers for."""
    number = triton.served_version(server)
    if number is None:
        raise BadInput(
            f"the server at {server.http_url} does not answer, expected a ready one; "
            "run `make stop serve`"
        )
    artifact = read_artifact(Path(server.repository), number)
    return {
        "version": number,
        "precision": artifact["precision"],
        "max_len": artifact["max_len"],
        "checkpoint_sha256": artifact.get("checkpoint_sha256"),
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
    }


def _versions(server: triton.Server) -> dict[str, str]:
    with urllib.request.urlopen(f"{server.http_url}/v2", timeout=10) as answer:
        tritonserver = json.load(answer)["version"]
    packages = ("onnxruntime", "locust", "tritonclient", "numpy")
    return {
        "python": platform.python_version(),
        "tritonserver": tritonserver,
        **{name: version(name) for name in packages},
    }


# --- Telling ------------------------------------------------------------------------------
def bars(results: list[Result]) -> dict[str, dict[str, Any]]:
    """Bars that can be judged on any machine: shares and ratios."""
    sent = sum(result.requests for result in results)
    failed = sum(result.failures for result in results)
    counted = sum(result.server_requests for result in results) / max(1, sent - failed)
    busy = max(result.generator_busy for result in results)
    lag = max(result.lag_ms.get("p99", 0.0) for result in results)
    return {
        "failed_share": {"value": failed / sent, "bar": 0, "holds": failed == 0},
        "answers_counted_by_server": {"value": counted, "bar": 1, "holds": counted == 1},
        "generator_busy": {"value": busy, "bar": 0.9, "holds": busy <= 0.9},
        "generator_lag_p99_ms": {"value": lag, "bar": _LAG_MS, "holds": lag <= _LAG_MS},
    }


def table(results: list[Result]) -> str:
    """The results for people, one line a protocol."""
    head = ["", "requests", "failed", "req/s", "comments/s", "p50 ms", "p95 ms", "p99 ms"]
    head += ["p99.9 ms", "batch", "queue ms", "compute ms"]
    head += ["CPU us: load", "front end", "model", "load busy", "lag p99 ms"]
    lines = []
    for r in results:
        latency = [f"{r.latency_ms[name]:.1f}" for name in ("p50", "p95", "p99", "p99.9")]
        cpu = [f"{r.cpu_us[name]:.0f}" for name in ("generator", "front_end", "model")]
        server = [f"{r.mean_batch:.2f}", f"{r.queue_ms:.2f}", f"{r.compute_ms:.2f}"]
        counts = [r.protocol, str(r.requests), str(r.failures)]
        counts += [f"{r.rate_rps:.0f}", f"{r.comments_per_s:.0f}"]
        self_check = [f"{100 * r.generator_busy:.0f} %", f"{r.lag_ms.get('p99', 0):.1f}"]
        lines.append([*counts, *latency, *server, *cpu, *self_check])
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [head, *lines]
    )


def _write(out: Path, results: list[Result], document: dict[str, Any]) -> None:
    rows = []
    for r in results:
        flat = {**asdict(r), **{f"latency_{k}_ms": v for k, v in r.latency_ms.items()}}
        flat |= {f"cpu_{name}_us": value for name, value in r.cpu_us.items()}
        flat |= {f"lag_{k}_ms": v for k, v in r.lag_ms.items()}
        flat |= {"load": document["load"], "comments_sha256": document["comments"]["sha256"]}
        flat |= document["artifact"]
        rows.append({name: v for name, v in flat.items() if not isinstance(v, dict)})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "bench.csv", text.getvalue())
    write_json(out / "bench.json", document)
    plot_results(document, out / "bench.png")


if __name__ == "__main__":
    run(main)
