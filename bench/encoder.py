"""Encoders side by side, on one pinned thread and on all cores: `make bench-encoder`.

    python -m bench.encoder --checkpoint runs/model

Ids in, logits out: no tokenizing, no server. Every contender is a process of its own and runs the
same batches; they take turns round by round, so that whatever else the machine does hits all
alike. Each warms up first (`bench.contenders`), and every logit is compared with PyTorch's: a
float contender that is off by more than ATOL ends the run. A rate is the median of the rounds.
Read ratios within one run, not rates across runs. A contender that this machine cannot run is
skipped, with the reason.

Prints tables and, as its last line, one JSON document; the same goes to `bench/out/` with a plot.
Exit status 1 when a bar does not hold; one whose contender was skipped is null.

Work is counted in multiply-adds over real tokens, two operations each: no padding, and neither
LayerNorm, softmax, GELU nor the head. "model" is what the architecture defines, the same for
every contender: in each of N layers 4 D^2 + 2 D F a token for the Linear layers (F the hidden
width of the MLP) and 2 D L^2 a comment of L tokens for attention. "serving" is what the serving
graph computes of it, which leaves out most of the last layer: there, for [CLS] alone,
2 H D^2 + 2 D F a comment and 2 H D L for attention. Attention runs in float in every contender.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.comments import default_source, load_pool
from bench.contenders import (
    MODEL_CONFIG,
    OPENVINO,
    TORCH,
    Contender,
    Feed,
    running,
    write_feeds,
)
from bench.machine import peak_gops, profile_by_op
from bench.plot import plot_encoders
from bench.quantize import quantize_traced
from bench.run import hardware, report_broken_bars
from contract import CLS_ID, ToxicityError
from export import parity, serving_graph
from export.parity import Comment
from export.trace import trace
from train.artifacts import load_checkpoint, save_weights, sha256_of, write_json
from train.batches import TokenizedOnTheFly
from train.cli import make_config, parse_config, run
from train.model import ModelConfig, ToxicityEncoder
from train.tokenizer import Tokenizer, build_tokenizer

BATCHES = (1, 8, 32, 64)
GROWTH_BATCHES = (1, 2, 4, 8, 16, 32, 64)
GROWTH_LENGTHS = (8, 16, 32, 64, 128, 256)
FILES = ("serving_int8", "serving_fp32", "traced_fp32", "dynamic_int8", "static_int8")
STUDENT = "serving_int8_student"
STUDENT_SHAPE = {"d_model": 96, "n_layers": 2, "n_heads": 4}
ONE_THREAD = (*FILES, *TORCH, *OPENVINO, STUDENT)
SESSIONS = ("serving_int8", "serving_fp32", "dynamic_int8")
"""Those that also run as a session of one thread a core, as the server runs ours; the rival is
the fastest one on one thread."""
GROWING = ("serving_int8", "serving_fp32", "traced_fp32", "eager")
"""Those whose cost is followed over lengths and batches."""
ATOL = 1e-3
"""Largest |logit - PyTorch's| of a float contender; export's own bound is stricter."""
CALIBRATION = 128
GAIN_BARS = {"dynamic_int8": (8.0, 10.0), "eager": (12.0,), "openvino_int8": (5.0,)}
"""Least gain of the INT8 serving graph at batch 32 in random order, on one thread."""
STUDENT_BAR = 5.05
"""Student over full size: 5,000 comments/s where the full size gives 990."""
PEAK_BAR = 0.5
BAR_CELL = "batch 32, random"


@pydantic_dataclasses.dataclass(frozen=True)
class EncoderBenchConfig:
    """Flags of `python -m bench.encoder`."""

    checkpoint: Path | None = Field(
        None, description="weights of `make train`; random ones of the default size otherwise"
    )
    comments: str = Field(default_source(), description="a labelled file, or 'synthetic'")
    sample: int = Field(128, ge=64, description="comments of each measurement")
    rounds: int = Field(1, ge=1, description="turns of every contender")
    out: Path = Field(Path("bench/out"), description="folder of the results")


def main() -> None:
    config = parse_config(
        EncoderBenchConfig, None, prog="python -m bench.encoder", description="Compare encoders."
    )
    document = bench(config)
    write_json(config.out / "encoder.json", document)
    plot_encoders(document, config.out / "encoder.png")
    print(f"wrote {config.out}/encoder.json and encoder.png")
    print(json.dumps(document))
    judged = {name: bar for name, bar in document["bars"].items() if bar["holds"] is not None}
    report_broken_bars({"bars": judged})


def bench(config: EncoderBenchConfig) -> dict[str, Any]:
    """Measure everything, print the tables on the way, return the JSON document."""
    began = time.monotonic()
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-encoder-") as scratch:
        subject = Subject(config, pool.texts, Path(scratch))
        cells = [cell for batch in BATCHES for cell in cells_of(subject.sample, batch)]
        with pinned() as cpu:
            one_thread = _one_thread(subject, cells, config.rounds)
            batch_32 = next(cell for cell in cells if cell.name == BAR_CELL)
            profile = profile_by_op(subject.folder / "serving_int8.onnx", subject.feeds(batch_32))
        print(profile_table(profile), flush=True)
        cores = len(os.sched_getaffinity(0))
        all_cores = _all_cores(subject, cells, config.rounds, cores) if cores > 1 else None
    document: dict[str, Any] = {
        "bench": "encoder",
        "hardware": {**hardware(), "pinned_to": cpu},
        "versions": _versions(),
        "comments": pool.to_json(),
        "sample": config.sample,
        "rounds": config.rounds,
        "model": subject.to_json(),
        "one_thread": one_thread,
        "all_cores": all_cores,
        "profile": profile,
        "bars": bars(one_thread),
        "seconds": round(time.monotonic() - began),
    }
    print(bars_table(document["bars"]))
    return document


# --- What is measured ---------------------------------------------------------------------
class Subject:
    """The model, a student of random weights, comments, and the files of all contenders."""

    def __init__(self, config: EncoderBenchConfig, texts: Sequence[str], folder: Path) -> None:
        self.source, self.folder = str(config.checkpoint or "random weights"), folder
        self.model, tokenizer = _load(config, texts)
        torch.manual_seed(1)
        student = dataclasses.asdict(self.model.config) | STUDENT_SHAPE
        self.student = ToxicityEncoder(ModelConfig(**student)).eval()
        ids = TokenizedOnTheFly(texts, tokenizer)
        lengths = [len(ids[row]) for row in range(len(ids))]
        rows = length_mix(lengths, config.sample)
        self.sample = [Comment(f"comment {row}", ids[row]) for row in rows]
        self.groups = serving_graph.choose_groups(lengths, self.model.config.max_len)
        self._write_files([ids[-row] for row in range(1, CALIBRATION + 1)])
        self._logits: dict[tuple[bool, str], float] = {}

    def _write_files(self, calibration: list[np.ndarray]) -> None:
        path = {name: self.folder / f"{name}.onnx" for name in (*FILES, STUDENT)}
        serving_graph.build(self.model, path["serving_fp32"], self.groups)
        serving_graph.build_int8(self.model, path["serving_int8"], self.groups, calibration)
        serving_graph.build_int8(self.student, path[STUDENT], self.groups, calibration)
        trace(self.model, path["traced_fp32"])
        quantize_traced(path["traced_fp32"], path["static_int8"], path["dynamic_int8"], calibration)
        save_weights(self.folder, self.model)
        write_json(self.folder / MODEL_CONFIG, dataclasses.asdict(self.model.config))
        self.sha256 = {name: sha256_of(path[name]) for name in path}

    def feeds(self, cell: Cell) -> list[Feed]:
        """Batches of `cell`, each padded to its longest comment."""
        feeds: list[Feed] = []

        def keep(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            feeds.append((input_ids, attention_mask))
            return np.empty(0, np.float32)

        for rows in cell.batches:
            parity.run_batch(keep, rows)
        return feeds

    def expected(self, cell: Cell, contender: str) -> np.ndarray:
        """float32 logits of `cell` by PyTorch, comments in its order."""
        is_student = contender == STUDENT
        reference = parity.torch_runner(self.student if is_student else self.model)
        comments = [comment for rows in cell.batches for comment in rows]
        new = [comment for comment in comments if (is_student, comment.name) not in self._logits]
        for rows in cells_of(new, 32)[-1].batches:  # sorted, so that little is padding
            for comment, logit in zip(rows, parity.run_batch(reference, rows), strict=True):
                self._logits[is_student, comment.name] = float(logit)
        logits = [self._logits[is_student, comment.name] for comment in comments]
        return np.array(logits, np.float32)

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": self.source,
            "config": dataclasses.asdict(self.model.config),
            "student": dataclasses.asdict(self.student.config),
            "attention_widths": list(self.groups),
            "sha256": self.sha256,
        }


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: `batches` in the order in which they run."""

    name: str
    batch: int
    batches: list[list[Comment]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each comment."""
        return [len(comment.ids) for rows in self.batches for comment in rows]


def length_mix(lengths: Sequence[int], count: int) -> list[int]:
    """Rows of `count` comments, in random order, whose lengths are equally likely quantiles.

    So a few comments have the length mix of all.
    """
    by_length = np.argsort(lengths, kind="stable")
    at = (np.arange(count) + 0.5) / count * len(by_length)
    return np.random.default_rng(0).permutation(by_length[at.astype(int)]).tolist()


def cells_of(comments: Sequence[Comment], batch: int) -> list[Cell]:
    """`comments` cut into batches in the order they came, and sorted by length."""

    def cut(order: str, rows: Sequence[Comment]) -> Cell:
        batches = [list(rows[at : at + batch]) for at in range(0, len(rows), batch)]
        return Cell(f"batch {batch}, {order}", batch, batches)

    cells = [cut("random", comments)]
    if batch > 1:
        cells.append(cut("sorted", sorted(comments, key=lambda comment: len(comment.ids))))
    return cells


def uniform(comments: Sequence[Comment], length: int) -> Cell:
    """Batches of 32 comments of `length` tokens, their words those of `comments`."""
    rng = np.random.default_rng(length)
    words = np.concatenate([np.asarray(comment.ids[1:]) for comment in comments])
    count = max(1, 128 // length)  # enough of the short ones to time
    batches = [
        [Comment(f"{length} {i} {j}", [CLS_ID, *rng.choice(words, length - 1)]) for j in range(32)]
        for i in range(count)
    ]
    return Cell(f"{length} tokens", 32, batches)


def _load(config: EncoderBenchConfig, texts: Sequence[str]) -> tuple[ToxicityEncoder, Tokenizer]:
    if config.checkpoint is not None:
        checkpoint = load_checkpoint(config.checkpoint)
        return checkpoint.model, checkpoint.tokenizer
    tokenizer = build_tokenizer(texts, max_vocab=30_000, max_len=256)
    torch.manual_seed(0)
    shape = make_config(ModelConfig, {"vocab_size": len(tokenizer.vocabulary)})
    return ToxicityEncoder(shape).eval(), tokenizer


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
    section = {
        "threads": 1,
        "peak_gops": peaks,
        "skipped": skipped,
        "results": results,
        "growth": growth,
        "peak_memory_mib": memory,
        "work": _work_rates(subject, cells, bar_cell, peaks),
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


# --- Judging ------------------------------------------------------------------------------
def multiply_adds(config: ModelConfig, lengths: Sequence[int]) -> dict[str, int]:
    """Of comments of these lengths in tokens, as the module's docstring counts them."""
    d, layers, heads = config.d_model, config.n_layers, config.n_heads
    mlp = 2 * d * round(d * config.mlp_ratio)
    comments, tokens = len(lengths), sum(lengths)
    pairs = sum(length * length for length in lengths)
    layer = (4 * d * d + mlp) * tokens + 2 * d * pairs
    last = (2 * heads * d * d + mlp) * comments + 2 * heads * d * tokens
    return {"model": layers * layer, "serving": (layers - 1) * layer + last}


def _work_rates(
    subject: Subject, cells: Sequence[Cell], result: dict[str, Any], peaks: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Operations a second in 1e9, and their share of the int8 and FP32 peaks, by contender."""
    lengths = next(cell.lengths for cell in cells if cell.name == result["name"])
    rates = {}
    for name, rate in result["comments_per_s"].items():
        config = (subject.student if name == STUDENT else subject.model).config
        work = multiply_adds(config, lengths)
        gops = {kind: 2 * n * rate / len(lengths) / 1e9 for kind, n in work.items()}
        if not name.startswith("serving"):
            del gops["serving"]
        rates[name] = {f"{kind}_gops": round(value, 1) for kind, value in gops.items()} | {
            f"{kind}_share_of_{peak}_peak": round(value / peaks[peak], 4)
            for kind, value in gops.items()
            for peak in peaks
        }
    return rates


def bars(one_thread: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What must hold in the cell BAR_CELL on one thread; null where a contender was skipped."""
    rates = next(r for r in one_thread["results"] if r["name"] == BAR_CELL)["comments_per_s"]
    ours, work = rates["serving_int8"], one_thread["work"]["serving_int8"]
    values: dict[str, tuple[float | None, float]] = {
        f"serving_int8_over_{rival}_{bar:g}x": (
            ours / rates[rival] if rival in rates else None,
            bar,
        )
        for rival, least in GAIN_BARS.items()
        for bar in least
    }
    values["model_share_of_int8_peak"] = work["model_share_of_int8_peak"], PEAK_BAR
    values["serving_share_of_int8_peak"] = work["serving_share_of_int8_peak"], PEAK_BAR
    values["student_over_full_size"] = rates[STUDENT] / ours, STUDENT_BAR
    return {
        name: {
            "value": None if value is None else round(value, 3),
            "bar": bar,
            "holds": None if value is None else value >= bar,
        }
        for name, (value, bar) in values.items()
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


# --- Telling ------------------------------------------------------------------------------
def _tell(skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        print(f"SKIPPED {name}: {reason}", flush=True)


def rates_table(title: str, results: Sequence[dict[str, Any]]) -> str:
    """Comments a second, one line a contender, one column a cell."""
    lines = [[title, *(result["name"].replace("batch ", "B") for result in results)]]
    for name in results[0]["comments_per_s"]:
        lines.append([name, *(f"{result['comments_per_s'][name]:.0f}" for result in results)])
    return _aligned(lines)


def summary_table(section: dict[str, Any]) -> str:
    """Each contender in the cell that the bars judge."""
    result = next(r for r in section["results"] if r["name"] == BAR_CELL)
    ours, peaks = result["comments_per_s"]["serving_int8"], section["peak_gops"]
    head = [f"one thread, {BAR_CELL}", "comments/s", "ns/token", "serving_int8 is", "GOP/s"]
    head += ["of int8 peak", "of FP32 peak", "peak MiB", "logit gap max", "mean"]
    lines = [head]
    for name, rate in result["comments_per_s"].items():
        work, gap = section["work"][name], result["logit_gap"][name]
        shares = (work[f"model_share_of_{kind}_peak"] for kind in ("int8", "fp32"))
        lines.append(
            [
                *(name, f"{rate:.0f}", str(result["ns_per_token"][name]), f"{ours / rate:.2f}x"),
                *(f"{work['model_gops']:.0f}", *(f"{100 * share:.0f} %" for share in shares)),
                *(str(section["peak_memory_mib"][name]), f"{gap['max']:.1e}", f"{gap['mean']:.1e}"),
            ]
        )
    work = section["work"]["serving_int8"]
    return (
        f"{_aligned(lines)}\n"
        f"peaks: int8 {peaks['int8']:.0f}, FP32 {peaks['fp32']:.0f} GOP/s; of its own work, "
        f"serving_int8 does {work['serving_gops']:.0f} GOP/s, "
        f"{100 * work['serving_share_of_int8_peak']:.0f} % of the int8 peak"
    )


def growth_table(growth: dict[str, dict[str, dict[str, float]]]) -> str:
    """Microseconds a comment, one table an axis."""
    tables = []
    for axis, title in (("length", "us a comment by tokens, batch 32"), ("batch", "by batch")):
        contenders = growth[axis]
        head = [title, *next(iter(contenders.values()))]
        rows = [[name, *(f"{us:.0f}" for us in at.values())] for name, at in contenders.items()]
        tables.append(_aligned([head, *rows]))
    return "\n".join(tables)


def profile_table(profile: Sequence[dict[str, Any]]) -> str:
    """Time by operator type, from 0.1 % on."""
    lines = [["serving_int8 by operator, batch 32", "nodes", "us", "share"]]
    for row in profile:
        if row["share"] is not None and row["share"] < 0.001:
            continue
        share = "" if row["share"] is None else f"{100 * row['share']:.1f} %"
        lines.append([row["op"], str(row["nodes"]), str(row["us"]), share])
    return _aligned(lines)


def bars_table(judged: dict[str, dict[str, Any]]) -> str:
    """Each bar, its value and whether it holds."""
    words = {True: "holds", False: "does NOT hold", None: "not measured"}
    lines = [["bar", "value", "at least", ""]]
    for name, bar in judged.items():
        value = "-" if bar["value"] is None else f"{bar['value']:.2f}"
        lines.append([name, value, f"{bar['bar']:g}", words[bar["holds"]]])
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join("  " + cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


if __name__ == "__main__":
    run(main)
