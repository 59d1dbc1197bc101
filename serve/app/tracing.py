"""Spans of requests with a W3C `traceparent`, to an OpenTelemetry collector where there is one.

On when the environment of `make serve` has OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT),
such as http://127.0.0.1:4318, and the extra `trace` is installed. The client decides which requests
are traced, by the sampled flag of its header. Spans go out from a thread of their own, after the
answer; what a slow collector does not take is dropped. They have times, path, status and number of
comments, no text.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

from serve.app.http import JsonEndpoint, Receive, Scope, Send
from serve.traces import BEGAN_HEADER, TRACE_HEADER, VARIABLES, service_name

_log = logging.getLogger("uvicorn.error")

StageTimes = list[tuple[str, int, float, float]]
"""Stage, comments, begin and end in seconds of the event loop's clock."""
STAGES: ContextVar[StageTimes | None] = ContextVar("stages", default=None)
"""Of the request under way, if it is traced; `BatchingScorer` adds to it."""


def configured(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector."""
    return any(environment.get(name) for name in VARIABLES)


def make_tracer() -> Tracer | None:
    """What makes the spans; None where no collector is named, or the extra is not installed."""
    if not configured():
        return None
    try:
        return Tracer()
    except ImportError:
        _log.warning("%s is set and opentelemetry-sdk is not installed: no traces", VARIABLES[1])
        return None


class Tracer:
    """Sends spans to the collector of the environment."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = {"service.name": service_name(os.environ)}
        self._provider = TracerProvider(
            resource=Resource.create(name), sampler=sampling.ParentBased(sampling.ALWAYS_OFF)
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("serve.app")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def send(self, request: TracedRequest) -> None:
        """Make the spans of a request that was answered."""
        from opentelemetry import trace

        parent = self._propagator.extract({TRACE_HEADER: request.parent})
        begin_ns = request.began_ns or request.arrived_ns
        root = self._tracer.start_span(
            f"POST {request.path}", parent, trace.SpanKind.SERVER, start_time=begin_ns
        )
        if root.is_recording():
            root.set_attribute("url.path", request.path)
            root.set_attribute("http.response.status_code", request.status)
            inside = trace.set_span_in_context(root)
            for name, comments, start_ns, end_ns in request.spans():
                span = self._tracer.start_span(name, inside, start_time=start_ns)
                if comments:
                    span.set_attribute("comments", comments)
                span.end(end_ns)
        root.end(request.ended_ns)


class TracedRequest:
    """One request on its way; times in nanoseconds of Unix time."""

    def __init__(self, scope: Scope, parent: str, began_us: str) -> None:
        self.path = str(scope["path"])
        self.parent = parent
        self.began_ns = 1000 * int(began_us) if began_us.isdecimal() else 0
        self.arrived_ns = time.time_ns()
        self.status = 0
        self.ended_ns = 0
        self.stages: StageTimes = []
        self._offset_ns = self.arrived_ns - time.monotonic_ns()

    def spans(self) -> list[tuple[str, int, int, int]]:
        """Name, comments, begin and end of each stage."""
        found = []
        if self.began_ns:
            found.append(("balancer", 0, self.began_ns, max(self.began_ns, self.arrived_ns)))
        last_ns = self.arrived_ns
        for name, comments, start_s, end_s in self.stages:
            start_ns, end_ns = (self._offset_ns + int(1e9 * at) for at in (start_s, end_s))
            found.append((name, comments, start_ns, end_ns))
            last_ns = max(last_ns, end_ns)
        return [*found, ("answer", 0, last_ns, max(last_ns, self.ended_ns))]


class TracedEndpoint:
    """A `JsonEndpoint` whose requests with a `traceparent` are traced."""

    def __init__(self, endpoint: JsonEndpoint, tracer: Tracer) -> None:
        self._endpoint = endpoint
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        parent = headers.get(TRACE_HEADER.encode())
        if parent is None:
            await self._endpoint(scope, receive, send)
            return
        began = headers.get(BEGAN_HEADER.encode(), b"").decode("ascii", "replace")
        request = TracedRequest(scope, parent.decode("ascii", "replace"), began)

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        token = STAGES.set(request.stages)
        try:
            await self._endpoint(scope, receive, sending)
        finally:
            STAGES.reset(token)
            request.ended_ns = time.time_ns()
            self._tracer.send(request)
