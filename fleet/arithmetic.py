"""Cores, replicas, machines, memory, bits and money for a load, from what was measured.

Utilisation law (Denning & Buzen, "The operational analysis of queueing network models", ACM
Computing Surveys 10(3), 1978): cores in use = requests a second x CPU seconds a request. Little's
law (Little, Operations Research 9(3), 1961): requests in flight = requests a second x seconds each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from contract import DEFAULT_CACHE_BYTES, MAX_CONNECTIONS
from fleet.config import PlanConfig
from fleet.measured import PARTS, Figure, MeasuredServer

_MIB_A_GIB, _HOURS_A_MONTH = 1024, 730


@dataclass(frozen=True)
class Limit:
    """How much of a resource of one machine is used once a zone is lost."""

    name: str
    used: float
    limit: float
    unit: str
    source: str

    @property
    def share(self) -> float:
        """Below 1 while it holds."""
        return self.used / self.limit


@dataclass(frozen=True)
class FleetPlan:
    """What a load needs."""

    rps: float
    cpu_us: Mapping[str, float]
    """CPU microseconds a request by PARTS, with the repeats that the cache knows."""
    cores: float
    """Needed at the measured utilisation, a zone's loss not counted."""
    uncached_cores: float
    """The same where nothing repeats."""
    visits: tuple[float, ...]
    """The same by each visit of the bench; the last one is planned with."""
    machines_a_zone: int
    zones: int
    replicas_a_machine: int
    cores_a_machine: int
    memory_gib: float
    machine_gib: float
    network_bits: float | None
    """Both directions, a second; None where the bytes of a request are not known."""
    utilisation: float
    """Of each machine while every zone is there."""
    utilisation_lost: float
    """Of those that are left once a zone is lost; of all where there is but one zone."""
    cost_hour: float | None
    limits: tuple[Limit, ...]
    """Of one machine once a zone is lost; the one that breaks first is first."""
    slow_connections: float
    """Of one machine in flight, were every answer as slow as the objective."""
    assumptions: Mapping[str, Figure]

    @property
    def machines(self) -> int:
        """In all zones; each has a balancer of its own."""
        return self.machines_a_zone * self.zones

    @property
    def replicas(self) -> int:
        """In all zones."""
        return self.machines * self.replicas_a_machine

    @property
    def cost_month(self) -> float | None:
        """Of 730 hours."""
        return None if self.cost_hour is None else self.cost_hour * _HOURS_A_MONTH

    @property
    def cost_a_million(self) -> float | None:
        """Of a million requests, when the load is there all the time."""
        return None if self.cost_hour is None else self.cost_hour / (self.rps * 3600) * 1e6

    @property
    def drivers(self) -> dict[str, float]:
        """Share of the CPU time by part, greatest first."""
        total = sum(self.cpu_us.values())
        ordered = sorted(self.cpu_us.items(), key=lambda item: -item[1])
        return {part: us / total for part, us in ordered}


