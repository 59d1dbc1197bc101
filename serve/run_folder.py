"""The folder that a door runs from: made and marked by a start, and never taken for one unmarked.

A start writes its mark into a new or an empty folder. What else is given a folder (status, stop,
benches) changes one with the mark only, so that a mistyped path costs nobody a file.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from contract import BadInput

_MARK = ".toxicity-run"
_LONGEST_SOCKET_PATH = 100  # sun_path has 108 bytes, and gRPC appends a port
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")


def is_ours(run_dir: Path) -> bool:
    """Whether a start made this folder."""
    return (run_dir / _MARK).is_file()


def claim(run_dir: Path) -> None:
    """Make the folder, or take an empty one, and let only the user look into it.

    Raises BadInput for a folder that holds what no start put there, and as `plain` does.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if not is_ours(run_dir):
        # Another start may mark it between the two looks.
        if (first := next(run_dir.iterdir(), None)) and not is_ours(run_dir):
            raise BadInput(
                f"{run_dir} holds {first.name}, expected a new or an empty folder, or one of an "
                "earlier start; give another with --run-dir"
            )
        (run_dir / _MARK).touch()
    run_dir.chmod(0o700)
    plain(run_dir)


def plain(run_dir: Path) -> Path:
    """A path to `run_dir` that needs no quoting anywhere and is short enough for sockets.

    The folder itself where it is so already, else a link to it in a folder of the user's own, made
    once a start has marked it. Raises BadInput when somebody else made that one.
    """
    folder = run_dir.resolve()
    if _PLAIN.fullmatch(str(folder)) and len(str(folder)) <= _LONGEST_SOCKET_PATH - 40:
        return folder
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    link = Path("/tmp") / f"toxicity-{os.getuid()}" / name
    if is_ours(run_dir):
        _link(link, folder)
    return link


def _link(link: Path, folder: Path) -> None:
    private = link.parent
    private.mkdir(mode=0o700, exist_ok=True)
    about = private.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or private.is_symlink():
        raise BadInput(
            f"{private} is another user's or open to others, expected a folder of yours with mode "
            "0700; remove it"
        )
    if not link.is_symlink() or link.readlink() != folder:
        fresh = private / f".{link.name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder)
        fresh.replace(link)
