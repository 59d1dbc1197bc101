"""Where the time of requests goes: haproxy, queue, tokenizer, encoder, answer.

    toxicity explain-latency --seconds 60     # of the requests of the next 60 seconds

It reads the metrics of the servers and of haproxy at the begin and at the end of that time. The
servers' histograms give percentiles; haproxy tells means only, of its last 1024 requests, in whole
milliseconds, from the whole request to the begin of the answer: what a client takes to send and to
read is not in it. haproxy's health checks, two a second and server, are requests, too.
"""

from __future__ import annotations

import json
import math
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from http.client import HTTPException
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import HOST, PUBLIC_MODEL, BadInput
from serve import door
from serve.balancer import HTTP_BACKEND
from serve.metrics_door import BALANCER_METRICS
from serve.triton import Server

_OWN, _TRITON = f"{PUBLIC_MODEL}_{{}}_duration_seconds", "nv_inference_{}_duration_us_total"
_WHOLE, _QUEUE, _COMPUTE = "request", "queue", "compute"
_TRITONS_NAMES = {_WHOLE: "request", _QUEUE: "queue", _COMPUTE: "compute_infer"}


@dataclass(frozen=True)
class LatencyConfig:
    """Flags of `toxicity explain-latency`."""

    seconds: float = Field(60, gt=0, description="how long to watch")
    run_dir: Path = Field(Path("runs/serve"), description="folder of the running server")
    json: bool = Field(False, description="one JSON document instead of a table")


Scrape = dict[tuple[str, str], float]
"""Value by the sample's name and its `le`, "" without one; summed over all other labels."""


@plain_dataclass(frozen=True)
class StageTime:
    """A part of the way of a request; times in ms, None where nothing tells them."""

    stage: str
    mean_ms: float | None
    p50_ms: float | None = None
    p99_ms: float | None = None
    share: float | None = None
    """Of the mean of the whole."""


@plain_dataclass(frozen=True)
class LatencyBudget:
    """What `explained` found; `source` says whose counts the server's times are."""

    seconds: float
    requests: float
    source: str
    stages: list[StageTime]


def main() -> None:
    config = parse_config(
        LatencyConfig,
        None,
        prog="python -m serve.latency",
        description="Say where the time of requests goes.",
    )
    budget = watched(config.run_dir, config.seconds)
    if config.json:
        print(json.dumps(asdict(budget)))
    else:
        print("\n".join(table(budget)))


def watched(run_dir: Path, seconds: float) -> LatencyBudget:
    """The budget of the next seconds. Raises BadInput without a server or without a request."""
    server = door.running(run_dir)
    if server is None:
        raise BadInput(f"no server is running from {run_dir}; start it with `make serve`")
    before = scraped(_urls(server))
    time.sleep(seconds)
    after = scraped(_urls(server))
    haproxy = _haproxy(server)
    return explained(before, after, haproxy, seconds)


# --- Reading -----------------------------------------------------------------------------
def _urls(server: Server) -> list[str]:
    return [one.metrics_url for one in server.replicas or (server,)]


def scraped(urls: Iterable[str]) -> Scrape:
    """The samples of several addresses, added up. Raises BadInput where one does not answer."""
    found: Scrape = {}
    for url in urls:
        for family in text_string_to_metric_families(_text(url)):
            for sample in family.samples:
                if sample.labels.get("model") in (None, PUBLIC_MODEL):
                    key = (sample.name, sample.labels.get("le", ""))
                    found[key] = found.get(key, 0.0) + sample.value
    return found


def _haproxy(server: Server) -> dict[str, float]:
    """Means in seconds that haproxy tells of the servers' backend, by name; empty without it."""
    if not server.replicas:
        return {}
    found = {}
    url = f"http://{HOST}:{server.metrics_port}{BALANCER_METRICS}"
    for family in text_string_to_metric_families(_text(url)):
        name = family.name.removeprefix("haproxy_backend_").removesuffix("_time_average_seconds")
        for sample in family.samples:
            if name != family.name and sample.labels.get("proxy") == HTTP_BACKEND:
                found[name] = sample.value
    return found


def _text(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read(), "utf-8")
    except (OSError, HTTPException) as error:
        raise BadInput(
            f"{url} does not answer ({error}), expected the server's metrics; see `make status`"
        ) from error


# --- Explaining --------------------------------------------------------------------------
def explained(
    before: Scrape, after: Scrape, haproxy: dict[str, float], seconds: float
) -> LatencyBudget:
    """Stages of the requests between two scrapes.

    A server that started anew between them counts from zero again: raises BadInput then, and when
    there was no request.
    """
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    own = (_OWN.format(_WHOLE) + "_count", "") in after
    counted = _OWN.format(_WHOLE) + "_count" if own else "nv_inference_request_success_total"
    requests = grown.get((counted, ""), 0.0)
    if requests < 0:
        raise BadInput(
            "a server started anew meanwhile, expected the same one at both ends; watch again"
        )
    if not requests:
        raise BadInput(
            f"no request was scored in {seconds:g} s, expected some; send some, or watch longer "
            "with --seconds"
        )
    server = {name: _histogram(grown, name, own, requests) for name in _TRITONS_NAMES}
    stages = _stages(server, grown, haproxy, requests)
    source = "the model's histograms" if own else "Triton's sums: this version has no histograms"
    return LatencyBudget(seconds, requests, source, stages)


