"""The tools that look at deploy/, in an environment of their own (`make fleet-tools`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / "build" / "fleet" / "bin"


def tool(name: str) -> str:
    """Path of a tool; skips the test, and says so, where it is not installed."""
    found = shutil.which(name, path=str(TOOLS))
    if found is None:
        pytest.skip(f"{name} is not in {TOOLS}: run `make fleet-tools`")
    return found
