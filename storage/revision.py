"""The Git commit of the source that runs, where there is one."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_TIMEOUT_S = 10


def source_commit() -> str | None:
    """Full hash of the commit that is checked out; None without Git or outside its checkout.

    What is changed since is not seen. An installed copy inside some other checkout is not of it.
    """
    tracked = _git("ls-files", "--error-unmatch", "contract.py")
    return _git("rev-parse", "HEAD") if tracked else None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(_ROOT), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() or None if ended.returncode == 0 else None
