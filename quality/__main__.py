"""How good, how fair and how well calibrated: `make eval`, or `python -m quality --help`.

    python -m quality --data test.csv.gz other.csv.gz --curated folder
    python -m quality --models runs/model model_repository http://127.0.0.1:8000 --misspell
    python -m quality --models baseline baseline-words

Scores labelled comments with several models and compares them on the very same comments. Prints
tables; writes `evaluation.json`, which `--json` prints as the last line, and `evaluation.html`.
No text of a comment is in any of them.
"""

from __future__ import annotations

import json

from console.options import parse_config, run
from quality.config import QualityConfig
from quality.measure import measure
from quality.page import write_page
from quality.report import screen
from storage.files import write_json


def main() -> None:
    config = parse_config(
        QualityConfig,
        None,
        prog="python -m quality",
        description="How good, how fair and how well calibrated models are, on the same comments.",
    )
    measured = measure(config)
    write_json(config.out / "evaluation.json", measured.document)
    write_page(measured, config.out / "evaluation.html")
    print(screen(measured.document))
    print(f"{config.out / 'evaluation.html'} has the curves, the identities and every group")
    if config.json:
        print(json.dumps(measured.document))


if __name__ == "__main__":
    run(main)
