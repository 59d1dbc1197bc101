"""Render the chart with Helm's own engine: deploy/kubernetes/base is what it gives by default.

    build/fleet/bin/python deploy/helm/render.py deploy/kubernetes/base
    build/fleet/bin/python deploy/helm/render.py folder --values my.json     # with other values
    build/fleet/bin/python deploy/helm/render.py --lint

Needs helm-python-sdk, which `make fleet-tools` installs; `helm template toxicity
deploy/helm/toxicity` gives the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

CHART = Path(__file__).parent / "toxicity"
NAME = "toxicity"
HEAD = "# Rendered from deploy/helm/toxicity by deploy/helm/render.py; change it there.\n"


def rendered(values: dict[str, object]) -> dict[str, str]:
    """Text of each file that is not empty, by its name."""
    with _quiet(), Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=NAME)
    return {Path(name).name: text for name, text in files.items() if text.strip()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Helm tells of every link in the chart, on stderr and past Python; its errors are raised."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the Helm chart.")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write; stdout without it")
    parser.add_argument("--values", type=Path, help="JSON file of values that differ")
    parser.add_argument("--lint", action="store_true", help="let Helm look for faults instead")
    arguments = parser.parse_args()
    values = json.loads(arguments.values.read_text("utf-8")) if arguments.values else {}
    if arguments.lint:
        with _quiet():
            found = lint(CHART, values, strict=True)
        print(json.dumps(found, indent=2))
        return int(bool(found["errors"]))
    try:
        files = rendered(values)
    except HelmError as error:
        print(f"error: {' '.join(str(error).split())}; see values.yaml", file=sys.stderr)
        return 2
    for name, text in files.items():
        whole = HEAD + text.strip("\n") + "\n"
        if arguments.folder is None:
            print(f"---\n{whole}", end="")
        else:
            arguments.folder.mkdir(parents=True, exist_ok=True)
            (arguments.folder / name).write_text(whole, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
