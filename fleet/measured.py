"""What was measured of one artifact on one machine, read from the result files of the benches.

`road.json` is needed: its runs behind haproxy have the CPU time of each part, the rate of an open
loop at its p99, memory and batches. `simulation.json`, where it is of the same artifact, has the
bytes of a request, too. Nothing is filled in for a figure that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import BadInput
from fleet.service_times import OUTSIDE
from storage.files import read_json

ROAD = Path("road/road.json")
SIMULATION = Path("simulation/simulation.json")
_REMEDY = "measure with `toxicity bench road`, or name another folder with --results"
PARTS = (*OUTSIDE, "tokenizer", "encoder")
"""Of a request's CPU time, as bench.traffic.counters has them; the generator's is no part of it."""


@dataclass(frozen=True)
class Figure:
    """A number and where it is from."""

    value: float
    unit: str
    source: str
    """A result file and what of it, a flag, or "assumed" and why."""


@dataclass(frozen=True)
class Stalls:
    """How a core is taken away, as a probe saw it (bench/serving/simulation.py)."""

    a_second: float
    """Of one core."""
    pauses_s: tuple[float, ...]
    """Of those that were seen; a simulated one is one of these."""


@dataclass(frozen=True)
class MeasuredServer:
    """Of one replica behind haproxy on all cores of one machine."""

    artifact: str
    """First twelve digits of the graph's sha256."""
    precision: str
    machine: str
    cores: int
    replicas: int
    instances: int
    window_ms: float
    cpu_us: Mapping[str, float]
    """CPU microseconds a request by PARTS; of the encoder, for a comment that no cache knows."""
    generator_us: float
    rate_rps: float
    """Of the open loop that is planned with: valid, without an error, p99 within the objective."""
    p99_ms: float
    """Of that run."""
    mean_ms: float
    p50_ms: float
    hits: float
    """Share of that run's comments that the cache knew."""
    utilisation: float
    """Share of all cores' time that was used then, by the load generator, too."""
    replica_mib: float
    beside_mib: float
    """haproxy and the application, once a machine."""
    start_s: float
    tokens: Mapping[str, float]
    """Of the comments: `median`, `mean`, and `seen`, the mean after the cut at `max_len`."""
    max_len: int
    visits_s: tuple[float, ...]
    """Core seconds a request, at the utilisation of each visit's best open loop, least first."""
    runs: tuple[Mapping[str, Any], ...]
    """Every run behind haproxy, as `bench.traffic.one_run.Result` has it."""
    source: str
    request_bytes: Figure | None = None
    response_bytes: Figure | None = None
    stalls: Stalls | None = None

    @property
    def total_us(self) -> float:
        """CPU microseconds of a request that no cache knows, without the generator's."""
        return sum(self.cpu_us.values())


def read_measured(results: Path, precision: str, p99_ms: float) -> MeasuredServer:
    """The figures of the artifact in `results`, of a run whose p99 was at most `p99_ms`.

    Raises BadInput, in one line, when a document or a figure is missing, when the artifact has
    another precision, and when no measured open loop held the objective.
    """
    path = results / ROAD
    return measured_of(read_json(path, _REMEDY), path, precision, p99_ms, results / SIMULATION)


def measured_of(
    road: Mapping[str, Any],
    path: Path,
    precision: str,
    p99_ms: float,
    simulation: Path | None = None,
) -> MeasuredServer:
    """The same of a road.json that was read; `path` is what errors name. Raises as above."""
    try:
        return _measured(path, road, precision, p99_ms, simulation)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadInput(
            f"{path} lacks {error}, expected what this release's bench writes; {_REMEDY}"
        ) from error


def _measured(
    path: Path, road: Mapping[str, Any], precision: str, p99_ms: float, simulation: Path | None
) -> MeasuredServer:
    artifact, hardware, tuning = road["artifact"], road["hardware"], road["tuning"]
    if artifact["precision"] != precision:
        raise BadInput(
            f"--precision is {precision}, expected {artifact['precision']}, which {path} is of; "
            f"{_REMEDY}"
        )
    visits, plain = road["servers"]["door"], road["servers"]["native"]
    if not visits:
        raise BadInput(f"{path} has no run behind haproxy, expected some; {_REMEDY}")
    runs = [run for visit in visits for run in _runs(visit)]
    held = _best_open(path, visits, p99_ms)
    cores = int(hardware["cores"])
    # Of several visits the costliest: the others are how much better it may be.
    best = max(held, key=lambda run: _core_seconds(run, cores))
    cpu = best["cpu_us"]
    known = float(best["cache_hit_share"])
    parts = {part: float(cpu.get(part, 0.0)) for part in PARTS}
    parts["encoder"] /= 1 - known
    tokens = road["comments"]["tokens"]
    cut = [value for name, value in tokens.items() if name.startswith("mean_cut_at_")]
    replica = max(float(visit["memory_mib"]) for visit in plain)
    name = artifact["onnx_sha256"][:12]
    isa = ", ".join(hardware["isa"])
    return MeasuredServer(
        artifact=name,
        precision=precision,
        machine=f"{hardware['cpu']}, {cores} cores ({isa}), {hardware['memory_gib']} GiB",
        cores=cores,
        replicas=1,
        instances=int(tuning["instances"]),
        window_ms=float(tuning["window_ms"]),
        cpu_us=parts,
        generator_us=float(cpu["generator"]),
        rate_rps=float(best["rate_rps"]),
        p99_ms=float(best["latency_ms"]["p99"]),
        mean_ms=float(best["latency_ms"]["mean"]),
        p50_ms=float(best["latency_ms"]["p50"]),
        hits=known,
        utilisation=sum(cpu.values()) * float(best["rate_rps"]) / 1e6 / cores,
        replica_mib=replica,
        beside_mib=max(0.0, max(float(visit["memory_mib"]) for visit in visits) - replica),
        start_s=max(float(visit["start_s"]) for visit in visits),
        tokens={
            "median": float(tokens["median"]),
            "mean": float(tokens["mean"]),
            "seen": float(cut[0]) if cut else float(tokens["mean"]),
        },
        max_len=int(artifact["max_len"]),
        visits_s=tuple(sorted(_core_seconds(run, cores) for run in held)),
        runs=tuple(runs),
        source=path.name,
        **_more(simulation, artifact["onnx_sha256"]),
    )


