"""Load the running server with Locust, one protocol after the other: `make bench`.

    python -m bench.run --users 16 --seconds 20

Prints a table and, as its last line, one JSON document; the same goes to `bench/out/` as CSV,
JSON and PNG. Closed loop (see bench/load.py). Exit status 1 when a bar does not hold.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import urllib.request
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
from contract import HOST, ONNX_FILE, PUBLIC_MODEL, BadInput, ToxicityError
from export.repository import read_artifact
from serve import triton
from serve.client import Protocol, score_comments
from train.artifacts import write_atomically, write_json
from train.cli import make_config, parse_config, run

_USER_CLASS = {"http": "HttpCommentUser", "grpc": "GrpcCommentUser"}
_WARM_UP_COMMENTS = 200
PERCENTILES = (50, 90, 95, 99, 99.9)


@pydantic_dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Flags of `python -m bench.run`."""

    users: int = Field(16, ge=1, description="users who send one comment at a time")
    seconds: int = Field(20, ge=1, description="length of the load, for each protocol")
    protocols: tuple[Protocol, ...] = Field(("http", "grpc"), description="http, grpc or both")
    processes: int = Field(1, ge=1, description="Locust processes")
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
    """Client side, exact: mean, max and PERCENTILES by name."""
    server_requests: int
    """Scored by the server in that time, by its own count."""
    refused: int
    mean_batch: float
    queue_ms: float
    """Mean wait in the model's queue."""
    compute_ms: float
    """Mean time to score a batch; every request of it waits that long."""
    tokens: float
    """Mean tokens a comment as the encoder saw it: [CLS] counted, cut at max_len."""
    cpu_us: dict[str, float]
    """CPU time by who spent it: generator, front_end (tritonserver), model (its processes)."""


def main() -> None:
    config = parse_config(
        BenchConfig, None, prog="python -m bench.run", description="Load the running server."
    )
    server = find_server(config.run_dir)
    pool = load_pool(config.comments)
    print(f"{len(pool.texts)} comments from {pool.name}; tokens {pool.lengths}", flush=True)
    results = []
    for protocol in config.protocols:
        print(f"{protocol}: {config.users} users for {config.seconds} s, closed loop", flush=True)
        _warm_up(protocol, server, pool.texts[:_WARM_UP_COMMENTS])
        results.append(_load(config, protocol, server))
    document: dict[str, Any] = {
        "bench": "load",
        "closed_loop": True,
        "users": config.users,
        "processes": config.processes,
        "seconds": config.seconds,
        "comments": pool.to_json(),
        "artifact": artifact_of(server),
        "hardware": hardware(),
        "versions": _versions(server),
        "results": [asdict(result) for result in results],
        "bars": bars(results),
    }
    _write(config.out, results, document)
    print(table(results))
    print(f"wrote {config.out}/bench.csv, bench.json and bench.png")
    print(json.dumps(document))
    report_broken_bars(document)


def find_server(run_dir: Path) -> triton.Server:
    """The server that runs from `run_dir`. Raises BadInput when there is none."""
    settings = {"action": "status", "run_dir": run_dir}
    server = triton.running(make_config(triton.ServeConfig, settings))
    if server is None:
        raise BadInput(f"no server runs from {run_dir}, expected one; run `make serve`")
    return server


def report_broken_bars(document: dict[str, Any]) -> None:
    """Raise ToxicityError, exit status 1, that names the first bar which does not hold."""
    for name, bar in document["bars"].items():
        if not bar["holds"]:
            raise ToxicityError(f"bar {name} does not hold: {bar['value']}, bar {bar['bar']}")


# --- One run -----------------------------------------------------------------------------
def _warm_up(protocol: Protocol, server: triton.Server, texts: list[str]) -> None:
    port = server.http_port if protocol == "http" else server.grpc_port
    score_comments(texts, protocol=protocol, url=f"{HOST}:{port}")


