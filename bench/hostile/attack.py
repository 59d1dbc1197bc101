"""Attack a door of its own with a million hostile requests, honest clients beside: `make attack`.

    python -m bench.hostile.attack --requests 1000000 --seed 1

Starts `serve.door` on free ports from a repository. Honest clients send a modest load all the time
and have every score compared with the offline one; after a calm while, hypothesis sends JSON-like
bodies, and then several processes send requests of the families of `bench.hostile.families` over
raw sockets, from other addresses of this machine, each answer judged by `bench.hostile.legality`.
Beside them, gRPC calls with short deadlines and cancelled ones. At the end the clients leave open
what they had opened. Prints a table by family and writes `attack.json`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.hostile import attackers, honest, tally, watch
from bench.hostile.children import Children, Signals
from bench.hostile.families import GRPC, HYPOTHESIS
from bench.hostile.tally import FamilyTally
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
from contract import IDLE_TIMEOUT_S, ToxicityError
from export.repository import current, load_scorer, read_artifact
from serve import control, door, haproxy
from serve.supervisor import Supervisor

_END_MARGIN_S = 25
"""The bounds of headers and bodies, and some more."""
_MEMORY_FROM = 100_000
"""Requests from which on memory is judged."""
_SETTLE_S = 2.0
"""Of honest load before the calm counts, and after the attack."""


@pydantic_dataclasses.dataclass(frozen=True)
class AttackConfig(ResultOptions):
    """Flags of `python -m bench.hostile.attack`."""

    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=SERVER
    )
    requests: int = Field(
        1_000_000, ge=100, description="hostile requests over raw sockets", json_schema_extra=LOAD
    )
    examples: int = Field(
        3000, ge=0, description="bodies that hypothesis makes; 0 for none", json_schema_extra=LOAD
    )
    grpc: bool = Field(
        True,
        description="also gRPC calls that are cancelled or run out of time",
        json_schema_extra=LOAD,
    )
    processes: int = Field(
        2, ge=1, le=64, description="processes that attack", json_schema_extra=LOAD
    )
    connections: int = Field(
        64, ge=1, le=512, description="connections of each at a time", json_schema_extra=LOAD
    )
    slow: int = Field(
        64,
        ge=0,
        le=512,
        description="slow connections of each beside those",
        json_schema_extra=LOAD,
    )
    seed: int = Field(1, ge=0, description="of all that is drawn", json_schema_extra=RUNS)
    rate: float = Field(100, gt=0, description="honest requests a second", json_schema_extra=LOAD)
    calm_s: float = Field(
        10, ge=1, description="seconds of honest load before the attack", json_schema_extra=RUNS
    )
    leave_idle: bool = Field(
        True, description="leave idle connections to the door to close", json_schema_extra=LOAD
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)


@dataclass(frozen=True)
class Honest:
    """How the honest clients fared."""

    requests: int
    lost: int
    """Without an answer, or with one that is neither a score nor a refusal for too much load."""
    refused: int
    wrong: int
    """Comments whose score is not the offline one."""
    first_wrong: str
    reasons: dict[str, int]
    calm_ms: dict[str, float]
    attacked_ms: dict[str, float]
    """p50, p99 and max of scored requests before and during the attack."""


@dataclass(frozen=True)
class AttackMeasured:
    """All that is judged."""

    families: dict[str, FamilyTally]
    honest: Honest
    starts: dict[str, int]
    """Of each program, by the supervisor: one is the first."""
    memory_growth: float
    memory_mib: dict[str, tuple[float, float]]
    """By program: at the second tenth and at the end."""
    left_open: int
    """Connections that the attackers held at their end."""
    open_at_end: int
    """Those that the door still had after every bound."""
    closed_after_s: float
    seconds: float
    scores: bool
    """Whether the door scores when all is over."""


def main() -> None:
    config = begin(AttackConfig, "bench.hostile.attack", "Attack a door.")
    with watch.opened(config.repository, grpc=config.grpc) as door_config:
        measured = _measure(config, door_config)
    table = [tally.table(measured.families), *_words(measured)]
    report(config, _document(config, measured), "\n".join(table))


# --- Measuring -----------------------------------------------------------------------------
def _measure(config: AttackConfig, door_config: door.DoorConfig) -> AttackMeasured:
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        texts, record = Path(folder) / "texts.json", Path(folder) / "honest.npz"
        pool = load_pool(config.comments).texts
        texts.write_text(json.dumps(pool), "utf-8")
        clients = children.start(
            honest.send_honestly,
            honest.HonestPlan(
                port=door_config.http_port,
                texts=texts,
                record=record,
                rate=config.rate,
                seed=config.seed,
            ),
        )
        attackers_ = _start(config, door_config, children, texts)
        children.wait_until_ready([clients, *attackers_.all])
        clients.go.set()
        time.sleep(_SETTLE_S)
        calm = time.monotonic()
        time.sleep(config.calm_s)
        attacked, watched = time.monotonic(), watch.Watch(door_config, _interval_s(config))
        families, left_open = _attack(config, children, attackers_)
        ended = time.monotonic()
        watched.stop()
        time.sleep(_SETTLE_S)
        clients.finish.set()
        children.wait_until(record.exists)
        most_s = (IDLE_TIMEOUT_S if config.leave_idle else 0) + _END_MARGIN_S
        closed_s, open_at_end = watch.closed_after_s(door_config, most_s)
        attackers_.finish()
        children.join()
        socket = Supervisor(door_config.run_dir).program_folder(watch.REPLICA)
        programs = (watch.REPLICA, *haproxy.NAMES, *([watch.GRPC] if config.grpc else []))
        read = honest.read_record(record)
        return AttackMeasured(
            families=families,
            honest=_judge_honest(config.repository, pool, read, (calm, attacked, ended)),
            starts=watched.starts(),
            memory_growth=watch.growth(watched.memory([watch.REPLICA, *haproxy.NAMES])),
            memory_mib={name: watch.ends_mib(watched.memory([name])) for name in programs},
            left_open=left_open,
            open_at_end=open_at_end,
            closed_after_s=closed_s,
            seconds=ended - attacked,
            scores=control.scores(socket / control.HTTP_SOCKET),
        )


def _interval_s(config: AttackConfig) -> float:
    return 1.0 if config.requests > 100_000 else 0.25


@dataclass(frozen=True)
class _Attackers:
    """The processes that attack, by phase."""

    explorer: list[Signals]
    raw: list[Signals]
    grpc: list[Signals]

    @property
    def all(self) -> list[Signals]:
        return [*self.explorer, *self.raw, *self.grpc]

    def finish(self) -> None:
        for one in self.all:
            one.finish.set()


def _start(
    config: AttackConfig, door_config: door.DoorConfig, children: Children, texts: Path
) -> _Attackers:
    """Have all of them loaded before the calm begins."""
    version = current(config.repository)

    def plan(number: int, count: int, **more: Any) -> attackers.Plan:
        return attackers.Plan(
            port=door_config.http_port,
            grpc_port=door_config.grpc_port,
            repository=config.repository,
            version=version,
            texts=texts,
            seed=1000 * config.seed + number,
            count=count,
            sources=tuple(f"127.0.{number}.{last}" for last in range(2, 10)),
            leave_idle=config.leave_idle,
            **more,
        )

    share = -(-config.requests // config.processes)
    size = {"connections": config.connections, "slow": config.slow}
    return _Attackers(
        explorer=[children.start(attackers.explore, plan(99, config.examples))]
        if config.examples
        else [],
        raw=[
            children.start(attackers.attack, plan(number + 1, share, **size))
            for number in range(config.processes)
        ],
        grpc=[children.start(attackers.give_up, plan(0, 0, connections=4))] if config.grpc else [],
    )


def _attack(
    config: AttackConfig, children: Children, attackers_: _Attackers
) -> tuple[dict[str, FamilyTally], int]:
    """Run the phases; what became of the requests, and how many connections are left open."""
    found = []
    for phase, total, words in (
        (attackers_.grpc, 0, GRPC),
        (attackers_.explorer, config.examples, HYPOTHESIS),
        (attackers_.raw, config.requests, "hostile"),
    ):
        for one in phase:
            one.go.set()
        if phase is not attackers_.grpc:
            found += children.collect(phase, total, words)
    for one in attackers_.grpc:
        one.finish.set()
    found += children.collect(attackers_.grpc)
    return tally.merged([families for families, _ in found]), sum(count for _, count in found)


def _judge_honest(
    repository: Path, texts: list[str], record: honest.Record, times: tuple[float, float, float]
) -> Honest:
    calm, attacked, ended = times
    version = current(repository)
    atol = ATOL[read_artifact(repository, version)["precision"]]
    scorers = {version: load_scorer(repository, version)}
    wrong, words = honest.verify(record, texts, scorers, atol)

    def latency_ms(since: float, until: float) -> dict[str, float]:
        rows = (record.due_s >= since) & (record.due_s < until) & (record.ending == honest.OK)
        if not rows.any():
            raise ToxicityError("no honest request was scored; see the log of the server")
        found = record.latency_ms[rows]
        p50, p99 = np.percentile(found, (50, 99))
        return {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(float(found.max()), 3)}

    return Honest(
        requests=len(record.due_s),
        lost=int((record.ending == honest.LOST).sum()),
        refused=int((record.ending == honest.REFUSED).sum()),
        wrong=wrong,
        first_wrong=words,
        reasons=dict(record.reasons),
        calm_ms=latency_ms(calm, attacked),
        attacked_ms=latency_ms(attacked, ended),
    )


# --- Judging -------------------------------------------------------------------------------
def bars(measured: AttackMeasured) -> Bars:
    """What must hold. gRPC's own server may end: its release does (docs/security.md).

    Of a short run the memory is no bar: it grows until each buffer has held the largest body.
    """
    families, clients = measured.families, measured.honest
    http = {name: one for name, one in families.items() if name != GRPC}
    p99_bar = max(50.0, 10 * clients.calm_ms["p99"])
    most: dict[str, tuple[float, float]] = {
        "server_deaths": (measured.starts[watch.REPLICA] - 1, 0),
        "haproxy_deaths": (sum(measured.starts[name] - 1 for name in haproxy.NAMES), 0),
        "wrong_answers": (tally.total(families, "wrong"), 0),
        "unexpected_statuses": (tally.total(http, "unexpected"), 0),
        "hung": (tally.total(families, "hung"), 0),
        "honest_lost": (clients.lost, 0),
        "honest_wrong": (clients.wrong, 0),
        "honest_p99_ms": (clients.attacked_ms["p99"], round(p99_bar, 3)),
        "open_at_end": (measured.open_at_end, 0),
        "scores_no_more": (int(not measured.scores), 0),
    }
    if tally.total(families, "sent") >= _MEMORY_FROM:
        most["memory_growth"] = measured.memory_growth, 1.05
    return {name: at_most(value, bar) for name, (value, bar) in most.items()}


# --- Telling -------------------------------------------------------------------------------
def _document(config: AttackConfig, measured: AttackMeasured) -> dict[str, Any]:
    return document(
        "attack",
        config,
        seconds=round(measured.seconds, 1),
        sent=tally.total(measured.families, "sent"),
        families=tally.to_json(measured.families),
        honest=asdict(measured.honest),
        starts=measured.starts,
        memory_mib=measured.memory_mib,
        memory_growth=round(measured.memory_growth, 4),
        left_open=measured.left_open,
        closed_after_s=round(measured.closed_after_s, 1),
        bars=bars(measured),
    )


def _words(measured: AttackMeasured) -> Iterator[str]:
    clients, starts = measured.honest, measured.starts
    sent = tally.total(measured.families, "sent")
    yield (
        f"{sent:,} hostile requests in {measured.seconds:.0f} s, "
        f"{sent / measured.seconds:,.0f} a second"
    )
    yield (
        f"honest: {clients.requests:,} requests, {clients.lost} lost, {clients.refused} refused, "
        f"{clients.wrong} wrong scores; calm p50 {clients.calm_ms['p50']:.1f}, p99 "
        f"{clients.calm_ms['p99']:.1f} ms, attacked p50 {clients.attacked_ms['p50']:.1f}, p99 "
        f"{clients.attacked_ms['p99']:.1f} ms"
    )
    for reason, count in [*clients.reasons.items()][:5]:
        yield f"honest: {count} lost: {reason}"
    if clients.first_wrong:
        yield f"honest: {clients.first_wrong}"
    memory = ", ".join(
        f"{name} {a:.0f} -> {b:.0f} MiB" for name, (a, b) in measured.memory_mib.items()
    )
    yield f"memory: {memory}"
    yield "starts: " + ", ".join(f"{name} {count}" for name, count in starts.items())
    yield (
        f"connections: {measured.left_open} left open by the attackers, "
        f"{measured.open_at_end} open {measured.closed_after_s:.0f} s later"
    )
    for name, family in measured.families.items():
        for why, fault in family.faults.items():
            yield (
                f"FAULT {name}: {why} ({fault['count']} times); the smallest input, "
                f"{fault['bytes']} bytes: {fault['input'][:300]!r}"
            )


if __name__ == "__main__":
    run(main)
