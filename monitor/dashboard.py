"""The Grafana dashboard of the server and the monitor, made by Grafana's own foundation SDK.

python -m monitor.dashboard     # writes deploy/grafana/toxicity.json again
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from serve.metrics_door import DOOR, TURNED_AWAY
from storage.files import write_atomically

_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_RATE = "[$__rate_interval]"
Queries = Sequence[tuple[str, str]]
"""Expression and legend of each line."""


@dataclass(frozen=True)
class DashboardConfig:
    """Flags of `python -m monitor.dashboard`."""

    out: Path = Field(Path("deploy/grafana/toxicity.json"), description="file to write")


def main() -> None:
    config = parse_config(
        DashboardConfig, None, prog="python -m monitor.dashboard", description="Write it again."
    )
    write_atomically(config.out, text())


def text() -> str:
    """The dashboard as Grafana imports it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(_dashboard().build()) + "\n"


def _dashboard() -> Any:
    board = (
        dashboard.Dashboard("Toxicity: server and monitor")
        .uid("toxicity")
        .tags(["toxicity"])
        .refresh("1m")
        .time("now-6h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("source").type("prometheus").label("source"))
    )
    for title, panels in (
        ("Now", _now()),
        ("Requests", _requests()),
        ("Comments", _comments()),
        ("Is it still right?", _quality()),
    ):
        board = board.with_row(dashboard.Row(title))
        for panel in panels:
            board = board.with_panel(panel)
    return board


# --- Rows ----------------------------------------------------------------------------------
def _now() -> list[Any]:
    return [
        _stat("Replicas that answer", 'sum(up{job="toxicity"})', "{{job}}"),
        _stat("Versions", "count by (version) (toxicity_server_starts)", "version {{version}}"),
        _stat("Alarms of the monitor", "sum(toxicity_monitor_alarm)", "alarms", worst=1),
        _stat(
            "Last reading",
            "time() - toxicity_monitor_last_reading_timestamp_seconds",
            "ago",
            worst=300,
            unit="s",
        ),
    ]


def _requests() -> list[Any]:
    refused = "sum by (reason) (rate(toxicity_requests_refused_total{}))".format
    return [
        _lines(
            "Requests a second",
            [
                (_by_version("toxicity_requests_total"), "version {{version}}"),
                (refused(_RATE), "refused {{reason}}"),
                (f'sum(rate({TURNED_AWAY}{{proxy="{DOOR}"}}{_RATE}))', "turned away at the door"),
            ],
            "reqps",
        ),
        _lines("Latency", [_quantile(q, "request") for q in (0.5, 0.95, 0.99)], "s"),
        _lines("Where p99 goes", [_quantile(0.99, "queue"), _quantile(0.99, "compute")], "s"),
        _lines(
            "Burn: bad requests over the 1 % that may be",
            [
                ("toxicity:late_requests:ratio_rate1h / 0.01", "late, 1 h"),
                ("toxicity:refused_requests:ratio_rate1h / 0.01", "refused, 1 h"),
            ],
            "none",
        ),
        _lines(
            "Comments a second beside what it could do",
            [
                (f"sum(rate(toxicity_comments_total{_RATE}))", "scored"),
                ("sum(toxicity_capacity_comments_per_second)", "capacity"),
            ],
            "none",
        ),
        _lines(
            "Comments of a batch; share from the cache",
            [
                (_mean("toxicity_batch_comments"), "comments a batch"),
                (
                    _of("toxicity_cache_hits_total", "toxicity_comments_total"),
                    "share from the cache",
                ),
            ],
            "none",
        ),
    ]


def _comments() -> list[Any]:
    return [
        _lines("Score, mean", [(_mean("toxicity_score", by="version"), "version {{version}}")]),
        _lines(
            "Flagged",
            [
                (
                    _by_version('toxicity_decisions_total{decision="flagged"}')
                    + f" / {_by_version('toxicity_decisions_total')}",
                    "version {{version}}",
                )
            ],
            "percentunit",
        ),
        _lines("Tokens of a comment, mean", [(_mean("toxicity_comment_tokens"), "tokens")]),
        _lines(
            "Words and comments out of the usual",
            [
                (_of("toxicity_unknown_words_total", "toxicity_words_total"), "unknown words"),
                (_of("toxicity_respelled_words_total", "toxicity_words_total"), "respelled words"),
                (_of("toxicity_comments_cut_total", "toxicity_comments_total"), "comments cut"),
            ],
            "percentunit",
        ),
    ]


def _quality() -> list[Any]:
    where = "version {{version}}, {{window}} s"
    return [
        _lines(
            "Drift (stability index; an alarm from 0.1)",
            [("toxicity_monitor_drift_index", f"{{{{quantity}}}}, {where}")],
        ),
        _lines(
            "Shares beside their reference",
            [
                ("toxicity_monitor_share", f"{{{{quantity}}}}, {where}"),
                ("toxicity_monitor_reference_share", "{{quantity}}, reference of {{version}}"),
            ],
            "percentunit",
        ),
        _lines(
            "Calibration error on labelled comments",
            [
                ("toxicity_monitor_calibration_error", "version {{version}}"),
                ("toxicity_monitor_calibration_error_by_chance", "by chance, {{version}}"),
            ],
        ),
        _lines(
            "Precision of labelled comments",
            [("toxicity_monitor_precision", "version {{version}}")],
            "percentunit",
        ),
        _lines(
            "Groups: error rates beyond their reference",
            [
                (
                    "topk(10, toxicity_monitor_group_error_rate"
                    " - toxicity_monitor_group_error_rate_reference)",
                    "{{rate}} {{set}} {{group}}",
                )
            ],
            "percentunit",
        ),
        _lines(
            "Rows of labels",
            [
                (
                    f"sum by (outcome) (increase(toxicity_monitor_label_rows_total{_RATE}))",
                    "{{outcome}}",
                )
            ],
        ),
    ]


# --- Panels --------------------------------------------------------------------------------
def _quantile(q: float, kind: str) -> tuple[str, str]:
    buckets = f"sum by (le) (rate(toxicity_{kind}_duration_seconds_bucket{_RATE}))"
    return f"histogram_quantile({q:g}, {buckets})", f"{kind} p{100 * q:g}"


def _by_version(counter: str) -> str:
    return f"sum by (version) (rate({counter}{_RATE}))"


def _mean(histogram: str, by: str = "") -> str:
    grouped = f" by ({by}) " if by else ""
    total, count = (f"sum{grouped}(rate({histogram}_{part}{_RATE}))" for part in ("sum", "count"))
    return f"{total} / {count}"


def _of(part: str, whole: str) -> str:
    return f"sum(rate({part}{_RATE})) / sum(rate({whole}{_RATE}))"


def _target(expression: str, legend: str, place: int = 0) -> Any:
    line = prometheus.Dataquery().expr(expression).legend_format(legend)
    return line.ref_id(string.ascii_uppercase[place])


def _lines(title: str, queries: Queries, unit: str = "short") -> Any:
    panel = timeseries.Panel().title(title).datasource(_SOURCE).unit(unit).min(0).span(12).height(8)
    for place, (expression, legend) in enumerate(queries):
        panel = panel.with_target(_target(expression, legend, place))
    return panel


def _stat(
    title: str, expression: str, legend: str, *, worst: float | None = None, unit: str = "short"
) -> Any:
    panel = stat.Panel().title(title).datasource(_SOURCE).unit(unit).span(6).height(4)
    if worst is not None:
        steps = [Threshold(value=None, color="green"), Threshold(value=worst, color="red")]
        levels = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
        panel = panel.thresholds(levels)
    return panel.with_target(_target(expression, legend))


if __name__ == "__main__":
    run(main)
