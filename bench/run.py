"""Load the running server with Locust, one protocol after the other: `make bench`.

    python -m bench.run --users 16 --seconds 20
    python -m bench.run --rate 300 --seconds 20      # open loop

Prints a table and, as its last line, one JSON document; the same goes to `bench/out/` as CSV,
JSON and PNG. Closed loop, or with `--rate` an open one (see bench/load.py). Exit status 1 when a
bar does not hold, as when one request failed.
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
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.plot import plot_results
from bench.traffic.arrivals import Arrivals, self_check
from bench.traffic.comments import default_source, load_pool
from bench.traffic.counters import CountersOf, cpu_us, server_counters, settled
from console.options import make_config, parse_config, run
from contract import (
    HOST,
    MAX_COMMENT_BYTES,
    ONNX_FILE,
    BadInput,
    ToxicityError,
)
from export.repository import read_artifact
from serve import door, triton
from serve.client import Protocol, score_comments
from train.artifacts import write_atomically, write_json

_USER_CLASS = {"http": "HttpCommentUser", "grpc": "GrpcCommentUser"}
_WARM_UP_COMMENTS = 200
_REMEDY = {
    "invalid_runs": "the generator fell behind: give more --processes, or a lower --rate",
    "failed_share": "the reasons are above, and in the log of the server",
    "answers_counted_by_server": "let nothing else send comments to it meanwhile",
    "generator_busy": "the generator was the limit, not the server: give more --processes",
}
_GENERATOR_NICE = -10
"""Priority of Locust where it may be raised: on one machine the server must not starve what
measures it, which would have a machine of its own."""
PERCENTILES = (50, 90, 95, 99, 99.9)


@pydantic_dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Flags of `python -m bench.run`."""

    users: int = Field(16, ge=1, description="users who send one comment at a time")
    seconds: int = Field(20, ge=1, description="length of the load, for each protocol")
    protocols: tuple[Protocol, ...] = Field(("http", "grpc"), description="http, grpc or both")
    processes: int = Field(
        max(1, (os.cpu_count() or 1) // 4), ge=1, description="Locust processes, of one core each"
    )
    rate: float = Field(0, ge=0, description="open loop of so many requests/s; 0: closed loop")
    arrivals: Arrivals = Field("poisson", description="of the open loop")
    repeat_share: float = Field(0, ge=0, lt=1, description="share of repeated comments")
    batch: int = Field(1, ge=1, description="comments a request")
    payload: Literal["json", "binary"] = Field("json", description="form of HTTP tensors")
    skip_s: float = Field(0, ge=0, description="first seconds of the load not in latencies")
    comments: str = Field(
        default_source(), description="comments to send: a labelled file, or 'synthetic'"
    )
    run_dir: Path = Field(Path("runs/serve"), description="run folder of the server to load")
    out: Path = Field(Path("bench/out"), description="folder of the results")


@dataclass(frozen=True)
class Result:
    """One protocol's run. Times are per request unless they say otherwise."""

    protocol: Literal["http", "grpc"]
    requests: int
    failures: int
    rate_rps: float
    latency_ms: dict[str, float]
    """Of answered requests at the client, exact: mean, max and PERCENTILES by name."""
    errors: dict[str, int]
    """Failed requests by their reason."""
    server_requests: int
    """Scored by the server in that time, by its own count."""
    refused: int
    mean_batch: float
    queue_ms: float
    """Mean wait in Triton until the model took the request."""
    compute_ms: float
    """Mean time to score a batch; every request of it waits that long."""
    tokens: float
    """Mean tokens a comment as the encoder saw it: [CLS] counted, cut at max_len."""
    cache_hit_share: float
    """Of comments: their logit was known to the server."""
    cpu_us: dict[str, float]
    """CPU time by who spent it, see `bench.traffic.counters.cpu_us`."""
    check: dict[str, Any]
    """`bench.self_check`; without a schedule (closed loop) only `busy` says something."""
    comments_per_s: float
    failed_p50_ms: float | None
    """Median time to the answer of a failed request, such as a refusal."""
    last_send: float
    """Unix time in seconds of the last send."""
    generator_busy: float
    """CPU seconds a second of the busiest Locust process; near 1 it binds, not the server."""


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
    first = sendable[:_WARM_UP_COMMENTS]
    results = []
    for protocol in config.protocols:
        if protocol == "grpc" and not server.grpc_port:
            print("grpc: left out, the server has none; start it with `make serve GRPC=1`")
            continue
        print(f"{protocol}: {_loop(config)} for {config.seconds} s", flush=True)
        warm_up(protocol, server, first)
        results.append(load(config, protocol, server))
        print(f"{protocol}: {results[-1].requests} requests sent", flush=True)
    document: dict[str, Any] = {
        "bench": "load",
        "closed_loop": config.rate == 0,
        "load": _loop(config),
        "rate": config.rate,
        "arrivals": config.arrivals,
        "repeat_share": config.repeat_share,
        "batch": config.batch,
        "payload": config.payload,
        "users": config.users,
        "processes": config.processes,
        "seconds": config.seconds,
        "comments": pool.to_json(),
        "warm_up_comments": len(first),
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
    """The server or the balancer that runs from `run_dir`. Raises BadInput without one."""
    settings = make_config(triton.ServeConfig, {"action": "status", "run_dir": run_dir})
    server = triton.running(settings) or door.running(run_dir)
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
def warm_up(protocol: Protocol, server: triton.Server, texts: list[str]) -> None:
    """Send `texts` once, so that no first request is in what follows."""
    port = server.http_port if protocol == "http" else server.grpc_port
    score_comments(texts, protocol=protocol, url=f"{HOST}:{port}")


def _loop(config: BenchConfig) -> str:
    if config.rate == 0:
        return f"{config.users} users, closed loop"
    return f"open loop, {config.rate:g} requests/s, {config.arrivals} arrivals"


def load(
    config: BenchConfig,
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
        parts = [np.load(path, allow_pickle=False) for path in Path(record).glob("*.npz")]
    used = {name: after[name] - before[name] for name in after}
    errors: Counter[str] = Counter()
    for part in parts:
        errors.update(json.loads(str(part["errors"])))
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
    busiest = max(float(part["cpu_s"] / (part["ended"] - part["began"])) for part in senders)
    check = self_check(
        np.concatenate([part["lags_ms"] for part in parts]),
        busiest,
        sum(int(part["missed"]) for part in parts),
        errors["generator full"],
    )
    return result_of(
        protocol,
        latencies_ms=np.concatenate(list(kept.values())),
        answered=sum(len(part["latencies_ms"]) for part in senders),
        check=check,
        batch=config.batch,
        failed_ms=np.concatenate([part["failed_ms"] for part in parts]),
        last_send=max(
            float(part["began"] + np.max([*part["sent_at_s"], *part["failed_at_s"]]))
            for part in senders
        ),
        errors=errors,
        used={**used, "generator_cpu_s": sum(float(part["cpu_s"]) for part in parts)},
        seconds=float(ended - began),
        busiest=busiest,
    )


def result_of(
    protocol: Protocol,
    *,
    latencies_ms: np.ndarray,
    answered: int,
    check: dict[str, Any],
    batch: int,
    failed_ms: np.ndarray,
    last_send: float,
    errors: Counter[str],
    used: dict[str, float],
    seconds: float,
    busiest: float,
) -> Result:
    """What any generator measured, as a Result.

    `latencies_ms` float64 [answers that count], `failed_ms` float64 [failures]; `answered` in
    `seconds`; `used`: differences between two `Totals` and `generator_cpu_s`; `busiest`: CPU
    seconds a second of the generator's busiest process.
    """
    sent = answered + errors.total()
    batches = max(1, used["batches"])
    percentiles = {f"p{p:g}": float(np.percentile(latencies_ms, p)) for p in PERCENTILES}
    latency_ms = {"mean": float(latencies_ms.mean()), **percentiles, "max": latencies_ms.max()}
    return Result(
        protocol=protocol,
        requests=sent,
        failures=errors.total(),
        rate_rps=round(answered / seconds, 1),
        latency_ms={name: round(float(value), 3) for name, value in latency_ms.items()},
        errors=dict(errors.most_common()),
        server_requests=int(used["requests"]),
        refused=int(used["requests_refused"]),
        mean_batch=round(used["comments"] / batches, 3),
        queue_ms=round(used["queue_us"] / max(1, used["triton_requests"]) / 1e3, 3),
        compute_ms=round(used["compute_us"] / batches / 1e3, 3),
        tokens=round(used["tokens"] / max(1, used["comments"]), 1),
        cache_hit_share=round(used["cache_hits"] / max(1, used["comments"]), 3),
        cpu_us=cpu_us(used, sent),
        check=check,
        failed_p50_ms=round(float(np.median(failed_ms)), 3) if len(failed_ms) else None,
        last_send=last_send,
        comments_per_s=round(answered * batch / seconds, 1),
        generator_busy=round(busiest, 3),
    )


def _run_locust(
    config: BenchConfig, protocol: Protocol, server: triton.Server, record: str
) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "locust", "-f", str(root / "bench/load.py")]
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
    environment = {**os.environ, "PYTHONPATH": str(root)}
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
        "long_text": artifact.get("long_text", {}),
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
    invalid = sum(bool(result.check["invalid"]) for result in results)
    return {
        "invalid_runs": {"value": invalid, "bar": 0, "holds": invalid == 0},
        "failed_share": {"value": failed / sent, "bar": 0, "holds": failed == 0},
        "answers_counted_by_server": {"value": counted, "bar": 1, "holds": counted == 1},
        "generator_busy": {"value": busy, "bar": 0.9, "holds": busy <= 0.9},
    }


def table(results: list[Result]) -> str:
    """The results for people, one line a protocol."""
    head = ["", "requests", "failed", "req/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms"]
    head += ["batch", "queue ms", "compute ms", "CPU us:"]
    head += [part.replace("_", " ") for part in results[0].cpu_us]
    head += ["load busy", "lag p99 ms", "schedule"]
    lines = []
    for r in results:
        latency = [f"{r.latency_ms[name]:.1f}" for name in ("p50", "p95", "p99", "p99.9", "max")]
        cpu = ["", *(f"{value:.0f}" for value in r.cpu_us.values())]
        server = [f"{r.mean_batch:.2f}", f"{r.queue_ms:.2f}", f"{r.compute_ms:.2f}"]
        counts = [r.protocol, str(r.requests), str(r.failures), f"{r.rate_rps:.0f}"]
        own = [f"{100 * r.generator_busy:.0f} %", f"{r.check['lag_p99_ms']:.2f}"]
        own.append("INVALID" if r.check["invalid"] else "kept up")
        lines.append([*counts, *latency, *server, *cpu, *own])
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
        flat |= {"users": document["users"], "comments_sha256": document["comments"]["sha256"]}
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
