"""Cost of a comment against its length, softmax beside linear attention: `make bench-length`.

    python -m bench.model.length

The serving graph of both, in FP32 and INT8, with random weights of 192 x 4, positions
for 4,096 tokens; and the softmax encoder over windows of 256 tokens (`export.scorer.LongText`),
all that the comment needs, the contract's bound aside. Ids in, logits out, one pinned thread,
comments of one length a batch, about as many tokens in each. The forms take turns round by round;
a time is the median of the rounds. Read ratios within one run. The widths of the attention groups
are the measured lengths, so nothing is padding. Every FP32 logit is compared with PyTorch's.

Prints a table; writes `length.json` and `length.png`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic import dataclasses as pydantic

from bench.model.encoder import ATOL, pinned
from bench.report.machine import versions
from bench.report.plot import plot_lengths
from bench.report.result import (
    LOAD,
    RUNS,
    Bars,
    ResultOptions,
    at_least,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from console.options import make_config, run
from contract import CLS_ID, MAX_LEN, ToxicityError
from export.gates.parity import Comment, Runner, feeds_of, onnx_runner, run_batch, torch_runner
from export.graph.build import build, build_int8
from export.scorer import LongText
from storage.files import sha256_of
from train.model import Attention, ModelConfig, ToxicityEncoder

_VOCABULARY = 30_000
_BATCH_TOKENS, _BATCH = 4096, 32
"""Of a batch: about so many tokens, at most so many comments."""
_WINDOW, _STRIDE = 256, 128
_WINDOWS = LongText("max", _STRIDE, windows=MAX_LEN)
_CALIBRATION = 8
_SHAPE = {"d_model": 192, "n_layers": 4}
"""Deep enough that a comment's length decides its cost, not the one query of a last block."""
_GROWTH_BAR, _GAIN_BAR = 1.25, 2.0
"""Most that a token of a comment of the greatest length costs linear attention over one of
_WINDOW tokens, and least gain over softmax at the greatest length."""


@pydantic.dataclass(frozen=True)
class LengthBenchConfig(ResultOptions):
    """Flags of `python -m bench.model.length`."""

    lengths: tuple[int, ...] = Field(
        (64, 128, 256, 512, 1024, 2048, 4096),
        description="tokens a comment, ascending",
        json_schema_extra=LOAD,
    )
    rounds: int = Field(5, ge=1, description="turns of every form", json_schema_extra=RUNS)


@dataclass(frozen=True)
class Cost:
    """Microseconds a comment of `tokens` tokens by form, and the largest |logit - PyTorch's|."""

    tokens: int
    comments: int
    us: dict[str, float]
    spread: dict[str, float]
    """Slowest round over the fastest."""
    logit_gap: dict[str, float]


def main() -> None:
    config = begin(LengthBenchConfig, "bench.model.length", "Cost by length.")
    found = bench(config)
    plot_lengths(found, config.out / "length.png")
    report(config, found, "", also=("length.png",))


def bench(config: LengthBenchConfig) -> dict[str, Any]:
    """Measure every length, print the table, return the JSON document."""
    began = time.monotonic()
    attentions: tuple[Attention, ...] = ("softmax", "linear")
    models = {attention: _model(attention, max(config.lengths)) for attention in attentions}
    with tempfile.TemporaryDirectory(prefix="bench-length-") as scratch, pinned() as cpu:
        paths = _build(models, config.lengths, Path(scratch))
        runners = {name: onnx_runner(path) for name, path in paths.items()}
        costs = [_measure(models, runners, length, config.rounds) for length in config.lengths]
        sha256 = {name: sha256_of(path) for name, path in paths.items()}
    print(table(costs))
    cheaper = {precision: overtakes(costs, precision) for precision in ("fp32", "int8")}
    for precision, tokens in cheaper.items():
        where = f"from {tokens} tokens on" if tokens else "at no measured length"
        print(f"{precision.upper()}: linear attention is cheaper {where}")
    return document(
        "length",
        config,
        pinned_to=cpu,
        versions=versions("torch", "onnxruntime"),
        model={name: model.config.to_json() for name, model in models.items()},
        windows={"tokens": _WINDOW, "stride": _STRIDE},
        sha256=sha256,
        costs=[asdict(cost) for cost in costs],
        linear_is_cheaper_from_tokens=cheaper,
        bars=bars(costs),
        seconds=round(time.monotonic() - began),
    )


# --- Measuring ------------------------------------------------------------------------------
def _model(attention: Attention, max_len: int) -> ToxicityEncoder:
    torch.manual_seed(0)
    shape = {"vocab_size": _VOCABULARY, "max_len": max_len, "attention": attention, **_SHAPE}
    return ToxicityEncoder(make_config(ModelConfig, shape)).eval()


