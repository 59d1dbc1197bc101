"""Stop a bench's server when the bench is killed: `bench.serving.servers` starts one beside each.

    python -m bench.serving.guard door FOLDER

Waits for a line on its standard input. When that ends without one, because who held the other end
is gone, it stops what runs from FOLDER/run and removes FOLDER.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
from pathlib import Path

from console.options import make_config
from serve import door, triton


def stop(kind: str, run_dir: Path) -> None:
    """End what serves from `run_dir`, by "door" or "triton"; prints nothing."""
    settings = {"action": "stop", "run_dir": run_dir}
    with contextlib.redirect_stdout(io.StringIO()):
        if kind == "door":
            door.stop(make_config(door.DoorConfig, settings))
        else:
            triton.stop(make_config(triton.ServeConfig, settings))


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    _, kind, folder = sys.argv
    if not sys.stdin.readline():
        stop(kind, Path(folder) / "run")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
