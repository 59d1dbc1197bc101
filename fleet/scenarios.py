"""What is simulated of a plan: its load, failures, a rollout, a lost zone, and more than its load.

One machine of each zone stands for all of it (fleet/simulation.py says why). A machine of many
cores is simulated by one of two replicas with as many cores a replica: at the same use of its cores
a smaller machine waits longer (Kleinrock, "Queueing Systems" 2, 1976, section 5.1), so this is the
worse case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fleet.arithmetic import FleetPlan
from fleet.config import PlanConfig
from fleet.machine import Shape
from fleet.measured import MeasuredServer
from fleet.requests import lognormal
from fleet.service_times import ServiceTimes, fit, fit_outside
from fleet.simulation import FleetIncident, Setting, Simulated, simulate

FACTORS = (0.8, 1.0, 1.2, 1.4, 1.6, 2.0)
"""Of the planned load, a zone being lost."""
_REPLICAS = 2
_SWEEP_SHARE = 0.5
"""Of `--simulate-s`, for each of FACTORS."""


@dataclass(frozen=True)
class Scenarios:
    """Runs by name, and those of ever more load once a zone is lost."""

    again: Simulated
    """The measured run itself, its generator on the same cores: how far off the simulation is."""
    service: ServiceTimes
    cores: int
    """Of a simulated machine."""
    runs: Mapping[str, Simulated]
    by_factor: Mapping[float, Simulated]
    stalls: bool
    """Whether cores are taken away as a probe of the measured machine saw it."""

    def breaks(self, p99_ms: float) -> dict[str, float | None]:
        """The first of FACTORS at which the p99 is missed, at which something is refused, and at
        which something fails; None where it never is.
        """
        signs: dict[str, Callable[[Simulated], bool]] = {
            "p99 above the objective": lambda run: run.percentiles_ms.get("p99", 1e9) > p99_ms,
            "comments refused": lambda run: run.refused_share > 0,
            "fewer answers than requests": lambda run: (
                run.outcomes.last_s > run.setting.seconds + 2 * p99_ms / 1e3
            ),
        }
        return {
            words: next((f for f, run in self.by_factor.items() if sign(run)), None)
            for words, sign in signs.items()
        }


def shape_of(measured: MeasuredServer, cores: int, service: ServiceTimes) -> Shape:
    """A machine of so many cores with replicas as they were measured."""
    outside = fit_outside(measured.runs)
    return Shape(
        cores=cores,
        replicas=max(1, cores // measured.cores * measured.replicas),
        instances=measured.instances,
        window_s=measured.window_ms / 1e3,
        service=service,
        in_s=outside.request_s / 2,
        out_s=outside.request_s / 2,
        call_s=outside.call_s,
        door_share=outside.door_share,
        start_s=measured.start_s,
    )


def run_scenarios(config: PlanConfig, measured: MeasuredServer, planned: FleetPlan) -> Scenarios:
    """Every run. Raises BadInput where too little was measured to fit the times of a call."""
    service = fit(measured.runs)
    cores = min(config.cores_per_machine, _REPLICAS * measured.cores)
    zones = config.zones
    setting = Setting(
        shape=shape_of(measured, cores, service),
        rate=planned.rps / planned.machines * zones * cores / config.cores_per_machine,
        seconds=config.simulate_s,
        lengths=lognormal(measured.tokens["median"], measured.tokens["mean"], measured.max_len),
        machines=zones,
        hits=config.repeats,
        seed=config.seed,
        detect_s=config.detect_s,
        stalls=measured.stalls,
    )
    third = config.simulate_s / 3
    runs = {"as planned": simulate(setting)}
    for kind, words in (
        ("replica killed", "a replica killed"),
        ("rollout", "a rollout on one machine"),
        ("zone lost", "a zone lost"),
    ):
        if kind != "zone lost" or zones > 1:
            happens = FleetIncident(kind, third)  # type: ignore[arg-type]
            runs[words] = simulate(replace(setting, incidents=(happens,)))
    left = replace(setting, machines=max(1, zones - 1), seconds=_SWEEP_SHARE * config.simulate_s)
    by_factor = {f: simulate(replace(left, rate=f * setting.rate)) for f in FACTORS}
    again = simulate(
        replace(
            setting,
            shape=replace(
                shape_of(measured, measured.cores, service),
                generator_s=measured.generator_us / 1e6,
            ),
            rate=measured.rate_rps,
            machines=1,
            hits=measured.hits,
        )
    )
    return Scenarios(again, service, cores, runs, by_factor, measured.stalls is not None)
