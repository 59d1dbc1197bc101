"""How fast each form of the graph is here: the table that `python -m export` prints.

Ids in, logits out, one thread as it is served. The forms take turns round by round, so that
whatever else the machine does hits all alike. Read the gains; a rate is this machine's, now.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from export.gates.parity import Comment, Runner, feeds_of

BATCH, ROUNDS = 32, 5
_PRECISIONS = ("int8", "fp16", "fp32")


@dataclass(frozen=True)
class Rate:
    """One line: `comments_per_s` and `gain` are None for a form that was not built."""

    precision: str
    comments_per_s: float | None
    gain: float | None
    """Over FP32 in the same run."""
    verdict: str


def measure(runners: Mapping[str, Runner], comments: Sequence[Comment]) -> dict[str, float]:
    """Comments/s of each runner over `comments` in this order: median of ROUNDS."""
    batches = [feeds_of(comments[at : at + BATCH]) for at in range(0, len(comments), BATCH)]
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():  # the warm-up
        for feeds in batches[:2]:
            run(*feeds.values())
    for _ in range(ROUNDS):
        for name, run in runners.items():
            began = time.perf_counter()
            for feeds in batches:
                run(*feeds.values())
            seconds[name].append(time.perf_counter() - began)
    return {name: len(comments) / statistics.median(times) for name, times in seconds.items()}


def lines(measured: Mapping[str, float], verdicts: Mapping[str, str]) -> list[Rate]:
    """One line for each precision; `measured` has fp32, `verdicts` has all."""
    return [
        Rate(precision, rate, rate and rate / measured["fp32"], verdicts[precision])
        for precision in _PRECISIONS
        for rate in [measured.get(precision)]
    ]


def table(rates: Sequence[Rate]) -> str:
    """For the screen."""
    rows = [f"{'here':<6} {'comments/s':>10} {'gain':>7}  verdict"]
    for rate in rates:
        speed = "-" if rate.comments_per_s is None else f"{rate.comments_per_s:.0f}"
        gain = "-" if rate.gain is None else f"x{rate.gain:.2f}"
        rows.append(f"{rate.precision.upper():<6} {speed:>10} {gain:>7}  {rate.verdict}")
    return "\n".join(rows)


def to_json(rates: Sequence[Rate], device: str, comments: int) -> dict[str, Any]:
    """The table with what it was measured on."""
    return {
        "device": device,
        "device_name": _device_name(device),
        "threads": 1,
        "batch": BATCH,
        "comments": comments,
        "rounds": ROUNDS,
        "forms": [asdict(rate) for rate in rates],
    }


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.machine()
