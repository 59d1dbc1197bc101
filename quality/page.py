"""An evaluation as one HTML page that needs no other: verdict, contents, tables, curves.

Tables scroll within themselves, so that the page fits a telephone; those of groups have a row a
group and a column a model, and the colour of a cell says how bad it is.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from quality import report
from quality.decisions import rules
from quality.measure import QualityReport
from quality.verdict import verdict
from storage.files import write_atomically

_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75em; padding: 1em }
h1, h2, li, p { overflow-wrap: anywhere } h2 { margin-top: 2em; font-size: 1.25em }
.wide { overflow-x: auto; max-width: 100% } .wide:focus-visible { outline: 2px solid #06c }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
td small { color: #444 }
.verdict { list-style: none; padding: .6em 1em; border: 1px solid #bbb; border-radius: 6px }
.verdict b { display: inline-block; min-width: 3.2em } .miss b { color: #b00020 }
.pass b { color: #176b2c } .note b { color: #555 } img { max-width: 100% }
nav ul { columns: 20em; padding-left: 1.2em }
"""
_WORST = (200, 60, 40)
"""Red, green and blue of the worst cell."""
_MOST_OPAQUE = 0.55
"""Black text stays readable on it."""
Shown = Mapping[str, float | None]


@dataclass(frozen=True)
class Heat:
    """A table of numbers by group and model."""

    title: str
    columns: list[tuple[str, str]]
    """Model, and what is shown of it."""
    rows: list[tuple[str, list[Shown | None]]]
    worst: float
    """What is coloured most; `best` not at all."""
    best: float


def write_page(measured: QualityReport, path: Path) -> None:
    """Write one HTML file."""
    write_atomically(path, page(measured.document, _images(measured)))


