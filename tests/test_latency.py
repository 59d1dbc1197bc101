"""Where the time goes: from the differences of two scrapes, of real counters."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from app_door import ask, make_config, serving
from clients import Load, loading
from conftest import TinyModel
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import MetricsHandler

from contract import HOST, TEXT, BadInput
from serve import door, haproxy
from serve.latency import explained, quantile, scraped, table, watched
from serve.probe import INFER_PATH

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
STAGES = ("request", "queue", "compute")


@contextlib.contextmanager
def exposed(registry: CollectorRegistry) -> Iterator[str]:
    """The address of a registry over real HTTP."""
    handler: type[BaseHTTPRequestHandler] = MetricsHandler.factory(registry)
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()
            thread.join()


def test_the_requests_between_two_scrapes_are_explained() -> None:
    registry = CollectorRegistry()
    histograms = {
        name: Histogram(
            f"toxicity_{name}_duration_seconds",
            name,
            ["version"],
            buckets=BOUNDS,
            registry=registry,
        )
        for name in STAGES
    }
    tokenizer = Counter("toxicity_tokenizer_cpu_us", "tokenizer", ["version"], registry=registry)

    def request(queue_s: float, compute_s: float, version: str) -> None:
        for name, value in zip(STAGES, (queue_s + compute_s, queue_s, compute_s), strict=True):
            histograms[name].labels(version).observe(value)

    for _ in range(50):  # before: slow ones that are none of ours
        request(0.4, 0.09, "1")
    with exposed(registry) as url:
        before = scraped([url])
        for at in range(100):
            request(0.045 if at >= 95 else 0.0005, 0.0015, "1" if at % 2 else "2")
        tokenizer.labels("1").inc(20_000)
        after = scraped([url])
        doubled = scraped([url, url])
    budget = explained(before, after, {"response": 0.006, "queue": 0.001, "total": 1.0}, 60)
    assert budget.requests == 100
    stages = {one.stage.strip(): one for one in budget.stages}
    assert stages["queue"].mean_ms == pytest.approx(0.95 * 0.5 + 0.05 * 45)
    assert stages["scoring its batch"].mean_ms == pytest.approx(1.5)
    assert stages["server"].mean_ms == pytest.approx(0.95 * 2 + 0.05 * 46.5)
    assert stages["tokenizer (CPU)"].mean_ms == pytest.approx(0.2)
    assert stages["answer and the rest"].mean_ms == pytest.approx(0, abs=1e-9)
    assert stages["all, as haproxy sees it"].mean_ms == pytest.approx(7)
    assert stages["between it and the server"].mean_ms == pytest.approx(6 - (1.9 + 2.325))
    assert 20 < (stages["queue"].p99_ms or 0) <= 50
    assert 1 < (stages["scoring its batch"].p99_ms or 0) <= 2
    assert stages["all, as haproxy sees it"].share == 1
    lines = table(budget)
    assert lines[-1].startswith("the slowest 1 % spend most in: queue")
    assert "100 requests in 60 s" in lines[-2]
    assert doubled["toxicity_request_duration_seconds_count", ""] == 300


def test_a_version_without_histograms_has_means_alone() -> None:
    before = {("nv_inference_request_success_total", ""): 10.0}
    after = {
        ("nv_inference_request_success_total", ""): 30.0,
        ("nv_inference_request_duration_us_total", ""): 60_000.0,
        ("nv_inference_queue_duration_us_total", ""): 20_000.0,
        ("nv_inference_compute_infer_duration_us_total", ""): 30_000.0,
    }
    budget = explained(before, after, {}, 1)
    found = {one.stage.strip(): (one.mean_ms, one.p99_ms) for one in budget.stages}
    assert found["server"] == (3.0, None) and found["queue"] == (1.0, None)
    assert found["answer and the rest"] == (0.5, None)
    assert "no histograms" in table(budget)[-1]


def test_no_request_and_a_server_that_started_anew_are_one_line() -> None:
    key = ("nv_inference_request_success_total", "")
    with pytest.raises(BadInput, match=r"no request was scored in 5 s, expected some; send some"):
        explained({key: 3.0}, {key: 3.0}, {}, 5)
    with pytest.raises(BadInput, match="a server started anew meanwhile"):
        explained({key: 3.0}, {key: 1.0}, {}, 5)


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no server is running from .*; start it with"):
        watched(tmp_path, 1)
    with pytest.raises(BadInput, match=r"does not answer .*, expected the server's metrics"):
        scraped([f"http://{HOST}:1/metrics"])


def test_quantiles_are_prometheus_s() -> None:
    """Interpolated as https://prometheus.io/docs/prometheus/latest/querying/functions/ says."""
    buckets = [(1.0, 10.0), (2.0, 20.0), (float("inf"), 20.0)]
    assert quantile(buckets, 0.5) == 1
    assert quantile(buckets, 0.75) == 1.5
    assert quantile([(1.0, 0.0), (2.0, 0.0), (float("inf"), 4.0)], 0.5) == 2
    assert quantile([], 0.5) is None
    assert quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.5) is None


@pytest.mark.slow
@pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
def test_the_real_door_is_explained(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path / "repository")
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": ["you are kind"]}

    with serving(make_config(tmp_path / "run", tmp_path / "repository")) as config:

        def client(load: Load, done: threading.Event) -> None:
            while not done.is_set():
                load.answers.append(ask(config, INFER_PATH, {"inputs": [tensor]})[0])

        with loading(client) as load:
            time.sleep(2)  # the counters are a moment behind
            budget = watched(config.run_dir, 3)
        assert set(load.answers) == {200}
        assert door.running(config.run_dir)
    stages = {one.stage.strip(): one for one in budget.stages}
    assert 0 < budget.requests <= len(load.answers) + 20
    for name in ("server", "scoring its batch", "encoder (CPU)", "tokenizer (CPU)"):
        assert (stages[name].mean_ms or 0) > 0, name
    assert (stages["server"].mean_ms or 0) >= (stages["scoring its batch"].mean_ms or 0)
    shown = "\n".join(table(budget))
    assert re.search(r"^all, as haproxy sees it +\d", shown) is not None or "haproxy" in shown
    json.dumps([one.mean_ms for one in budget.stages])
