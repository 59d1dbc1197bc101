"""What a file costs beyond the core that scores it: reading, writing, worker processes.

    python -m bench.serving.offline --repository model_repository --comments comments.csv.gz

In each round: the published scorer in this process on one core, then the real command
`score --file` with one process and with --processes, start included and apart. `encoder` and
`tokenizer` are the core's own CPU time for its two halves. All are CPU time a token or comment, or
rates; other work on the machine moves rates more. Read ratios within one run. With --ray also
`--engine ray` on a Ray of this machine, which says what Ray adds. Nothing here holds the comments
(4 bytes of each are kept, its logit), so `--comments synthetic:10000000` runs in constant memory,
which a run over a tenth of the rows proves; three times the file must have room in TMPDIR. Prints a
table and writes `offline.json`.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.machine import versions
from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_least,
    at_most,
    begin,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from bench.traffic.comments import (
    AUTO,
    COMMENTS_HELP,
    POOL,
    SYNTHETIC,
    default_source,
    load_pool,
)
from console.options import run
from contract import LOGIT, BadInput, ToxicityError
from export.repository import verify, version_folder
from serve.offline.job import Job
from serve.offline.rows import open_source
from serve.offline.worker import open_scorer, texts_of
from storage.files import sha256_of
from train.data.load import TEXT_COLUMNS
from train.data.tables import find_column

_OVERHEAD = 0.1
"""Most CPU time of reading, moving and writing, over that of the core."""
_CPU_OVER_CORE = 1.2
"""Most CPU time of the core in the workers, over the same alone in this process: they share caches
and memory with each other, and with the reader."""
_RATE_OVER_CORES = 0.9
"""Least comments/s of a command, over those of the core alone times the cores that it may use."""
_MEMORY_GROWTH = 1.1
"""Most memory for ten times the rows."""
_TENTH = 10
_RAY_RATE = 0.8
"""Least comments/s on a Ray of this machine, over those of as many processes: Ray's own processes
take their part of the cores, and parts come back by its object store."""


@pydantic_dataclasses.dataclass(frozen=True)
class OfflineBenchConfig(ResultOptions):
    """Flags of `python -m bench.serving.offline`."""

    repository: Path = Field(
        Path("model_repository"), description="filled model repository", json_schema_extra=SERVER
    )
    comments: str = Field(
        AUTO,
        description=f"{COMMENTS_HELP}; 'synthetic:ROWS' makes as many",
        json_schema_extra=LOAD,
    )
    text_column: str | None = Field(
        None, description="column of the comment, as in `score`", json_schema_extra=LOAD
    )
    processes: int = Field(
        len(os.sched_getaffinity(0)),
        ge=1,
        description="of the second measurement",
        json_schema_extra=RUNS,
    )
    rounds: int = Field(
        3,
        ge=1,
        description="turns of every measurement; the median counts",
        json_schema_extra=RUNS,
    )
    ray: bool = Field(
        False,
        description="time `--engine ray` too, with as many actors",
        json_schema_extra=RUNS,
    )


@dataclass(frozen=True)
class Core:
    """The scorer alone on one core, over all comments; their reading does not count."""

    seconds: float
    tokenizer_cpu_s: float
    encoder_cpu_s: float
    tokens: int
    logit: np.ndarray
    """float32 [comments]."""


def main() -> None:
    """Measure, write and print."""
    config = begin(OfflineBenchConfig, "bench.serving.offline", "Time `score --file`.")
    found = measure(config)
    report(config, found, table(found))


def measure(config: OfflineBenchConfig) -> dict[str, Any]:
    """The whole comparison as one document. Raises BadInput when comments cannot be read."""
    verify(config.repository)
    folder = version_folder(config.repository)
    with tempfile.TemporaryDirectory() as scratch:
        file = _file(config.comments, Path(scratch))
        assert file is not None
        scorer = open_scorer(folder)
        scorer.warm_up()
        ways = [(count, "processes") for count in sorted({1, config.processes})]
        ways += [(config.processes, "ray")] * config.ray
        cores: list[Core] = []
        roads: dict[tuple[int, str], list[dict[str, Any]]] = {way: [] for way in ways}
        differ, out = 0, Path(scratch) / "out.csv"
        for _ in range(config.rounds):
            cores.append(_core(scorer, read_texts(file, config.text_column)))
            for count, engine in ways:
                roads[count, engine].append(_command(config, file, out, count, engine))
                differ += int(np.sum(_logits(out) != cores[-1].logit))
        out.unlink()
        name = SYNTHETIC if file.parent == Path(scratch) else file.name
        source = {"name": name, "sha256": sha256_of(file), "bytes": file.stat().st_size}
        tenth = _file(config.comments, Path(scratch), _TENTH)
        small = _command(config, tenth, out, config.processes)["peak_mib"] if tenth else None
    comments = len(cores[0].logit)
    results = [_core_result(cores, comments)]
    results += [_road_result(*way, rows, comments) for way, rows in roads.items()]
    return document(
        "offline",
        config,
        versions=versions("onnxruntime", "numpy", "pyarrow", *["ray"] * config.ray),
        comments={**source, "rows": comments, "tokens_mean": cores[0].tokens / comments},
        results=results,
        peak_mib_of_a_tenth=small,
        bars=bars(results, differ, small),
    )


def read_texts(file: Path, text_column: str | None) -> Iterator[list[str]]:
    """Comments of all rows that have a score, chunk by chunk as `score --file` finds them."""
    with open_source(str(file)) as source:
        column = find_column(
            source.names,
            file.name,
            "text",
            asked=text_column,
            known=TEXT_COLUMNS,
            flag="--text-column",
        )
        job = Job(Path(), Path(), "csv", source.names, column, None)
        for chunk in source.chunks((column,)):
            yield texts_of(chunk, job)


def _rows_wanted(comments: str) -> int | None:
    """Rows of a file that is made here; None for one that is there."""
    if comments == SYNTHETIC:
        return POOL
    found = re.fullmatch(rf"{SYNTHETIC}:([1-9]\d{{0,9}})", comments)
    if found is None and comments.startswith(f"{SYNTHETIC}:"):
        raise BadInput(
            f"--comments is {comments}, expected {SYNTHETIC}:ROWS, such as {SYNTHETIC}:1000000"
        )
    return int(found[1]) if found else None


def _file(comments: str, scratch: Path, share: int = 1) -> Path | None:
    """The file to score; of one that is made here, a `share`-th. None where there is no such."""
    comments = default_source() if comments == AUTO else comments
    if (rows := _rows_wanted(comments)) is None:
        return Path(comments) if share == 1 else None
    path, texts = scratch / f"synthetic-{share}.csv", itertools.cycle(load_pool(SYNTHETIC).texts)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "text"))
        writer.writerows(zip(range(max(1, rows // share)), texts, strict=False))
    return path


# --- Measuring ---------------------------------------------------------------------------
def _core(scorer: Any, chunks: Iterator[list[str]]) -> Core:
    seconds = tokenizer_cpu_s = encoder_cpu_s = 0.0
    tokens, logits = 0, [np.empty(0, np.float32)]
    for texts in chunks:
        began = time.perf_counter()
        scores = scorer.score(texts)
        seconds += time.perf_counter() - began
        tokenizer_cpu_s += scores.tokenizer_cpu_s
        encoder_cpu_s += scores.encoder_cpu_s
        tokens += scores.tokens
        logits.append(scores.logit.copy())  # not the whole answer that it is a view of
    return Core(seconds, tokenizer_cpu_s, encoder_cpu_s, tokens, np.concatenate(logits))


def _command(
    config: OfflineBenchConfig, file: Path, out: Path, processes: int, engine: str = "processes"
) -> dict[str, Any]:
    """Report of the real command, and `whole_s` and `peak_mib` of its largest process."""
    command = [sys.executable, "-m", "serve.score", "--file", str(file), "--out", str(out)]
    command += ["--overwrite", "--json", "--processes", str(processes), "--engine", engine]
    command += ["--repository", str(config.repository.resolve())]
    if config.text_column:
        command += ["--text-column", config.text_column]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        whole_s = time.perf_counter() - began
        said.seek(0)
        printed = said.read()
    if process.returncode:
        raise ToxicityError(f"`score --file` ended with {process.returncode}: {errors.strip()}")
    report: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**report, "whole_s": whole_s, "peak_mib": usage.ru_maxrss / 1024}


def _logits(out: Path) -> np.ndarray:
    limit = csv.field_size_limit(1 << 30)
    try:
        with out.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            at = next(rows).index(LOGIT)
            return np.fromiter((float(row[at]) for row in rows if row[at]), np.float32)
    finally:
        csv.field_size_limit(limit)


# --- Results -----------------------------------------------------------------------------
def _core_result(cores: list[Core], comments: int) -> dict[str, Any]:
    def median(of: Any) -> float:
        return statistics.median(of(core) for core in cores)

    tokens = cores[0].tokens
    return {
        "name": "core alone, 1 core",
        "processes": 1,
        "comments_per_s": comments / median(lambda core: core.seconds),
        "tokenizer_only_per_s": comments / median(lambda core: core.tokenizer_cpu_s),
        "encoder_only_per_s": comments / median(lambda core: core.encoder_cpu_s),
        "tokenizer_ns_per_token": 1e9 * median(lambda core: core.tokenizer_cpu_s) / tokens,
        "encoder_ns_per_token": 1e9 * median(lambda core: core.encoder_cpu_s) / tokens,
        "core_cpu_us": 1e6
        * median(lambda core: core.tokenizer_cpu_s + core.encoder_cpu_s)
        / comments,
    }


def _road_result(
    processes: int, engine: str, reports: list[dict[str, Any]], comments: int
) -> dict[str, Any]:
    def median(of: Any) -> float:
        return statistics.median(of(report) for report in reports)

    def core(report: dict[str, Any]) -> float:
        return report["tokenizer_cpu_s"] + report["encoder_cpu_s"]

    tokens, rows = reports[0]["tokens"], reports[0]["rows"]
    wall_s = median(lambda report: report["score_s"] + report["join_s"])
    return {
        "name": f"score --file, {processes} process{'es' * (processes > 1)}"
        if engine == "processes"
        else f"score --file --engine ray, {processes} actor{'s' * (processes > 1)}",
        "engine": engine,
        "processes": processes,
        "comments_per_s": rows / wall_s,
        "comments_per_s_with_start": rows / median(lambda report: report["whole_s"]),
        "start_s": median(lambda report: report["whole_s"] - report["score_s"] - report["join_s"]),
        "wall_ns_per_token": 1e9 * wall_s / tokens,
        "tokenizer_ns_per_token": 1e9 * median(lambda r: r["tokenizer_cpu_s"]) / tokens,
        "encoder_ns_per_token": 1e9 * median(lambda r: r["encoder_cpu_s"]) / tokens,
        "core_cpu_us": 1e6 * median(core) / comments,
        "reader_cpu_us": 1e6 * median(lambda report: report["reader_cpu_s"]) / rows,
        "worker_rest_cpu_us": 1e6 * median(lambda r: r["worker_cpu_s"] - core(r)) / rows,
        "peak_mib": median(lambda report: report["peak_mib"]),
    }


def bars(results: list[dict[str, Any]], differ: int, small_mib: float | None = None) -> Bars:
    """Bars that can be judged on any machine that does nothing else: equality, ratios.

    `small_mib` is the peak of the last count of processes over a tenth of the rows.
    """
    alone, *roads = results
    rays = [road for road in roads if road["engine"] == "ray"]
    roads = [road for road in roads if road["engine"] == "processes"]
    cores = len(os.sched_getaffinity(0))
    found = {"scores_that_differ": exactly(differ, 0)}
    for road in roads:
        over = (road["reader_cpu_us"] + road["worker_rest_cpu_us"]) / road["core_cpu_us"]
        core = road["core_cpu_us"] / alone["core_cpu_us"]
        found[f"overhead_cpu_share_at_{road['processes']}"] = at_most(over, _OVERHEAD)
        found[f"core_cpu_over_alone_at_{road['processes']}"] = at_most(core, _CPU_OVER_CORE)
        rate = road["comments_per_s"] / alone["comments_per_s"] / min(cores, road["processes"])
        found[f"rate_over_cores_at_{road['processes']}"] = at_least(rate, _RATE_OVER_CORES)
    growth = small_mib and roads[-1]["peak_mib"] / small_mib
    found["memory_for_ten_times_the_rows"] = at_most(growth, _MEMORY_GROWTH)
    for road in rays:
        ratio = road["comments_per_s"] / roads[-1]["comments_per_s"]
        found[f"ray_rate_over_processes_at_{road['processes']}"] = at_least(ratio, _RAY_RATE)
    return found


def table(found: dict[str, Any]) -> str:
    """For people: comments first, then a line a road."""
    comments, alone = found["comments"], found["results"][0]
    digits = {
        "comments_per_s": 0,
        "comments_per_s_with_start": 0,
        "encoder_ns_per_token": 0,
        "tokenizer_ns_per_token": 0,
        "core_cpu_us": 0,
        "reader_cpu_us": 1,
        "worker_rest_cpu_us": 1,
        "peak_mib": 0,
    }
    head = ["", "comments/s", "with start", "encoder ns", "tokenizer ns", "core us"]
    lines = [[*head, "reader us", "writer us", "peak MiB"]]
    for row in found["results"]:
        cells = [f"{row[name]:,.{n}f}" if name in row else "-" for name, n in digits.items()]
        lines.append([row["name"], *cells])
    return (
        f"{comments['rows']:,} comments of {comments['name']}, "
        f"{comments['tokens_mean']:.1f} tokens each\n"
        f"encoder alone {alone['encoder_only_per_s']:,.0f} comments/s, tokenizer alone "
        f"{alone['tokenizer_only_per_s']:,.0f} comments/s, on one core by CPU time\n"
        f"{aligned(lines)}\nns are a token, us a comment; both CPU time"
    )


if __name__ == "__main__":
    run(main)
