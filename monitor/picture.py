"""A picture of the dashboard from its own queries, for where no Grafana is.

    python -m monitor.picture --prometheus http://127.0.0.1:9090 --minutes 60 --out dashboard.png

Every query of every panel of deploy/grafana/toxicity.json is asked of Prometheus as Grafana asks
it, and drawn by Matplotlib where the dashboard has the panel. A query without data is an error.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.figures import finish, title
from console.options import parse_config, run
from contract import BadInput
from monitor.prometheus import ask_prometheus
from storage.files import read_json, write_atomically

_POINTS = 200
"""Of a line."""
_WIDE_IN, _HIGH_IN, _DPI, _COLOURS = 12.0, 0.22, 100, 255
"""Inches: of the picture, and of a step of the dashboard's grid."""
_LEGEND = 0.5
"""Width beside that of a panel's axes."""
_SMALL = 7


@dataclass(frozen=True)
class PictureConfig:
    """Flags of `python -m monitor.picture`."""

    prometheus: str = Field("http://127.0.0.1:9090", description="address of Prometheus")
    dashboard: Path = Field(
        Path("deploy/grafana/toxicity.json"), description="dashboard to draw, as Grafana imports it"
    )
    minutes: float = Field(360, gt=0, description="minutes up to now that are drawn")
    scrape_s: float = Field(15, gt=0, description="seconds between two scrapes of Prometheus")
    allow_empty: bool = Field(False, description="draw panels whose queries have no data, too")
    out: Path = Field(Path("dashboard.png"), description="PNG to write")


@plain_dataclass(frozen=True)
class PanelLine:
    """What a query found under one set of labels."""

    legend: str
    times: np.ndarray
    """datetime64[s] [n], UTC."""
    values: np.ndarray
    """float64 [n], NaN where there is no number."""


@plain_dataclass(frozen=True)
class PanelQuery:
    """A query of a panel, as it was asked; no line has only NaN."""

    expression: str
    lines: list[PanelLine]


@plain_dataclass(frozen=True)
class Panel:
    """A panel with what its queries found; the title of a row of panels has none."""

    kind: str
    title: str
    unit: str
    least: float | None
    """Where the axis begins."""
    grid: dict[str, int]
    """x, y, w and h, in 24 columns."""
    queries: list[PanelQuery]


def main() -> None:
    config = parse_config(
        PictureConfig,
        None,
        prog="python -m monitor.picture",
        description="Draw the dashboard from its queries.",
    )
    draw(config)


def draw(config: PictureConfig) -> list[Panel]:
    """Ask, draw, write `config.out`; what was drawn.

    Raises BadInput where Prometheus or the dashboard cannot be read, and for queries without data.
    """
    remedy = "run `python -m monitor.dashboard`"
    board = read_json(config.dashboard, remedy)
    end_s = time.time()
    try:
        panels = [_asked(panel, config, end_s) for panel in board["panels"]]
    except (LookupError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{config.dashboard} is no dashboard, expected one that Grafana imports; {remedy}"
        ) from error
    if (empty := without_data(panels)) and not config.allow_empty:
        raise BadInput(
            f"{config.dashboard.name} has {len(empty)} without data of its queries, the first of "
            f"the panel {empty[0]}, expected some of each; watch longer, or draw it with "
            "--allow-empty"
        )
    until = np.datetime64(int(end_s), "s")
    words = (
        f"{config.dashboard.name}: its own queries, asked of Prometheus and drawn by Matplotlib, "
        f"not by Grafana; {config.minutes:g} minutes, UTC, up to {until}"
    )
    write_atomically(config.out, _png(_figure(panels, words)))
    return panels


def without_data(panels: Sequence[Panel]) -> list[str]:
    """Title and expression of each query that found no number."""
    return [
        f"{panel.title!r}: {query.expression}"
        for panel in panels
        for query in panel.queries
        if not query.lines
    ]


# --- Asking --------------------------------------------------------------------------------
def _asked(panel: dict[str, Any], config: PictureConfig, end_s: float) -> Panel:
    about = panel.get("fieldConfig", {}).get("defaults", {})
    targets = panel.get("targets", [])
    return Panel(
        panel["type"],
        panel.get("title", ""),
        about.get("unit", "short"),
        about.get("min"),
        panel["gridPos"],
        [_query(one["expr"], one.get("legendFormat", ""), config, end_s) for one in targets],
    )


