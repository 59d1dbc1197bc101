r"""Write every table of the pages from the JSON documents under bench/results: `make figures`.

    python -m bench.report.figures              # rewrite the tables in README.md and docs/
    python -m bench.report.figures --check      # exit 2 when a page differs from its documents
    python -m bench.report.figures --measure --repository runs/student_repository \
        --checkpoint runs/best/student --traced runs/best/version/traced.onnx

A page holds a table between `<!-- figures: NAME -->` and `<!-- /figures -->`; nobody writes between
them by hand. Below each table stand the artifact, hardware, versions and comments that its document
names; what a document lacks is said to be missing. `--measure` first runs the benches one after the
other, in one sitting and for one artifact (`bench.report.sitting`); it takes two hours or more, and
`--steps` chooses among them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.report import page_tables
from bench.report.figure_sources import SOURCES, FigureSource
from bench.report.page_tables import Document, Rows
from bench.report.sitting import Sitting, measure
from console.options import parse_config, run
from contract import BadInput

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = Path("bench/results")
_PAGES = ("README.md", "docs/*.md", "bench/results/README.md")
_BLOCK = re.compile(
    r"(?P<head><!-- figures: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- /figures -->)", re.DOTALL
)
INDEX = "documents"
"""The table of all documents."""


@dataclass(frozen=True)
class FiguresConfig(Sitting):
    """Flags of `python -m bench.report.figures`."""

    check: bool = Field(False, description="write nothing; exit 2 when a page would change")
    measure: bool = Field(False, description="first run the benches, for one artifact")


def main() -> None:
    config = parse_config(
        FiguresConfig,
        None,
        prog="python -m bench.report.figures",
        description="Write the tables of the pages from the documents of the benches.",
    )
    if config.measure:
        measure(config, _ROOT / _RESULTS)
    stale = []
    for page in pages():
        text = page.read_text("utf-8")
        wanted = rewritten(text, page)
        if wanted != text:
            stale.append(os.path.relpath(page, _ROOT))
            if not config.check:
                page.write_text(wanted, "utf-8")
    if config.check and stale:
        raise BadInput(
            f"{', '.join(stale)} differ from the documents in {_RESULTS}, expected their tables; "
            "run `make figures`"
        )
    print(f"{len(stale)} pages rewritten: {', '.join(stale)}" if stale else "all tables up to date")


def pages() -> list[Path]:
    """Every page that may hold a table."""
    return [page for pattern in _PAGES for page in sorted(_ROOT.glob(pattern))]


def rewritten(text: str, page: Path) -> str:
    """The page's text with each marked table as the documents have it now.

    Raises BadInput for a table that no document has.
    """
    blocks = blocks_of(page.parent)

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in blocks:
            raise BadInput(
                f"{page} asks for the figures {name!r}, expected one of "
                f"{', '.join(sorted(blocks))}; mend the marker"
            )
        return f"{found['head']}\n{blocks[name]}\n\n{found['tail']}"

    return _BLOCK.sub(block, text)


def blocks_of(folder: Path) -> dict[str, str]:
    """Markdown of each table by its name, links relative to `folder`."""
    blocks = {}
    index = [["result file", "artifact", "precision", "command"]]
    for source, document in _documents():
        link = Path(os.path.relpath(_ROOT / _RESULTS / source.path, folder)).as_posix()
        named = f"[{source.path}]({link})"
        renders = dict(source.renders)
        if "bars" in document:
            stem = next(iter(renders), Path(source.path).stem)
            renders[f"{stem}-targets"] = page_tables.targets
        command = (document.get("sitting") or {}).get("command", source.command)
        under = f"{provenance(document)} {named}: `{command}`"
        for name, render in renders.items():
            try:
                blocks[name] = f"{markdown(render(document))}\n\n{under}"
            except (KeyError, StopIteration) as error:
                raise BadInput(
                    f"{_RESULTS / source.path} lacks {error} for the figures {name!r}, expected a "
                    f"document of `{command}`; measure it again"
                ) from error
        artifact = ", ".join(f"`{digest}`" for digest in artifacts(document)) or page_tables.MISSING
        precision = _precision(document) or page_tables.MISSING
        index.append([named, artifact, precision, f"`{command}`"])
    blocks[INDEX] = markdown(index)
    return blocks


def _documents() -> Iterator[tuple[FigureSource, Document]]:
    for source in SOURCES:
        path = _ROOT / _RESULTS / source.path
        if path.exists():
            yield source, json.loads(path.read_text("utf-8"))


def markdown(rows: Rows) -> str:
    """A table whose first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return "\n".join(lines)


