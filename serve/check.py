"""Whether what `make serve` started scores, for what watches a container from inside.

    python -m serve.check --run-dir runs/serve     # status 0, or 1 and one line

A comment that nobody has asked for yet goes through haproxy to a server, over a socket that needs
neither key nor certificate. From outside, `/ready` of the metrics port says what haproxy found out
in the same way within the last half second.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import ToxicityError
from serve import balancer, control, haproxy
from serve.supervisor import Supervisor


@dataclass(frozen=True)
class CheckConfig:
    """Flags of `python -m serve.check`."""

    run_dir: Path = Field(Path("runs/serve"), description="run folder of what serves")


def main() -> None:
    config = parse_config(
        CheckConfig,
        None,
        prog="python -m serve.check",
        description="Whether what serves from a run folder really scores.",
    )
    folder = Supervisor(config.run_dir).program_folder(haproxy.NAME)
    if not control.scores(balancer.inner_socket(folder)):
        raise ToxicityError(
            f"what serves from {config.run_dir} does not score, expected a score; see its logs, or "
            "start it with `make serve`"
        )
    print("scores")


if __name__ == "__main__":
    run(main)
