"""Draw a plan: cores by load, what breaks first, and what was simulated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from console.figures import finish, panels, save, title
from fleet.arithmetic import FleetPlan, plan
from fleet.config import PlanConfig
from fleet.measured import MeasuredServer
from fleet.scenarios import Scenarios

_LOADS = (0.01, 0.03, 0.1, 0.3, 1)
"""Of the planned load."""
_BIN_S = 0.05


def plot_plan(
    config: PlanConfig,
    measured: MeasuredServer,
    planned: FleetPlan,
    found: Scenarios | None,
    path: Path,
) -> None:
    """Write a PNG: two panels of the arithmetic, and two more of what was simulated."""
    rows = 2 if found else 1
    figure, axes = panels(rows, 2, (12, 4.2 * rows), squeeze=False)
    _cores(axes[0][0], config, measured)
    _limits(axes[0][1], planned)
    if found:
        _sweep(axes[1][0], config, found)
        _lost_zone(axes[1][1], found)
    title(
        figure,
        f"{planned.rps:,.0f} requests/s on {planned.machines:,} machines of "
        f"{planned.cores_a_machine} cores in {planned.zones} zones; projected from artifact "
        f"{measured.artifact}, {measured.precision}, on {measured.machine}",
    )
    save(figure, path)


def _cores(axes: Any, config: PlanConfig, measured: MeasuredServer) -> None:
    assert config.rps is not None
    plans = [plan(replace(config, rps=share * config.rps), measured) for share in _LOADS]
    loads = [one.rps for one in plans]
    axes.plot(loads, [one.cores for one in plans], "o-", label="needed, all zones there")
    bought = [one.machines * one.cores_a_machine for one in plans]
    axes.plot(loads, bought, "o-", label="of whole machines, a lost zone covered")
    scales = {"xscale": "log", "yscale": "log"}
    axes.set(title="Cores by load", xlabel="requests/s", ylabel="cores", **scales)
    _finish(axes, "upper left")


def _limits(axes: Any, planned: FleetPlan) -> None:
    limits = planned.limits[::-1]
    axes.barh([one.name for one in limits], [100 * one.share for one in limits])
    axes.axvline(100, color="black", lw=1)
    axes.set(title="One machine, a zone lost: what breaks first", xlabel="% of its limit")
    finish(axes, grid="x", legend=False)


def _sweep(axes: Any, config: PlanConfig, found: Scenarios) -> None:
    factors = list(found.by_factor)
    runs = list(found.by_factor.values())
    axes.plot(factors, [run.percentiles_ms.get("p50") for run in runs], "o-", label="p50")
    axes.plot(factors, [run.percentiles_ms.get("p99") for run in runs], "o-", label="p99")
    axes.axhline(config.p99_ms, color="black", lw=1, label="objective")
    axes.set(title="Simulated, a zone lost", xlabel="x the planned load", ylabel="ms", yscale="log")
    refused = axes.twinx()
    refused.plot(factors, [100 * run.refused_share for run in runs], "r:", label="refused")
    refused.set(ylabel="% refused (dotted)", ylim=(0, None))
    _finish(axes, "lower right")


def _lost_zone(axes: Any, found: Scenarios) -> None:
    """Answers and failures a second around the loss."""
    run = found.runs.get("a zone lost") or found.runs["a replica killed"]
    outcomes, seconds = run.outcomes, run.setting.seconds
    edges = np.arange(0, seconds + _BIN_S, _BIN_S)
    for name, at in (
        ("answered", outcomes.answered_at_s),
        ("refused", outcomes.refused_at_s),
        ("failed", outcomes.failed_at_s),
    ):
        counts, _ = np.histogram(at, edges)
        axes.step(edges[:-1], counts / _BIN_S, where="post", label=name)
    lost = run.setting.incidents[0]
    axes.axvline(lost.at_s, color="black", lw=1, label=lost.kind)
    axes.set(
        title=f"Simulated: {lost.kind}, {run.setting.machines} machines of {found.cores} cores",
        xlabel="s",
        ylabel="requests/s by when they were sent",
    )
    _finish(axes, "center right")


def _finish(axes: Any, place: str) -> None:
    """A legend within the axes, where another axis or panel is beside them."""
    finish(axes, legend=False)
    axes.legend(loc=place, fontsize=8)