def page(document: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The HTML; `images` are PNGs by the name of their set."""
    sections = list(_sections(document, images))
    anchors = list(_anchors([title for title, _ in sections]))
    links = "".join(
        f'<li><a href="#{anchor}">{html.escape(title)}</a></li>'
        for anchor, (title, _) in zip(anchors, sections, strict=True)
    )
    body = "\n".join(
        f'<h2 id="{anchor}">{html.escape(title)}</h2>\n{content}'
        for anchor, (title, content) in zip(anchors, sections, strict=True)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Evaluation</title><style>{_STYLE}</style></head><body>\n<h1>Evaluation</h1>\n"
        f"{_verdict(document)}\n{_about(document)}\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n{body}\n</body></html>\n'
    )


def _sections(
    document: Mapping[str, Any], images: Mapping[str, bytes]
) -> Iterator[tuple[str, str]]:
    yield _table(report.bar_table(document))
    for tables in (report.labelled, report.attributes):
        yield from map(_table, tables(document))
    for name, image in images.items():
        data = base64.b64encode(image).decode()
        yield f"Curves of {name}", f'<img alt="curves" src="data:image/png;base64,{data}">'
    for tables in (report.thresholds, report.calibration):
        yield from map(_table, tables(document))
    yield from map(_heat, identity_heat(document))
    for tables in (report.fairness, report.misspelled, *report.CHECKLIST):
        yield from map(_table, tables(document))
    yield from map(_heat, group_heat(document))


def _anchors(titles: Sequence[str]) -> Iterator[str]:
    """A name for each title, all different."""
    seen: set[str] = set()
    for title in titles:
        plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        tries = itertools.chain([plain], (f"{plain}-{n}" for n in itertools.count(2)))
        anchor = next(name for name in tries if name not in seen)
        seen.add(anchor)
        yield anchor


# --- Verdict, about ----------------------------------------------------------------------
def _verdict(document: Mapping[str, Any]) -> str:
    lines = "\n".join(
        f'<li class="{line.state}"><b>{line.state}</b> {html.escape(line.words)}</li>'
        for line in verdict(document)
    )
    return f'<ul class="verdict" aria-label="Verdict">\n{lines}\n</ul>'


def _about(document: Mapping[str, Any]) -> str:
    trained_on = html.escape(Path(document["run"]["trained_on"]["name"]).name)
    return (
        f"<p>{html.escape(made(document))}</p>"
        f"<p>Trained on {trained_on}; an own threshold is the one that a model states itself, "
        "the wanted ones and the maps of the calibration table are from that run's "
        f"validation split. Intervals are 95 %: of shares by Wilson, of ratios of two groups by "
        f"Koopman as if the groups were independent, of all else by bootstrap over the comments "
        f"({document['resamples']:,} resamples); differences are paired with the first model's. "
        "The reliability diagrams show the share of toxic comments by predicted probability, "
        "dashed before the calibration that a checkpoint carries.</p>"
    )


def made(document: Mapping[str, Any]) -> str:
    """When, where and with what an evaluation was made; an older one does not say."""
    machine, versions = document.get("hardware"), document.get("versions")
    if not machine or not versions:
        return "Date, hardware and versions: not stated in this evaluation."
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    isa = f" ({', '.join(machine['isa'])})" if machine["isa"] else ""
    with_what = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Measured {document['measured_at']} on {where}{isa}; {with_what}."


# --- Tables ------------------------------------------------------------------------------
def _table(table: report.Table) -> tuple[str, str]:
    title, cells = table
    return title, _scrolling(title, cells.to_html(index=False, border=0))


def _scrolling(title: str, content: str) -> str:
    name = html.escape(title, quote=True)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{name}">{content}</div>'


def group_heat(document: Mapping[str, Any]) -> Iterator[Heat]:
    """Error rates of the groups of each curated set: a row a group, by model and threshold."""
    for name, of_set in document["curated"].items():
        columns: list[tuple[str, str]] = []
        names: dict[str, None] = {}
        for model, found in of_set.items():
            for rule in (r for r in rules(document, model) if r in found["rates"]):
                rates = found["rates"][rule]
                for rate in ("fpr", "fnr"):
                    if any(key.startswith(rate) for key in rates):
                        columns.append((model, f"{rate.upper()} at {rule}"))
                keys = [key for key in rates if key.partition(".")[0] in ("fpr", "fnr")]
                names |= dict.fromkeys(key.partition(".")[2] or "all" for key in keys)
        rows = [
            (group, [_rate(of_set[model]["rates"], what, group) for model, what in columns])
            for group in names
        ]
        values = [cell["value"] for _, row in rows for cell in row if cell]
        worst = max((value for value in values if value is not None), default=1.0)
        yield Heat(f"{name}, by group", columns, rows, worst=worst or 1.0, best=0.0)


def _rate(rates: Mapping[str, Any], what: str, group: str) -> Shown | None:
    rate, _, rule = what.partition(" at ")
    key = rate.lower() if group == "all" else f"{rate.lower()}.{group}"
    found: Shown | None = rates[rule].get(key)
    return found


def identity_heat(document: Mapping[str, Any]) -> Iterator[Heat]:
    """Subgroup, BPSN and BNSP AUC: a row an identity, by model."""
    for name, of_set in document["results"].items():
        keys = [key for key in next(iter(of_set.values()))["metrics"] if "_auc." in key]
        columns = [(m, kind) for m in of_set for kind in ("subgroup", "bpsn", "bnsp")]
        rows: list[tuple[str, list[Shown | None]]] = [
            (
                identity,
                [of_set[m]["metrics"].get(f"{kind}_auc.{identity}") for m, kind in columns],
            )
            for identity in dict.fromkeys(key.partition(".")[2] for key in keys)
        ]
        if rows:
            shown = [(model, f"{kind.upper()} AUC") for model, kind in columns]
            yield Heat(f"identities in {name}", shown, rows, worst=0.5, best=1.0)


def _heat(heat: Heat) -> tuple[str, str]:
    models = "".join(
        f'<th colspan="{len(list(own))}" scope="colgroup">{html.escape(model)}</th>'
        for model, own in itertools.groupby(heat.columns, key=lambda column: column[0])
    )
    shown = "".join(f'<th scope="col">{html.escape(what)}</th>' for _, what in heat.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(group)}</th>'
        f"{''.join(_cell(heat, cell) for cell in cells)}</tr>"
        for group, cells in heat.rows
    )
    head = f"<thead><tr><th></th>{models}</tr><tr><th>group</th>{shown}</tr></thead>"
    return heat.title, _scrolling(
        heat.title, f'<table class="heat">{head}\n<tbody>{rows}</tbody></table>'
    )


def _cell(heat: Heat, cell: Shown | None) -> str:
    if not cell or cell["value"] is None:
        return "<td>-</td>"
    bad = (cell["value"] - heat.best) / (heat.worst - heat.best)
    opacity = _MOST_OPAQUE * min(1.0, max(0.0, bad))
    colour = f"rgba({','.join(map(str, _WORST))},{opacity:.2f})"
    low, high = ("-" if cell[k] is None else f"{cell[k]:.3f}" for k in ("low", "high"))
    return (
        f'<td style="background:{colour}">{cell["value"]:.3f} <small>[{low}, {high}]</small></td>'
    )


# --- Curves ------------------------------------------------------------------------------
def _images(measured: QualityReport) -> dict[str, bytes]:
    return {
        name: _curves(measured.document, name, comments.labels, measured.logits[name])
        for name, comments in measured.sets.items()
    }


def _curves(
    document: Mapping[str, Any], name: str, labels: np.ndarray, logits: Mapping[str, np.ndarray]
) -> bytes:
    """ROC and precision-recall curves and the reliability diagram of one set, as a PNG."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    roc, pr, reliability = figure.subplots(1, 3)
    for model, own in logits.items():
        fpr, tpr, _ = roc_curve(labels, own)
        (drawn,) = roc.plot(fpr, tpr, label=model)
        precision, recall, _ = precision_recall_curve(labels, own)
        pr.plot(recall, precision)
        for way, line in (("before", "--"), ("served", "o-")):
            bins = document["calibration"][name][model][way]["reliability"]
            points = ([found[key] for found in bins] for key in ("probability", "toxic_share"))
            reliability.plot(*points, line, color=drawn.get_color(), markersize=4)
    reliability.plot([0, 1], [0, 1], ":", color="gray")
    roc.set(xlabel="false-positive rate", ylabel="recall", title="ROC")
    roc.set_xscale("symlog", linthresh=0.01)
    roc.set_xlim(0, 1)
    pr.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    reliability.set(xlabel="predicted probability", ylabel="toxic share", title="Reliability")
    for axes in (roc, pr, reliability):
        axes.grid(alpha=0.3)
    roc.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
