"""The document of a migration as titled tables of text, for the screen, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migrate.agreement import ALARMS, OLD

MOST_KINDS_ON_SCREEN = 8


@dataclass(frozen=True)
class Table:
    """Cells by row, all of them text; the first row is the header."""

    title: str
    rows: list[list[str]]
    note: str = ""
    ends_in_words: bool = False
    """Whether the last column holds text, not figures."""


def headline(document: Mapping[str, Any]) -> str:
    """What to do, in a sentence or two."""
    points = {point["name"]: point for point in document["points"]}
    old, kept = points[OLD], points[ALARMS]
    flagged = old["flagged"]
    was = f"{flagged['count']:,} of {flagged['of']:,} comments ({_percent(flagged['value'])})"
    was = f"At {old['threshold']:g} the old scores flag {was}"
    if kept["threshold"] is None:
        return f"{was}; no threshold of the new ones flags nearly as many."
    count = kept["flagged"]["count"]
    same = "as many" if count == flagged["count"] else f"{count:,}"
    return f"{was}; the new threshold is {kept['threshold']:.15g}, which flags {same}."


def tables(document: Mapping[str, Any], *, short: bool = False) -> Iterator[Table]:
    """All tables; `short` leaves out the curve and kinds beyond the first."""
    yield _log(document)
    yield _agreement(document)
    yield _points(document)
    if document["other_half"]:
        yield _other_half(document)
    if document["auroc"]:
        yield _auroc(document)
    if not short:
        yield _curve(document)
    yield _kinds(document, short)
    if document["student"]:
        yield _student(document)
    if document["disputed"]:
        yield _disputed(document)
    yield Table(
        "Lines to change",
        [["where", "what"]]
        + [[change["where"], line] for change in document["changes"] for line in change["lines"]],
        ends_in_words=True,
    )


def _log(document: Mapping[str, Any]) -> Table:
    log, model = document["log"], document["model"]
    by = model.get("repository") or model["url"]
    rows = [["log", "rows", "used", "no text", "no score", "too long", "labelled", "toxic"]]
    dropped = ("dropped_no_text", "dropped_no_score", "dropped_too_long")
    counts = ("rows", "used", *dropped, "labelled", "toxic")
    rows.append([log["file"], *(f"{log[name]:,}" for name in counts)])
    return Table("The log", rows, f"New scores by version {model['version']} of {by}.")


def _agreement(document: Mapping[str, Any]) -> Table:
    rows = [["", "value", "95 % interval"]]
    names = {
        "spearman": "Spearman's rank correlation",
        "pearson": "Pearson's correlation",
        "mean_absolute_difference": "mean difference, without sign",
    }
    for key, name in names.items():
        rows.append([name, *_pair(document["correlation"][key])])
    for name, found in document["decisions"].items():
        rows.append([f"same decision: {name}", *_pair(found["same"], percent=True)])
        rows.append([f"Cohen's kappa: {name}", *_pair(found["kappa"])])
    if document["alarm_threshold"]["value"] is not None:
        found = document["alarm_threshold"]
        rows.append(["threshold that keeps the alarm rate", *_pair(found)])
    return Table("How far old and new agree", rows)


def _points(document: Mapping[str, Any]) -> Table:
    note = "Shares with 95 % intervals by Wilson."
    return Table("What each threshold flags", _effects(document["points"]), note)


def _other_half(document: Mapping[str, Any]) -> Table:
    title = "Thresholds chosen on a random half, and what they flag of the other"
    note = "So well do they keep a rate on comments that they were not chosen on."
    return Table(title, _effects(document["other_half"]), note)


def _effects(points: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    labelled = any("precision" in point for point in points)
    rows = [["", "threshold", "flagged", "share", *(["precision", "recall"] if labelled else [])]]
    for point in points:
        if point["threshold"] is None:
            rows.append([point["name"], "none", *["-"] * (len(rows[0]) - 2)])
            continue
        flagged = point["flagged"]
        row = [point["name"], f"{point['threshold']:.15g}", f"{flagged['count']:,}"]
        row.append(_with_interval(flagged))
        if labelled:
            row += [_with_interval(point[name]) for name in ("precision", "recall")]
        rows.append(row)
    return rows


def _auroc(document: Mapping[str, Any]) -> Table:
    rows = [["", "AUROC", "95 % interval"]]
    names = {"old": "old scores", "new": "new scores", "difference": "new minus old, paired"}
    rows += [[words, *_pair(document["auroc"][name])] for name, words in names.items()]
    return Table("How well each ranks your labels", rows)


def _curve(document: Mapping[str, Any]) -> Table:
    rows = [["old threshold", "new threshold", "flagged by old", "flagged by new"]]
    for point in document["curve"]:
        counts = [f"{point[name]:,}" for name in ("old_flagged", "new_flagged")]
        rows.append([f"{point['old_threshold']:g}", f"{point['new_threshold']:.15g}", *counts])
    return Table("Any old threshold: the new one that keeps its alarm rate", rows)


def _kinds(document: Mapping[str, Any], short: bool) -> Table:
    labelled = any("precision_only_old" in row for row in document["kinds"])
    head = [
        "kind of comment",
        "share",
        "disagree",
        "only old flags",
        "only new flags",
        "rank shift",
    ]
    rows = [[*head, *(["right: only old", "right: only new"] if labelled else [])]]
    for found in document["kinds"][: MOST_KINDS_ON_SCREEN if short else None]:
        row = [
            found["kind"] + (" (few)" if found["few"] else ""),
            _percent(found["comments"]["value"]),
            _with_interval(found["disagree"]),
            f"{found['only_old']:,}",
            f"{found['only_new']:,}",
            f"{found['rank_shift']:+.3f}",
        ]
        if labelled:
            row += [_of(found[f"precision_only_{side}"]) for side in ("old", "new")]
        rows.append(row)
    note = (
        "At the two thresholds of one alarm rate. A comment may be of several kinds. Rank shift: "
    )
    note += "above 0, the new scores rank the kind higher among all."
    return Table("Where they disagree", rows, note)


def _student(document: Mapping[str, Any]) -> Table:
    student = document["student"]
    rows = [["on comments held out", "student", "published model"]]
    names = {
        "spearman": "Spearman's with the old scores",
        "pearson": "Pearson's with the old scores",
        "mean_absolute_difference": "mean difference from them",
        "same_decision": "same decision at its alarm rate",
        "auroc": "AUROC against your labels",
        "auroc_old": "AUROC of the old scores",
    }
    for key, words in names.items():
        found = [student[model].get(key) for model in ("student", "published")]
        if any(found):
            rows.append([words, *("-" if value is None else _one(value) for value in found)])
    note = (
        f"{student['held_out']:,} comments that the student has not seen, {student['labelled']:,} "
        f"labelled. Next: `{student['next'][0]}`, then `{student['next'][1]}` for its threshold"
    )
    return Table(f"A student of the old scores: {student['folder']}", rows, note)


def _disputed(document: Mapping[str, Any]) -> Table:
    rows = [["row", "old", "new", "label", "text"]]
    for found in document["disputed"]:
        label = "-" if found["label"] is None else f"{found['label']:g}"
        scores = [f"{found[name]:.4f}" for name in ("old", "new")]
        rows.append([str(found["row"]), *scores, label, found["text"]])
    title = "Comments whose ranks differ most, with their text"
    return Table(title, rows, ends_in_words=True)


# --- Cells -------------------------------------------------------------------------------
def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pair(found: Mapping[str, Any], *, percent: bool = False) -> list[str]:
    show = _percent if percent else _number
    return [show(found["value"]), f"{show(found['low'])} to {show(found['high'])}"]


def _one(found: Mapping[str, Any]) -> str:
    value, span = _pair(found)
    return f"{value} [{span}]"


def _with_interval(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    low, high = (f"{100 * found[end]:.2f}" for end in ("low", "high"))
    return f"{100 * found['value']:.2f} % [{low}, {high}]"


def _of(found: Mapping[str, Any]) -> str:
    """A share of few comments, whose count says more."""
    return f"{found['count']} of {found['of']}" if found["of"] else "-"
