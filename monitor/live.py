"""What the page for people shows of a monitor: its last readings, in a file of the run folder.

The application behind the servers' door reads it (`serve.app.page.monitored`); numbers and names of
groups alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from monitor.config import MonitorConfig
from monitor.state import MonitorState
from monitor.targets import Watched
from storage.files import write_json

Document = dict[str, Any]
MOST_READINGS = 120
_MOST_GROUPS = 8
_DRIFT = {"score_drift": "score", "length_drift": "length"}


def tell_page(
    config: MonitorConfig, where: Watched, state: MonitorState, document: Document
) -> None:
    """Write what the page shows, if the servers' run folder is known and still there."""
    if where.page is None or not where.page.parent.is_dir():
        return
    readings = [*state.remembered("readings", []), reading(document)][-MOST_READINGS:]
    state.remember("readings", readings)
    about = document["versions"].get(readings[-1]["version"]) or {}
    reference = about.get("reference") or {}
    page = {
        "format": 1,
        "time": document["time"],
        "every_s": None if config.once else config.every_s,
        "state": document["state"],
        "alarms": document["alarms"],
        "errors": document["errors"],
        "version": readings[-1]["version"],
        "window_s": min(config.windows_s),
        "decides": (about.get("decides") or {}).get("words"),
        "reference": reference.get("source"),
        "groups": _worst(about),
        "readings": readings,
    }
    write_json(where.page, page)


def reading(document: Document) -> Document:
    """One point of each chart: of the newest version that serves, in the shortest window.

    A drift that too few comments were judged by is None.
    """
    served = [one["version"] for one in document["servers"] if one["version"]]
    version = max(served, key=int, default=None)
    about = document["versions"].get(version) or {"windows": {}, "groups": [], "reference": None}
    window = min(about["windows"], key=float, default=None)
    found: Document = {
        "at_s": datetime.fromisoformat(document["time"]).timestamp(),
        "version": version,
        "alarms": len(document["alarms"]),
        **dict.fromkeys(_DRIFT.values()),
    }
    for check in document["checks"]:
        own = check["version"] == version and f"{check['window_s'] or 0:g}" == window
        if own and check["check"] in _DRIFT and check["state"] != "few":
            found[_DRIFT[check["check"]]] = check["value"]
    shares = about["windows"][window]["shares"] if window else {}
    found["unknown"] = _percent(shares.get("unknown_words"))
    usual = (about["reference"] or {}).get("shares", {})
    found["unknown_reference"] = _percent(usual.get("unknown_words"))
    found["groups"] = {row["name"]: row["value"] for row in _worst(about)}
    return found


def _worst(about: Document) -> list[Document]:
    """The groups with the highest false-positive rates."""
    rates = [row for row in about.get("groups", []) if row["rate"] == "fpr"]
    kept = ("value", "low", "high", "of", "reference", "threshold")
    return [
        {"name": f"{row['set']}/{row['group']}", **{key: row.get(key) for key in kept}}
        for row in sorted(rates, key=lambda row: -row["value"])[:_MOST_GROUPS]
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
