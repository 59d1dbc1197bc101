"""What the histograms on the metrics port cost: `toxicity bench histograms`.

    python -m bench.serving.histograms --repository model_repository

Serves the newest published version twice, side by side, with the histograms and, by the model's
parameter `histograms`, without, and loads the two in turns: on, off, off, on. Clients in this
process send one comment a request in a closed loop; no cache, so every comment is computed. A cost
is the CPU time of the server's process a request, the clients' not included. Read ratios within one
run, on a machine that does nothing else. Prints a table and writes `histograms.json`.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tritonclient.grpc import model_config_pb2

from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from bench.serving.servers import artifact_of, serving
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.counters import server_counters, settled
from console.options import run
from contract import CACHE_BYTES, HISTOGRAMS, HOST, PUBLIC_MODEL
from export.model_config import CONFIG_FILE
from export.repository import verify
from serve import triton
from serve.client import Protocol, connect, infer

_MOST_COST = 1.02
"""Most that they may add to the CPU time of a request."""


@pydantic_dataclasses.dataclass(frozen=True)
class HistogramBenchConfig(ResultOptions):
    """Flags of `python -m bench.serving.histograms`."""

    repository: Path = Field(
        Path("model_repository"), description="filled model repository", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    protocol: Protocol = Field("http", description="http or grpc", json_schema_extra=LOAD)
    clients: int = Field(16, ge=1, description="requests in flight", json_schema_extra=LOAD)
    seconds: float = Field(3, gt=0, description="length of one measurement", json_schema_extra=RUNS)
    rounds: int = Field(
        10, ge=1, description="turns, each with and without them", json_schema_extra=RUNS
    )


@dataclass(frozen=True)
class HistogramMeasurement:
    """One closed loop of some seconds."""

    rate_rps: float
    cpu_us: float
    """CPU time a request of tritonserver."""
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Measure, write and print."""
    config = begin(HistogramBenchConfig, "bench.serving.histograms", "Measure the histograms.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    stream = itertools.cycle([text.encode("utf-8", "replace") for text in pool.texts])
    taken: dict[bool, list[HistogramMeasurement]] = {True: [], False: []}
    with _serving(config, histograms=True) as on, _serving(config, histograms=False) as off:
        artifact, servers = artifact_of(on), {True: on, False: off}
        for server in servers.values():
            _measure(config, server, stream)  # warms up
        for turn in range(config.rounds):
            for histograms in (False, True) if turn % 2 else (True, False):
                taken[histograms].append(_measure(config, servers[histograms], stream))
    results = [{"histograms": on, **_median(rows)} for on, rows in taken.items()]
    found = document(
        "histograms",
        config,
        closed_loop=True,
        comments=pool.to_json(),
        artifact=artifact,
        results=results,
        bars=histogram_bars(taken),
    )
    report(config, found, _table(results))


@contextmanager
def _serving(config: HistogramBenchConfig, *, histograms: bool) -> Iterator[triton.Server]:
    """A server of a copy of the repository, without its cache."""

    def make(folder: Path) -> Path:
        repository = folder / "repository"
        shutil.copytree(config.repository, repository)
        return repository

    def change(models: Path) -> None:
        path = models / PUBLIC_MODEL / CONFIG_FILE
        model = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
        model.parameters[CACHE_BYTES].string_value = "0"
        model.parameters[HISTOGRAMS].string_value = str(int(histograms))
        path.write_text(text_format.MessageToString(model), "utf-8")

    with serving(make, change=change) as found:
        yield found.server


def _measure(
    config: HistogramBenchConfig, server: triton.Server, stream: Iterator[bytes]
) -> HistogramMeasurement:
    url = f"{HOST}:{server.http_port if config.protocol == 'http' else server.grpc_port}"
    before, began = settled(server_counters, server), time.monotonic()
    ends = began + config.seconds

    def ask() -> list[float]:
        latencies = []
        with connect(config.protocol, url) as client:
            while (sent := time.monotonic()) < ends:
                infer(client, config.protocol, [next(stream)])
                latencies.append(time.monotonic() - sent)
        return latencies

    with ThreadPoolExecutor(config.clients) as pool:
        asking = [pool.submit(ask) for _ in range(config.clients)]
        latencies_ms = 1e3 * np.concatenate([future.result() for future in asking])
    wall_s, after = time.monotonic() - began, settled(server_counters, server)
    cpu_s = after["server_cpu_s"] - before["server_cpu_s"]
    return HistogramMeasurement(
        rate_rps=round(len(latencies_ms) / wall_s, 1),
        cpu_us=round(1e6 * cpu_s / len(latencies_ms), 2),
        p50_ms=round(float(np.percentile(latencies_ms, 50)), 2),
        p99_ms=round(float(np.percentile(latencies_ms, 99)), 2),
    )


def _median(rows: Sequence[HistogramMeasurement]) -> dict[str, float]:
    names = asdict(rows[0])
    return {name: statistics.median(asdict(row)[name] for row in rows) for name in names}


def histogram_bars(taken: Mapping[bool, Sequence[HistogramMeasurement]]) -> Bars:
    """CPU time of a request with the histograms over that without, the median of the turns."""
    pairs = zip(taken[True], taken[False], strict=True)
    ratio = statistics.median(on.cpu_us / off.cpu_us for on, off in pairs)
    return {"cpu_with_histograms": at_most(ratio, _MOST_COST)}


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    lines = [["histograms", "requests/s", "server CPU us", "p50 ms", "p99 ms"]]
    lines += [
        [
            "on" if row["histograms"] else "off",
            f"{row['rate_rps']:.0f}",
            *(f"{row[name]:.1f}" for name in ("cpu_us", "p50_ms", "p99_ms")),
        ]
        for row in results
    ]
    return aligned(lines)


if __name__ == "__main__":
    run(main)
