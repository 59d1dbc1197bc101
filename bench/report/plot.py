"""Draw the results of `bench.run`, `bench.serving.capacity`, `bench.model.encoder` and
`bench.hostile.soak`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.traffic.counters import parts_of
from train.artifacts import write_atomically


def plot_results(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.run`: latency, and where time goes."""
    results = document["results"]
    names = [result["protocol"] for result in results]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for result in results:
        points = {k: v for k, v in result["latency_ms"].items() if k.startswith("p")}
        label = f"{result['protocol']}, {result['rate_rps']:.0f} requests/s"
        left.plot(list(points), list(points.values()), "o-", label=label)
    left.set(title="Latency at the client", ylabel="ms", ylim=(0, None))
    left.legend()

    parts = {
        "in the queue": [result["queue_ms"] for result in results],
        "scoring the batch": [result["compute_ms"] for result in results],
    }
    mean = [result["latency_ms"]["mean"] for result in results]
    known = [sum(values) for values in zip(*parts.values(), strict=True)]
    rest = [max(0.0, a - b) for a, b in zip(mean, known, strict=True)]
    _stack(middle, names, {**parts, "front end, network, client": rest})
    middle.set(title="Where a mean request's time goes", ylabel="ms")

    cpu = {part: [r["cpu_us"][part] for r in results] for part in results[0]["cpu_us"]}
    _stack(right, names, {part.replace("_", " "): values for part, values in cpu.items()})
    right.set(title="CPU a request", ylabel="µs")

    hardware, artifact = document["hardware"], document["artifact"]
    figure.suptitle(
        f"{artifact['precision']} {artifact['onnx_sha256'][:12]} on {hardware['cores']} cores "
        f"({hardware['cpu']}, {', '.join(hardware['isa'])}); {document['load']}; "
        f"{document['comments']['name']}",
        fontsize=9,
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3, axis="y")
    _save(figure, path)


def plot_capacity(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG: capacity by rung, and whose CPU time a request takes."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    rates, costs = figure.subplots(1, 2, sharey=True)
    names = [row["rung"]["name"] for row in rows]
    bars = rates.barh(names, [row["capacity_rps"] for row in rows])
    rates.bar_label(bars, fmt="{:.0f}", padding=3)
    rates.margins(x=0.15)
    rates.set(title="Capacity at the objective", xlabel="requests/s")
    left = np.zeros(len(rows))
    for part in parts_of(rows):
        us = np.array([row["result"]["cpu_us"].get(part, 0.0) for row in rows])
        costs.barh(names, us, left=left, label=part.replace("_", " "))
        left += us
    costs.set(title="CPU a request", xlabel="µs")
    costs.legend()
    rates.invert_yaxis()
    _save(figure, path)


def plot_encoders(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.model.encoder`."""
    section = document["one_thread"]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    (rates, operators), (length, batch) = figure.subplots(2, 2)
    cell = next(r for r in section["results"] if r["name"] == "batch 32, random")
    bars = rates.barh(list(cell["comments_per_s"]), list(cell["comments_per_s"].values()))
    rates.bar_label(bars, fmt="{:.0f}", padding=3)
    rates.set(title="Batch 32, random order, one thread", xlabel="comments/s")

    rows = [row for row in document["profile"] if (row["share"] or 0) >= 0.005]
    bars = operators.barh([row["op"] for row in rows], [100 * row["share"] for row in rows])
    operators.bar_label(bars, fmt="{:.0f}", padding=3)
    operators.set(title="INT8 serving graph, batch 32: time by operator", xlabel="%")
    for axes in (rates, operators):
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")

    for axes, axis in ((length, "length"), (batch, "batch")):
        for name, points in section["growth"][axis].items():
            axes.plot([int(at) for at in points], list(points.values()), "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylabel("us a comment")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    length.set(title="Batches of 32 comments of one length", xlabel="tokens")
    batch.set(title="Comments as they come", xlabel="comments in a batch")

    hardware, config = document["hardware"], document["model"]["config"]
    figure.suptitle(
        f"d_model {config['d_model']}, {config['n_layers']} layers on one core of "
        f"{hardware['cpu']} ({', '.join(hardware['isa'])}); int8 peak "
        f"{section['peak_gops']['int8']:.0f} GOP/s; {document['comments']['name']}",
        fontsize=9,
    )
    _save(figure, path)


def plot_soak(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.hostile.soak`: rate, p99, memory over
    time.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    rates, latencies, memory = figure.subplots(3, 1, sharex=True)
    over = document["over_time"]
    at = [at_s / 60 for at_s in over["at_s"]]
    series = {name: np.array(values, float) for name, values in over.items()}
    for name in ("scored", "refused", "lost"):
        rates.plot(at, series[f"{name}_rps"], label=name)
    rates.set(title="Honest requests", ylabel="requests/s", ylim=(0, None))
    latencies.plot(at, series["p99_ms"], label="p99")
    latencies.set(title="Latency from the intended send", ylabel="ms", yscale="log")
    memory.plot(at, series["memory_mib"], label="servers and haproxy")
    memory.set(title="Memory", ylabel="MiB", ylim=(0, None), xlabel="minutes")
    colours = {"publish": "C2", "rollback": "C4", "kill": "C3", "balancer": "C1"}
    for axes in (rates, latencies, memory):
        named: set[str] = set()
        for one in document["incidents"]:
            label = None if one["kind"] in named else one["kind"]
            named.add(one["kind"])
            axes.axvline(one["at_s"] / 60, color=colours[one["kind"]], ls="--", lw=1, label=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper right")
    hardware = document["hardware"]
    figure.suptitle(
        f"{document['seconds'] / 60:.1f} minutes on {hardware['cores']} cores ({hardware['cpu']})",
        fontsize=9,
    )
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _stack(axes: Any, names: list[str], parts: dict[str, list[float]]) -> None:
    bottom = [0.0] * len(names)
    for part, values in parts.items():
        axes.bar(names, values, bottom=bottom, label=part, width=0.5)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    axes.set_ylim(0, 1.35 * max(bottom))
    axes.legend(fontsize=8)