def _comments(length: int, count: int) -> list[Comment]:
    rng = np.random.default_rng(length)
    return [
        Comment(f"{length} tokens, row {row}", np.r_[CLS_ID, ids])
        for row, ids in enumerate(rng.integers(3, _VOCABULARY, (count, length - 1)))
    ]


def _build(
    models: Mapping[Attention, ToxicityEncoder], lengths: Sequence[int], folder: Path
) -> dict[str, Path]:
    """Files by form, such as linear_int8."""
    groups = sorted({*lengths, min(_WINDOW, max(lengths))})
    calibration = [np.asarray(comment.ids) for comment in _comments(min(lengths), _CALIBRATION)]
    paths = {}
    for attention, model in models.items():
        for precision in ("fp32", "int8"):
            path = paths[f"{attention}_{precision}"] = folder / f"{attention}_{precision}.onnx"
            if precision == "fp32":
                build(model, path, groups)
            else:
                build_int8(model, path, groups, calibration)
    return paths


def _measure(
    models: Mapping[Attention, ToxicityEncoder],
    runners: Mapping[str, Runner],
    length: int,
    rounds: int,
) -> Cost:
    """Raises ToxicityError when an FP32 form is wrong: its time would mean nothing."""
    comments = _comments(length, min(_BATCH, max(1, _BATCH_TOKENS // length)))
    windows = [
        Comment(comment.name, ids)
        for comment in comments
        for ids in _WINDOWS.split(np.asarray(comment.ids), _WINDOW)
    ]
    jobs = {name: (runner, feeds_of(comments)) for name, runner in runners.items()}
    for precision in ("fp32", "int8"):
        jobs[f"windows_{precision}"] = runners[f"softmax_{precision}"], feeds_of(windows)
    expected = {name: run_batch(torch_runner(m), comments[:1])[0] for name, m in models.items()}
    gap = {}
    for name, (runner, feeds) in jobs.items():  # the warm-up
        logit = runner(*feeds.values())[0]
        attention, precision = name.split("_")
        if attention != "windows":
            gap[name] = float(abs(logit - expected[attention]))  # type: ignore[index]
            if precision == "fp32" and not gap[name] <= ATOL:
                raise ToxicityError(
                    f"{name}'s logit is off by {gap[name]:.3g} at {length} tokens, expected at "
                    f"most {ATOL:g}: its time would mean nothing"
                )
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (runner, feeds) in jobs.items():
            began = time.perf_counter()
            runner(*feeds.values())
            seconds[name].append(time.perf_counter() - began)
    return Cost(
        tokens=length,
        comments=len(comments),
        us={
            name: round(1e6 * statistics.median(values) / len(comments), 1)
            for name, values in seconds.items()
        },
        spread={name: round(max(values) / min(values), 2) for name, values in seconds.items()},
        logit_gap=gap,
    )


# --- What it says -----------------------------------------------------------------------------
def overtakes(costs: Sequence[Cost], precision: str) -> int | None:
    """Least measured length from which on linear attention is cheaper, None if it never is."""
    cheaper = None
    for cost in reversed(costs):
        if cost.us[f"linear_{precision}"] >= cost.us[f"softmax_{precision}"]:
            break
        cheaper = cost.tokens
    return cheaper


def bars(costs: Sequence[Cost]) -> Bars:
    """That linear attention costs what its name says, and gains where comments are longest."""
    longest = costs[-1]
    base = next((cost for cost in costs if cost.tokens >= _WINDOW), longest)
    judged = {}
    for precision in ("fp32", "int8"):
        linear, softmax = f"linear_{precision}", f"softmax_{precision}"
        growth = longest.us[linear] / base.us[linear] * base.tokens / longest.tokens
        gain = longest.us[softmax] / longest.us[linear]
        judged[f"{linear}_cost_of_a_token_growth"] = at_most(growth, _GROWTH_BAR)
        judged[f"{linear}_gain_over_softmax"] = at_least(gain, _GAIN_BAR)
    return judged


def table(costs: Sequence[Cost]) -> str:
    """Microseconds a comment by length and form, and what linear attention gains."""
    forms = list(costs[0].us)
    lines = [["us a comment", *forms, "gain fp32", "int8"]]
    for cost in costs:
        gains = (cost.us[f"softmax_{p}"] / cost.us[f"linear_{p}"] for p in ("fp32", "int8"))
        lines.append(
            [f"{cost.tokens} tokens", *(f"{cost.us[form]:,.0f}" for form in forms)]
            + [f"x{gain:.2f}" for gain in gains]
        )
    return aligned(lines)


if __name__ == "__main__":
    run(main)
