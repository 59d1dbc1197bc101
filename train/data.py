"""Labelled comments from a CSV, Parquet or hub data set, or from the embedded generator.

One loader for every stage. Rows that cannot be used are counted, never silently lost.
"""

from __future__ import annotations

import textwrap
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from contract import LABEL_THRESHOLD, BadInput
from train.artifacts import sha256_of
from train.synthetic import DEFAULT_ROWS, generate

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
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Comments:
    """Usable comments of one source, row by row."""

    texts: list[str]
    labels: np.ndarray
    """float32 [n], 1 where the target is at least LABEL_THRESHOLD, else 0."""
    targets: np.ndarray
    """float32 [n], share of the annotators who called the comment toxic, in [0, 1]."""
    identities: dict[str, np.ndarray]
    """float32 [n] by identity column, NaN where no annotator was asked."""
    extra: dict[str, np.ndarray]
    """str [n] by column that the caller asked for and the source has."""
    source: dict[str, Any] = field(compare=False)
    """Where the comments came from, and how many rows were dropped and why; JSON."""

    def summary(self) -> str:
        """One line for people."""
        s = self.source
        made_up = (
            "SYNTHETIC comments (generated, not written by people): " if s["synthetic"] else ""
        )
        return (
            f"{made_up}{s['kept']:,} comments from {s['name']}, "
            f"{100 * float(self.labels.mean()):.1f} % toxic; dropped {s['dropped_no_text']:,} "
            f"without text and {s['dropped_no_label']:,} without a label"
        )


def load_comments(
    source: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    both_classes: bool = True,
    extra_columns: tuple[str, ...] = (),
) -> Comments:
    """Load labelled comments.

    Args:
        source: `synthetic` or `synthetic:ROWS`; a path that ends in .csv, .csv.gz, .zip (one CSV
            inside) or .parquet; or `hub:OWNER/NAME[:SPLIT]` (needs the `datasets` package; the
            split is `train` unless named).
        text_column: column of the comment; else the first of TEXT_COLUMNS that is there.
        label_column: column of the label in [0, 1]; else the first of LABEL_COLUMNS. `true` and
            `false` count as 1 and 0.
        both_classes: False takes comments of one class too, as in a set of harmless ones that
            measures false alarms.
        extra_columns: columns to take along as they are, where the source has them.

    Raises:
        BadInput: for a source that is missing, damaged, or without usable comments.
    """
    if source == "synthetic" or source.startswith("synthetic:"):
        frame, details = _synthetic(source), {"kind": "generator"}
    elif source.startswith("hub:"):
        frame, details = _from_hub(source), {"kind": "hub"}
    else:
        path = Path(source)
        if not path.is_file():
            raise BadInput(
                f"no file at {source}, expected labelled comments; give another path with --data, "
                "or 'synthetic'"
            )
        frame = _read_file(path)
        details = {"kind": "file", "sha256": sha256_of(path)}
    comments = _from_frame(frame, source, details, text_column, label_column, extra_columns)
    _check_usable(comments, both_classes=both_classes)
    return comments


def load_texts(path: Path, text_column: str | None = None) -> list[str]:
    """Comments of a file as in `load_comments`, which needs no labels here; empty ones dropped."""
    if not path.is_file():
        raise BadInput(f"no file at {path}, expected comments; give another with --unlabelled")
    frame = _read_file(path)
    texts = frame[_column(frame, str(path), "text", text_column, TEXT_COLUMNS)]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _synthetic(source: str) -> pd.DataFrame:
    rows = source.partition(":")[2] or str(DEFAULT_ROWS)
    if not rows.isdecimal() or int(rows) < 1:
        raise BadInput(f"{source} asks for {rows!r} rows, expected a number as in synthetic:5000")
    texts, targets = generate(int(rows))
    return pd.DataFrame({"text": texts, "toxicity": targets})


def _from_hub(source: str) -> pd.DataFrame:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{source} needs the package datasets, which is not installed; "
            "run `.venv/bin/pip install datasets`"
        ) from error
    name, _, split = source.removeprefix("hub:").partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train").to_pandas()
    except Exception as error:  # the library raises its own, its HTTP client's and OS errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{source} could not be loaded ({reason}); check the name and the network"
        ) from error


def _read_file(path: Path) -> pd.DataFrame:
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
        if name.endswith(".zip"):
            return _read_zip(path)
        if name.endswith((".csv", ".csv.gz")):
            return _read_csv(path, path)
    except (
        ValueError,  # pandas, PyArrow and text that is not UTF-8
        OSError,
        EOFError,
        RuntimeError,  # an encrypted zip
        zlib.error,
        zipfile.BadZipFile,
        pa.ArrowException,
    ) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise BadInput(
            f"{path} cannot be read ({reason}), expected a whole UTF-8 CSV or Parquet file; "
            "fetch it again"
        ) from error
    raise BadInput(
        f"{path} ends in {path.suffix or 'nothing'}, expected .csv, .csv.gz, .zip or .parquet; "
        "convert or rename it"
    )


