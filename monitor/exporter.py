"""The monitor's own metrics, for Prometheus: what the last reading said, and when it was."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from contract import BadInput
from monitor.config import MonitorConfig
from monitor.labels import OUTCOMES
from monitor.watch import Document

PREFIX = "toxicity_monitor"
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "last_reading_timestamp_seconds": ("When the servers were read last", ()),
    "server_up": ("Whether a server's metrics could be read", ("server",)),
    "served_version": ("Version that a server answers with", ("server",)),
    "alarm": ("Whether a check is an alarm", ("check", "version", "window")),
    "drift_index": (
        "Stability index of scores or lengths, less what chance gives",
        ("quantity", "version", "window"),
    ),
    "drift_p_value": (
        "How often chance makes such a difference",
        ("quantity", "version", "window"),
    ),
    "window_comments": ("Comments of people in a window", ("version", "window")),
    "share": ("Share of words or comments in a window", ("quantity", "version", "window")),
    "reference_share": ("The same share in the reference", ("quantity", "version")),
    "latency_seconds": ("Latency of requests in a window", ("percentile", "version", "window")),
    "refused_share": (
        "Share of requests refused in a window; without a version of all, the doors' among them",
        ("version", "window"),
    ),
    "door_up": ("Whether a door's metrics could be read", ("door",)),
    "turned_away_requests": ("Requests that the doors turned away in a window", ("window",)),
    "labelled_comments": ("Comments with a score and a label", ("version",)),
    "calibration_error": ("Expected calibration error on labelled comments", ("version",)),
    "calibration_error_by_chance": ("What a calibrated model would show on as many", ("version",)),
    "precision": ("Share of toxic ones among flagged and labelled comments", ("version",)),
    "group_error_rate": (
        "Error rate of a group of a curated set",
        ("rate", "set", "group", "version"),
    ),
    "group_error_rate_low": ("Lower end of its 95 % interval", ("rate", "set", "group", "version")),
    "group_error_rate_high": (
        "Upper end of its 95 % interval",
        ("rate", "set", "group", "version"),
    ),
    "group_error_rate_reference": (
        "The same rate in its reference",
        ("rate", "set", "group", "version"),
    ),
    "errors": ("What the last reading could not do", ()),
}
"""Name without PREFIX -> help, labels."""
COUNTERS = {"readings": "Readings of all servers", "label_rows": "Rows of labels, by outcome"}


def metric_names() -> set[str]:
    """Every metric that the monitor has, as a query names it."""
    counters = {f"{PREFIX}_{name}_total" for name in COUNTERS}
    return counters | {f"{PREFIX}_{name}" for name in GAUGES}


class Exporter:
    """Shows the last document that it was given."""

    def __init__(self) -> None:
        self._document: Document | None = None
        self._readings = 0
        self._lock = threading.Lock()

    def show(self, document: Document) -> None:
        """From now on tell of this one."""
        with self._lock:
            self._document = document
            self._readings += 1

    def collect(self) -> Iterable[Metric]:
        """As `prometheus_client` asks; no metric before the first document."""
        with self._lock:
            document, readings = self._document, self._readings
        if document is None:
            return
        families = {
            name: GaugeMetricFamily(f"{PREFIX}_{name}", words, labels=labels)
            for name, (words, labels) in GAUGES.items()
        }
        for name, labels, value in _values(document):
            if value is not None:
                families[name].add_metric([str(label) for label in labels], float(value))
        yield from families.values()
        yield CounterMetricFamily(f"{PREFIX}_readings", COUNTERS["readings"], value=readings)
        rows = CounterMetricFamily(
            f"{PREFIX}_label_rows", COUNTERS["label_rows"], labels=["outcome"]
        )
        for outcome in OUTCOMES:
            rows.add_metric([outcome], document["labels"][outcome])
        yield rows


Value = tuple[str, tuple[Any, ...], Any]


def _values(document: Document) -> Iterator[Value]:
    """Gauge, its labels, its value."""
    read = datetime.fromisoformat(document["time"]).timestamp()
    yield "last_reading_timestamp_seconds", (), read
    yield "errors", (), len(document["errors"])
    for server in document["servers"]:
        yield "server_up", (server["name"],), server["answers"]
        yield "served_version", (server["name"],), server["version"]
    for door in document["doors"]:
        yield "door_up", (door["name"],), door["answers"]
    for window, requests in document["turned_away"].items():
        yield "turned_away_requests", (window,), requests
    yield from _checks(document)
    for version, about in document["versions"].items():
        yield from _version(version, about)


def _checks(document: Document) -> Iterator[Value]:
    alarms: dict[tuple[str, str, str], bool] = {}
    for check in document["checks"]:
        window = "" if check["window_s"] is None else f"{check['window_s']:g}"
        key = check["check"], check["version"], window
        alarms[key] = alarms.get(key, False) or check["state"] == "alarm"  # of several groups
        quantity, _, is_drift = check["check"].rpartition("_")
        if is_drift == "drift" and quantity in ("score", "length"):
            yield "drift_index", (quantity, check["version"], window), check["value"]
        if is_drift == "drift":
            yield "drift_p_value", (quantity, check["version"], window), check["p_value"]
        if check["check"] == "refusals":
            yield "refused_share", (check["version"], window), check["value"]
    for key, alarm in alarms.items():
        yield "alarm", key, alarm


def _version(version: str, about: Document) -> Iterator[Value]:
    for window, found in about["windows"].items():
        yield "window_comments", (version, window), found["comments"]
        for quantity, share in found["shares"].items():
            yield "share", (quantity, version, window), share
        for part, seconds in found.get("request_s", {}).items():
            yield "latency_seconds", (f"{100 * float(part):g}", version, window), seconds
    for quantity, share in (about["reference"] or {}).get("shares", {}).items():
        yield "reference_share", (quantity, version), share
    if labelled := about.get("calibration"):
        yield "labelled_comments", (version,), labelled["labels"]
        yield "calibration_error", (version,), labelled["error"]
        yield "calibration_error_by_chance", (version,), labelled["by_chance"]
        yield "precision", (version,), labelled["precision"]["value"]
    for row in about["groups"]:
        labels = row["rate"], row["set"], row["group"], version
        yield "group_error_rate", labels, row["value"]
        yield "group_error_rate_low", labels, row["low"]
        yield "group_error_rate_high", labels, row["high"]
        yield "group_error_rate_reference", labels, row["reference"]


def serve(config: MonitorConfig, exporter: Exporter) -> None:
    """Answer /metrics from now on. Raises BadInput for a port that is taken."""
    registry = CollectorRegistry()
    registry.register(exporter)
    try:
        start_http_server(config.port, config.address, registry)
    except OSError as error:
        raise BadInput(
            f"--port is {config.port} ({error.strerror}), expected a free port; give another, or "
            "0 for none"
        ) from error
