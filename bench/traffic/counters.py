"""What a server counts of itself, and whose CPU time went where."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from contract import HOST, PUBLIC_MODEL, BadInput
from serve.app_backend import APP_BACKEND
from serve.balancer import HTTP_BACKEND, INNER, LARGE_BACKEND
from serve.metrics_door import DOOR, TURNED_AWAY
from serve.triton import Server

_SETTLE_S, _SETTLE_TRIES = 0.1, 20
_OWN = (
    "requests",
    "requests_refused",
    "comments",
    "tokens",
    "batches",
    "compute_us",
    "tokenizer_cpu_us",
    "encoder_cpu_us",
    "cache_hits",
)
COUNTERS = {
    **{f"{PUBLIC_MODEL}_{name}_total": name for name in _OWN},
    f"{PUBLIC_MODEL}_cache_bytes": "cache_bytes",
    "nv_inference_request_success_total": "triton_requests",
    "nv_inference_queue_duration_us_total": "queue_us",
}
"""Counters on the metrics port, as the parser names them, by short name: the model's own, and
Triton's of the model."""

_GRPC_METRICS = "/grpc/metrics"

Totals = dict[str, float]
"""Totals since the start: COUNTERS by short name, and of `cpu_seconds` by `<part>_cpu_s`."""
CountersOf = Callable[[Server], Totals]


def server_counters(server: Server) -> Totals:
    """Totals of a server, or of all replicas behind a balancer with what it turned away itself.

    Raises BadInput when the served model counts other things.
    """
    totals: Totals = {}
    for one in server.replicas or (server,):
        url = one.metrics_url
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("reason") not in (None, "overloaded"):
                    continue  # a request that was wrong
                if sample.name in COUNTERS and sample.labels.get("model") in (None, PUBLIC_MODEL):
                    name = COUNTERS[sample.name]
                    found.add(name)
                    totals[name] = totals.get(name, 0.0) + sample.value  # one a version
        if missing := set(COUNTERS.values()) - found:
            raise BadInput(
                f"{url} does not count {', '.join(sorted(missing))}, expected the counters of "
                "this release's model; run `make export serve`"
            )
    if server.replicas:
        totals["requests"] = _asked_of(server)
        denied = _samples(_balancer_metrics(server), TURNED_AWAY.removesuffix("_total"))
        totals["requests_refused"] += sum(
            sample.value for sample in denied if sample.labels["proxy"] == DOOR
        )
    return {**totals, **cpu_seconds(server)}


def _asked_of(server: Server) -> float:
    """Requests that were answered through a balancer, refused ones too.

    What the application asked of the servers is left out: its own requests are counted, and its
    checks are nobody's.
    """
    url = f"http://{HOST}:{server.metrics_port}"
    behind = _samples(_balancer_metrics(server), "haproxy_backend_http_responses")
    inner = _samples(_balancer_metrics(server), "haproxy_frontend_http_responses")
    answered = _scored(behind, (HTTP_BACKEND, LARGE_BACKEND, APP_BACKEND)) - _scored(
        inner, (INNER,)
    )
    if server.grpc_port:
        found = _samples(f"{url}{_GRPC_METRICS}", f"{PUBLIC_MODEL}_requests")
        answered += sum(sample.value for sample in found)
    return answered


def _balancer_metrics(server: Server) -> str:
    return f"http://{HOST}:{server.metrics_port}{server.metrics_path}"


def _samples(url: str, family: str) -> list[Sample]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return [sample for found in families if found.name == family for sample in found.samples]


def _scored(samples: Sequence[Sample], proxies: Sequence[str]) -> float:
    return sum(
        sample.value
        for sample in samples
        if sample.labels["code"] == "2xx" and sample.labels["proxy"] in proxies
    )


def process_counters(server: Server) -> Totals:
    """Of a server that counts nothing: zeros, but for the CPU time of its processes."""
    return {**dict.fromkeys(COUNTERS.values(), 0.0), **cpu_seconds(server)}


def settled(counters_of: CountersOf, server: Server) -> Totals:
    """Counters once they stand still: those of an answer come a little after it."""
    counters = counters_of(server)
    for _ in range(_SETTLE_TRIES):  # somebody else's requests may never let them stand still
        time.sleep(_SETTLE_S)
        before, counters = counters, counters_of(server)
        if counters["requests"] == before["requests"]:
            break
    return counters


PARTS = ("generator", "balancer", "application", "server", "tokenizer", "encoder")
"""Who spends CPU time, in the order of a request's way."""


def cpu_us(used: Totals, requests: int) -> dict[str, float]:
    """CPU time a request by part, of differences between two `Totals` and `generator_cpu_s`.

    generator: what sends; balancer: haproxy, where there is one; application: what answers other
    APIs' requests behind it (serve/app), its health checks too; tokenizer and encoder: the model's
    threads by their own clocks; server: the rest of its processes, which is Triton's front end, its
    queue and the model's backend, and all of it where nothing has a clock of its own.
    """
    inside = {part: used[f"{part}_cpu_us"] / 1e6 for part in ("tokenizer", "encoder")}
    seconds = {"generator": used["generator_cpu_s"]}
    for part in ("balancer", "application"):
        if f"{part}_cpu_s" in used:
            seconds[part] = used[f"{part}_cpu_s"]
    seconds["server"] = max(0.0, used["server_cpu_s"] - sum(inside.values()))
    return {part: round(1e6 * s / requests, 1) for part, s in {**seconds, **inside}.items()}


def parts_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """PARTS that some `result` of the rows knows."""
    return [part for part in PARTS if any(part in row["result"]["cpu_us"] for row in rows)]


def cpu_seconds(server: Server) -> Totals:
    """CPU seconds of the server's process and those that it started, and of a balancer's."""
    servers = server.replicas or (server,)
    totals = {"server_cpu_s": sum(_cpu_s(process) for one in servers for process in family(one))}
    if server.replicas:
        totals["balancer_cpu_s"] = sum(map(_cpu_s, family(server)))
    if server.application:
        totals["application_cpu_s"] = sum(map(_cpu_s, _tree(server.application)))
    return totals


def memory_bytes(server: Server) -> float:
    """Resident memory of the server's processes, or all replicas', without the cached logits.

    Those have a bound of their own, and fill up for as long as comments are new.
    """
    servers = server.replicas or (server,)
    resident = sum(process.memory_info().rss for one in servers for process in family(one))
    return float(resident) - server_counters(server)["cache_bytes"]


def family(server: Server) -> list[psutil.Process]:
    """The server's process, then those that it started. Raises BadInput when it has ended.

    Of a balancer also its other programs.
    """
    try:
        return [one for pid in (server.pid, *server.beside) for one in _tree(pid)]
    except psutil.NoSuchProcess as error:
        raise BadInput(
            f"process {server.pid} of the server has ended, expected it to live; run `make serve`"
        ) from error


def _tree(pid: int) -> list[psutil.Process]:
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