def _load(config: BenchConfig, protocol: Protocol, server: triton.Server) -> Result:
    with tempfile.TemporaryDirectory() as record:
        before = _server_counters(server)
        _run_locust(config, protocol, server, record)
        after = _server_counters(server)
        parts = [np.load(path, allow_pickle=False) for path in Path(record).glob("*.npz")]
    used = {name: after[name] - before[name] for name in after}
    latencies = np.concatenate([part["latencies_ms"] for part in parts] or [np.empty(0)])
    failures = int(sum(part["failures"] for part in parts))
    if not len(latencies):
        raise ToxicityError(
            f"{protocol}: none of {failures} requests was answered; see {config.out}/{protocol}.log"
        )
    seconds = max(float(part["ended"]) for part in parts) - min(
        float(part["began"]) for part in parts
    )
    batches, scored = max(1.0, used["batches"]), max(1.0, used["requests"])
    sent = len(latencies) + failures
    cpu_s = {
        "generator": sum(float(part["cpu_s"]) for part in parts),
        "front_end": used["front_end_cpu_s"],
        "model": used["model_cpu_s"],
    }
    return Result(
        protocol=protocol,
        requests=sent,
        failures=failures,
        rate_rps=round(len(latencies) / seconds, 1),
        latency_ms={
            "mean": round(float(latencies.mean()), 3),
            **{f"p{p:g}": round(float(np.percentile(latencies, p)), 3) for p in PERCENTILES},
            "max": round(float(latencies.max()), 3),
        },
        server_requests=int(used["requests"]),
        refused=int(used["requests_refused"]),
        mean_batch=round(used["comments"] / batches, 3),
        queue_ms=round(used["queue_us"] / scored / 1e3, 3),
        compute_ms=round(used["compute_us"] / batches / 1e3, 3),
        tokens=round(used["tokens"] / max(1.0, used["comments"]), 1),
        cpu_us={name: round(1e6 * value / sent, 1) for name, value in cpu_s.items()},
    )


def _run_locust(
    config: BenchConfig, protocol: Protocol, server: triton.Server, record: str
) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "locust", "-f", str(root / "bench/load.py")]
    command += [_USER_CLASS[protocol], "--headless", "--only-summary"]
    command += ["--users", str(config.users), "--spawn-rate", str(config.users)]
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
                process.kill()
            locust.wait()
            raise
    if status != 0:
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        raise ToxicityError(f"locust ended with status {status}: {''.join(last)}; see {log}")


def _server_counters(server: triton.Server) -> dict[str, float]:
    """The model's own counters (totals by short name) and the CPU seconds of its processes."""
    url = f"http://{HOST}:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    short = ("requests", "requests_refused", "comments", "tokens", "batches")
    counters = dict.fromkeys([*short, "queue_us", "compute_us"], 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(f"{PUBLIC_MODEL}_").removesuffix("_total")
            if sample.name.startswith(f"{PUBLIC_MODEL}_") and name in counters:
                counters[name] += sample.value  # one a version
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
    answered = sent - sum(result.failures for result in results)
    failed_share = 1 - answered / sent
    counted = sum(result.server_requests for result in results) / max(1, answered)
    cpu = {name: sum(r.cpu_us[name] * r.requests for r in results) for name in results[0].cpu_us}
    generator_share = cpu["generator"] / max(1e-9, sum(cpu.values()))
    return {
        "failed_share": {"value": failed_share, "bar": 0, "holds": failed_share == 0},
        "answers_counted_by_server": {"value": counted, "bar": 1, "holds": counted == 1},
        "generator_share_of_cpu": {
            "value": round(generator_share, 4),
            "bar": 0.5,
            "holds": generator_share <= 0.5,
        },
    }


def table(results: list[Result]) -> str:
    """The results for people, one line a protocol."""
    head = ["", "requests", "failed", "req/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "batch"]
    head += ["queue ms", "compute ms", "CPU us: load", "front end", "model"]
    lines = []
    for r in results:
        latency = [f"{r.latency_ms[name]:.1f}" for name in ("p50", "p95", "p99", "max")]
        cpu = [f"{r.cpu_us[name]:.0f}" for name in ("generator", "front_end", "model")]
        server = [f"{r.mean_batch:.2f}", f"{r.queue_ms:.2f}", f"{r.compute_ms:.2f}"]
        rate = f"{r.rate_rps:.0f}"
        lines.append([r.protocol, str(r.requests), str(r.failures), rate, *latency, *server, *cpu])
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