def plan(config: PlanConfig, measured: MeasuredServer) -> FleetPlan:
    """Machines such that the load fits at the measured utilisation with any one zone lost."""
    assert config.rps is not None  # the config refuses a plan without
    rps = config.rps
    cpu_us = _cpu_us(measured, config.repeats)
    cores = _cores(rps, cpu_us, measured)
    left = max(1, config.zones - 1)
    machines_a_zone = math.ceil(max(1.0, cores / config.cores_per_machine) / left - 1e-9)
    machines = machines_a_zone * config.zones
    replicas = max(1, config.cores_per_machine // measured.cores * measured.replicas)
    machine_gib = (replicas * _replica_mib(measured) + measured.beside_mib) / _MIB_A_GIB
    busy = rps * sum(cpu_us.values()) / 1e6
    bits = _bits_a_request(config, measured)
    price = config.price_per_core_hour
    surviving = machines_a_zone * (left if config.zones > 1 else 1)
    return FleetPlan(
        rps=rps,
        cpu_us=cpu_us,
        cores=cores,
        visits=tuple(rps * seconds for seconds in measured.visits_s),
        uncached_cores=_cores(rps, measured.cpu_us, measured),
        machines_a_zone=machines_a_zone,
        zones=config.zones,
        replicas_a_machine=replicas,
        cores_a_machine=config.cores_per_machine,
        memory_gib=machines * machine_gib,
        machine_gib=machine_gib,
        network_bits=None if bits is None else rps * bits,
        utilisation=busy / (machines * config.cores_per_machine),
        utilisation_lost=busy / (surviving * config.cores_per_machine),
        cost_hour=None if price is None else machines * config.cores_per_machine * price,
        limits=_limits(config, measured, cpu_us, surviving, replicas, machine_gib, bits),
        slow_connections=rps / surviving * config.p99_ms / 1e3,
        assumptions=assumptions(config, measured),
    )


def _cpu_us(measured: MeasuredServer, repeats: float) -> dict[str, float]:
    """A comment that the cache knows costs what another does, without the encoder."""
    return {**measured.cpu_us, "encoder": measured.cpu_us["encoder"] * (1 - repeats)}


def _cores(rps: float, cpu_us: Mapping[str, float], measured: MeasuredServer) -> float:
    return rps * sum(cpu_us[part] for part in PARTS) / 1e6 / measured.utilisation


def _replica_mib(measured: MeasuredServer) -> float:
    """As measured, and at least with a full cache beside nothing."""
    return max(measured.replica_mib, DEFAULT_CACHE_BYTES / 2**20)


def _bits_a_request(config: PlanConfig, measured: MeasuredServer) -> float | None:
    there, back = network(config, measured)
    return None if there is None or back is None else 8 * (there.value + back.value)


def network(config: PlanConfig, measured: MeasuredServer) -> tuple[Figure | None, Figure | None]:
    """Bytes of a request and of its answer: the flags', or else measured, or None."""
    found = []
    for name in ("request_bytes", "response_bytes"):
        given = getattr(config, name)
        flag = f"--{name.replace('_', '-')}"
        found.append(Figure(given, "bytes", flag) if given else getattr(measured, name))
    return found[0], found[1]


def _limits(
    config: PlanConfig,
    measured: MeasuredServer,
    cpu_us: Mapping[str, float],
    machines: int,
    replicas: int,
    machine_gib: float,
    bits: float | None,
) -> tuple[Limit, ...]:
    """Each resource of one of `machines` that are left; the fullest first."""
    rate = (config.rps or 0) / machines
    model_us = cpu_us["tokenizer"] + cpu_us["encoder"]
    instances = replicas * measured.instances
    found = [
        Limit(
            "cores",
            rate * sum(cpu_us.values()) / 1e6,
            measured.utilisation * config.cores_per_machine,
            "cores",
            f"utilisation at which p99 was {measured.p99_ms:.1f} ms, {measured.source}",
        ),
        Limit(
            "sessions of the model",
            rate * model_us / 1e6,
            measured.utilisation * instances,
            "threads",
            f"{measured.instances} a replica, {measured.source}",
        ),
        Limit(
            "connections in flight",
            rate * measured.mean_ms / 1e3,
            MAX_CONNECTIONS,
            "connections",
            f"Little's law, mean {measured.mean_ms:.1f} ms of {measured.source}; idle ones not "
            "counted; contract.py",
        ),
    ]
    if bits is not None and config.machine_gbits:
        found.append(
            Limit("network", rate * bits / 1e9, config.machine_gbits, "Gbit/s", "--machine-gbits")
        )
    if config.machine_memory_gib:
        memory = config.machine_memory_gib
        found.append(Limit("memory", machine_gib, memory, "GiB", "--machine-memory-gib"))
    return tuple(sorted(found, key=lambda limit: -limit.share))


def assumptions(config: PlanConfig, measured: MeasuredServer) -> dict[str, Figure]:
    """Every number that the plan rests on, and where it is from."""
    run = f"{measured.source}, open loop of {measured.rate_rps:,.0f}/s behind haproxy"
    found = {
        f"CPU a request, {part}": Figure(us, "us", run) for part, us in measured.cpu_us.items()
    }
    found["utilisation that held the p99"] = Figure(
        measured.utilisation, "of the cores", f"{run}, the load generator's time counted"
    )
    found["p99 of that run"] = Figure(measured.p99_ms, "ms", run)
    found["mean latency of that run"] = Figure(measured.mean_ms, "ms", run)
    found["comments that a cache knows"] = Figure(config.repeats, "of all", "--repeats")
    found["memory of a replica"] = Figure(measured.replica_mib, "MiB", measured.source)
    found["memory of haproxy and the application"] = Figure(
        measured.beside_mib, "MiB a machine", f"{measured.source}, with haproxy less without"
    )
    found["cores of a replica"] = Figure(
        measured.cores / measured.replicas,
        "cores",
        f"{measured.source}; fewer or more: not measured",
    )
    found["cores of a machine"] = Figure(
        config.cores_per_machine,
        "cores",
        f"--cores-per-machine; assumed: a request costs them what it costs {measured.cores}",
    )
    found["zones"] = Figure(
        config.zones, "zones", "--zones; assumed: equal, and traffic is spread evenly"
    )
    for name, figure in zip(("request", "answer"), network(config, measured), strict=True):
        if figure:
            found[f"bytes a {name}"] = figure
    if config.price_per_core_hour:
        found["price of a core"] = Figure(
            config.price_per_core_hour, "an hour", "--price-per-core-hour"
        )
    return found
