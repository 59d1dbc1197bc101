"""Encoders side by side on one pinned thread: `make bench-encoder`, or `python -m bench.encoder`.

Ids in, logits out: no tokenizing, no server. Every contender runs the same batches, and they
take turns round by round, so that whatever else the machine does hits all alike. A rate is the
median of the rounds. Read ratios within one run, not rates across runs. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.comments import default_source, load_pool
from export import parity, serving_graph
from export.parity import Comment, Runner
from export.quantize import linear_nodes, quantize
from export.trace import trace
from train.artifacts import load_checkpoint, sha256_of
from train.batches import TokenizedOnTheFly
from train.cli import parse_config, run
from train.model import ModelConfig, ToxicityEncoder
from train.tokenizer import Tokenizer, build_tokenizer

BATCHES = (1, 8, 32, 64)
_CALIBRATION = 128
_BARS = {"dynamic_int8": 8.0, "eager": 12.0}
"""Least gain of the INT8 serving graph at batch 32 in random order."""


@dataclass(frozen=True)
class EncoderBenchConfig:
    """Flags of `python -m bench.encoder`."""

    checkpoint: Path | None = Field(
        None, description="weights of `make train`; random ones of --d-model otherwise"
    )
    d_model: int = Field(192, ge=1, description="width of random weights")
    n_layers: int = Field(4, ge=1, description="layers of random weights")
    comments: str = Field(default_source(), description="a labelled file, or 'synthetic'")
    sample: int = Field(128, ge=64, description="comments of each measurement")
    rounds: int = Field(3, ge=1, description="turns of every contender")


def main() -> None:
    """Measure, print the table, then the JSON line."""
    config = parse_config(
        EncoderBenchConfig, None, prog="python -m bench.encoder", description="Compare encoders."
    )
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    torch.set_num_threads(1)
    pool = load_pool(config.comments)
    model, tokenizer = _subject(config, pool.texts)
    ids = TokenizedOnTheFly(pool.texts, tokenizer)
    comments = [Comment(str(row), ids[row]) for row in range(config.sample)]
    with tempfile.TemporaryDirectory() as scratch:
        runners, files = _contenders(model, ids, Path(scratch))
    results = [
        _measure(name, batch, order, batches, runners, config.rounds)
        for batch in BATCHES
        for order, batches in _orders(comments, batch).items()
        for name in [f"batch {batch}, {order}"]
    ]
    print(table(results))
    document = {
        "model": {"checkpoint": str(config.checkpoint or "random"), **_shape(model)},
        "machine": {"cpu": _cpu_name(), "pinned_to": cpu, "threads": 1},
        "versions": {"torch": torch.__version__, "onnxruntime": ort.__version__},
        "comments": pool.to_json(),
        "files": files,
        "results": results,
        "bars": bars(results),
    }
    print(json.dumps(document))


def _subject(config: EncoderBenchConfig, texts: Sequence[str]) -> tuple[ToxicityEncoder, Tokenizer]:
    if config.checkpoint is not None:
        checkpoint = load_checkpoint(config.checkpoint)
        return checkpoint.model, checkpoint.tokenizer
    tokenizer = build_tokenizer(texts, max_vocab=30_000, max_len=256)
    torch.manual_seed(0)
    shape = {"d_model": config.d_model, "n_layers": config.n_layers}
    return ToxicityEncoder(ModelConfig(len(tokenizer.vocabulary), **shape)).eval(), tokenizer


def _contenders(
    model: ToxicityEncoder, ids: TokenizedOnTheFly, folder: Path
) -> tuple[dict[str, Runner], dict[str, Any]]:
    """Runners by name, and what their files are."""
    names = ("serving_int8", "serving_fp32", "traced_fp32", "dynamic_int8", "static_int8")
    path = {name: folder / f"{name}.onnx" for name in names}
    lengths = [len(ids[row]) for row in range(len(ids))]
    groups = serving_graph.choose_groups(lengths, model.config.max_len)
    calibration = [ids[-row] for row in range(1, _CALIBRATION + 1)]
    serving_graph.build(model, path["serving_fp32"], groups)
    serving_graph.build_int8(model, path["serving_int8"], groups, calibration)
    trace(model, path["traced_fp32"])
    quantize(path["traced_fp32"], path["static_int8"], calibration)
    quantize_dynamic(
        path["traced_fp32"],
        path["dynamic_int8"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_quantize=linear_nodes(path["traced_fp32"]),
    )
    runners = {name: parity.onnx_runner(path[name]) for name in names}
    files = {name: {"sha256": sha256_of(path[name])} for name in names}
    return {**runners, "eager": parity.torch_runner(model)}, {"groups": groups, **files}


def _orders(comments: Sequence[Comment], batch: int) -> dict[str, list[list[Comment]]]:
    def cut(rows: Sequence[Comment]) -> list[list[Comment]]:
        return [list(rows[at : at + batch]) for at in range(0, len(rows), batch)]

    if batch == 1:
        return {"random": cut(comments)}
    by_length = sorted(comments, key=lambda comment: len(comment.ids))
    return {"random": cut(comments), "sorted": cut(by_length)}


def _measure(
    name: str,
    batch: int,
    order: str,
    batches: list[list[Comment]],
    runners: dict[str, Runner],
    rounds: int,
) -> dict[str, Any]:
    feeds: list[tuple[np.ndarray, np.ndarray]] = []
    for rows in batches:
        parity.run_batch(_keep(feeds), rows)
    comments = sum(map(len, batches))
    tokens = int(sum(mask.sum() for _, mask in feeds))
    seconds: dict[str, list[float]] = {contender: [] for contender in runners}
    for turn in range(rounds + 1):
        for contender, runner in runners.items():
            began = time.perf_counter()
            for feed in feeds[: 2 if turn == 0 else None]:  # turn 0 warms up
                runner(*feed)
            if turn:
                seconds[contender].append(time.perf_counter() - began)
    typical = {contender: statistics.median(values) for contender, values in seconds.items()}
    return {
        "name": name,
        "batch": batch,
        "order": order,
        "comments": comments,
        "tokens": tokens,
        "comments_per_s": {c: round(comments / s, 1) for c, s in typical.items()},
        "ns_per_token": {c: round(1e9 * s / tokens) for c, s in typical.items()},
    }


def _keep(feeds: list[tuple[np.ndarray, np.ndarray]]) -> Callable[..., np.ndarray]:
    """A runner that only collects what it is fed."""

    def collect(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feeds.append((input_ids, attention_mask))
        return np.empty(0, np.float32)

    return collect


def table(results: list[dict[str, Any]]) -> str:
    """Comments a second, and ns a real token of the INT8 serving graph, one line a batch."""
    contenders = list(results[0]["comments_per_s"])
    lines = [["comments/s", *contenders, "serving int8 ns/token"]]
    for r in results:
        rates = [f"{r['comments_per_s'][c]:.0f}" for c in contenders]
        lines.append([r["name"], *rates, str(r["ns_per_token"]["serving_int8"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def bars(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gain of the INT8 serving graph over each contender that has a bar."""
    rates = next(r for r in results if (r["batch"], r["order"]) == (32, "random"))["comments_per_s"]
    gains = {name: rates["serving_int8"] / rates[name] for name in _BARS}
    return {
        f"serving_int8_over_{name}": {
            "value": round(gains[name], 2),
            "bar": bar,
            "holds": gains[name] >= bar,
        }
        for name, bar in _BARS.items()
    }


def _shape(model: ToxicityEncoder) -> dict[str, int]:
    c = model.config
    return {"d_model": c.d_model, "n_layers": c.n_layers, "vocab_size": c.vocab_size}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    run(main)
