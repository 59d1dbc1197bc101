"""What the servers count, read off their metrics: totals of a moment, and what came between two.

A series is one line of the text format without its version: `toxicity_score_bucket{le="0.05"}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from contract import PUBLIC_MODEL
from serve.metrics_door import DOOR, TURNED_AWAY

SCORE = f"{PUBLIC_MODEL}_score"
TOKENS = f"{PUBLIC_MODEL}_comment_tokens"
REQUEST_S = f"{PUBLIC_MODEL}_request_duration_seconds"
QUEUE_S = f"{PUBLIC_MODEL}_queue_duration_seconds"
COMPUTE_S = f"{PUBLIC_MODEL}_compute_duration_seconds"
BATCH = f"{PUBLIC_MODEL}_batch_comments"
REQUESTS, REFUSED = f"{PUBLIC_MODEL}_requests_total", f"{PUBLIC_MODEL}_requests_refused_total"
COMMENTS, CUT = f"{PUBLIC_MODEL}_comments_total", f"{PUBLIC_MODEL}_comments_cut_total"
WORDS = f"{PUBLIC_MODEL}_words_total"
UNKNOWN, RESPELLED = (f"{PUBLIC_MODEL}_{k}_words_total" for k in ("unknown", "respelled"))
DECISIONS = f"{PUBLIC_MODEL}_decisions_total"
STARTS = f"{PUBLIC_MODEL}_server_starts"
CAPACITY = f"{PUBLIC_MODEL}_capacity_comments_per_second"
CACHE_HITS = f"{PUBLIC_MODEL}_cache_hits_total"

_OF_DOOR = {TURNED_AWAY, "haproxy_frontend_http_requests_total"}
"""What is kept of a door. That all of its requests are fewer says that it was started anew."""

Counts = dict[str, float]
"""Series -> total, or what was added to it."""
ByVersion = dict[str, Counts]
_BOUND = re.compile(r'\ble="([^"]+)"')


def totals_of(text: str) -> ByVersion:
    """The model's own series in a page of metrics, by version.

    Series without a version are under "". Raises ValueError for a text that is no such page.
    """
    found: ByVersion = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(f"{PUBLIC_MODEL}_"):
            continue
        for sample in family.samples:
            labels = dict(sample.labels)
            version = labels.pop("version", "")
            found.setdefault(version, {})[_series(sample.name, labels)] = sample.value
    return found


def door_totals_of(text: str) -> ByVersion:
    """What a door turned away, in haproxy's page of metrics: of no version, so under "".

    Raises ValueError for a text that is no such page.
    """
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in _OF_DOOR and sample.labels.get("proxy") == DOOR
    }
    if found.keys() != _OF_DOOR:
        raise ValueError("no page of haproxy's metrics")
    return {"": found}


def _series(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def added(before: ByVersion, now: ByVersion) -> ByVersion:
    """What was counted between two readings of one server.

    A total that fell says that the version was loaded anew, another number of starts that the
    server was; then all of it is new. Gauges are left out.
    """
    found: ByVersion = {}
    for version, totals in now.items():
        old = before.get(version, {}) if _starts(before) == _starts(now) else {}
        counted = {series: value for series, value in totals.items() if _counts(series)}
        if any(value < old.get(series, 0) for series, value in counted.items()):
            old = {}
        found[version] = {series: value - old.get(series, 0) for series, value in counted.items()}
    return found


def _counts(series: str) -> bool:
    return series.partition("{")[0].endswith(("_total", "_bucket", "_sum", "_count"))


def _starts(totals: ByVersion) -> float:
    return max((counts.get(STARTS, 0) for counts in totals.values()), default=0)


def summed(parts: Iterable[Counts]) -> Counts:
    """Counts of several servers or times together."""
    total: Counts = {}
    for part in parts:
        for series, value in part.items():
            total[series] = total.get(series, 0) + value
    return total


def total(counts: Counts, name: str) -> float | None:
    """Sum over the labels of a counter; None where nobody counts it."""
    found = [value for series, value in counts.items() if series.partition("{")[0] == name]
    return sum(found) if found else None


def turned_away(counted: ByVersion) -> float:
    """Requests that the doors turned away."""
    return total(counted.get("", {}), TURNED_AWAY) or 0.0


def by_label(counts: Counts, name: str, label: str) -> dict[str, float]:
    """A counter by the values of one of its labels."""
    found: dict[str, float] = {}
    for series, value in counts.items():
        if series.partition("{")[0] == name and (hit := re.search(rf'\b{label}="([^"]*)"', series)):
            found[hit[1]] = found.get(hit[1], 0) + value
    return found


def histogram(counts: Counts, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Upper bounds float64 [K], the last one infinite, and comments or requests in each bin [K].

    None where nobody counts it.
    """
    above = {
        float(hit[1]): value
        for series, value in counts.items()
        if series.startswith(f"{name}_bucket") and (hit := _BOUND.search(series))
    }
    if not above:
        return None
    bounds = np.array(sorted(above))
    cumulated = np.array([above[bound] for bound in bounds])
    return bounds, np.diff(cumulated, prepend=0.0).clip(min=0)


def quantile(bounds: np.ndarray, counts: np.ndarray, q: float) -> float | None:
    """Linear between a bin's bounds, as Prometheus' `histogram_quantile` is; None of nothing.

    In the last bin, which has no end, its lower bound.
    """
    cumulated = np.cumsum(counts)
    if not len(counts) or cumulated[-1] <= 0:
        return None
    place = int(np.searchsorted(cumulated, q * cumulated[-1]))
    if place >= len(bounds) - 1 and not np.isfinite(bounds[-1]):
        return float(bounds[-2]) if len(bounds) > 1 else None
    low = bounds[place - 1] if place else 0.0
    before = cumulated[place - 1] if place else 0.0
    inside = (q * cumulated[-1] - before) / counts[place] if counts[place] else 0.0
    return float(low + (bounds[place] - low) * inside)
