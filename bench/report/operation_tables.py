"""The tables of the pages about the door, what watches it, and large files.

See `bench.report.page_tables` for the form.
"""

from __future__ import annotations

import itertools
import statistics

from bench.report.page_tables import Document, Rows, each, number, setting, targets


def histograms(document: Document) -> Rows:
    """CPU time of a request with them and without."""
    rows = [["histograms", "requests/s", "server CPU a request in us", "comments a batch"]]
    for result in document["results"]:
        cells = [number(result[name]) for name in ("rate_rps", "cpu_us")]
        cells.append(number(result["mean_batch"], 2))
        rows.append(["on" if result["histograms"] else "off", *cells])
    return rows


def overload(document: Document) -> Rows:
    """What three times the capacity did, and what was wanted."""
    run, rows = document["result"], targets(document)
    sent = f"{number(run['requests'])} requests of {setting(document, 'batch')} comments, "
    sent += f"three times {number(document['capacity'])}/s"
    rows.insert(1, [sent, f"{number(run['refused'])} refused", "", ""])
    for fault in run["check"]["invalid"]:
        rows.append([f"generator: {fault}", "run is invalid", "", "**no**"])
    return rows


def until_alarm(times: list[int | None]) -> str:
    """The median of those streams that had an alarm, and how many had none."""
    hits = [one for one in times if one is not None]
    missed = len(times) - len(hits)
    words = f"{statistics.median(hits):g}" if hits else "-"
    return f"{words} ({missed} of {len(times)} not)" if missed else words


def healthy(document: Document) -> Rows:
    """Each alert and each check of the monitor in an hour in which nothing was wrong."""
    rows = [["alert", "pending in s", "firing in s", "check of the monitor", ""]]
    alerts = [
        [f"`{name}`", number(state["pending"]), number(state["firing"])]
        for name, state in document["alerts_s"].items()
    ]
    checks = [[f"`{name}`", state] for name, state in document["checks"].items()]
    for alert, check in itertools.zip_longest(alerts, checks):
        rows.append([*(alert or [""] * 3), *(check or [""] * 2)])
    return rows


def drift(document: Document) -> Rows:
    """False alarms of each detector, then windows until it finds a drift: the median of the streams
    that it finds it in, and in how many it does not.
    """
    names, windows = [*document["false_alarms"]], setting(document, "windows")
    rows = [["drift", "strength", *names]]
    rows.append(
        [f"none: false alarms of {windows}", "", *map(str, document["false_alarms"].values())]
    )
    for one in document["drift"]:
        cells = []
        for name in names:
            cells.append(until_alarm(one["windows_until_alarm"][name]))
        rows.append([one["kind"], f"{one['strength']} ({one['amount']:g})", *cells])
    return rows


def training_rows(document: Document) -> Rows:
    """A training's memory by the rows of its file."""
    rows = [["rows", "file in MiB", "s to the first step", "memory in MiB", "mapped files in MiB"]]
    for one in document["results"]:
        cells = ("rows", "file_mib", "seconds", "peak_mib", "mapped_mib")
        rows.append([number(one[name]) for name in cells])
    return rows


def attack(document: Document) -> Rows:
    """What honest clients and the processes noticed, and what was wanted."""
    honest, memory = document["honest"], document["memory_mib"]
    rows = [["", "before", "under attack"]]
    for name in ("p50", "p99", "max"):
        pair = honest["calm_ms"][name], honest["attacked_ms"][name]
        rows.append([f"honest {name} in ms", *map(number, pair)])
    rows += [[f"memory of {name} in MiB", *map(number, pair)] for name, pair in memory.items()]
    rows.append(["hostile requests", "", number(document["sent"])])
    rows.append(["honest requests", "", number(honest["requests"])])
    rows.append(["of them refused as overloaded", "", number(honest["refused"])])
    return rows


def soak(document: Document) -> Rows:
    """Honest requests while versions were published."""
    rows = [["protocol", "requests", "scored", "refused", "lost", "sent twice", "p50, p99 in ms"]]
    for protocol, seen in document["honest"].items():
        counts = [number(seen[n]) for n in ("requests", "scored", "refused", "lost", "sent_twice")]
        rows.append([protocol, *counts, each([seen["p50_ms"], seen["p99_ms"]])])
    return rows


def faults(document: Document) -> Rows:
    """Trials of each command by the faults that met it."""
    rows = [["command", "faults", "trials", "broke something"]]
    by_target: dict[str, list[Document]] = {}
    for trial in document["trials"]:
        by_target.setdefault(trial["target"], []).append(trial)
    for target, trials in by_target.items():
        counts = [sum(trial[name] for trial in trials) for name in ("trials", "broken")]
        rows.append([target, ", ".join(trial["fault"] for trial in trials), *map(number, counts)])
    rows.append(["all", "", number(document["count"]), number(len(document["broken"]))])
    return rows
