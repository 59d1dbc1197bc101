"""The port of the metrics: haproxy's own, each server's, and whether one scores.

Keywords as in the haproxy 2.6 configuration manual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serve.refusals import refuse
from serve.request_rules import ready_rules

BALANCER_METRICS, LARGE_METRICS = "/balancer/metrics", "/balancer/large/metrics"
DOOR, TURNED_AWAY = "http", "haproxy_frontend_requests_denied_total"
"""The frontend that clients ask, and its count of requests turned away while a server refuses."""
READY = "/ready"
"""200 while a server scores: for what watches from outside, which has no key."""


def section(title: str, lines: Sequence[str]) -> str:
    """A part of a configuration."""
    return "\n".join(["", title, *(f"    {line}" for line in lines), ""])


def sections(
    binds: Sequence[str],
    servers: Mapping[str, str],
    large: str,
    *,
    beside: Mapping[str, str],
    ready: Sequence[str],
) -> str:
    """The frontend at `binds` and its backends.

    `servers` has the socket of each one's metrics by its name, `beside` those of a canary and its
    mirror, `large` is that of the process of large bodies, `ready` names the servers that are asked
    whether they score (backend/name).
    """
    backends = {f"/{name}/metrics": f"metrics_{name}" for name in (*servers, *beside)}
    if len(servers) == 1:
        backends["/metrics"] = f"metrics_{next(iter(servers))}"
    backends[LARGE_METRICS] = "metrics_large"
    there = ", ".join([BALANCER_METRICS, *backends, READY])
    text = section(
        "frontend metrics",
        [
            f"bind {binds[0]}",
            *(f"bind {bind} mode 600" for bind in binds[1:]),
            refuse(405, "metrics are read with GET", "!{ method GET HEAD }"),
            f"acl ready path {READY}",
            *ready_rules(ready),
            f"http-request use-service prometheus-exporter if {{ path {BALANCER_METRICS} }}",
            refuse(404, f"metrics are at {there}", f"!{{ path {' '.join(backends)} }}"),
            *(f"use_backend {name} if {{ path {path} }}" for path, name in backends.items()),
        ],
    )
    sockets = {f"metrics_{name}": socket for name, socket in {**servers, **beside}.items()}
    sockets["metrics_large"] = large
    for name, socket in sockets.items():
        text += section(
            f"backend {name}",
            ["http-request set-path /metrics", f"server {name} unix@{socket}"],
        )
    return text
