"""Tables of the page on planning: what `toxicity plan` says of road.json, at two loads."""

from __future__ import annotations

from pathlib import Path

from bench.report.page_tables import MISSING, Document, Rows, each, number, percent
from fleet.arithmetic import Plan, plan
from fleet.config import PlanConfig
from fleet.measured import ROAD, Measured, measured_of

_LOADS = (100_000, 1_000_000)
_REPEATS = 0.3
_P99_MS = 50


def plans(document: Document) -> Rows:
    """Cores, machines, replicas and memory by load: `toxicity plan --rps N --repeats 0.3`."""
    head = [
        "requests/s",
        "cores needed",
        "by each visit",
        "saved by the cache",
        "machines of 16 cores",
    ]
    head += ["replicas", "memory in GiB", "cores in use", "a zone lost"]
    return [head, *(_row(one) for one in _plans(document))]


def _row(one: Plan) -> list[str]:
    return [
        *(
            number(one.rps),
            number(one.cores),
            each(list(one.visits)),
            number(one.uncached_cores - one.cores),
        ),
        *(number(one.machines), number(one.replicas), number(one.memory_gib)),
        *(percent(one.utilisation), percent(one.utilisation_lost)),
    ]


def limits(document: Document) -> Rows:
    """Of one machine, a zone lost, at the higher load: the first is what breaks first."""
    rows = [["of one machine, a zone lost", "used", "limit", "share"]]
    for one in _plans(document)[-1].limits:
        digits = 0 if one.limit > 100 else 1
        limit = f"{number(one.limit, digits)} {one.unit}"
        rows.append([one.name, number(one.used, digits), limit, percent(one.share)])
    return rows


def drivers(document: Document) -> Rows:
    """Whose CPU time a request is."""
    one = _plans(document)[-1]
    rows = [["part", "CPU a request in us", "share"]]
    return rows + [
        [part, number(one.cpu_us[part], 1), percent(share)]
        for part, share in one.drivers.items()
        if number(one.cpu_us[part], 1) != MISSING
    ]


def _plans(document: Document) -> list[Plan]:
    measured = _measured(document)
    found = (PlanConfig(rps=rps, repeats=_REPEATS, p99_ms=_P99_MS) for rps in _LOADS)
    return [plan(config, measured) for config in found]


def _measured(document: Document) -> Measured:
    return measured_of(document, Path(ROAD), document["artifact"]["precision"], _P99_MS)
