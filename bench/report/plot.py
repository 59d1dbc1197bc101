"""Draw the results of `bench.run`, `bench.serving.capacity`, `bench.model.encoder`,
`bench.model.length` and `bench.hostile.soak`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.traffic.counters import parts_of
from console.figures import finish, panels, save, title


def plot_results(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.run`: latency, and where time goes."""
    results = document["results"]
    names = [result["protocol"] for result in results]
    figure, (left, middle, right) = panels(1, 3, (14, 4.5))
    for result in results:
        points = {k: v for k, v in result["latency_ms"].items() if k.startswith("p")}
        label = f"{result['protocol']}, {result['rate_rps']:.0f} requests/s"
        left.plot(list(points), list(points.values()), "o-", label=label)
    left.set(title="Latency at the client", ylabel="ms", ylim=(0, None))

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

    artifact = document["artifact"]
    title(
        figure,
        f"{artifact['precision']} {artifact['onnx_sha256'][:12]} on {_machine(document)}; "
        f"{document['load']}; {document['comments']['name']}",
    )
    for axes in (left, middle, right):
        finish(axes, grid="y")
    save(figure, path)


def plot_capacity(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG: capacity by rung, and whose CPU time a request takes."""
    figure, (rates, costs) = panels(1, 2, (12, 4), sharey=True)
    names = [row["rung"]["name"] for row in rows]
    _bars(rates, names, [row["capacity_rps"] for row in rows])
    rates.set(title="Capacity at the objective", xlabel="requests/s")
    left = np.zeros(len(rows))
    for part in parts_of(rows):
        us = np.array([row["result"]["cpu_us"].get(part, 0.0) for row in rows])
        costs.barh(names, us, left=left, label=part.replace("_", " "))
        left += us
    costs.set(title="CPU a request", xlabel="µs")
    finish(costs, grid="x")
    save(figure, path)


def plot_encoders(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.model.encoder`."""
    section = document["one_thread"]
    figure, ((rates, operators), (length, batch)) = panels(2, 2, (13, 8.5))
    cell = next(r for r in section["results"] if r["name"] == "batch 32, random")
    _bars(rates, list(cell["comments_per_s"]), list(cell["comments_per_s"].values()))
    rates.set(title="Batch 32, random order, one thread", xlabel="comments/s")
    rows = [row for row in document["profile"] if (row["share"] or 0) >= 0.005]
    _bars(operators, [row["op"] for row in rows], [100 * row["share"] for row in rows])
    operators.set(title="INT8 serving graph, batch 32: time by operator", xlabel="%")

    for axes, axis in ((length, "length"), (batch, "batch")):
        for name, points in section["growth"][axis].items():
            axes.plot([int(at) for at in points], list(points.values()), "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylabel("us a comment")
        finish(axes)
    length.set(title="Batches of 32 comments of one length", xlabel="tokens")
    batch.set(title="Comments as they come", xlabel="comments in a batch")

    config = document["model"]["config"]
    title(
        figure,
        f"d_model {config['d_model']}, {config['n_layers']} layers on one of "
        f"{_machine(document)}; int8 peak {section['peak_gops']['int8']:.0f} GOP/s; "
        f"{document['comments']['name']}",
    )
    save(figure, path)


def plot_lengths(document: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.model.length`."""
    figure, axes = panels(1, 1, (9, 5.5))
    costs, windows = document["costs"], document["windows"]
    tokens = [cost["tokens"] for cost in costs]
    for form in costs[0]["us"]:
        attention, precision = form.split("_")
        axes.plot(
            tokens,
            [cost["us"][form] / 1000 for cost in costs],
            "o-" if precision == "int8" else "o--",
            color={"softmax": "C0", "linear": "C1", "windows": "C2"}[attention],
            label=f"{attention}, {precision.upper()}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(tokens, [f"{n:,}" for n in tokens])
    axes.set(xlabel="tokens a comment", ylabel="ms a comment, one thread")
    finish(axes)
    title(
        figure,
        f"Serving graph, default shape, random weights; {_machine(document)};\n"
        f"windows: softmax over {windows['tokens']} tokens, stride {windows['stride']}",
    )
    save(figure, path)


def plot_soak(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.hostile.soak`: rate, p99, memory over
    time.
    """
    figure, (rates, latencies, memory) = panels(3, 1, (12, 8), sharex=True)
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
    memory.set_xlim(0, max(document["seconds"] / 60, *at))
    colours = {"publish": "C2", "rollback": "C4", "kill": "C3", "balancer": "C1"}
    for axes in (rates, latencies, memory):
        named: set[str] = set()
        for one in document["incidents"]:
            label = None if one["kind"] in named else one["kind"]
            named.add(one["kind"])
            axes.axvline(one["at_s"] / 60, color=colours[one["kind"]], ls="--", lw=1, label=label)
        finish(axes)
    title(figure, f"{document['seconds'] / 60:.1f} minutes on {_machine(document)}")
    save(figure, path)


def _machine(document: Mapping[str, Any]) -> str:
    hardware = document["hardware"]
    return f"{hardware['cores']} cores ({hardware['cpu']}, {', '.join(hardware['isa'])})"


def _bars(axes: Any, names: list[str], values: list[float]) -> None:
    """Horizontal bars with their values behind them, the first on top."""
    axes.bar_label(axes.barh(names, values), fmt="{:.0f}", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    finish(axes, grid="x")


def _stack(axes: Any, names: list[str], parts: dict[str, list[float]]) -> None:
    bottom = [0.0] * len(names)
    for part, values in parts.items():
        axes.bar(names, values, bottom=bottom, label=part, width=0.5)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    axes.set_xlim(-0.75, len(names) - 0.25)  # one bar is not as wide as the axes
