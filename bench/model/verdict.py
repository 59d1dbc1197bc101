"""What the numbers of `bench.model.encoder` mean: work over peak, bars, tables for people.

Work is counted in multiply-adds over real tokens, two operations each: no padding, and neither
LayerNorm, softmax, GELU nor the head. "model" is what the architecture defines, the same for
every contender: in each of N layers 4 D^2 + 2 D F a token for the Linear layers (F the hidden
width of the MLP) and 2 D L^2 a comment of L tokens for attention. "serving" is what the serving
graph computes of it, which leaves out most of the last layer: there, for [CLS] alone,
2 H D^2 + 2 D F a comment and 2 H D L for attention. Attention runs in float in every contender.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report.result import Bars, at_least
from bench.report.tables import aligned
from bench.traffic.workload import STUDENT
from export.work import multiply_adds
from train.model import ModelConfig

GAIN_BARS = {"dynamic_int8": (8.0, 10.0), "eager": (12.0,), "openvino_int8": (5.0,)}
"""Least gain of the INT8 serving graph at batch 32 in random order, on one thread."""
STUDENT_BAR = 5.05
"""Student over the full size of 192 x 4: 5,000 comments/s where that gives 990."""
PEAK_BAR = 0.5
BAR_CELL = "batch 32, random"


def work_rates(
    result: dict[str, Any],
    lengths: Sequence[int],
    configs: tuple[ModelConfig, ModelConfig],
    peaks: dict[str, float],
) -> dict[str, dict[str, float]]:
    """Operations a second in 1e9, and their share of the int8 and FP32 peaks, by contender.

    `result` is of comments of these lengths; `configs` are of the model and of the student.
    """
    rates = {}
    for name, rate in result["comments_per_s"].items():
        work = {
            kind: multiply_adds(configs[name == STUDENT], lengths, whole=kind == "model").mean()
            for kind in ("model", "serving")
        }
        gops = {kind: 2 * float(mean) * rate / 1e9 for kind, mean in work.items()}
        if not name.startswith("serving"):
            del gops["serving"]
        rates[name] = {f"{kind}_gops": round(value, 1) for kind, value in gops.items()} | {
            f"{kind}_share_of_{peak}_peak": round(value / peaks[peak], 4)
            for kind, value in gops.items()
            for peak in peaks
        }
    return rates


def bars(one_thread: dict[str, Any]) -> Bars:
    """What must hold in the cell BAR_CELL on one thread; null where there is nothing to judge."""
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
    cost = {
        name: one_thread["work"][name]["model_gops"] / rates[name]
        for name in (STUDENT, "serving_int8")
    }
    smaller = cost[STUDENT] < cost["serving_int8"]  # the checkpoint may be the smaller one
    values["student_over_full_size"] = rates[STUDENT] / ours if smaller else None, STUDENT_BAR
    return {name: at_least(value, bar) for name, (value, bar) in values.items()}


# --- Telling ------------------------------------------------------------------------------
def rates_table(title: str, results: Sequence[dict[str, Any]]) -> str:
    """Comments a second, one line a contender, one column a cell."""
    lines = [[title, *(result["name"].replace("batch ", "B") for result in results)]]
    for name in results[0]["comments_per_s"]:
        lines.append([name, *(f"{result['comments_per_s'][name]:.0f}" for result in results)])
    return aligned(lines)


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
        f"{aligned(lines)}\n"
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
        tables.append(aligned([head, *rows]))
    return "\n".join(tables)


def profile_table(profile: Sequence[dict[str, Any]]) -> str:
    """Time by operator type, from 0.1 % on."""
    lines = [["serving_int8 by operator, batch 32", "nodes", "us", "share"]]
    for row in profile:
        if row["share"] is not None and row["share"] < 0.001:
            continue
        share = "" if row["share"] is None else f"{100 * row['share']:.1f} %"
        lines.append([row["op"], str(row["nodes"]), str(row["us"]), share])
    return aligned(lines)
