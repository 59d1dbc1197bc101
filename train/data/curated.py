"""Curated sets as files: comments in named groups that a fair model treats alike.

A set is a CSV with the columns `text` and `label` (under any name that training knows, or that a
flag names), `group`, and, where two comments differ in the identity alone, `pair_id`.
`quality.curated` measures on them, `export.reference` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract import BadInput
from train.data.load import Comments, load_comments
from train.data.tables import column_names

GROUP, PAIR = "group", "pair_id"
_SUFFIXES = (".csv", ".csv.gz")


def load_curated(paths: Sequence[str], **columns: Any) -> dict[str, Comments]:
    """Curated sets by file name without its suffix.

    Of a folder, its CSV files that have a column `group`. `columns`: text_column, label_column and
    label_map, as `load_comments` takes them. Raises BadInput for a file without a column `group`,
    or a folder without such a file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = [f for f in sorted(path.iterdir()) if f.name.endswith(_SUFFIXES)]
            found = [f for f in found if GROUP in column_names(f)]
            if not found:
                raise BadInput(
                    f"{path} holds no .csv or .csv.gz file with a column '{GROUP}', expected "
                    "curated sets; give another folder with --curated"
                )
        files += found
    sets = {}
    for file in files:
        comments = load_comments(
            str(file),
            both_classes=False,
            extra_columns=(GROUP, PAIR),
            flags="--curated-",
            **columns,
        )
        if GROUP not in comments.extra:
            raise BadInput(
                f"{file} has no column '{GROUP}', expected text, label and {GROUP}; add it, or "
                "give the file with --data"
            )
        sets[file.name.split(".")[0]] = comments
    return sets
