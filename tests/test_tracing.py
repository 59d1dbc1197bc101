"""Traces of the application and of the servers: a real door, a collector of OTLP over HTTP."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from app_door import MODERATIONS, ask, make_config, serving
from conftest import TinyModel

from contract import HOST, TEXT
from serve import haproxy, traces
from serve.app import tracing
from serve.probe import INFER_PATH

COMMENT = "you are a kind person and thanks for your work"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, NOT = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE[::-1]}-b7ad6b7169203331-00"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Its address, and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(content) if packed else content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{HOST}:{server.server_address[1]}", bodies
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
def test_a_sampled_request_is_traced_by_stage_and_no_other(
    tiny_model: TinyModel,
    tmp_path: Path,
    collector: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra `trace` is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, bodies = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    tiny_model.publish(tmp_path / "repository")
    with serving(make_config(tmp_path / "run", tmp_path / "repository")) as config:
        for header in (SAMPLED, NOT, "no trace at all"):
            status, found, _ = ask(config, MODERATIONS, {"input": COMMENT}, {"traceparent": header})
            assert status == 200, found
        assert ask(config, MODERATIONS, {"input": COMMENT})[0] == 200
        status, _, _ = ask(config, MODERATIONS, {"input": 5}, {"traceparent": SAMPLED})
        assert status == 400
        deadline = time.monotonic() + 30
        spans: list[Any] = []
        while sum(not_inner(span) for span in spans) < 2:
            assert time.monotonic() < deadline, spans
            time.sleep(0.1)
            spans = [
                span
                for body in list(bodies)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    roots = [span for span in spans if not_inner(span)]
    assert [root.parent_span_id.hex() for root in roots] == ["b7ad6b7169203331"] * 2
    by_status = {
        next(a.value.int_value for a in root.attributes if "status" in a.key): root
        for root in roots
    }
    root = by_status[200]
    stages = {span.name: span for span in spans if span.parent_span_id == root.span_id}
    assert set(stages) == {"balancer", "queue", "scoring", "answer"}
    for one in stages.values():
        assert one.start_time_unix_nano <= one.end_time_unix_nano
    assert stages["balancer"].start_time_unix_nano == root.start_time_unix_nano
    assert stages["answer"].end_time_unix_nano == root.end_time_unix_nano
    assert stages["scoring"].attributes[0].value.int_value == 1
    refused = {span.name for span in spans if span.parent_span_id == by_status[400].span_id}
    assert refused == {"balancer", "answer"}
    assert COMMENT.encode() not in b"".join(bodies)


@pytest.mark.slow
@pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
def test_the_servers_trace_what_is_sampled_and_nothing_else(
    tiny_model: TinyModel,
    tmp_path: Path,
    collector: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The native road: Triton's own spans, which it would make of any `traceparent`."""
    address, bodies = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{address}/")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    tiny_model.publish(tmp_path / "repository")
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [COMMENT]}
    body = {"inputs": [tensor]}
    with serving(make_config(tmp_path / "run", tmp_path / "repository")) as config:
        for header in (NOT, "no trace at all", NOT.replace("-00", "-02"), SAMPLED):
            assert ask(config, INFER_PATH, body, {"traceparent": header})[0] == 200
        assert ask(config, INFER_PATH, body)[0] == 200
        deadline = time.monotonic() + 30
        while len(spans_in(bodies)) < 3:
            assert time.monotonic() < deadline, bodies
            time.sleep(0.1)
        time.sleep(1)  # five exports later there is no other
        spans = spans_in(bodies)
    assert {span["traceId"].lower() for span in spans} == {TRACE}
    (root,) = (span for span in spans if span.get("parentSpanId") == "b7ad6b7169203331")
    assert len(spans) == 3, "the request, the model, the computing"
    events = {event["name"] for span in spans for event in span.get("events", [])}
    assert {"QUEUE_START", "COMPUTE_START", "COMPUTE_END", "REQUEST_END"} <= events
    assert int(root["startTimeUnixNano"]) < int(root["endTimeUnixNano"])
    assert b"toxicity" in bodies[0] and COMMENT.encode() not in b"".join(bodies)


def spans_in(bodies: list[bytes]) -> list[dict[str, Any]]:
    """Of OTLP in JSON, as Triton sends it."""
    return [
        span
        for body in list(bodies)
        for resource in json.loads(body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_servers_without_a_collector_are_told_nothing() -> None:
    assert traces.server_arguments({}) == []
    own = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:1/x", "OTEL_SERVICE_NAME": "s"}
    both = traces.server_arguments({**own, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:2"})
    assert "--trace-config=opentelemetry,url=http://a:1/x" in both
    assert "--trace-config=opentelemetry,resource=service.name=s" in both


def not_inner(span: Any) -> bool:
    return bool(span.name == f"POST {MODERATIONS}")


def test_without_a_collector_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert tracing.make_tracer() is None
    assert not tracing.configured({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert tracing.configured({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