def _read_zip(path: Path) -> pd.DataFrame:
    with zipfile.ZipFile(path) as archive:
        names = [
            name
            for name in archive.namelist()
            if name.lower().endswith(".csv") and not name.startswith("__MACOSX/")
        ]
        if len(names) != 1:
            raise BadInput(
                f"{path} holds {len(names)} CSV files, expected one; unpack it and name the file"
            )
        with archive.open(names[0]) as file:
            return _read_csv(file, path)


def _read_csv(file: Path | IO[bytes], path: Path) -> pd.DataFrame:
    # Everything as it stands: a comment that reads "NA" or "1e5" is a comment.
    compression = "infer" if isinstance(file, Path) else None
    frame = pd.read_csv(
        file, dtype=str, keep_default_na=False, encoding="utf-8", compression=compression
    )
    # pandas takes the surplus fields of the first row for an index and shifts the columns.
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):
        raise BadInput(
            f"{path} has rows with more fields than its header has names, expected as many; "
            "put comments that hold a comma in quotes"
        )
    return frame


def _from_frame(
    frame: pd.DataFrame,
    source: str,
    details: dict[str, Any],
    text_column: str | None,
    label_column: str | None,
    extra_columns: tuple[str, ...],
) -> Comments:
    text_name = _column(frame, source, "text", text_column, TEXT_COLUMNS)
    label_name = _column(frame, source, "label", label_column, LABEL_COLUMNS)
    text, target = frame[text_name], _numbers(frame[label_name])
    has_text = text.map(lambda value: isinstance(value, str) and bool(value.strip())).to_numpy(bool)
    has_label = (target >= 0) & (target <= 1)  # False for NaN
    keep = has_text & has_label
    targets = target[keep].astype(np.float32)
    labels = (target[keep] >= LABEL_THRESHOLD).astype(np.float32)
    lower = {str(name).lower(): name for name in frame.columns}
    identities = {
        name: _numbers(frame[lower[name]])[keep].astype(np.float32)
        for name in IDENTITY_COLUMNS
        if name in lower
    }
    extra = {
        name: frame[name].astype(str).to_numpy(dtype=object)[keep]
        for name in extra_columns
        if name in frame.columns
    }
    counts = {
        "rows": len(frame),
        "dropped_no_text": int((~has_text).sum()),
        "dropped_no_label": int((has_text & ~has_label).sum()),
        "kept": int(keep.sum()),
        "positives": int(labels.sum()),
    }
    about = {
        "name": source,
        **details,
        "synthetic": details["kind"] == "generator",
        "text_column": text_name,
        "label_column": label_name,
        **counts,
        "identities": list(identities),
    }
    return Comments(text[keep].tolist(), labels, targets, identities, extra, about)


def _check_usable(comments: Comments, *, both_classes: bool) -> None:
    s = comments.source
    usable = 0 < s["positives"] < s["kept"] if both_classes else s["kept"] > 0
    if usable:
        return
    raise BadInput(
        f"{s['name']} has {s['kept']} usable comments, {s['positives']} of them toxic "
        f"({s['dropped_no_text']} rows without text, {s['dropped_no_label']} without a label in "
        f"[0, 1]), expected {'both classes' if both_classes else 'at least one'}; "
        + (
            "ask for more rows"
            if s["synthetic"]
            else f"check the columns {s['text_column']!r} and {s['label_column']!r}, or name "
            "others with --text-column and --label-column"
        )
    )


def _column(
    frame: pd.DataFrame, source: str, what: str, asked: str | None, known: tuple[str, ...]
) -> str:
    names = [str(name) for name in frame.columns]
    lower = {name.lower(): name for name in reversed(names)}
    for name in (asked,) if asked else known:
        if name in names:
            return name
        if name.lower() in lower:
            return lower[name.lower()]
    wanted = repr(asked) if asked else f"one of {', '.join(known)}"
    # In a file without a header these are its first comment, of any length and many lines.
    found = textwrap.shorten(", ".join(names), 300, placeholder=" ...")
    raise BadInput(
        f"the columns of {source} are {found}, expected {wanted} for the {what}; "
        f"name it with --{what}-column"
    )


def _numbers(column: pd.Series) -> np.ndarray:
    """float64 [n]; true and false count as 1 and 0, anything else that is no number as NaN."""
    if column.dtype == bool or pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    words = column.map(lambda value: _TRUTH.get(str(value).strip().lower(), value))
    return pd.to_numeric(words, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