def _stages(
    server: dict[str, StageTime], grown: Scrape, haproxy: dict[str, float], requests: float
) -> list[StageTime]:
    whole = server[_WHOLE]
    inner = {
        name: 1e-3 * grown.get((f"{PUBLIC_MODEL}_{name}_cpu_us_total", ""), 0.0) / requests
        for name in ("tokenizer", "encoder")
    }
    rest = _less(whole.mean_ms, server[_QUEUE].mean_ms, server[_COMPUTE].mean_ms)
    stages = []
    base = whole.mean_ms
    if haproxy:
        # Not its total time: that has the client's pause before the request in it.
        waits = {name: 1e3 * haproxy.get(name, 0.0) for name in ("queue", "connect", "response")}
        total = sum(waits.values())
        base = max(total, whole.mean_ms or 0.0)
        between = _less(total, waits["queue"], waits["connect"], whole.mean_ms)
        stages += [
            StageTime("all, as haproxy sees it", total),
            StageTime("  haproxy: queue", waits["queue"]),
            StageTime("  haproxy: connection", waits["connect"]),
            StageTime("  between it and the server", between),
        ]
    stages += [
        _named("  server", whole),
        _named("    queue", server[_QUEUE]),
        _named("    scoring its batch", server[_COMPUTE]),
        StageTime("      tokenizer (CPU)", inner["tokenizer"]),
        StageTime("      encoder (CPU)", inner["encoder"]),
        StageTime("    answer and the rest", rest),
    ]
    return [
        StageTime(
            *(one.stage, one.mean_ms, one.p50_ms, one.p99_ms),
            one.mean_ms / base if base and one.mean_ms is not None else None,
        )
        for one in stages
    ]


def _named(name: str, one: StageTime) -> StageTime:
    return StageTime(name, one.mean_ms, one.p50_ms, one.p99_ms)


def _less(whole: float | None, *parts: float | None) -> float | None:
    if whole is None:
        return None
    return max(0.0, whole - sum(part or 0.0 for part in parts))


def _histogram(grown: Scrape, name: str, own: bool, requests: float) -> StageTime:
    if not own:
        total = grown.get((_TRITON.format(_TRITONS_NAMES[name]), ""))
        return StageTime(name, None if total is None else 1e-3 * total / requests)
    metric = _OWN.format(name)
    count = grown.get((f"{metric}_count", ""), 0.0)
    if not count:
        return StageTime(name, None)
    bounds = [(le, value) for (found, le), value in grown.items() if found == f"{metric}_bucket"]
    buckets = sorted((float(le), value) for le, value in bounds)
    p50, p99 = (quantile(buckets, share) for share in (0.5, 0.99))
    return StageTime(name, 1e3 * grown[f"{metric}_sum", ""] / count, _ms(p50), _ms(p99))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Of a histogram of upper bounds and cumulative counts, as Prometheus's `histogram_quantile`.

    Linear within a bucket; the last finite bound where it lies beyond. None of nothing.
    """
    total = buckets[-1][1] if buckets else 0.0
    if not total:
        return None
    wanted, low, counted = share * total, 0.0, 0.0
    for bound, cumulative in buckets:
        if cumulative >= wanted:
            if math.isinf(bound):
                return low
            inside = cumulative - counted
            return low + (bound - low) * (wanted - counted) / inside if inside else bound
        low, counted = bound, cumulative
    return low


# --- Telling -----------------------------------------------------------------------------
def table(budget: LatencyBudget) -> list[str]:
    """For people; the last line says which part of the server the p99 is made of."""
    rows: list[tuple[str, ...]] = [("stage", "mean ms", "p50 ms", "p99 ms", "share of mean")]
    for one in budget.stages:
        share = "-" if one.share is None else f"{100 * one.share:.0f} %"
        times = map(_shown, (one.mean_ms, one.p50_ms, one.p99_ms))
        rows.append((one.stage, *times, share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    lines.append(
        f"{budget.requests:.0f} requests in {budget.seconds:g} s, health checks among them; "
        f"times of the server by {budget.source}"
    )
    known = [one for one in budget.stages if one.p99_ms is not None and one.stage[:4] == "    "]
    if known:
        worst = max(known, key=lambda one: one.p99_ms or 0.0)
        lines.append(
            f"the slowest 1 % spend most in: {worst.stage.strip()} (p99s of parts do not add up)"
        )
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    run(main)
