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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tritonclient.grpc import model_config_pb2

from bench.report.result import (
    RUNS,
    Bars,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from bench.serving.paired import (
    PairedMeasurement,
    PairedOptions,
    closed_loop,
    cpu_ratio,
    in_turns,
    medians,
)
from bench.serving.servers import artifact_of, serving
from bench.traffic.comments import load_pool
from console.options import run
from contract import CACHE_BYTES, HISTOGRAMS, PUBLIC_MODEL
from export.model_config import CONFIG_FILE
from export.repository import verify
from serve import triton

_MOST_COST = 1.02
"""Most that they may add to the CPU time of a request."""


@pydantic_dataclasses.dataclass(frozen=True)
class HistogramBenchConfig(PairedOptions):
    """Flags of `python -m bench.serving.histograms`."""

    rounds: int = Field(
        10, ge=1, description="turns, each with and without them", json_schema_extra=RUNS
    )


def main() -> None:
    """Measure, write and print."""
    config = begin(HistogramBenchConfig, "bench.serving.histograms", "Measure the histograms.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    stream = itertools.cycle([text.encode("utf-8", "replace") for text in pool.texts])
    with _serving(config, histograms=True) as on, _serving(config, histograms=False) as off:
        artifact, servers = artifact_of(on), {True: on, False: off}
        for server in servers.values():
            closed_loop(config, server, lambda: next(stream))  # warms up
        measured = in_turns(
            config.rounds,
            (None,),
            lambda _, on: closed_loop(config, servers[on], lambda: next(stream)),
        )
    taken = {on: rows for (_, on), rows in measured.items()}
    results = [{"histograms": on, **medians(rows)} for on, rows in taken.items()]
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


def histogram_bars(taken: Mapping[bool, Sequence[PairedMeasurement]]) -> Bars:
    """CPU time of a request with the histograms over that without, the median of the turns."""
    return {"cpu_with_histograms": at_most(cpu_ratio(taken[True], taken[False]), _MOST_COST)}


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
