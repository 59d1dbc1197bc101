"""What a reading found: lines for the screen, one JSON file, one HTML page with its plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from console.figures import finish
from monitor.watch import Document
from storage.files import write_atomically, write_json

JSON_FILE, HTML_FILE = "monitor.json", "monitor.html"
_MOST_GROUPS = 20
_TEMPLATE = "page.html.jinja"


def screen(document: Document) -> str:
    """The state, then each alarm and error."""
    servers = document["servers"]
    up = sum(server["answers"] for server in servers)
    few = sum(check["state"] == "few" for check in document["checks"])
    words = f"{document['time']}  {document['state']}: {up} of {len(servers)} servers answer"
    lines = [f"{words}, {len(document['checks'])} checks, {few} of them of too little"]
    for version, about in document["versions"].items():
        lines.append(f"  version {version} {about['decides']['words']}")
    lines += [f"  ALARM {line}" for line in document["alarms"]]
    lines += [f"  error {line}" for line in document["errors"]]
    return "\n".join(lines)


def write_report(document: Document, out: Path) -> None:
    """Write both files, each whole or not at all."""
    write_json(out / JSON_FILE, document)
    write_atomically(out / HTML_FILE, page(document))


def page(document: Document) -> str:
    """One HTML page that needs no other."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    versions: dict[str, Document] = document["versions"]
    return environment.get_template(_TEMPLATE).render(
        document={
            **document,
            "versions": {
                version: {"calibration": None, **about} for version, about in versions.items()
            },
        },
        pictures={version: _picture(about) for version, about in versions.items()},
        window=_window,
        share=_share,
    )


def _window(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {name}"
    return f"{seconds:g} s"


def _share(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _picture(about: Document) -> str:
    """Scores, lengths, reliability and groups, as a PNG in base64."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    (scores, lengths), (reliability, groups) = figure.subplots(2, 2)
    _histogram(scores, about, "score")
    _histogram(lengths, about, "token")
    scores.set(title="Scores", xlabel="up to", ylabel="share of comments")
    scores.set_yscale("symlog", linthresh=0.001)
    lengths.set(title="Lengths", xlabel="tokens, up to", ylabel="share of comments")
    bins = (about.get("calibration") or {}).get("bins", [])
    reliability.plot([0, 1], [0, 1], ":", color="gray")
    reliability.plot([one["score"] for one in bins], [one["toxic"] for one in bins], "o-")
    reliability.set(title="Reliability", xlabel="mean score", ylabel="share of toxic comments")
    _groups(groups, about["groups"])
    for axes in (scores, lengths, reliability, groups):
        finish(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return base64.b64encode(buffer.getvalue()).decode()


def _histogram(axes: Any, about: Document, quantity: str) -> None:
    """Shares by bin: the reference as bars, each window as a line."""
    bins = (about["reference"] or {}).get(f"{quantity}_bins")
    if bins:
        axes.bar(
            range(len(bins)), [x / (sum(bins) or 1) for x in bins], color="#bbb", label="reference"
        )
    for window, found in about["windows"].items():
        counts = found[f"{quantity}_bins"]
        if not counts or not sum(counts):
            continue
        axes.plot(
            [x / sum(counts) for x in counts], "o-", markersize=3, label=_window(float(window))
        )
        bounds = [
            "more" if bound is None else f"{bound:g}" for bound in found[f"{quantity}_bounds"]
        ]
        axes.set_xticks(range(len(bounds)), bounds, rotation=60, fontsize=7)


def _groups(axes: Any, rows: list[Document]) -> None:
    """The highest rates with their intervals, a cross for each reference."""
    shown = sorted(rows, key=lambda row: -row["value"])[:_MOST_GROUPS][::-1]
    for place, row in enumerate(shown):
        axes.plot([row["low"], row["high"]], [place, place], color="#36c")
        axes.plot(row["value"], place, "o", color="#36c")
        if row["reference"] is not None:
            axes.plot(row["reference"], place, "x", color="black")
    names = [f"{row['rate'].upper()} {row['group']}"[:40] for row in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.set(title="Groups: rate, 95 % interval, reference as x")