def _runs(visit: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    more = [visit[name] for name in ("repeats", "hits") if visit.get(name)]
    return [*visit["closed"].values(), *more, *visit["open"]]


def _core_seconds(run: Mapping[str, Any], cores: int) -> float:
    """Of a request that no cache knows, over the utilisation of the run."""
    cpu, known = run["cpu_us"], float(run["cache_hit_share"])
    if known >= 1 or not cpu["encoder"]:
        raise ValueError("an open loop with new comments")
    used = sum(float(cpu.get(part, 0.0)) for part in PARTS)
    used += float(cpu["encoder"]) * known / (1 - known)
    return used / 1e6 / (sum(cpu.values()) * float(run["rate_rps"]) / 1e6 / cores)


def _best_open(
    path: Path, visits: list[Mapping[str, Any]], p99_ms: float
) -> list[Mapping[str, Any]]:
    """Of each visit the quickest open loop that was valid, without error, within the objective."""
    valid, good = [], []
    for visit in visits:
        runs = [r for r in visit["open"] if not r["failures"] and not r["check"]["invalid"]]
        held = [run for run in runs if run["latency_ms"]["p99"] <= p99_ms]
        valid += runs
        good += [max(held, key=lambda run: float(run["rate_rps"]))] if held else []
    if good:
        return good
    if not valid:
        raise BadInput(f"{path} has no valid open loop behind haproxy, expected one; {_REMEDY}")
    least = min(run["latency_ms"]["p99"] for run in valid)
    raise BadInput(
        f"--p99-ms is {p99_ms:g}, expected at least {least:.1f}, the least p99 of an open loop in "
        f"{path}; {_REMEDY}"
    )


def _more(path: Path | None, onnx_sha256: str) -> dict[str, Any]:
    """What the simulation's bench counted of the same artifact: bytes, and how cores are taken."""
    if path is None or not path.is_file():
        return {}
    found = read_json(path, "run `toxicity bench simulation`, or remove it")
    if found["artifact"]["onnx_sha256"] != onnx_sha256:
        return {}
    source = f"{path.name}: haproxy's own counters"
    stalls = found["stalls"]
    return {
        "request_bytes": Figure(float(found["bytes"]["request"]), "bytes", source),
        "response_bytes": Figure(float(found["bytes"]["response"]), "bytes", source),
        "stalls": Stalls(float(stalls["a_second"]), tuple(stalls["pauses_s"])),
    }


def read_beside(results: Path, measured: MeasuredServer) -> dict[str, Figure]:
    """Rates of other result files, to judge the plan by; of what is there, and none planned with.

    Each says which artifact it is of: figures of two do not belong in one plan.
    """
    found: dict[str, Figure] = {}
    for file, rows, rung in (
        ("peers/peers.json", "peers", "ours: published version"),
        ("capacity/capacity.json", "rungs", "published, a replica a core"),
    ):
        path = results / file
        if not path.is_file():
            continue
        document = read_json(path, "run the bench again, or remove it")
        named = document.get("artifact", {}).get("onnx_sha256", "")[:12]
        of = "same artifact" if named == measured.artifact else f"artifact {named or 'not named'}"
        for row in document.get(rows, ()):
            if row["rung"]["name"] == rung:
                p99 = row["result"]["latency_ms"]["p99"]
                found[f"open loop, {rung}"] = Figure(
                    float(row["capacity_rps"]),
                    f"/s, p99 {p99:.0f} ms",
                    f"{path.name}, {of}, {document['hardware']['cpu']}, "
                    f"{document['hardware']['cores']} cores",
                )
    path = results / "cache/cache.json"
    if path.is_file():
        document = read_json(path, "run the bench again, or remove it")
        named = document.get("artifact", {}).get("onnx_sha256", "")[:12]
        of = "same artifact" if named == measured.artifact else f"artifact {named or 'not named'}"
        for name, bar in document.get("bars", {}).items():
            if bar["value"] is not None:
                words = name.replace("cpu_at_", "").replace("_percent", " % repeats")
                found[f"CPU with the cache over without, {words}"] = Figure(
                    float(bar["value"]), "", f"{path.name}, {of}"
                )
    return found
