"""A plan in words, tables and one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from console.tables import aligned
from contract import MAX_CONNECTIONS
from fleet.arithmetic import FleetPlan
from fleet.config import PlanConfig
from fleet.measured import Figure, MeasuredServer
from fleet.scenarios import Scenarios
from fleet.training import Projection

_OWN = ("json", "plot")
_STALLS = {
    True: "cores are taken away as a probe saw it, simulation.json",
    False: "nothing takes a core away: latencies of a shared machine are longer",
}


def words_of_plan(
    plan: FleetPlan, measured: MeasuredServer, config: PlanConfig, beside: Mapping[str, Figure]
) -> str:
    """What a load needs, what breaks first, and every assumption beside its source."""
    head = (
        f"{plan.rps:,.0f} requests/s of one comment, p99 at most {config.p99_ms:g} ms, "
        f"{config.repeats:.0%} known to the cache\n"
        f"artifact {measured.artifact}, {measured.precision}, measured on {measured.machine}; "
        f"open loop behind haproxy of {measured.rate_rps:,.0f}/s, p99 {measured.p99_ms:.1f} ms"
    )
    parts = [
        head,
        _columns([["needed", "", ""], *_needed(plan)], "lrl"),
        aligned(
            [
                ["CPU time of a request", "us", "share"],
                *(
                    [part, f"{plan.cpu_us[part]:.1f}", f"{share:.0%}"]
                    for part, share in plan.drivers.items()
                ),
            ]
        ),
        _columns(
            [
                ["a machine, a zone lost: first to break", "used", "limit", "share", "source"],
                *(
                    [
                        one.name,
                        *(f"{one.used:.4g}", f"{one.limit:.4g} {one.unit}"),
                        *(f"{one.share:.0%}", one.source),
                    ]
                    for one in plan.limits
                ),
            ],
            "lrrrl",
        ),
        *_warnings(plan),
        _assumptions(plan.assumptions),
        _figures("beside it, not planned with", beside),
    ]
    return "\n\n".join(part for part in parts if part)


def _warnings(plan: FleetPlan) -> list[str]:
    """What does not fit a machine, and what would not if every answer were slow."""
    found = [
        f"DOES NOT FIT: {one.name} of a machine, {one.used:.4g} of {one.limit:.4g} {one.unit}"
        for one in plan.limits
        if one.share > 1
    ]
    if plan.slow_connections > MAX_CONNECTIONS:
        found.append(
            f"were every answer as slow as the objective, {plan.slow_connections:,.0f} connections "
            f"a machine were in flight, and haproxy takes {MAX_CONNECTIONS:,}: then take smaller "
            "machines"
        )
    return ["\n".join(found)] if found else []


def _needed(plan: FleetPlan) -> list[list[str]]:
    saved = plan.uncached_cores - plan.cores
    bits = plan.network_bits
    lost = "a lost zone is covered" if plan.zones > 1 else "no zone can be lost"
    rows = [
        ["cores at the measured utilisation", _count(plan.cores), "all zones there or not"],
        [
            "of each visit of the bench, nothing known",
            _visits(plan),
            "cores; the most is planned with",
        ],
        ["saved by the cache", _count(saved), "cores"],
        ["machines", f"{plan.machines:,}", f"{plan.machines_a_zone:,} a zone, {plan.zones} zones"],
        ["cores of them", f"{plan.machines * plan.cores_a_machine:,}", lost],
        ["replicas", f"{plan.replicas:,}", f"{plan.replicas_a_machine} a machine"],
        [
            "balancers",
            f"{plan.machines:,}",
            "one haproxy a machine; what is before them: not measured",
        ],
        ["memory", f"{plan.memory_gib:,.1f} GiB", f"{plan.machine_gib:.2f} GiB a machine"],
        [
            "network",
            "not known" if bits is None else f"{bits / 1e9:,.2f} Gbit/s",
            "give --request-bytes and --response-bytes" if bits is None else "both directions",
        ],
        ["cores in use, all zones there", f"{plan.utilisation:.0%}", ""],
    ]
    if plan.zones > 1:
        rows.append(["cores in use, one zone lost", f"{plan.utilisation_lost:.0%}", ""])
    if plan.cost_hour is None:
        return [*rows, ["cost", "not known", "give --price-per-core-hour"]]
    return [
        *rows,
        ["cost an hour", f"{plan.cost_hour:,.2f}", ""],
        ["cost a month", f"{plan.cost_month:,.0f}", "of 730 hours"],
        ["cost a million requests", f"{plan.cost_a_million:,.4f}", "under this load all the time"],
    ]


def _visits(plan: FleetPlan) -> str:
    return ", ".join(_count(cores) for cores in plan.visits)


def _assumptions(found: Mapping[str, Figure]) -> str:
    return _figures("rests on", found)


def _figures(heading: str, found: Mapping[str, Figure]) -> str:
    rows = [[heading, "", "unit", "source"]]
    rows += [[name, f"{one.value:,.4g}", one.unit, one.source] for name, one in found.items()]
    return _columns(rows, "lrll")


def _columns(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Each column as wide as its widest cell, flush left or right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, sides, strict=True)
        line = (c.rjust(width) if side == "r" else c.ljust(width) for c, width, side in cells)
        lines.append("  ".join(line).rstrip())
    return "\n".join(lines)


def _count(value: float) -> str:
    """With a decimal below a hundred."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def words_of_scenarios(found: Scenarios, measured: MeasuredServer, config: PlanConfig) -> str:
    """What was simulated, and the load at which each thing breaks."""
    rows = [["simulated", "requests/s", "p50 ms", "p99", "p99.9", "refused", "failed", "retried"]]
    named = {
        **found.runs,
        **{f"{f:g} x the load, a zone lost": r for f, r in found.by_factor.items()},
    }
    for name, run in named.items():
        shown = [run.percentiles_ms.get(at, 0.0) for at in ("p50", "p99", "p99.9")]
        rows.append(
            [
                *(name, f"{run.setting.rate:,.0f}", *(f"{ms:,.1f}" for ms in shown)),
                *(f"{run.refused_share:.2%}", f"{run.failed_share:.2%}"),
                f"{run.outcomes.retried}",
            ]
        )
    breaks = [
        f"{words}: {'not up to' if f is None else 'from'} {f or max(found.by_factor):g} x the load"
        for words, f in found.breaks(config.p99_ms).items()
    ]
    service, again = found.service, found.again.percentiles_ms
    return (
        f"{aligned(rows)}\n\nwith a zone lost, {'; '.join(breaks)}\n"
        f"one machine of {found.cores} cores in each zone stands for all; a call of the model "
        f"takes {1e6 * service.call_s:.1f} us + {1e6 * service.comment_s:.2f} us a comment + "
        f"{1e6 * service.token_s:.3f} us a token, fitted to {service.runs} measured runs, mean "
        f"error {service.error:.0%}\n"
        f"the measured open loop of {measured.rate_rps:,.0f}/s, simulated: p50 "
        f"{again['p50']:.1f} ms (measured {measured.p50_ms:.1f}), p99 {again['p99']:.1f} ms "
        f"(measured {measured.p99_ms:.1f}): so far off is it\n"
        f"assumed: half of haproxy's and Triton's time before the queue, half behind; a dead "
        f"machine is known after {config.detect_s:g} s (--detect-s); {_STALLS[found.stalls]}"
    )


