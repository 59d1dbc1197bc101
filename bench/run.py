"""Load the running server with Locust, one protocol after the other: `make bench`.

    python -m bench.run --users 16 --seconds 20
    python -m bench.run --rate 300 --seconds 20      # open loop

Prints a table; the results go to `bench/out/` as CSV, JSON and PNG. Closed loop, or with `--rate`
an open one (see bench/load.py).
"""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.report.machine import versions
from bench.report.plot import plot_results
from bench.report.result import LOAD, SERVER, Bars, at_most, begin, document, exactly, report
from bench.report.tables import aligned
from bench.serving.servers import artifact_of, find_server, warm_up
from bench.traffic.arrivals import MAX_BUSY
from bench.traffic.comments import load_pool
from bench.traffic.one_run import LoadConfig, Result
from bench.traffic.with_locust import load
from console.options import run
from contract import MAX_COMMENT_BYTES
from serve import triton
from serve.client import Protocol
from storage.files import write_atomically

_WARM_UP_COMMENTS = 200
_REMEDIES = {
    "invalid_runs": "the generator fell behind: give more --processes, or a lower --rate",
    "failed_share": "the reasons are above, and in the log of the server",
    "answers_counted_by_server": "let nothing else send comments to it meanwhile",
    "generator_busy": "the generator was the limit, not the server: give more --processes",
}


@dataclass(frozen=True)
class BenchConfig(LoadConfig):
    """Flags of `python -m bench.run`."""

    protocols: tuple[Protocol, ...] = Field(
        ("http", "grpc"), description="http, grpc or both", json_schema_extra=LOAD
    )
    run_dir: Path = Field(
        Path("runs/serve"), description="run folder of the server to load", json_schema_extra=SERVER
    )


def main() -> None:
    config = begin(BenchConfig, "bench.run", "Load the running server.")
    server = find_server(config.run_dir)
    artifact = artifact_of(server)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    # One that the server refuses is for the load to count, not for the warm-up to stop at.
    sendable = [text for text in pool.texts if len(text.encode()) <= MAX_COMMENT_BYTES]
    first = sendable[:_WARM_UP_COMMENTS]
    results = [_measured(config, protocol, server, first) for protocol in _spoken(config, server)]
    found = document(
        "load",
        config,
        closed_loop=config.rate == 0,
        load=_loop(config),
        comments=pool.to_json(),
        warm_up_comments=len(first),
        artifact=artifact,
        versions=_versions(server),
        results=[asdict(result) for result in results],
        bars=bars(results),
    )
    _write_csv(config, results, found)
    plot_results(found, config.out / "bench.png")
    for result in results:
        for reason, count in result.errors.items():
            print(f"{result.protocol}: {count} failed: {reason}")
    report(
        config,
        found,
        table(results),
        also=("bench.csv", "bench.png"),
        name="bench",
        remedies=_REMEDIES,
    )


def _spoken(config: BenchConfig, server: triton.Server) -> list[Protocol]:
    """Those of the wanted protocols that the server speaks."""
    if "grpc" in config.protocols and not server.grpc_port:
        print("grpc: left out, the server has none; start it with `make serve GRPC=1`")
    return [one for one in config.protocols if one == "http" or server.grpc_port]


def _measured(
    config: BenchConfig, protocol: Protocol, server: triton.Server, first: list[str]
) -> Result:
    print(f"{protocol}: {_loop(config)} for {config.seconds} s", flush=True)
    warm_up(protocol, server, first)
    result = load(config, protocol, server)
    print(f"{protocol}: {result.requests} requests sent", flush=True)
    return result


def _loop(config: BenchConfig) -> str:
    if config.rate == 0:
        return f"{config.users} users, closed loop"
    return f"open loop, {config.rate:g} requests/s, {config.arrivals} arrivals"


def _versions(server: triton.Server) -> dict[str, str]:
    with urllib.request.urlopen(f"{server.http_url}/v2", timeout=10) as answer:
        tritonserver = json.load(answer)["version"]
    return {
        "tritonserver": tritonserver,
        **versions("onnxruntime", "locust", "tritonclient", "numpy"),
    }


# --- Telling ------------------------------------------------------------------------------
def bars(results: list[Result]) -> Bars:
    """Bars that can be judged on any machine: shares and ratios."""
    sent = sum(result.requests for result in results)
    failed = sum(result.failures for result in results)
    counted = sum(result.server_requests for result in results) / max(1, sent - failed)
    return {
        "invalid_runs": at_most(sum(bool(result.check["invalid"]) for result in results), 0),
        "failed_share": at_most(failed / sent, 0),
        "answers_counted_by_server": exactly(counted, 1),
        "generator_busy": at_most(max(result.generator_busy for result in results), MAX_BUSY),
    }


def table(results: list[Result]) -> str:
    """The results for people, one line a protocol."""
    head = ["", "requests", "failed", "req/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms"]
    head += ["batch", "queue ms", "compute ms", "CPU us:"]
    head += [part.replace("_", " ") for part in results[0].cpu_us]
    head += ["load busy", "lag p99 ms", "schedule"]
    lines = [head]
    for r in results:
        latency = [f"{r.latency_ms[name]:.1f}" for name in ("p50", "p95", "p99", "p99.9", "max")]
        cpu = ["", *(f"{value:.0f}" for value in r.cpu_us.values())]
        server = [f"{r.mean_batch:.2f}", f"{r.queue_ms:.2f}", f"{r.compute_ms:.2f}"]
        counts = [r.protocol, str(r.requests), str(r.failures), f"{r.rate_rps:.0f}"]
        own = [f"{100 * r.generator_busy:.0f} %", f"{r.check['lag_p99_ms']:.2f}"]
        own.append("INVALID" if r.check["invalid"] else "kept up")
        lines.append([*counts, *latency, *server, *cpu, *own])
    return aligned(lines)


def _write_csv(config: BenchConfig, results: list[Result], found: dict[str, Any]) -> None:
    rows = []
    for r in results:
        flat = {**asdict(r), **{f"latency_{k}_ms": v for k, v in r.latency_ms.items()}}
        flat |= {f"cpu_{name}_us": value for name, value in r.cpu_us.items()}
        flat |= {"users": config.users, "comments_sha256": found["comments"]["sha256"]}
        flat |= found["artifact"]
        rows.append({name: v for name, v in flat.items() if not isinstance(v, dict)})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(config.out / "bench.csv", text.getvalue())


if __name__ == "__main__":
    run(main)