# --- What stands under a table -------------------------------------------------------------
def provenance(document: Document) -> str:
    """One line: artifact, precision, hardware, versions, comments. What is missing is named."""
    digests = artifacts(document)
    kind = _precision(document)
    parts = [
        f"artifact {', '.join(f'`{digest}`' for digest in digests)}" if digests else "",
        kind.upper() if kind else "",
        _hardware(document),
        _versions(document),
        _comments(document),
    ]
    names = ("artifact", "precision", "hardware", "versions", "comments")
    missing = [name for name, part in zip(names, parts, strict=True) if not part]
    line = "; ".join(part for part in parts if part)
    if missing:
        line += f"{'; ' if line else ''}not stated: {', '.join(missing)}"
    return f"{line[:1].upper()}{line[1:]}."


def artifacts(document: Document) -> list[str]:
    """First twelve digits of the sha256 of each graph that the document names, the main one first.

    Of several precisions or models the serving graph in INT8, or the first.
    """
    artifact = _artifact(document)
    found = artifact.get("onnx_sha256") or artifact.get("sha256")
    if found:
        return [found[:12]]
    many = document.get("sha256") or (document.get("model") or {}).get("sha256") or {}
    if many:
        return [many.get("serving_int8", next(iter(many.values())))[:12]]
    models = [*(document.get("models") or {}).values(), *(document.get("rungs") or [])]
    return list(
        dict.fromkeys(model["onnx_sha256"][:12] for model in models if "onnx_sha256" in model)
    )


def _artifact(document: Document) -> Document:
    return document.get("artifact") or {}


def _precision(document: Document) -> str:
    found = _artifact(document).get("precision") or document.get("precision")
    models = (document.get("models") or {}).values()
    each = dict.fromkeys(model["precision"] for model in models if "precision" in model)
    return str(found or ", ".join(each))


def _hardware(document: Document) -> str:
    found = document.get("hardware")
    if not found:
        return ""
    line = f"{found['cpu']}, {found['cores']} cores ({', '.join(found['isa'])})"
    line += f", {found['memory_gib']} GiB"
    return f"{line}, one of them" if "pinned_to" in found else line


def _versions(document: Document) -> str:
    found = document.get("versions")
    if found is None and "torch" in document:
        found = {"torch": document["torch"]}
    if not found:
        return ""
    return ", ".join(f"{name} {v[:12]}" for name, v in found.items())


def _comments(document: Document) -> str:
    found = document.get("comments") or document.get("timed_on") or {}
    name = found.get("name") or found.get("of")
    if name is None:
        sets = document.get("sets") or {}
        return ", ".join(f"{data} {part['comments']:,}" for data, part in sets.items())
    tokens = found.get("tokens")
    if not tokens:
        mean = found.get("tokens_mean") or found.get("mean_tokens")
        return f"{name}, mean {mean:.0f} tokens" if mean else str(name)
    cut = next((key for key in tokens if key.startswith("mean_cut_at")), None)
    line = f"{name}, mean {tokens['mean']:.0f} tokens, median {tokens['median']:.0f}"
    line += f", p99 {tokens['p99']:.0f}"
    return f"{line}, mean {tokens[cut]:.0f} once cut" if cut else line


if __name__ == "__main__":
    run(main)
