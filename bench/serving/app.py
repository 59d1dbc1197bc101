"""The application's `/v1/moderations` beside the native road and a FastAPI app: `make bench-app`.

    python -m bench.serving.app --repository model_repository --checkpoint runs/model

Four servers of the same weights that all run, loaded in turns (ABBA) over HTTP by the generator of
`bench/generator/` on the same cores, one comment a request and none that an earlier request had:
`native` is the server alone, asked in KServe's form; `door` the same behind haproxy; `moderations`
the application (serve/app) behind the same haproxy, before the same server; `fastapi` FastAPI and
PyTorch, a process a core. Closed loops at several numbers of connections choose the rate, an open
loop (Poisson, latency from the intended send) confirms it. First the scores of both forms are
compared, bit for bit. Prints a table and writes `app.json`.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.result import (
    LOAD,
    RUNS,
    SERVER,
    Bars,
    ResultOptions,
    at_least,
    begin,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from bench.serving.capacity import meets
from bench.serving.peers import peer
from bench.serving.servers import artifact_of, serving
from bench.serving.visits import best, loader, open_loops, ratio
from bench.traffic import open_loop
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from bench.traffic.counters import process_counters, server_counters
from bench.traffic.one_run import Result
from console.options import run
from contract import HOST, PUBLIC_MODEL
from serve import haproxy
from serve.app.settings import MODERATION_PATH
from serve.client import score_comments
from serve.triton import Server

NATIVE, DOOR, APP, FASTAPI = "native", "door", "moderations", "fastapi"
_ORDER = (NATIVE, DOOR, APP, FASTAPI)
_OPEN_SHARES = (0.9, 0.8, 0.7, 0.6)
"""Rates of the open loop over the closed loop's, until one is valid and meets the objective."""
_WARM_UP_S = 2
_COMPARED = 512
"""Comments whose scores are compared."""
_ASKED_ONCE = 64


