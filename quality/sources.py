"""Sets of comments by source: of a run that had several, and of a sources file."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from contract import BadInput
from train.data.load import Comments
from train.data.sources import is_sources_file, load_source, read_sources

VALIDATION = "validation"


def of_validation(name: str) -> bool:
    """Whether a set is the validation split, or a source of it: what chose the weights."""
    return name == VALIDATION or name.startswith(f"{VALIDATION}.")


def rows_by_source(comments: Comments, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of `rows` int64 [n], those of each source by its name, where it has both classes there.

    Nothing where the comments are of one source.
    """
    if comments.origin is None or len(comments.source["sources"]) < 2:
        return {}
    named = enumerate(source["name"] for source in comments.source["sources"])
    found = {name: rows[comments.origin[rows] == number] for number, name in named}
    return {name: own for name, own in found.items() if len(np.unique(comments.labels[own])) == 2}


def sets_of_sources(
    data: Sequence[str], taken: Container[str], attributes: Sequence[str] = ()
) -> dict[str, Comments]:
    """Comments of the sources files among `data`, by the names that they give.

    Raises BadInput for a file or a source that cannot be used, of one class or named as `taken`.
    """
    found: dict[str, Comments] = {}
    for file in (one for one in data if is_sources_file(one)):
        for source in read_sources(Path(file)):
            if source.name in found or source.name in taken:
                raise BadInput(
                    f"--data has two sets named {source.name!r}, expected one; rename a source"
                )
            comments = load_source(source, file, attributes)
            if len(np.unique(comments.labels)) < 2:
                raise BadInput(
                    f"{file}, {source.name} has comments of one class, expected both; leave it out"
                )
            found[source.name] = comments
    return found
