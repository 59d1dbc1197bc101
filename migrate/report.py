"""The report of a migration: tables on the screen, one HTML page, one Markdown file."""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from console.figures import finish, panels
from migrate.agreement import ALARMS
from migrate.collect import Collected
from migrate.tables import Table, headline, tables
from storage.files import write_atomically, write_json

JSON_FILE, HTML_FILE, MARKDOWN_FILE = "migration.json", "migration.html", "migration.md"
_TITLE = "Migration report"
_MOST_TEXT = 200
"""Characters of a comment that are shown."""
_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #8885 }
th:first-child, td:first-child, .words td:last-child, .words th:last-child { text-align: left }
h2 { margin-top: 2em } img { max-width: 100%; background: #fff }
"""


def cut_text(text: str) -> str:
    """The start of a comment on one line, signs that could steer a terminal as escapes."""
    line = textwrap.shorten(text, _MOST_TEXT, placeholder=" ...")
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def screen(document: Mapping[str, Any]) -> str:
    """What to read first."""
    parts = [headline(document), *(f"WARNING: {words}" for words in document["warnings"])]
    for table in tables(document, short=True):
        lines = [table.title, *_aligned(table), *([table.note] if table.note else [])]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _aligned(table: Table) -> list[str]:
    """Lines of equal columns: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in table.rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            left = place == 0 or (place == last and table.ends_in_words)
            cells.append(cell.ljust(width) if left else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def write_report(document: Mapping[str, Any], found: Collected, out: Path) -> None:
    """Write the three files, each whole or not at all."""
    write_json(out / JSON_FILE, document)
    write_atomically(out / MARKDOWN_FILE, markdown(document))
    write_atomically(out / HTML_FILE, page(document, found))


# --- Markdown ----------------------------------------------------------------------------
def markdown(document: Mapping[str, Any]) -> str:
    """The report as a page for a wiki or a ticket."""
    parts = [f"# {_TITLE}", _escaped(headline(document))]
    parts += [f"**Warning:** {_escaped(words)}" for words in document["warnings"]]
    parts.append(_about(document))
    for table in tables(document):
        head, *rows = ([_escaped(cell) for cell in row] for row in table.rows)
        lines = [head, ["---"] * len(head), *rows]
        parts.append(f"## {_escaped(table.title)}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if table.note:
            parts.append(table.note)
    return "\n\n".join(parts) + "\n"


def _escaped(cell: str) -> str:
    """A cell whose signs mean nothing in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(cell, quote=False))


def _about(document: Mapping[str, Any]) -> str:
    return (
        f"Intervals are 95 %, by bootstrap over the comments ({document['resamples']:,} resamples, "
        f"seed {document['seed']}) where nothing else is said. No text of a comment is in this "
        "report" + (" but where a table says so." if document["disputed"] else ".")
    )


# --- HTML --------------------------------------------------------------------------------
def page(document: Mapping[str, Any], found: Collected) -> str:
    """One HTML file that needs no other."""
    parts = [f"<h1>{_TITLE}</h1>", f"<p><strong>{html.escape(headline(document))}</strong></p>"]
    parts += [f"<p>Warning: {html.escape(words)}</p>" for words in document["warnings"]]
    parts.append(f"<p>{html.escape(_about(document))}</p>")
    image = base64.b64encode(_figure(document, found)).decode()
    alt = "left: comments by old and new score; right: new threshold by old threshold"
    parts.append(f'<img alt="{alt}" src="data:image/png;base64,{image}">')
    parts += [_html_table(table) for table in tables(document)]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_TITLE}</title>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return "\n".join([f"{head}<style>{_STYLE}</style>", *parts, "</html>\n"])


def _html_table(table: Table) -> str:
    head, *rows = table.rows

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    kind = ' class="words"' if table.ends_in_words else ""
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="wide"><table{kind}>'
        f"<thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table></div>{note}"
    )


def _figure(document: Mapping[str, Any], found: Collected) -> bytes:
    """Comments by both scores, and the curve of thresholds, as a PNG."""
    figure, (scores, curve) = panels(1, 2, (11, 4.5))
    scores.hexbin(
        found.old,
        found.new,
        gridsize=40,
        bins="log",
        extent=(0, 1, 0, 1),
        mincnt=1,
        cmap="viridis_r",
    )
    points = {point["name"]: point for point in document["points"]}
    scores.axvline(document["threshold"], color="tab:red", linewidth=1)
    if (kept := points[ALARMS]["threshold"]) is not None:
        scores.axhline(kept, color="tab:red", linewidth=1)
    scores.set(xlabel="old score", ylabel="new score", title="Comments, darker for more")
    olds, news = ([p[f"{side}_threshold"] for p in document["curve"]] for side in ("old", "new"))
    curve.plot(olds, news, "o-", markersize=3)
    curve.plot([0, 1], [0, 1], ":", color="gray")
    curve.set(xlabel="old threshold", ylabel="new threshold", title="One alarm rate")
    curve.set(xlim=(0, 1), ylim=(0, 1))
    for axes in (scores, curve):
        finish(axes, legend=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
