"""Hours of mixed load on a door, with publishes, rollbacks, kills and restarts: `make soak`.

    python -m bench.hostile.soak --minutes 60 --seed 1

Starts `serve.door` on free ports from a copy of a repository. Honest clients send single comments
and batches as JSON and binary tensors, some repeated, over HTTP and gRPC; a few hostile ones send
what `bench.hostile.families` draws. At seeded times of the first two thirds a version is published
or rolled back, a server killed, the balancer ended; the last third shows whether memory grows. A
client whose request gets no answer at all, because its connection fails, sends it once more on a
new one, for which it waits up to RETRY_WITHIN_S; one that is refused or told of an error does not.
Every score is compared with the offline one of the version that its answer names. Prints what was
measured and writes `soak.json` and `soak.png`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses
from tqdm import tqdm

from bench.hostile import attackers, honest, tally, watch
from bench.hostile.children import Children
from bench.hostile.incidents import Incident, Incidents, copy_of, deaths_not_caused, schedule
from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_most,
    begin,
    document,
    report,
)
from bench.traffic.answers import ATOL
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from console.options import run
from export.repository import load_scorer, read_artifact
from serve import door, haproxy

RETRY_WITHIN_S = 10.0
_WARM_S = 2.0
_BINS = 300
_AFTER_S = 1.0
"""Answers so long after an incident still count as its own in the worst latency."""
_MOST_LEVEL = 1.25
"""Memory of the last tenth over that of the second tenth: incidents change it, within bounds."""
_MOST_GROWTH = 1.05
"""Memory at the end of the stretch without incidents over that of its second tenth."""
_SETTLE_S = 3.0
"""After an incident memory is not that of steady work."""
_HOSTILE_PAUSE_S = 0.2
INCIDENTS: dict[str, Any] = {"group": "incidents"}


@pydantic_dataclasses.dataclass(frozen=True)
class SoakConfig(ResultOptions):
    """Flags of `python -m bench.hostile.soak`."""

    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=SERVER
    )
    minutes: float = Field(60, ge=0.5, description="length of the load", json_schema_extra=RUNS)
    publishes: int = Field(
        4, ge=0, description="versions that are published meanwhile", json_schema_extra=INCIDENTS
    )
    rollbacks: int = Field(
        2,
        ge=0,
        description="times that the version before serves again",
        json_schema_extra=INCIDENTS,
    )
    kills: int = Field(
        4, ge=0, description="times that the server is killed", json_schema_extra=INCIDENTS
    )
    balancer_ends: int = Field(
        4, ge=0, description="times that the balancer ends", json_schema_extra=INCIDENTS
    )
    grpc: bool = Field(True, description="also honest gRPC clients", json_schema_extra=LOAD)
    rate: float = Field(
        100, gt=0, description="honest HTTP requests a second", json_schema_extra=LOAD
    )
    grpc_rate: float = Field(
        20, gt=0, description="honest gRPC calls a second", json_schema_extra=LOAD
    )
    hostile: int = Field(
        2,
        ge=0,
        le=64,
        description="hostile connections, and as many slow ones",
        json_schema_extra=LOAD,
    )
    seed: int = Field(1, ge=0, description="of all that is drawn", json_schema_extra=RUNS)
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)

    @property
    def seconds(self) -> float:
        return 60 * self.minutes


@dataclass(frozen=True)
class SoakMeasured:
    """All that is judged."""

    records: dict[str, honest.Record]
    """Of the honest clients, by protocol."""
    wrong: dict[str, tuple[int, str]]
    """By protocol: comments with another score than offline, and words about the first."""
    published: list[int]
    incidents: list[Incident]
    deaths_not_caused: dict[str, int]
    memory: list[tuple[float, int]]
    """Monotonic time and bytes of all programs together."""
    began_s: float
    ended_s: float
    hostile: dict[str, tally.FamilyTally]


def main() -> None:
    from bench.report.plot import plot_soak  # the children need no plots

    config = begin(SoakConfig, "bench.hostile.soak", "Soak a door.")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        repository = copy_of(config.repository, Path(folder))
        with watch.opened(repository, grpc=config.grpc) as door_config:
            measured = _measure(config, door_config, Path(folder))
    found = _document(config, measured)
    plot_soak(found, config.out / "soak.png")
    report(config, found, "\n".join(_words(found)), also=("soak.png",))


# --- Measuring -----------------------------------------------------------------------------
def _measure(config: SoakConfig, door_config: door.DoorConfig, folder: Path) -> SoakMeasured:
    texts, pool = folder / "texts.json", load_pool(config.comments).texts
    texts.write_text(json.dumps(pool), "utf-8")
    records = {"http": folder / "http.npz"} | ({"grpc": folder / "grpc.npz"} if config.grpc else {})
    with Children() as children:
        clients = [
            children.start(
                honest.send_honestly, _honest_plan(config, door_config, protocol, texts, path)
            )
            for protocol, path in records.items()
        ]
        hostile = [children.start(attackers.attack, _hostile_plan(config, door_config, texts))]
        children.wait_until_ready([*clients, *hostile])
        for one in [*clients, *(hostile if config.hostile else [])]:
            one.go.set()
        time.sleep(_WARM_S)
        incidents, watched = Incidents(door_config), watch.Watch(door_config, _interval_s(config))
        began = time.monotonic()
        caused = _run(config, incidents, children, began)
        ended = time.monotonic()
        watched.stop()
        for one in [*hostile, *clients]:
            one.finish.set()
            one.go.set()
        reports = children.collect(hostile)
        children.join()
    read = {protocol: honest.read_record(path) for protocol, path in records.items()}
    programs = [watch.REPLICA, *haproxy.NAMES, *([watch.GRPC] if config.grpc else [])]
    return SoakMeasured(
        records=read,
        wrong=_compared(door_config.repository, pool, incidents.published, read),
        published=incidents.published,
        incidents=caused,
        deaths_not_caused=deaths_not_caused(
            watched.starts(), incidents.kills, incidents.balancer_ends, programs
        ),
        memory=watched.memory(programs),
        began_s=began,
        ended_s=ended,
        hostile=tally.merged([families for families, _ in reports]),
    )


def _interval_s(config: SoakConfig) -> float:
    return max(0.25, config.seconds / 2000)


def _honest_plan(
    config: SoakConfig, door_config: door.DoorConfig, protocol: str, texts: Path, path: Path
) -> honest.HonestPlan:
    grpc = protocol == "grpc"
    return honest.HonestPlan(
        port=door_config.grpc_port if grpc else door_config.http_port,
        texts=texts,
        record=path,
        rate=config.grpc_rate if grpc else config.rate,
        seed=config.seed + grpc,
        retry_within_s=RETRY_WITHIN_S,
        grpc=grpc,
    )


def _hostile_plan(config: SoakConfig, door_config: door.DoorConfig, texts: Path) -> attackers.Plan:
    return attackers.Plan(
        port=door_config.http_port,
        grpc_port=door_config.grpc_port,
        repository=door_config.repository,
        version=None,
        texts=texts,
        seed=config.seed,
        count=10**12,
        connections=config.hostile,
        slow=config.hostile,
        sources=("127.0.1.2",),
        leave_idle=False,
        pause_s=_HOSTILE_PAUSE_S,
    )


def _run(
    config: SoakConfig, incidents: Incidents, children: Children, began: float
) -> list[Incident]:
    """Cause what is due until the time is over."""
    due = schedule(
        {
            "publish": config.publishes,
            "rollback": config.rollbacks,
            "kill": config.kills,
            "balancer": config.balancer_ends,
        },
        config.seconds,
        config.seed,
    )
    caused: list[Incident] = []
    with tqdm(total=int(config.seconds), desc="soak", unit="s", disable=None) as bar:
        while (passed := time.monotonic() - began) < config.seconds:
            children.refuse_failed()
            bar.update(int(passed) - bar.n)
            if due and passed >= due[0][0]:
                caused.append(incidents.cause(due.pop(0)[1]))
                bar.set_postfix_str(f"{caused[-1].kind}, {caused[-1].words}")
            time.sleep(0.1)
    return caused


def _compared(
    repository: Path, texts: list[str], published: Sequence[int], records: dict[str, Any]
) -> dict[str, tuple[int, str]]:
    scorers = {version: load_scorer(repository, version) for version in published}
    atol = ATOL[read_artifact(repository)["precision"]]
    return {
        protocol: honest.verify(record, texts, scorers, atol)
        for protocol, record in records.items()
    }


# --- Judging -------------------------------------------------------------------------------
def bars(measured: SoakMeasured) -> Bars:
    """What must hold, on any machine."""
    records = measured.records.values()
    lost = sum(int((record.ending == honest.LOST).sum()) for record in records)
    strange = sum(int((~np.isin(record.version, measured.published)).sum()) for record in records)
    level = watch.level(measured.memory)
    values: dict[str, tuple[float, float]] = {
        "requests_lost": (lost, 0),
        "wrong_scores": (sum(count for count, _ in measured.wrong.values()), 0),
        "versions_not_published": (strange, 0),
        "deaths_not_caused": (sum(map(abs, measured.deaths_not_caused.values())), 0),
        "hostile_wrong": (tally.total(measured.hostile, "wrong"), 0),
        "memory_growth": (watch.growth(_steady(measured)), _MOST_GROWTH),
        "memory_level": (level, _MOST_LEVEL),
    }
    return {name: at_most(value, bar) for name, (value, bar) in values.items()}


def _steady(measured: SoakMeasured) -> list[tuple[float, int]]:
    """Memory after the last incident: before it each server warms up anew."""
    over = max((one.recovered_s + _SETTLE_S for one in measured.incidents), default=0.0)
    return [(at, value) for at, value in measured.memory if at >= over]


def _document(config: SoakConfig, measured: SoakMeasured) -> dict[str, Any]:
    return document(
        "soak",
        config,
        retry_rule="a request without any answer is sent once more, on a new connection within "
        f"{RETRY_WITHIN_S:g} s",
        seconds=round(measured.ended_s - measured.began_s, 1),
        published=measured.published,
        honest={
            protocol: _counts(record, measured.wrong[protocol][1])
            for protocol, record in measured.records.items()
        },
        incidents=[_described(one, measured) for one in measured.incidents],
        deaths_not_caused=measured.deaths_not_caused,
        hostile=tally.to_json(measured.hostile),
        over_time=_over_time(measured),
        bars=bars(measured),
    )


def _counts(record: honest.Record, first_wrong: str) -> dict[str, Any]:
    scored = record.latency_ms[record.ending == honest.OK]
    p50, p99 = np.percentile(scored, (50, 99)) if len(scored) else (0.0, 0.0)
    return {
        "requests": len(record.due_s),
        "scored": len(scored),
        "refused": int((record.ending == honest.REFUSED).sum()),
        "lost": int((record.ending == honest.LOST).sum()),
        "sent_twice": record.retried,
        "reasons": dict(record.reasons),
        "first_wrong": first_wrong,
        "comments_by_version": {
            str(version): int((record.version == version).sum())
            for version in np.unique(record.version)
        },
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
    }


def _described(incident: Incident, measured: SoakMeasured) -> dict[str, Any]:
    worst = 0.0
    for record in measured.records.values():
        rows = (record.due_s >= incident.began_s - _AFTER_S) & (
            record.due_s <= incident.recovered_s + _AFTER_S
        )
        worst = max(worst, float(record.latency_ms[rows].max(initial=0.0)))
    return {
        "kind": incident.kind,
        "what": incident.words,
        "at_s": round(incident.began_s - measured.began_s, 2),
        "recovery_s": round(incident.recovered_s - incident.began_s, 2),
        "worst_honest_ms": round(worst, 1),
    }


def _over_time(measured: SoakMeasured) -> dict[str, list[float | None]]:
    """Rate, p99 and memory in equal parts of the run; None where a part has none."""
    seconds = measured.ended_s - measured.began_s
    bins = int(min(_BINS, max(1, seconds)))
    edges = measured.began_s + np.linspace(0, seconds, bins + 1)
    records = [*measured.records.values()]
    due = np.concatenate([record.due_s for record in records])
    latency = np.concatenate([record.latency_ms for record in records])
    ending = np.concatenate([record.ending for record in records])
    part = np.digitize(due, edges) - 1
    memory_at = np.digitize([at for at, _ in measured.memory], edges) - 1
    memory = np.array([value for _, value in measured.memory]) / 2**20

    def rate(of: int) -> list[float | None]:
        return [
            round(float(((part == n) & (ending == of)).sum()) * bins / seconds, 2)
            for n in range(bins)
        ]

    def of_part(values: np.ndarray, at: np.ndarray, of: Any) -> list[float | None]:
        found = [values[at == n] for n in range(bins)]
        return [round(float(of(one)), 2) if len(one) else None for one in found]

    scored = ending == honest.OK
    return {
        "at_s": [round(float(at), 2) for at in edges[:-1] - measured.began_s],
        "scored_rps": rate(honest.OK),
        "refused_rps": rate(honest.REFUSED),
        "lost_rps": rate(honest.LOST),
        "p99_ms": of_part(latency[scored], part[scored], lambda one: np.percentile(one, 99)),
        "memory_mib": of_part(memory, memory_at, np.max),
    }


# --- Telling -------------------------------------------------------------------------------
def _words(found: dict[str, Any]) -> Iterator[str]:
    for protocol, one in found["honest"].items():
        yield (
            f"{protocol}: {one['requests']:,} requests, {one['scored']:,} scored, "
            f"{one['refused']} refused, {one['lost']} lost, {one['sent_twice']} sent twice; p50 "
            f"{one['p50_ms']:.1f}, p99 {one['p99_ms']:.1f} ms; comments by version "
            f"{one['comments_by_version']}"
        )
        for reason, count in [*one["reasons"].items()][:5]:
            yield f"{protocol}: {count} lost: {reason}"
        if one["first_wrong"]:
            yield f"{protocol}: {one['first_wrong']}"
    for one in found["incidents"]:
        yield (
            f"{one['at_s']:8.1f} s  {one['kind']:9} {one['what']:16} well again after "
            f"{one['recovery_s']:5.2f} s, worst honest answer {one['worst_honest_ms']:7.1f} ms"
        )


if __name__ == "__main__":
    run(main)
