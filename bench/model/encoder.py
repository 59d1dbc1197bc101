"""Encoders side by side, on one pinned thread and on all cores: `make bench-encoder`.

    python -m bench.model.encoder --checkpoint runs/model

Ids in, logits out: no tokenizing, no server. Every contender is a process of its own and runs the
same batches; they take turns round by round, so that whatever else the machine does hits all
alike. Each warms up first (`bench.serving.contenders`), and every logit is compared with PyTorch's:
a float contender that is off by more than ATOL ends the run. A rate is the median of the rounds.
Read ratios within one run, not rates across runs. A contender that this machine cannot run is
skipped, with the reason.

Prints tables; writes `encoder.json` and `encoder.png`. A bar whose contender was skipped is null.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.model.peaks import peak_gops, profile_by_op
from bench.model.verdict import (
    BAR_CELL,
    bars,
    growth_table,
    profile_table,
    rates_table,
    summary_table,
    work_rates,
)
from bench.report.machine import versions
from bench.report.plot import plot_encoders
from bench.report.result import LOAD, RUNS, SERVER, ResultOptions, begin, document, report
from bench.serving.contenders import OPENVINO, TORCH, Contender, running, write_feeds
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.workload import FILES, STUDENT, Cell, Subject, cells_of, uniform
from console.options import run
from contract import ToxicityError

BATCHES = (1, 8, 32, 64)
GROWTH_BATCHES = (1, 2, 4, 8, 16, 32, 64)
GROWTH_LENGTHS = (8, 16, 32, 64, 128, 256)
ONE_THREAD = (*FILES, *TORCH, *OPENVINO, STUDENT)
SESSIONS = ("serving_int8", "serving_fp32", "dynamic_int8")
"""Those that also run as a session of one thread a core, as the server runs ours; the rival is
the fastest one on one thread."""
GROWING = ("serving_int8", "serving_fp32", "traced_fp32", "eager")
"""Those whose cost is followed over lengths and batches."""
ATOL = 1e-3
"""Largest |logit - PyTorch's| of a float contender; export's own bound is stricter."""


@pydantic_dataclasses.dataclass(frozen=True)
class EncoderBenchConfig(ResultOptions):
    """Flags of `python -m bench.model.encoder`."""

    checkpoint: Path | None = Field(
        None,
        description="weights of `make train`; random ones of the default size otherwise",
        json_schema_extra=SERVER,
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    sample: int = Field(
        128, ge=64, description="comments of each measurement", json_schema_extra=LOAD
    )
    rounds: int = Field(1, ge=1, description="turns of every contender", json_schema_extra=RUNS)


def main() -> None:
    config = begin(EncoderBenchConfig, "bench.model.encoder", "Compare encoders.")
    found = bench(config)
    plot_encoders(found, config.out / "encoder.png")
    report(config, found, "", also=("encoder.png",))


def bench(config: EncoderBenchConfig) -> dict[str, Any]:
    """Measure everything, print the tables on the way, return the JSON document."""
    began = time.monotonic()
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-encoder-") as scratch:
        subject = Subject(config.checkpoint, pool.texts, config.sample, Path(scratch))
        cells = [cell for batch in BATCHES for cell in cells_of(subject.sample, batch)]
        with pinned() as cpu:
            one_thread = _one_thread(subject, cells, config.rounds)
            batch_32 = next(cell for cell in cells if cell.name == BAR_CELL)
            profile = profile_by_op(subject.folder / "serving_int8.onnx", subject.feeds(batch_32))
        print(profile_table(profile), flush=True)
        cores = len(os.sched_getaffinity(0))
        all_cores = _all_cores(subject, cells, config.rounds, cores) if cores > 1 else None
    return document(
        "encoder",
        config,
        pinned_to=cpu,
        versions=versions("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy"),
        comments=pool.to_json(),
        model=subject.to_json(),
        one_thread=one_thread,
        all_cores=all_cores,
        profile=profile,
        bars=bars(one_thread),
        seconds=round(time.monotonic() - began),
    )


# --- Measuring ----------------------------------------------------------------------------
@contextmanager
def pinned() -> Iterator[int]:
    """Keep this process and the children it starts to one CPU meanwhile; gives its number."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cpu = max(before)
    os.sched_setaffinity(0, {cpu})
    torch.set_num_threads(1)
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def _one_thread(subject: Subject, cells: Sequence[Cell], rounds: int) -> dict[str, Any]:
    before = _peaks(1)
    with running(ONE_THREAD, subject.folder) as (contenders, skipped):
        _tell(skipped)
        results = [measure(subject, cell, contenders, rounds) for cell in cells]
        memory = {contender.name: round(contender.peak_mib) for contender in contenders}
        print(rates_table("one thread, comments/s", results), flush=True)
        followed = [contender for contender in contenders if contender.name in GROWING]
        growth = _growth(subject, cells, results, followed)
    print(growth_table(growth), flush=True)
    peaks = {kind: max(rate, before[kind]) for kind, rate in _peaks(1).items()}
    bar_cell = next(result for result in results if result["name"] == BAR_CELL)
    batch_32 = next(cell for cell in cells if cell.name == BAR_CELL)
    configs = subject.model.config, subject.student.config
    section = {
        "threads": 1,
        "peak_gops": peaks,
        "skipped": skipped,
        "results": results,
        "growth": growth,
        "peak_memory_mib": memory,
        "work": work_rates(bar_cell, batch_32.lengths, configs, peaks),
    }
    print(summary_table(section), flush=True)
    return section


