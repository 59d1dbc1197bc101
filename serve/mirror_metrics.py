"""What the mirror found, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serve.comparison import BINS, ROLES, PairComparison


class ComparisonMetrics(Collector):
    """Collects from a comparison whenever it is scraped."""

    def __init__(self, found: PairComparison, share: float, shadow: bool) -> None:
        self._found = found
        self._share = share
        self._shadow = shadow

    def collect(self) -> Iterator[Metric]:
        """The families; names and meanings stand in docs/operations.md."""
        found, name = self._found, "toxicity_canary"
        mode = "shadow" if self._shadow else "share"
        share = GaugeMetricFamily(
            f"{name}_share", "Share of requests that is drawn for the canary", labels=["mode"]
        )
        share.add_metric([mode], self._share)
        yield share
        yield CounterMetricFamily(
            f"{name}_comments", "Comments that both versions scored", value=found.comments
        )
        flips = CounterMetricFamily(
            f"{name}_flips", "Comments that only one of both flags", labels=["to"]
        )
        flips.add_metric(["flagged"], found.to_flagged)
        flips.add_metric(["passed"], found.to_passed)
        yield flips
        dropped = CounterMetricFamily(
            f"{name}_dropped", "Drawn requests that are not compared", labels=["reason"]
        )
        for reason, count in sorted(found.dropped.items()):
            dropped.add_metric([reason], count)
        yield dropped
        yield from self._shifts()

    def _shifts(self) -> Iterator[Metric]:
        document, name = self._found.document(), "toxicity_canary"
        for key, metric, text in (
            ("mean_shift", "mean_shift", "Mean score of the canary less that of the stable one"),
            ("psi", "psi", "Population stability index of both versions' scores"),
        ):
            if document[key] is not None:
                yield GaugeMetricFamily(f"{name}_{metric}", text, value=document[key])
        latency = GaugeMetricFamily(
            f"{name}_p99_seconds", "p99 of the last compared requests", labels=["role"]
        )
        scores = HistogramMetricFamily(
            f"{name}_score", "Scores of the compared comments", labels=["role"]
        )
        for role in ROLES:
            one = self._found.seen[role]
            if (p99 := document[role]["p99_ms"]) is not None:
                latency.add_metric([role], p99 / 1000)
            counted, buckets = 0, []
            for place, count in enumerate(one.bins):
                counted += count
                upto = "+Inf" if place == BINS - 1 else str((place + 1) / BINS)
                buckets.append((upto, float(counted)))
            scores.add_metric([role], buckets, sum_value=one.total)
        yield latency
        yield scores
