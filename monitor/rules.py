"""The rules of deploy/prometheus with shorter windows, to see them at work within minutes.

python -m monitor.rules --faster 60 --out /tmp/rules.yml     # 1h becomes 1m
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from storage.files import write_atomically

RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "rules.yml"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(
    r"(?<=\[)(\d+)([smhd])(?=\])|(?<=^        for: )(\d+)([smhd])$", re.MULTILINE
)


@dataclass(frozen=True)
class RulesConfig:
    """Flags of `python -m monitor.rules`."""

    out: Path = Field(description="file to write")
    faster: float = Field(1, ge=1, description="how many times shorter windows and waits are")


def main() -> None:
    config = parse_config(
        RulesConfig, None, prog="python -m monitor.rules", description="Write them shortened."
    )
    write_atomically(config.out, faster(RULES.read_text("utf-8"), config.faster))


def faster(text: str, times: float) -> str:
    """The rules with every window and every `for` divided by `times`, at least a second each."""

    def shorter(found: re.Match[str]) -> str:
        amount, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
        return f"{max(1, round(int(amount) * _SECONDS[unit] / times))}s"

    return text if times == 1 else _DURATION.sub(shorter, text)


if __name__ == "__main__":
    run(main)
