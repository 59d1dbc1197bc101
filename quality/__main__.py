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
from quality.config import EvaluateConfig
from quality.measure import evaluate
from quality.report import screen, write_page
from train.artifacts import write_json


def main() -> None:
    config = parse_config(
        EvaluateConfig, None, prog="python -m quality", description="Evaluate models."
    )
    evaluation = evaluate(config)
    write_json(config.out / "evaluation.json", evaluation.document)
    write_page(evaluation, config.out / "evaluation.html")
    print(screen(evaluation.document))
    print(f"{config.out / 'evaluation.html'} has the curves, the identities and every group")
    if config.json:
        print(json.dumps(evaluation.document))


if __name__ == "__main__":
    run(main)