def _query(expression: str, legend: str, config: PictureConfig, end_s: float) -> PanelQuery:
    """As Grafana does, which sets `$__rate_interval` to four scrapes or a step and a scrape."""
    step_s = max(1, math.ceil(60 * config.minutes / _POINTS))
    rate_s = math.ceil(max(4 * config.scrape_s, step_s + config.scrape_s))
    expression = expression.replace("$__rate_interval", f"{rate_s}s")
    begin_s = end_s - 60 * config.minutes
    asked = {"start": begin_s, "end": end_s, "step": step_s}
    lines = []
    for row in ask_prometheus(config.prometheus, "query_range", expression, **asked):
        times = np.array([int(at) for at, _ in row["values"]], "datetime64[s]")
        values = np.array([float(value) for _, value in row["values"]])
        values[~np.isfinite(values)] = np.nan
        if not np.isnan(values).all():
            labels = row["metric"]
            named = re.sub(r"{{\s*(\w+)\s*}}", lambda m: labels.get(m[1], ""), legend)  # noqa: B023
            lines.append(PanelLine(named, times, values))
    return PanelQuery(expression, lines)


# --- Drawing -------------------------------------------------------------------------------
def _figure(panels: Sequence[Panel], words: str) -> Figure:
    """Panels in rows as the dashboard has them."""
    rows: dict[int, list[Panel]] = {}
    for panel in panels:
        rows.setdefault(panel.grid["y"], []).append(panel)
    heights = [row[0].grid["h"] for row in rows.values()]
    figure = Figure(figsize=(_WIDE_IN, _HIGH_IN * sum(heights) + 0.3), layout="constrained")
    title(figure, words)
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, row in zip(parts, rows.values(), strict=True):
        if row[0].kind == "row":
            part.text(0.01, 0.5, row[0].title, fontsize=_SMALL + 3, weight="bold", va="center")
            continue
        widths = [width for panel in row for width in (panel.grid["w"], _legend_width(panel))]
        axes = part.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        for one, legend, panel in zip(axes[::2], axes[1::2], row, strict=True):
            one.set_title(panel.title, fontsize=_SMALL + 1, loc="left")
            legend.set_axis_off()
            if panel.kind == "stat":
                _stat(one, panel)
            else:
                _lines(one, panel)
                found = one.get_legend_handles_labels()
                beside = legend.legend(*found, loc="upper left", fontsize=_SMALL - 1, frameon=False)
                beside.set_in_layout(False)  # many lines are to leave the axes as they are
    return figure


def _png(figure: Figure) -> bytes:
    """Of 255 colours: a third of the bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def _legend_width(panel: Panel) -> float:
    return 0.01 if panel.kind == "stat" else _LEGEND * panel.grid["w"]


def _stat(axes: Any, panel: Panel) -> None:
    """The last number of each line."""
    lines = [line for query in panel.queries for line in query.lines]
    words = [f"{line.values[~np.isnan(line.values)][-1]:.3g}" for line in lines]
    unit = f" {panel.unit}" if panel.unit == "s" else ""
    shown = [f"{word}{unit}  {line.legend}" for word, line in zip(words, lines, strict=True)]
    axes.text(0.5, 0.5, "\n".join(shown) or "no data", fontsize=14, ha="center", va="center")
    axes.set(xticks=[], yticks=[])


def _lines(axes: Any, panel: Panel) -> None:
    for query in panel.queries:
        for line in query.lines:
            axes.plot(line.times, line.values, lw=1, label=line.legend)
    if not axes.lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylim(bottom=panel.least)
    if panel.unit == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif panel.unit == "s":
        axes.yaxis.set_major_formatter(EngFormatter("s"))
    elif panel.unit == "reqps":
        axes.set_ylabel("requests/s", fontsize=_SMALL)
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axes.tick_params(labelsize=_SMALL)
    finish(axes, legend=False)


if __name__ == "__main__":
    run(main)
