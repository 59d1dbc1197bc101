"""How fast each form of the graph is here: the table that `python -m export` prints.

Ids in, logits out, one thread as it is served. The forms take turns round by round, so that
whatever else the machine does hits all alike. Read the ratios; a rate is this machine's, now.
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

from export.parity import Comment, Runner, feeds_of

BATCH = 32


@dataclass(frozen=True)
class Rate:
    """One line: `comments_per_s` is None for a form that this device does not run."""

    precision: str
    comments_per_s: float | None
    gain: float | None
    verdict: str


def comments_per_s(
    runners: Mapping[str, Runner], comments: Sequence[Comment], rounds: int
) -> dict[str, float]:
    """Median rate of each runner over `comments` in this order, in batches of BATCH."""
    batches = [feeds_of(comments[at : at + BATCH]) for at in range(0, len(comments), BATCH)]
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():  # the warm-up
        for feeds in batches[:2]:
            run(*feeds.values())
    for _ in range(rounds):
        for name, run in runners.items():
            began = time.perf_counter()
            for feeds in batches:
                run(*feeds.values())
            seconds[name].append(time.perf_counter() - began)
    return {name: len(comments) / statistics.median(times) for name, times in seconds.items()}


def rates(measured: Mapping[str, float], verdicts: Mapping[str, str]) -> list[Rate]:
    """A line for each verdict; the gain is over FP32."""
    return [
        Rate(precision, rate, rate and rate / measured["fp32"], verdict)
        for precision, verdict in verdicts.items()
        for rate in [measured.get(precision)]
    ]


def table(lines: Sequence[Rate]) -> str:
    """One line a form."""
    rows = [f"{'here':<10} {'comments/s':>10} {'gain':>7}  verdict"]
    for line in lines:
        rate = "-" if line.comments_per_s is None else f"{line.comments_per_s:.0f}"
        gain = "-" if line.gain is None else f"x{line.gain:.2f}"
        rows.append(f"{line.precision.upper():<10} {rate:>10} {gain:>7}  {line.verdict}")
    return "\n".join(rows)


def to_json(lines: Sequence[Rate], device: str, comments: int, rounds: int) -> dict[str, Any]:
    """The table with what it was measured on."""
    return {
        "device": device,
        "device_name": device_name(device),
        "threads": 1,
        "batch": BATCH,
        "comments": comments,
        "rounds": rounds,
        "forms": [asdict(line) for line in lines],
    }


def device_name(device: str) -> str:
    """Name of the processor that runs the graph."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
