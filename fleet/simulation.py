"""Simulate machines under an open loop, with failures: what was answered, refused, lost, and when.

A fleet whose front spreads requests at random is simulated by few of its machines: a Poisson
process split at random is independent Poisson processes (Kingman, "Poisson Processes", 1993,
section 5.1), and machines share nothing but the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import simpy

from fleet.cores import Steps
from fleet.machine import Machine, Shape
from fleet.measured import Stalls
from fleet.requests import Lengths, Outcomes, SimulatedRequest, schedule


@dataclass(frozen=True)
class FleetIncident:
    """Something that happens to one machine at a time of the run."""

    kind: Literal["replica killed", "rollout", "zone lost"]
    at_s: float
    machine: int = 0


@dataclass(frozen=True)
class Setting:
    """One run."""

    shape: Shape
    rate: float
    """Requests a second, for all machines together."""
    seconds: float
    lengths: Lengths
    machines: int = 1
    hits: float = 0.0
    seed: int = 0
    incidents: tuple[FleetIncident, ...] = ()
    detect_s: float = 1.0
    """Until the front sends nothing more to a machine that died."""
    stalls: Stalls | None = None
    skip_s: float = 0.0
    """First seconds that are not in the latencies."""


@dataclass(frozen=True)
class Simulated:
    """What a run came to."""

    setting: Setting
    outcomes: Outcomes
    core_use: float
    """Share of all cores' time until the last answer."""
    latencies_ms: np.ndarray
    """float64 [answers of requests that were due after `skip_s`]."""
    rate_rps: float
    """Answers a second of what was due in the run."""
    percentiles_ms: dict[str, float] = field(default_factory=dict)

    @property
    def refused_share(self) -> float:
        """Of all that was sent."""
        return len(self.outcomes.refused_at_s) / max(1, self.outcomes.sent)

    @property
    def failed_share(self) -> float:
        """Of all that was sent."""
        return len(self.outcomes.failed_at_s) / max(1, self.outcomes.sent)

    def to_json(self) -> dict[str, Any]:
        """Figures for a document."""
        outcomes = self.outcomes
        return {
            "rate": round(self.setting.rate, 1),
            "seconds": self.setting.seconds,
            "machines": self.setting.machines,
            "sent": outcomes.sent,
            "answered": len(outcomes.answered_at_s),
            "refused": len(outcomes.refused_at_s),
            "failed": len(outcomes.failed_at_s),
            "retried": outcomes.retried,
            "rate_rps": round(self.rate_rps, 1),
            "latency_ms": {name: round(ms, 3) for name, ms in self.percentiles_ms.items()},
            "core_use": round(self.core_use, 4),
            "mean_batch": round(outcomes.comments / max(1, outcomes.batches), 3),
            "most_in_flight": outcomes.most_in_flight,
        }


def simulate(setting: Setting) -> Simulated:
    """Run until every request of the schedule is answered, refused or failed.

    The same setting gives the same run.
    """
    env, outcomes = simpy.Environment(), Outcomes()
    rng = np.random.default_rng(setting.seed)
    requests = schedule(setting.rate, setting.seconds, setting.lengths, setting.hits, rng)
    outcomes.sent = len(requests)
    machines = [Machine(env, setting.shape, outcomes) for _ in range(setting.machines)]
    known = list(range(setting.machines))
    for incident in setting.incidents:
        env.process(_happen(env, incident, machines, known, setting.detect_s))
    for machine in machines:
        _stall(env, machine, setting, rng)
    env.process(_send(env, requests, machines, known, rng))
    env.run()
    busy = sum(machine.cores.busy_s for machine in machines)
    cores = setting.machines * setting.shape.cores
    at, took = np.array(outcomes.answered_at_s), np.array(outcomes.latencies_s)
    kept = 1e3 * took[at >= setting.skip_s] if len(at) else took
    shown = (50, 90, 99, 99.9)
    return Simulated(
        setting=setting,
        outcomes=outcomes,
        core_use=busy / (cores * max(outcomes.last_s, setting.seconds)),
        latencies_ms=kept,
        rate_rps=len(at) / setting.seconds,
        percentiles_ms={f"p{p:g}": float(np.percentile(kept, p)) for p in shown if len(kept)},
    )


def _send(
    env: simpy.Environment,
    requests: Sequence[SimulatedRequest],
    machines: Sequence[Machine],
    known: list[int],
    rng: np.random.Generator,
) -> Steps:
    """Each request when it is due, to a machine of those that the front knows, at random."""
    draws = rng.random(len(requests)).tolist()
    for request, draw in zip(requests, draws, strict=True):
        if request.due_s > env.now:
            yield env.timeout(request.due_s - env.now)
        machine = machines[known[int(draw * len(known))]]
        env.process(machine.answer(request))


def _stall(
    env: simpy.Environment, machine: Machine, setting: Setting, rng: np.random.Generator
) -> None:
    """Take each core of the machine away at random, as a Poisson process."""
    stalls = setting.stalls
    if stalls is None or not stalls.pauses_s or stalls.a_second <= 0:
        return
    for core in range(setting.shape.cores):
        count = rng.poisson(stalls.a_second * setting.seconds)
        gaps = rng.exponential(1 / stalls.a_second, count)
        pauses = rng.choice(np.array(stalls.pauses_s), count)
        env.process(machine.cores.stall(core, gaps.tolist(), pauses.tolist()))


def _happen(
    env: simpy.Environment,
    incident: FleetIncident,
    machines: Sequence[Machine],
    known: list[int],
    detect_s: float,
) -> Steps:
    yield env.timeout(incident.at_s)
    machine = machines[incident.machine]
    if incident.kind == "rollout":
        yield from machine.roll_out()
    elif incident.kind == "replica killed":
        machine.replicas[0].kill()
    else:
        machine.kill()
        yield env.timeout(detect_s)
        if len(known) > 1:  # a front that knows none sends where it did
            known.remove(incident.machine)
