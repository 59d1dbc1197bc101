"""The style of every figure: a grid behind, legends beside the axes, one way to write a PNG.

Imports Matplotlib, without a display.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from storage.files import write_atomically

_SMALL = 8
_DPI = 120


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of `size` inches and its axes, as `Figure.subplots` gives them."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def finish(axes: Any, *, grid: str = "both", legend: bool = True, title: str | None = None) -> None:
    """Grid and, where something is labelled, a legend beside the axes, where no bar can be."""
    axes.grid(alpha=0.3, axis=grid)
    axes.set_axisbelow(True)
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(
            title=title,
            title_fontsize=_SMALL,
            fontsize=_SMALL,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
        )


def whole_numbers(axes: Any, values: Sequence[float]) -> None:
    """An x axis of counted things, such as epochs; wide enough for one of them, too."""
    axes.set_xlim(min(values) - 0.5, max(values) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def title(figure: Any, text: str) -> None:
    """One small line above all axes: what was measured on what."""
    figure.suptitle(text, fontsize=_SMALL + 1)


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_atomically(path, buffer.getvalue())