@pydantic_dataclasses.dataclass(frozen=True)
class AppBenchConfig(ResultOptions):
    """Flags of `python -m bench.serving.app`."""

    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=SERVER
    )
    checkpoint: Path = Field(
        Path("runs/model"),
        description="weights of the published version",
        json_schema_extra=SERVER,
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    connections: tuple[int, ...] = Field(
        (16, 64, 128, 256),
        description="of the closed loops; a FastAPI app gets the fewest, too, over two and four",
        json_schema_extra=LOAD,
    )
    seconds: int = Field(6, ge=2, description="length of one run", json_schema_extra=RUNS)
    rounds: int = Field(
        2,
        ge=1,
        description="visits to each server, forwards and backwards",
        json_schema_extra=RUNS,
    )
    p99_ms: float = Field(50, gt=0, description="objective", json_schema_extra=RUNS)


@dataclass
class AppVisit:
    """What one visit to one server measured."""

    closed: dict[int, Result] = field(default_factory=dict)
    """By connections."""
    open: list[Result] = field(default_factory=list)

    def rate(self, p99_ms: float) -> float:
        """Requests/s of the open loop that met the objective; 0 when none did."""
        return next((r.rate_rps for r in self.open if meets(r, p99_ms)), 0.0)


def main() -> None:
    config = begin(AppBenchConfig, "bench.serving.app", "The application's own cost.")
    haproxy.executable()
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    visits: dict[str, list[AppVisit]] = {}
    with _servers(config) as servers:
        differing = compare(servers[DOOR], pool.texts[:_COMPARED])
        print(f"{differing} of {_COMPARED} scores differ between the two forms", flush=True)
        for turn in range(config.rounds):
            for name in servers if turn % 2 == 0 else reversed(servers):
                visits.setdefault(name, []).append(_visit(config, name, servers[name]))
        described = artifact_of(servers[NATIVE])
    found = document(
        "app",
        config,
        objective={"p99_ms": config.p99_ms, "errors": 0},
        comments=pool.to_json(),
        artifact=described,
        servers={name: [asdict(visit) for visit in of] for name, of in visits.items()},
        bars=bars(visits, config.p99_ms, differing),
    )
    report(config, found, table(visits))


# --- Servers -----------------------------------------------------------------------------
@contextlib.contextmanager
def _servers(config: AppBenchConfig) -> Iterator[dict[str, Server]]:
    """All of them by name, in the order of the first round; stopped at the end."""

    def published(_: Path) -> Path:
        return config.repository

    with contextlib.ExitStack() as stack:
        native = stack.enter_context(serving(published)).server
        door = stack.enter_context(serving(published, through_door=True)).server
        found = {NATIVE: native, DOOR: door, APP: door}
        if find_spec("fastapi") is None:
            print("fastapi: left out, it is not installed; `make bench-app` installs it")
        else:
            found[FASTAPI] = stack.enter_context(peer(config.out, config.checkpoint, FASTAPI))
        yield {name: found[name] for name in _ORDER if name in found}


def moderation_body(items: Sequence[bytes]) -> bytes:
    """A request of these comments, escaped for JSON."""
    if len(items) == 1:
        return b'{"input": "%s"}' % items[0]
    return b'{"input": ["%s"]}' % b'", "'.join(items)


FORM = open_loop.RequestForm(MODERATION_PATH, moderation_body, f'"{PUBLIC_MODEL}":')


def compare(server: Server, texts: Sequence[str]) -> int:
    """How many comments' scores are not the same bits in both forms."""
    kserve = score_comments(texts, url=f"{HOST}:{server.http_port}").probability.tolist()
    moderated: list[float] = []
    for at in range(0, len(texts), _ASKED_ONCE):
        part = list(texts[at : at + _ASKED_ONCE])
        request = urllib.request.Request(
            server.http_url + MODERATION_PATH, json.dumps({"input": part}).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            results = json.load(answer)["results"]
        moderated += [result["category_scores"][PUBLIC_MODEL] for result in results]
    return sum(a != b for a, b in zip(kserve, moderated, strict=True))


# --- Measuring ---------------------------------------------------------------------------
def _visit(config: AppBenchConfig, name: str, server: Server) -> AppVisit:
    load = loader(
        name,
        server,
        process_counters if name == FASTAPI else server_counters,
        FORM if name == APP else None,
        seconds=config.seconds,
        comments=config.comments,
    )
    load(users=config.connections[0], seconds=_WARM_UP_S)
    visit = AppVisit()
    for users in connections_of(name, config.connections):
        visit.closed[users] = load(users=users)
    closed = best(visit.closed, config.p99_ms)
    visit.open = open_loops(load, closed.rate_rps, _OPEN_SHARES, config.p99_ms)
    return visit


def connections_of(name: str, connections: Sequence[int]) -> list[int]:
    """Of the closed loops: what is slow meets the objective with few only."""
    fewest = min(connections)
    if name != FASTAPI:
        return list(connections)
    return sorted({max(1, fewest // 4), max(1, fewest // 2), fewest})


# --- Telling -----------------------------------------------------------------------------
def bars(visits: dict[str, list[AppVisit]], p99_ms: float, differing: int) -> Bars:
    """Ratios of rates within the objective, each the median over the rounds, with the spread.

    Of the open loops; and, since those fail where generator and server share the cores, of the best
    closed loops.
    """

    def closed(visit: AppVisit) -> float:
        fastest = best(visit.closed, p99_ms)
        return fastest.rate_rps if fastest.latency_ms["p99"] <= p99_ms else 0.0

    def opened(visit: AppVisit) -> float:
        return visit.rate(p99_ms)

    def over(rival: str, bar: float, of: Callable[[AppVisit], float]) -> dict[str, Any]:
        both = zip(visits.get(APP, []), visits.get(rival, []), strict=False)
        return ratio(at_least, ((of(ours), of(theirs)) for ours, theirs in both), bar)

    return {
        "differing_scores": exactly(differing, 0),
        "over_fastapi": over(FASTAPI, 2.5, opened),
        "over_native": over(NATIVE, 0.4, opened),
        "over_fastapi_closed": over(FASTAPI, 2.5, closed),
        "over_native_closed": over(NATIVE, 0.4, closed),
    }


def table(visits: dict[str, list[AppVisit]]) -> str:
    """A line for each run."""
    lines = [["server", "load", "req/s", "p50 ms", "p99", "batch", "CPU us", "by part", "schedule"]]
    for name, of in visits.items():
        for visit in of:
            runs = [(f"closed, {n} connections", r) for n, r in visit.closed.items()]
            for words, r in [*runs, *(("open, Poisson", r) for r in visit.open)]:
                parts = ", ".join(f"{part} {us:.0f}" for part, us in r.cpu_us.items())
                lines.append(
                    [name, words, f"{r.rate_rps:.0f}"]
                    + [f"{r.latency_ms[at]:.1f}" for at in ("p50", "p99")]
                    + [f"{r.mean_batch:.1f}", f"{sum(r.cpu_us.values()):.0f}", parts]
                    + ["INVALID" if r.check["invalid"] else "kept up"]
                )
    return aligned(lines, left=2)


if __name__ == "__main__":
    run(main)
