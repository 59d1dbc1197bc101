"""Draw a load run: latency percentiles by protocol, and where a request's time goes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from train.artifacts import write_atomically


def plot_results(document: dict[str, Any], path: Path) -> None:
    """Write a PNG of `document`, the JSON document of `bench.run`."""
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
        f"({hardware['cpu']}, {', '.join(hardware['isa'])}); {document['users']} users, closed "
        f"loop; {document['comments']['name']}",
        fontsize=9,
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3, axis="y")
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
