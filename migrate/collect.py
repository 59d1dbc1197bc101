"""One pass over a log: old and new score, label and kinds of each comment, about 40 bytes a row.

The texts themselves are dropped chunk by chunk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract import LABEL_THRESHOLD, BadInput
from migrate.config import MigrateConfig
from migrate.kinds import kinds_of
from migrate.log import Columns, open_log
from migrate.scorer import NewModel, new_model
from serve.offline.parts import stamp
from serve.offline.progress import progress
from storage.files import sha256_of


@dataclass(frozen=True)
class Collected:
    """What is known of n usable comments, row by row."""

    rows: np.ndarray
    """int64 [n], their rows in the log."""
    old: np.ndarray
    """float64 [n], old scores."""
    new: np.ndarray
    """float64 [n], probabilities of the new model."""
    labels: np.ndarray
    """float64 [n]: 1 where the label is at least LABEL_THRESHOLD, else 0; NaN without a label."""
    kinds: np.ndarray
    """uint32 [n], bits of `migrate.kinds.KINDS`."""
    columns: Columns
    source: dict[str, Any]
    """The file, and how many rows were left out and why; JSON."""
    model: dict[str, Any]
    """What gave the new scores; JSON."""
    knows_cuts: bool

    @property
    def labelled(self) -> np.ndarray:
        """Bool [n]."""
        return ~np.isnan(self.labels)

    @property
    def has_classes(self) -> bool:
        """Whether there are labels of both classes."""
        return len(np.unique(self.labels[self.labelled])) == 2


def collect(config: MigrateConfig) -> Collected:
    """Read and score the log. Raises BadInput for one that cannot be used; see `check_usable`."""
    before = stamp(str(config.scores)) if config.scores.is_file() else None
    with open_log(config) as log, new_model(config) as model, progress(log.source) as advance:
        parts: list[tuple[np.ndarray, ...]] = []
        versions: Counter[str] = Counter()
        read = 0
        for scored in model.score(log.chunks()):
            chunk = scored.chunk
            kinds = np.array([_kinds(model, text) for text in chunk.texts], np.uint32)
            parts.append((chunk.rows, chunk.scores, scored.probability, chunk.labels, kinds))
            versions.update(scored.versions)
            read += chunk.read
            advance(chunk.span, chunk.read, chunk.read)
        columns, dropped = log.columns, dict(log.dropped)
    if stamp(str(config.scores)) != before:
        raise BadInput(
            f"{config.scores} changed while it was read, expected it to stay as it is; run again"
        )
    if len(versions) > 1:
        raise BadInput(
            f"versions {', '.join(sorted(versions))} answered, expected one; run again while no "
            "version is published"
        )
    rows, old, new, labels, kinds = _joined(parts)
    toxic = np.where(np.isnan(labels), np.nan, (labels >= LABEL_THRESHOLD).astype(np.float64))
    source = {
        "file": str(config.scores),
        "sha256": sha256_of(config.scores),
        "text_column": columns.text,
        "score_column": columns.score,
        "label_column": columns.label,
        "rows": read,
        "used": len(rows),
        "labelled": int((~np.isnan(toxic)).sum()),
        "toxic": int(np.nansum(toxic)),
        **{f"dropped_{name}": dropped.get(name, 0) for name in ("no_text", "no_score", "too_long")},
    }
    found = (rows, old, new, toxic, kinds, columns, source, model.about, model.is_cut is not None)
    check_usable(config, old, source)
    return Collected(*found)


def check_usable(config: MigrateConfig, old: np.ndarray, source: dict[str, Any]) -> None:
    """Raise BadInput where no threshold can be carried over from these old scores."""
    if not len(old):
        raise BadInput(
            f"{config.scores} has no usable row of {source['rows']:,} "
            f"({source['dropped_no_text']:,} without text, "
            f"{source['dropped_no_score']:,} without a score, "
            f"{source['dropped_too_long']:,} too long), expected texts with old scores; name the "
            "columns with --text-column and --score-column"
        )
    flagged = int((old >= config.threshold).sum())
    if not 0 < flagged < len(old):
        raise BadInput(
            f"--threshold is {config.threshold:g}, and {flagged:,} of {len(old):,} old scores "
            f"reach it (they go from {old.min():g} to {old.max():g}), expected some that do and "
            "some that do not; set the one that your site acts by"
        )


def _kinds(model: NewModel, text: str) -> int:
    return kinds_of(text, cut=bool(model.is_cut and model.is_cut(text)))


def _joined(parts: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    empty = (np.empty(0, np.int64), *(np.empty(0) for _ in range(3)), np.empty(0, np.uint32))
    return [np.concatenate(column) for column in zip(empty, *parts, strict=True)]


def texts_at(config: MigrateConfig, rows: np.ndarray) -> dict[int, str]:
    """Texts of some rows of the log, which is read again."""
    wanted, found = set(rows.tolist()), {}
    if not wanted:
        return {}
    with open_log(config) as log:
        for chunk in log.chunks():
            for row, text in zip(chunk.rows.tolist(), chunk.texts, strict=True):
                if row in wanted:
                    found[row] = text
            if len(found) == len(wanted):
                break
    return found
