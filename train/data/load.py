"""Labelled comments from CSV, JSON lines, Parquet or a hub, or from the embedded generator.

One loader for every stage. A row without a text or a label is left out and counted; one that cannot
be read, or whose label is none, is refused by name: nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from contract import LABEL_THRESHOLD, BadInput
from storage.files import sha256_of
from train.data import json_lines
from train.data.json_lines import JSON_SUFFIXES
from train.data.labels import Labels, read_labels, read_shares
from train.data.stored_texts import StoredTexts, is_large, stored_column, stored_type
from train.data.synthetic import DEFAULT_ROWS, generate
from train.data.tables import (
    CSV_SUFFIXES,
    PARQUET_SUFFIX,
    Choose,
    distinct,
    explained,
    find_column,
    is_text,
    number_of,
    read_table,
    texts_of,
)

TEXT_COLUMNS = ("comment_text", "text", "comment")
LABEL_COLUMNS = ("target", "toxicity", "toxic", "label")
IDENTITY_COLUMNS = (
    "male",
    "female",
    "transgender",
    "other_gender",
    "heterosexual",
    "homosexual_gay_or_lesbian",
    "bisexual",
    "other_sexual_orientation",
    "christian",
    "jewish",
    "muslim",
    "hindu",
    "buddhist",
    "atheist",
    "other_religion",
    "black",
    "white",
    "asian",
    "latino",
    "other_race_or_ethnicity",
    "physical_disability",
    "intellectual_or_learning_disability",
    "psychiatric_or_mental_illness",
    "other_disability",
)
"""Identity columns of Civil Comments (Borkan et al. 2019, as published with the data set)."""
_HUB_ROWS = 10_000
FLAGS = "--"
"""What the names of the flags begin with that say how a source is read."""


@dataclass(frozen=True)
class Comments:
    """Usable comments of one source, row by row."""

    texts: Sequence[str]
    rows: np.ndarray
    """int64 [n], row of the source that each is, counted from 0 without a header."""
    labels: np.ndarray
    """float32 [n], 1 where the target is at least LABEL_THRESHOLD, else 0."""
    targets: np.ndarray
    """float32 [n], share of the annotators who called the comment toxic, in [0, 1]."""
    identities: dict[str, np.ndarray]
    """float32 [n] by identity column, NaN where no annotator was asked."""
    extra: dict[str, np.ndarray]
    """str [n] by column that the caller asked for and the source has."""
    attributes: dict[str, np.ndarray]
    """float32 [n] in [0, 1] by attribute that the caller asked for and the source has a column of,
    NaN where nothing is said."""
    source: dict[str, Any] = field(compare=False)
    """Where the comments came from, and how many rows were dropped and why; JSON."""
    origin: np.ndarray | None = None
    """int64 [n], which of `source["sources"]` each is of; None for comments of one source."""

    def summary(self) -> str:
        """One line for people."""
        s = self.source
        made_up = (
            "SYNTHETIC comments (generated, not written by people): " if s["synthetic"] else ""
        )
        line = (
            f"{made_up}{s['kept']:,} comments from {s['name']}, "
            f"{100 * float(self.labels.mean()):.1f} % toxic; dropped {s['dropped_no_text']:,} "
            f"without text and {s['dropped_no_label']:,} without a label"
        )
        if s["label_map"]:
            line += f", {s['dropped_by_label_map']:,} by --label-map"
        if s["identities_of_words"]:
            line += f"; no numbers, so not used: {', '.join(s['identities_of_words'])}"
        return line


def load_comments(
    source: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    label_map: Sequence[str] = (),
    both_classes: bool = True,
    extra_columns: tuple[str, ...] = (),
    attributes: Sequence[str] = (),
    flags: str = FLAGS,
    threshold: float = LABEL_THRESHOLD,
) -> Comments:
    """Load labelled comments.

    Args:
        source: `synthetic` or `synthetic:ROWS`; a path that ends in .csv, .csv.gz, .zip (one CSV
            inside), .jsonl, .jsonl.gz or .parquet; or `hub:OWNER/NAME[:SPLIT]`, also of a folder
            here (needs the `datasets` package; the split is `train` unless named).
        text_column: column of the comment; else the first of TEXT_COLUMNS that is there.
        label_column: column of the label in [0, 1]; else the first of LABEL_COLUMNS. `true` and
            `false` count as 1 and 0.
        label_map: what other labels mean, as `train.data.labels.parse_label_map` takes it.
        both_classes: False takes comments of one class too, as in a set of harmless ones that
            measures false alarms.
        extra_columns: columns to take along as they are, where the source has them.
        attributes: names of columns of shares in [0, 1], case aside, where the source has them.
        flags: what the flags of these choices begin with, for errors.
        threshold: target from which on a comment is toxic.

    Raises:
        BadInput: for a source that is missing, damaged, or without usable comments, and for labels
            that are neither numbers in [0, 1] nor named by `label_map`.
    """
    columns = _Columns(source, flags, text_column, label_column, extra_columns, tuple(attributes))
    table, details, texts, has_text = _read_columns(columns)
    with explained(source):
        given = table.column(columns.label), has_text, label_map
        labels = read_labels(*given, source=source, name=columns.label, flags=flags)
        shares = {n: _numbers(table.column(c), c) for n, c in columns.identities.items()}
        extra = {n: np.array(_words(table.column(n), n), object) for n in columns.extra}
        asked = columns.attributes.items()
        found = {n: read_shares(table.column(c), has_text, source=source, name=n) for n, c in asked}
    rows = np.flatnonzero(has_text & ~np.isnan(labels.targets))
    targets = labels.targets[rows].astype(np.float32)
    toxic = (labels.targets[rows] >= threshold).astype(np.float32)
    comments = Comments(
        texts=texts.take(rows)
        if isinstance(texts, StoredTexts)
        else [text for text in map(texts.__getitem__, rows) if text is not None],
        rows=rows,
        labels=toxic,
        targets=targets,
        identities={n: s[rows].astype(np.float32) for n, s in shares.items() if s is not None},
        extra={name: words[rows] for name, words in extra.items()},
        attributes={name: shares_of[rows] for name, shares_of in found.items()},
        source=_about(source, details, columns, label_map, has_text, labels, toxic, shares),
    )
    _check_usable(comments, both_classes=both_classes, flags=flags)
    return comments


def _read_columns(
    columns: _Columns,
) -> tuple[Any, dict[str, Any], Sequence[str | None], np.ndarray]:
    """The table and what is to be said of it, the texts, and which say something: bool [n]."""
    source, flag = columns.source, f"{columns.flags}text-column"
    if is_large(source):
        table, details = _read(source, columns.choose_others)
        with explained(source):
            _check_text(stored_type(source, columns.text), source, columns.text, flag)
            return table, details, *stored_column(source, columns.text)
    table, details = _read(source, columns.choose)
    with explained(source):
        texts = _texts_of(table, source, columns.text, flag)
    return table, details, texts, np.array([bool(text and text.strip()) for text in texts], bool)


def _about(
    source: str,
    details: dict[str, Any],
    columns: _Columns,
    label_map: Sequence[str],
    has_text: np.ndarray,
    labels: Labels,
    toxic: np.ndarray,
    shares: dict[str, np.ndarray | None],
) -> dict[str, Any]:
    """`Comments.source`; `toxic` is of the rows that are kept."""
    return {
        "name": source,
        **details,
        "synthetic": details["kind"] == "generator",
        "text_column": columns.text,
        "label_column": columns.label,
        "label_map": list(label_map),
        **_counts(has_text, labels),
        "positives": int(toxic.sum()),
        "identities": [name for name, share in shares.items() if share is not None],
        "identities_of_words": [name for name, share in shares.items() if share is None],
    }


def _counts(has_text: np.ndarray, labels: Labels) -> dict[str, int]:
    """Rows, and why some are left out."""
    unlabelled = has_text & np.isnan(labels.targets)
    return {
        "rows": len(has_text),
        "dropped_no_text": int((~has_text).sum()),
        "dropped_no_label": int((unlabelled & ~labels.dropped).sum()),
        "dropped_by_label_map": int((unlabelled & labels.dropped).sum()),
        "kept": int((has_text & ~unlabelled).sum()),
    }


def load_texts(
    source: str, *, text_column: str | None = None, flag: str | None = "--text-column"
) -> list[str]:
    """Comments of a source as in `load_comments`, which needs no labels here; empty ones left out.

    `flag` names another column of the text, in errors; None where there is no such flag.
    """
    found: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        found.append(
            find_column(names, source, "text", asked=text_column, known=TEXT_COLUMNS, flag=flag)
        )
        return found

    table, _ = _read(source, choose)
    with explained(source):
        texts = _texts_of(table, source, found[0], flag)
    return [text for text in texts if text and text.strip()]


# --- Sources -----------------------------------------------------------------------------
def _read(source: str, choose: Choose) -> tuple[Any, dict[str, Any]]:
    """Chosen columns as an Arrow table, and what is to be said of where they came from."""
    if source == "synthetic" or source.startswith("synthetic:"):
        return _synthetic(source, choose), {"kind": "generator"}
    if source.startswith("hub:"):
        return _from_hub(source, choose), {"kind": "hub"}
    path = Path(source)
    if not path.is_file():
        raise BadInput(
            f"no file at {source}, expected comments; name another, or 'synthetic' for generated "
            "ones"
        )
    if not path.name.lower().endswith((*CSV_SUFFIXES, *JSON_SUFFIXES, PARQUET_SUFFIX)):
        raise BadInput(
            f"{path} ends in {path.suffix or 'nothing'}, expected .csv, .csv.gz, .zip, .jsonl, "
            ".jsonl.gz or .parquet; convert or rename it"
        )
    read = json_lines.read_table if json_lines.is_json_lines(path) else read_table
    return read(path, choose), {"kind": "file", "sha256": sha256_of(path)}


def _synthetic(source: str, choose: Choose) -> Any:
    rows = source.partition(":")[2] or str(DEFAULT_ROWS)
    if not rows.isdecimal() or int(rows) < 1:
        raise BadInput(f"{source} asks for {rows!r} rows, expected a number as in synthetic:5000")
    texts, targets = generate(int(rows))
    table = pa.table({"text": texts, "toxicity": targets})
    return table.select(choose(table.column_names))


def _from_hub(source: str, choose: Choose) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{source} needs the package datasets, which is not installed; "
            "run `.venv/bin/pip install datasets`"
        ) from error
    name, _, split = source.removeprefix("hub:").partition(":")
    refused = f"{source} could not be loaded ({{}}); check the name and the network"
    try:  # a batch after the other: nothing is stored on the way, nor columns that nobody asked for
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        names = rows.column_names or list(next(iter(rows)))
    except Exception as error:  # the library raises its own, its HTTP client's and OS errors
        raise BadInput(refused.format(_first_line(error))) from error
    chosen = list(choose(names))
    try:
        batches = rows.select_columns(chosen).with_format("arrow").iter(_HUB_ROWS)
        return pa.concat_tables([batch.select(chosen) for batch in batches])
    except Exception as error:
        raise BadInput(refused.format(_first_line(error))) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# --- Columns -----------------------------------------------------------------------------
@dataclass
class _Columns:
    """Which columns of a source are read; known once `choose` has seen their names."""

    source: str
    flags: str
    asked_text: str | None
    asked_label: str | None
    asked_extra: tuple[str, ...]
    asked_attributes: tuple[str, ...]
    text: str = ""
    label: str = ""
    identities: dict[str, str] = field(default_factory=dict)
    """Column by name in IDENTITY_COLUMNS."""
    extra: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    """Column by the attribute that was asked for."""

    def choose(self, names: Sequence[str]) -> list[str]:
        text, label = f"{self.flags}text-column", f"{self.flags}label-column"
        self.text = find_column(
            names, self.source, "text", asked=self.asked_text, known=TEXT_COLUMNS, flag=text
        )
        self.label = find_column(
            names, self.source, "label", asked=self.asked_label, known=LABEL_COLUMNS, flag=label
        )
        if self.text == self.label:
            raise BadInput(
                f"{self.source} has its text and its label in {self.text!r}, expected two columns; "
                f"name another with {text} or {label}"
            )
        lower = {name.lower(): name for name in names}
        self.identities = {name: lower[name] for name in IDENTITY_COLUMNS if name in lower}
        self.extra = [name for name in self.asked_extra if name in names]
        self.attributes = {name: lower[name] for name in self.asked_attributes if name in lower}
        others = *self.identities.values(), *self.extra, *self.attributes.values()
        return list(dict.fromkeys((self.text, self.label, *others)))

    def choose_others(self, names: Sequence[str]) -> list[str]:
        """As `choose`, without the comments."""
        chosen = self.choose(names)
        return [name for name in chosen if name != self.text or name in self.extra]


def _texts_of(table: Any, source: str, name: str, flag: str | None) -> list[str | None]:
    column = table.column(name)
    _check_text(column.type, source, name, flag)
    return texts_of(column, name)


def _check_text(kind: Any, source: str, name: str, flag: str | None) -> None:
    if not is_text(kind):
        raise BadInput(
            f"column {name!r} of {source} holds {kind}, expected text; "
            f"{f'name another with {flag}' if flag else 'convert it'}"
        )


def _numbers(column: Any, name: str) -> np.ndarray | None:
    """float64 [n], NaN where there is none; None for a column that holds words."""
    values, at = distinct(column, name)
    numbers = [number_of(value) for value in values]
    for place, value in enumerate(values):
        word = value.strip().lower()
        if numbers[place] is None and word not in ("", "nan"):
            if word not in ("true", "false"):
                return None
            numbers[place] = float(word == "true")
    known = np.array([*(np.nan if number is None else number for number in numbers), np.nan])
    return known[at]


def _words(column: Any, name: str) -> list[str]:
    values, at = distinct(column, name)
    return [values[place] if place >= 0 else "" for place in at]


def _check_usable(comments: Comments, *, both_classes: bool, flags: str) -> None:
    s = comments.source
    usable = 0 < s["positives"] < s["kept"] if both_classes else s["kept"] > 0
    if usable:
        return
    raise BadInput(
        f"{s['name']} has {s['kept']} usable comments, {s['positives']} of them toxic "
        f"({s['dropped_no_text']} rows without text, {s['dropped_no_label']} without a label, "
        f"{s['dropped_by_label_map']} dropped by their label), expected "
        f"{'both classes' if both_classes else 'at least one'}; "
        + (
            "ask for more rows"
            if s["synthetic"]
            else f"check the columns {s['text_column']!r} and {s['label_column']!r}, or name "
            f"others with {flags}text-column and {flags}label-column"
        )
    )
