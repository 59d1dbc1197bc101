"""Tables of the page on planning: `toxicity plan` of road.json at two loads, and of a training."""

from __future__ import annotations

from pathlib import Path

from bench.report.page_tables import Document, Rows, each, number, percent
from console.options import make_config
from contract import BadInput
from fleet.arithmetic import FleetPlan, plan
from fleet.config import PlanConfig
from fleet.measured import ROAD, MeasuredServer, measured_of
from fleet.training import hours_of

_LOADS = (100_000, 1_000_000)
_REPEATS = 0.3
_P99_MS = 50
_TRAIN_ROWS = 1_800_000
_TRAIN_TOKENS = (50, 75, 100)


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


def _row(one: FleetPlan) -> list[str]:
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
    for one in [limit for found in _plans(document)[-1:] for limit in found.limits]:
        digits = 0 if one.limit > 100 else 1
        limit = f"{number(one.limit, digits)} {one.unit}"
        rows.append([one.name, number(one.used, digits), limit, percent(one.share)])
    return rows


def drivers(document: Document) -> Rows:
    """Whose CPU time a request is."""
    rows = [["part", "CPU a request in us", "share"]]
    for found in _plans(document)[-1:]:
        for part, share in found.drivers.items():
            rows.append([part, number(found.cpu_us[part], 1), percent(share)])
    return rows


def training(document: Document) -> Rows:
    """Hours of a training on as many comments as Civil Comments has, by their mean tokens.

    At the speed of the ablation's row without a change.
    """
    rate = next(row for row in document["rows"] if not row["changes"])["real_tokens_per_second"]
    model = document["config"]
    shape = f"{model['d_model']} x {model['n_layers']}"
    rows = [["comments", "mean tokens of one", "passes", "model", "tokens/s", "hours"]]
    for tokens in _TRAIN_TOKENS:
        hours = number(hours_of(_TRAIN_ROWS, tokens, 1, rate), 1)
        rows.append([number(_TRAIN_ROWS), number(tokens), "1", shape, number(rate), hours])
    return rows


def _plans(document: Document) -> list[FleetPlan]:
    """None where no open loop of the document held the objective: the tables are empty then."""
    try:
        server = measured(document)
    except BadInput:
        return []
    values = {"repeats": _REPEATS, "p99_ms": _P99_MS}
    found = (make_config(PlanConfig, {**values, "rps": rps}) for rps in _LOADS)
    return [plan(config, server) for config in found]


def measured(document: Document) -> MeasuredServer:
    """What plans are made of in a road.json. Raises BadInput where none can be."""
    return measured_of(document, Path(ROAD), document["artifact"]["precision"], _P99_MS)


def simulation(document: Document) -> Rows:
    """Two real replicas beside the simulation, one row a rate."""
    rows = [["requests/s", "p50 in ms real, simulated", "p99", "p99.9", "comments a batch"]]
    for run in document["runs"]:
        real, twin = run["measured"], run["simulated"]
        latencies = [
            each([one["latency_ms"][name] for one in (real, twin)], 1)
            for name in ("p50", "p99", "p99.9")
        ]
        batches = each([one["mean_batch"] for one in (real, twin)], 1)
        rows.append([number(real["rate_rps"]), *latencies, batches])
    return rows
