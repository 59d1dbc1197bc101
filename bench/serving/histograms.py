"""What the histograms on the metrics port cost: `toxicity bench histograms`.

    python -m bench.serving.histograms --repository model_repository

Serves the newest published version twice, side by side, with the histograms and, by the model's
parameter `histograms`, without. Both are sent the same open loop of single comments at the same
moments, so that whatever slows the machine slows both: turns one after the other differed by more
than a histogram can cost. A cost is the CPU time of a server's process a request, of the two in one
round. Neither keeps scores. Prints a table and writes `histograms.json`.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from bench.serving.visits import Loader, loader, ratio
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.counters import server_counters
from bench.traffic.one_run import Result
from console.options import run
from contract import CACHE_BYTES, HISTOGRAMS, PUBLIC_MODEL
from export.model_config import CONFIG_FILE
from export.repository import verify
from serve import triton

_MOST_COST = 1.02
"""Most that they may multiply the CPU time of a request by."""
_SERVER = ("server", "tokenizer", "encoder")
"""Parts of `Result.cpu_us` that are the server's."""


@pydantic_dataclasses.dataclass(frozen=True)
class HistogramBenchConfig(ResultOptions):
    """Flags of `python -m bench.serving.histograms`."""

    repository: Path = Field(
        Path("model_repository"), description="filled model repository", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    rate: float = Field(2000, gt=0, description="requests/s of each server", json_schema_extra=LOAD)
    seconds: int = Field(5, ge=1, description="length of one round", json_schema_extra=RUNS)
    rounds: int = Field(15, ge=1, description="measurements of both", json_schema_extra=RUNS)


def main() -> None:
    """Measure, write and print."""
    config = begin(HistogramBenchConfig, "bench.serving.histograms", "Measure the histograms.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    with _serving(config, histograms=True) as on, _serving(config, histograms=False) as off:
        artifact = artifact_of(on)
        loads = {
            which: loader(
                f"histograms {'on' if which else 'off'}",
                server,
                server_counters,
                seconds=config.seconds,
                comments=config.comments,
                payload="binary",
            )
            for which, server in ((True, on), (False, off))
        }
        _both(config, loads)  # warms up
        rounds = [_both(config, loads) for _ in range(config.rounds)]
    found = document(
        "histograms",
        config,
        closed_loop=False,
        comments=pool.to_json(),
        artifact=artifact,
        results=[_row(which, [both[which] for both in rounds]) for which in (True, False)],
        bars=histogram_bars([(cpu_us(both[True]), cpu_us(both[False])) for both in rounds]),
    )
    report(config, found, _table(found["results"]))


def _both(config: HistogramBenchConfig, loads: Mapping[bool, Loader]) -> dict[bool, Result]:
    """One round: the same load on both, at the same time."""
    with ThreadPoolExecutor(len(loads)) as threads:
        sent = {
            which: threads.submit(load, rate=config.rate, skip_s=min(1, config.seconds / 2))
            for which, load in loads.items()
        }
        return {which: one.result() for which, one in sent.items()}


def cpu_us(result: Result) -> float:
    """CPU time of the server a request."""
    return sum(result.cpu_us[part] for part in _SERVER)


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


def histogram_bars(rounds: Sequence[tuple[float, float]]) -> Bars:
    """CPU time of a request with the histograms over that without: the median of the rounds."""
    return {"cpu_with_histograms": ratio(at_most, rounds, _MOST_COST)}


def _row(histograms: bool, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "histograms": histograms,
        "rate_rps": round(statistics.median(one.rate_rps for one in results), 1),
        "cpu_us": round(statistics.median(map(cpu_us, results)), 2),
        "mean_batch": round(statistics.median(one.mean_batch for one in results), 2),
        "failures": sum(one.failures for one in results),
        "invalid": sorted({why for one in results for why in one.check["invalid"]}),
    }


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    lines = [["histograms", "requests/s", "server CPU us", "comments a batch", "failures"]]
    lines += [
        [
            "on" if row["histograms"] else "off",
            f"{row['rate_rps']:.0f}",
            f"{row['cpu_us']:.1f}",
            f"{row['mean_batch']:.1f}",
            str(row["failures"]),
        ]
        for row in results
    ]
    return aligned(lines)


if __name__ == "__main__":
    run(main)
