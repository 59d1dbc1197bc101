"""Traces of requests that go straight to the servers: Triton's own spans, of sampled ones alone.

As `serve.app.tracing` has them of the application: on when the environment of `make serve` names an
OpenTelemetry collector. Triton traces each request that has a `traceparent`, whatever its flags,
so haproxy takes off one that is not sampled. Its spans begin and end within the server: the whole
request, the model with the moment of its queue, the computing. The server sends them after the
answer, from a thread of its own, and drops what a slow collector does not take.
"""

from __future__ import annotations

from collections.abc import Mapping

TRACE_HEADER, BEGAN_HEADER = "traceparent", "toxicity-began"
"""A client's that wants its request traced, and haproxy's for the application: when it had the
headers, in microseconds of Unix time."""
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SAMPLED = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]"


def service_name(environment: Mapping[str, str]) -> str:
    """What spans are said to be of."""
    return environment.get("OTEL_SERVICE_NAME") or "toxicity"


def sampled_alone() -> str:
    """A rule of haproxy, behind which a request that is not sampled has no `traceparent`."""
    return (
        f"http-request del-header {TRACE_HEADER} "
        f"unless {{ req.hdr({TRACE_HEADER}) -m reg '{_SAMPLED}' }}"
    )


def began() -> str:
    """A rule of haproxy: when it had the headers of a request that is traced."""
    return (
        f"http-request set-header {BEGAN_HEADER} %[date(0,us)] "
        f"if {{ req.hdr({TRACE_HEADER}) -m found }}"
    )


def server_arguments(environment: Mapping[str, str]) -> list[str]:
    """Of a `tritonserver` behind these rules; none where the environment names no collector."""
    url, base = (environment.get(name, "") for name in VARIABLES)
    if not (url or base):
        return []
    url = url or base.rstrip("/") + "/v1/traces"
    settings = (
        *("mode=opentelemetry", "level=TIMESTAMPS", "count=-1"),
        "rate=0",  # only what a client wants traced
        f"opentelemetry,url={url}",
        f"opentelemetry,resource=service.name={service_name(environment)}",
    )
    return [f"--trace-config={setting}" for setting in settings]