def _all_cores(subject: Subject, cells: Sequence[Cell], rounds: int, cores: int) -> dict[str, Any]:
    """Every contender with a pool of `cores` threads; SESSIONS also as that many sessions."""
    names = [name for name in ONE_THREAD if name != STUDENT]
    with (
        running(names, subject.folder, threads=cores) as (pools, skipped),
        running(SESSIONS, subject.folder, sessions=cores) as (sessions, _),
    ):
        _tell(skipped)
        results = [measure(subject, cell, [*pools, *sessions], rounds) for cell in cells]
    print(rates_table(f"{cores} threads, comments/s", results), flush=True)
    return {"threads": cores, "peak_gops": _peaks(cores), "skipped": skipped, "results": results}


def measure(
    subject: Subject, cell: Cell, contenders: Sequence[Contender], rounds: int
) -> dict[str, Any]:
    """Rates of all contenders in one cell. Raises ToxicityError when one of them is wrong."""
    feeds = f"{cell.name}.npz"
    write_feeds(subject.folder / feeds, subject.feeds(cell))
    gap: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            name, (took, logits) = contender.name, contender.run(feeds)
            gap[name] = check(cell, name, logits, subject.expected(cell, name))
            seconds[name].append(took / contender.sessions)
    typical = {name: statistics.median(values) for name, values in seconds.items()}
    comments, tokens = len(cell.lengths), sum(cell.lengths)
    return {
        "name": cell.name,
        "batch": cell.batch,
        "comments": comments,
        "tokens": tokens,
        "comments_per_s": {name: round(comments / s, 1) for name, s in typical.items()},
        "ns_per_token": {name: round(1e9 * s / tokens) for name, s in typical.items()},
        "spread": {name: round(max(s) / min(s), 2) for name, s in seconds.items()},
        "logit_gap": gap,
    }


def check(cell: Cell, contender: str, logits: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Largest and mean |logit - PyTorch's|. Raises ToxicityError when that is no rounding."""
    gap = np.abs(logits - expected)
    if not np.isfinite(gap).all() or ("int8" not in contender and gap.max() > ATOL):
        raise ToxicityError(
            f"{contender}'s logits are off by {gap.max():.3g} in {cell.name}, expected at most "
            f"{ATOL:g}: its rate would mean nothing"
        )
    return {"max": round(float(gap.max()), 7), "mean": round(float(gap.mean()), 7)}


def _growth(
    subject: Subject,
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any]],
    contenders: Sequence[Contender],
) -> dict[str, dict[str, dict[str, float]]]:
    """Microseconds a comment by contender: against length at batch 32, and against batch."""
    known = {
        cell.batch: result
        for cell, result in zip(cells, results, strict=True)
        if cell.name.endswith("random")
    }
    max_len = subject.model.config.max_len
    lengths = sorted({min(length, max_len) for length in GROWTH_LENGTHS})
    by_length = {
        str(n): measure(subject, uniform(subject.sample, n), contenders, 1) for n in lengths
    }
    by_batch = {
        str(n): known.get(n) or measure(subject, cells_of(subject.sample, n)[0], contenders, 1)
        for n in GROWTH_BATCHES
    }
    return {
        axis: {
            contender.name: {
                at: round(1e6 / result["comments_per_s"][contender.name], 1)
                for at, result in measured.items()
            }
            for contender in contenders
        }
        for axis, measured in (("length", by_length), ("batch", by_batch))
    }


def _peaks(threads: int) -> dict[str, float]:
    return {
        "int8": round(peak_gops("int8", threads), 1),
        "fp32": round(peak_gops("fp32", threads), 1),
    }


def _tell(skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        print(f"SKIPPED {name}: {reason}", flush=True)


if __name__ == "__main__":
    run(main)