def words_of_training(found: Projection) -> str:
    """Hours and money of a training."""
    cost = "cost not known: give --train-cores and --price-per-core-hour"
    if found.cost is not None:
        cost = f"{found.core_hours:,.1f} core hours, cost {found.cost:,.2f}"
    elif found.core_hours is not None:
        cost = f"{found.core_hours:,.1f} core hours; cost not known: give --price-per-core-hour"
    return (
        f"training on {found.rows:,} comments, {found.epochs} epochs: {found.hours:,.1f} hours on "
        f"one machine as it was; {cost}\n\n{_assumptions(found.assumptions)}"
    )


def document(
    config: PlanConfig,
    measured: MeasuredServer | None,
    plan: FleetPlan | None,
    scenarios: Scenarios | None,
    training: Projection | None,
) -> dict[str, Any]:
    """All of it for programs; what was not asked for is None."""
    return {
        "plan_for": {
            name: value.name if isinstance(value, Path) else value
            for name, value in asdict(config).items()
            if name not in _OWN
        },
        "measured": measured
        and {
            "artifact": measured.artifact,
            "precision": measured.precision,
            "machine": measured.machine,
            "rate_rps": measured.rate_rps,
            "p50_ms": measured.p50_ms,
            "p99_ms": measured.p99_ms,
            "utilisation": round(measured.utilisation, 4),
        },
        "plan": plan and _plan(plan),
        "simulated": scenarios
        and {
            "measured_run_again": scenarios.again.to_json(),
            "service_times": asdict(scenarios.service),
            "runs": {name: run.to_json() for name, run in scenarios.runs.items()},
            "a_zone_lost_by_load": {
                f"{f:g}": run.to_json() for f, run in scenarios.by_factor.items()
            },
            "breaks_at_load": scenarios.breaks(config.p99_ms),
        },
        "training": training and asdict(training),
    }


def _plan(plan: FleetPlan) -> dict[str, Any]:
    limits = [{**asdict(one), "share": one.share} for one in plan.limits]
    return {
        **asdict(plan),
        "limits": limits,
        "machines": plan.machines,
        "replicas": plan.replicas,
        "balancers": plan.machines,
        "cost_month": plan.cost_month,
        "cost_a_million": plan.cost_a_million,
        "drivers": plan.drivers,
    }
