"""What a file costs beyond the core that scores it: reading, writing, worker processes.

    python -m bench.serving.offline --repository model_repository --comments comments.csv.gz

In each round: the published scorer in this process on one core, then the real command
`score --file` with one process and with --processes, start included and apart. `encoder` and
`tokenizer` are the core's own CPU time for its two halves. All are CPU time a token or comment, or
rates; other work on the machine moves rates more. Read ratios within one run. Prints a table and
writes `offline.json`.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
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
    at_most,
    begin,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from bench.traffic.comments import AUTO, COMMENTS_HELP, SYNTHETIC, default_source, load_pool
from console.options import run
from contract import LOGIT, MAX_COMMENT_BYTES, ToxicityError
from export.repository import verify, version_folder
from serve.offline.rows import CHUNK_ROWS, open_source
from serve.offline.worker import open_scorer
from storage.files import sha256_of
from train.data.load import TEXT_COLUMNS
from train.data.tables import find_column

_OVERHEAD = 0.1
"""Most CPU time of reading, moving and writing, over that of the core."""
_CPU_OVER_CORE = 1.2
"""Most CPU time of the core in the workers, over the same alone in this process: they share caches
and memory with each other, and with the reader."""


@pydantic_dataclasses.dataclass(frozen=True)
class OfflineBenchConfig(ResultOptions):
    """Flags of `python -m bench.serving.offline`."""

    repository: Path = Field(
        Path("model_repository"), description="filled model repository", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
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


@dataclass(frozen=True)
class Core:
    """The scorer alone on one core, over all comments."""

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
        file = _file(config, Path(scratch))
        texts = read_texts(file, config.text_column)
        scorer = open_scorer(folder)
        scorer.warm_up()
        counts = sorted({1, config.processes})
        cores: list[Core] = []
        roads: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
        differ = 0
        for _ in range(config.rounds):
            cores.append(_core(scorer, texts))
            for count in counts:
                out = Path(scratch) / "out.csv"
                roads[count].append(_command(config, file, out, count))
                differ += int(np.sum(_logits(out) != cores[-1].logit))
        name = SYNTHETIC if file.parent == Path(scratch) else file.name
        source = {"name": name, "sha256": sha256_of(file), "bytes": file.stat().st_size}
    results = [_core_result(cores, len(texts))]
    results += [_road_result(count, rows, len(texts)) for count, rows in roads.items()]
    return document(
        "offline",
        config,
        versions=versions("onnxruntime", "numpy", "pyarrow"),
        comments={**source, "rows": len(texts), "tokens_mean": cores[0].tokens / len(texts)},
        results=results,
        bars=bars(results, differ),
    )


def read_texts(file: Path, text_column: str | None) -> list[str]:
    """Comments of all rows that have a score, as `score --file` finds them."""
    texts: list[str] = []
    with open_source(str(file)) as source:
        column = find_column(
            source.names,
            file.name,
            "text",
            asked=text_column,
            known=TEXT_COLUMNS,
            flag="--text-column",
        )
        if source.types:
            import pyarrow.parquet as pq

            found = pq.read_table(file, columns=[column]).column(column).to_pylist()
            texts = [text.decode() if isinstance(text, bytes) else text for text in found]
        else:
            at, width = source.names.index(column), len(source.names)
            for chunk in source.chunks(source.names):
                assert isinstance(chunk.payload, list)
                texts += [row[at] for row in chunk.payload if len(row) == width]
    return [text for text in texts if text is not None and _is_readable(text)]


def _is_readable(text: str) -> bool:
    return len(text.encode("utf-8", "surrogateescape")) <= MAX_COMMENT_BYTES and not any(
        "\udc80" <= char <= "\udcff" for char in text if char > "\ud7ff"
    )


def _file(config: OfflineBenchConfig, scratch: Path) -> Path:
    comments = default_source() if config.comments == AUTO else config.comments
    if comments != SYNTHETIC:
        return Path(comments)
    path = scratch / "synthetic.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in load_pool(SYNTHETIC).texts)])
    return path


# --- Measuring ---------------------------------------------------------------------------
def _core(scorer: Any, texts: list[str]) -> Core:
    began = time.perf_counter()
    found = [scorer.score(texts[at : at + CHUNK_ROWS]) for at in range(0, len(texts), CHUNK_ROWS)]
    return Core(
        time.perf_counter() - began,
        sum(scores.tokenizer_cpu_s for scores in found),
        sum(scores.encoder_cpu_s for scores in found),
        sum(scores.tokens for scores in found),
        np.concatenate([scores.logit for scores in found]),
    )


def _command(config: OfflineBenchConfig, file: Path, out: Path, processes: int) -> dict[str, Any]:
    """Report of the real command, and `whole_s` and `peak_mib` of its largest process."""
    command = [sys.executable, "-m", "serve.score", "--file", str(file), "--out", str(out)]
    command += ["--overwrite", "--json", "--processes", str(processes)]
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
            found = [row[LOGIT] for row in csv.DictReader(file)]
    finally:
        csv.field_size_limit(limit)
    return np.array([value for value in found if value], np.float32)


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


def _road_result(processes: int, reports: list[dict[str, Any]], comments: int) -> dict[str, Any]:
    def median(of: Any) -> float:
        return statistics.median(of(report) for report in reports)

    def core(report: dict[str, Any]) -> float:
        return report["tokenizer_cpu_s"] + report["encoder_cpu_s"]

    tokens, rows = reports[0]["tokens"], reports[0]["rows"]
    wall_s = median(lambda report: report["score_s"] + report["join_s"])
    return {
        "name": f"score --file, {processes} process{'es' * (processes > 1)}",
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


def bars(results: list[dict[str, Any]], differ: int) -> Bars:
    """Bars that can be judged on any machine: equality, and shares of CPU time."""
    alone, *roads = results
    found = {"scores_that_differ": exactly(differ, 0)}
    for road in roads:
        over = (road["reader_cpu_us"] + road["worker_rest_cpu_us"]) / road["core_cpu_us"]
        core = road["core_cpu_us"] / alone["core_cpu_us"]
        found[f"overhead_cpu_share_at_{road['processes']}"] = at_most(over, _OVERHEAD)
        found[f"core_cpu_over_alone_at_{road['processes']}"] = at_most(core, _CPU_OVER_CORE)
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
