"""From another service's scores to this server: `toxicity migrate perspective --scores FILE`.

    toxicity migrate perspective --scores log.csv.gz
    toxicity migrate perspective --scores answers.jsonl --url 127.0.0.1:8000 --threshold 0.7
    toxicity migrate perspective --scores log.csv.gz --distill    # and a student of the old scores

Scores a site's own log with the model that takes over, and says what to change: which threshold
keeps the alarm rate, and precision and recall where there are labels; where the two disagree, by
kind of comment. Prints tables; writes migration.json, migration.html and migration.md. No text of
a comment is in any of them without --show-text.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from console.options import parse_config, run
from contract import BadInput
from migrate.agreement import ALARMS, OLD, agreement, points_of
from migrate.changes import changes
from migrate.collect import Collected, collect, texts_at
from migrate.config import MigrateConfig
from migrate.disagreement import by_kind, most_disputed
from migrate.distil import distil, train_config
from migrate.report import HTML_FILE, cut_text, screen, write_report
from migrate.warnings import warnings_of


def migrate(config: MigrateConfig) -> dict[str, Any]:
    """Compare, write the report and return its document. Raises BadInput as `collect` does."""
    if config.out.exists() and not config.out.is_dir():
        raise BadInput(f"--out is {config.out}, a file, expected a folder; set another")
    found = collect(config)
    training = train_config(found, config) if config.distill else None
    document = compare(found, config)
    write_report(document, found, config.out)
    if training:
        document["student"] = distil(found, config, training)
        write_report(document, found, config.out)
    return document


def compare(found: Collected, config: MigrateConfig) -> dict[str, Any]:
    """The document, without a student; JSON."""
    points = points_of(found, config.threshold)
    by_name = {point.name: point for point in points}
    kept = by_name[ALARMS]
    kinds = [] if kept.decided is None else by_kind(found, by_name[OLD], kept)
    document = {
        "report": "migration",
        "from": config.source,
        "attribute": config.attribute,
        "log": found.source,
        "model": found.model,
        "threshold": config.threshold,
        "resamples": config.resamples,
        "seed": config.seed,
        **agreement(found, points, config),
        "kinds": kinds,
        "student": None,
        "disputed": _disputed(found, config),
        "changes": [
            {"where": change.where, "lines": list(change.lines)}
            for change in changes(config.address, kept.threshold, config.attribute)
        ],
    }
    return {**document, "warnings": warnings_of(document)}


def _disputed(found: Collected, config: MigrateConfig) -> list[dict[str, Any]]:
    """With --show-text, comments and their texts; none without."""
    places = most_disputed(found, config.show_text)
    texts = texts_at(config, found.rows[places])
    return [
        {
            "row": int(found.rows[place]),
            "old": float(found.old[place]),
            "new": float(found.new[place]),
            "label": None if np.isnan(found.labels[place]) else float(found.labels[place]),
            "text": cut_text(texts[int(found.rows[place])]),
        }
        for place in places
    ]


def main() -> None:
    config = parse_config(
        MigrateConfig,
        None,
        prog="toxicity migrate",
        description="From another service's scores to this server: what to change, what differs.",
        positional="source",
    )
    document = migrate(config)
    print(screen(document))
    print(f"\n{config.out / HTML_FILE} has the curve and every kind")
    if config.json:
        print(json.dumps(document))


if __name__ == "__main__":
    run(main)
