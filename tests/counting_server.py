"""Metrics in the form of the server's own, over real HTTP, counted from a test's scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from conftest import free_port
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from contract import HOST
from monitor.targets import MetricsTarget

TOKEN_BOUNDS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SCORE_BOUNDS = tuple((i + 1) / 20 for i in range(20))


class Counting:
    """What a server counts of itself, for versions that answer one after the other."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"labelnames": ["version"], "registry": self.registry}
        name = "toxicity_{}".format
        self.scores = Histogram(name("score"), "s", buckets=SCORE_BOUNDS, **own)
        self.tokens = Histogram(name("comment_tokens"), "t", buckets=TOKEN_BOUNDS, **own)
        self.times = {
            kind: Histogram(name(f"{kind}_duration_seconds"), "d", buckets=SECONDS, **own)
            for kind in ("request", "queue", "compute")
        }
        counters = "words unknown_words respelled_words comments comments_cut requests".split()
        self.counters = {kind: Counter(name(kind), "c", **own) for kind in counters}
        self.refused = Counter(
            name("requests_refused"), "r", ["version", "reason"], registry=self.registry
        )
        self.decisions = Counter(
            name("decisions"), "d", ["version", "decision"], registry=self.registry
        )
        self.starts = Gauge(name("server_starts"), "s", **own)

    def scored(
        self,
        scores: Sequence[float] | np.ndarray,
        *,
        version: str = "1",
        tokens: int = 20,
        words: int = 10,
        unknown: int = 0,
        seconds: float = 0.004,
        refused: int = 0,
    ) -> None:
        """Count comments that were scored, each in a request of its own."""
        self.starts.labels(version).set(1)
        for score in scores:
            self.scores.labels(version).observe(float(score))
            self.tokens.labels(version).observe(tokens)
            for times in self.times.values():
                times.labels(version).observe(seconds)
            self.decisions.labels(version, "flagged" if score >= 0.5 else "passed").inc()
        counted = {"words": words * len(scores), "unknown_words": unknown, "respelled_words": 0}
        counted |= {"comments": len(scores), "comments_cut": 0, "requests": len(scores)}
        for kind, amount in counted.items():
            self.counters[kind].labels(version).inc(amount)
        self.refused.labels(version, "overloaded").inc(refused)

    @contextlib.contextmanager
    def serving(self, name: str = "replica-1") -> Iterator[MetricsTarget]:
        """Its metrics, at an address of its own."""
        with _serving(self.registry) as base:
            yield MetricsTarget(name, f"{base}/metrics")


class CountingDoor:
    """What haproxy counts of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "haproxy_frontend_{}".format
        own = {"labelnames": ["proxy"], "registry": self.registry}
        self.asked, self.denied = (
            Counter(name(kind), "c", **own) for kind in ("http_requests", "requests_denied")
        )
        self.turned_away(0)

    def turned_away(self, requests: int) -> None:
        """Count these; on the port of the metrics nobody is turned away."""
        for counter in (self.asked, self.denied):
            counter.labels("http").inc(requests)
            counter.labels("metrics").inc(0)
        self.asked.labels("metrics").inc(7)

    @contextlib.contextmanager
    def serving(self) -> Iterator[MetricsTarget]:
        """Its metrics, at an address of its own."""
        with _serving(self.registry) as base:
            yield MetricsTarget("door", f"{base}/balancer/metrics?scope=frontend")


@contextlib.contextmanager
def _serving(registry: CollectorRegistry) -> Iterator[str]:
    port = free_port()
    server, thread = start_http_server(port, HOST, registry)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
