"""Errors of the system that name the path and a way out.

Light to import: no PyTorch.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from contract import BadInput

_ROOM = "free some space, or name a place that has it"
_ELSEWHERE = "change its permissions, or name another place"
_WANTED = {
    errno.ENOSPC: ("room to write it", _ROOM),
    errno.EDQUOT: ("room to write it", _ROOM),
    errno.EFBIG: ("a limit that lets it grow", "raise `ulimit -f`, or name another place"),
    errno.EACCES: ("leave to use it", _ELSEWHERE),
    errno.EPERM: ("leave to use it", _ELSEWHERE),
    errno.EROFS: ("a place that can be written", "name another one"),
    errno.EISDIR: ("a file", "name a file, or move the folder away"),
    errno.ENOTDIR: ("a folder", "name a folder, or move the file away"),
    errno.EEXIST: ("no such file there", "move it away, or name another place"),
    errno.ENOTEMPTY: ("an empty folder", "move what it holds away, or name another place"),
    errno.ENOENT: ("it to be there", "check the path"),
    errno.ENAMETOOLONG: ("a name that the file system takes", "choose a shorter one"),
    errno.EINVAL: ("a name that the file system takes", "choose another one"),
    errno.ELOOP: ("a path that ends", "mend its symbolic links"),
    errno.EXDEV: ("one file system", "name places on the same one"),
    errno.ETXTBSY: ("a file that no program runs from", "stop that program first"),
    errno.EBUSY: ("a file that nothing else holds", "stop what uses it"),
    errno.EMFILE: ("fewer open files", "raise `ulimit -n`"),
    errno.ENFILE: ("fewer open files on this machine", "end some programs"),
    errno.EIO: ("a disk that answers", "look at the disk, or name another place"),
    errno.ENOMEM: ("more free memory", "end some programs, or ask for less at once"),
}
"""What was expected instead of an error of the system, and what to do."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError name `path`: a write has no name, and a temporary one says nothing."""
    try:
        yield
    except OSError as error:
        known = error.filename
        if known is None or Path(known).parent == path.parent:  # else a folder above
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def refusing_disk_errors(folder: Path, remedy: str) -> Iterator[None]:
    """Make BadInput, which names the file and ends with `remedy`, of a disk's error in the block.

    A full disk, a read-only folder and a file where a folder belongs are such; what a network
    said is raised as it is.
    """
    try:
        yield
    except OSError as error:
        # NumPy's short write has no number; other libraries' network errors have none either, but
        # a class of their own.
        network = isinstance(error, (ConnectionError, TimeoutError))
        if network or (error.errno is None and type(error) is not OSError):
            raise
        wanted, _ = _WANTED.get(error.errno or 0, ("to read and write it", ""))
        raise BadInput(_line(error, wanted, remedy, folder)) from error


def explained(error: OSError) -> str | None:
    """An error that a user can cause and mend, on one line; None for any other."""
    if error.errno not in _WANTED:
        return None
    return _line(error, *_WANTED[error.errno], "the output")


def _line(error: OSError, wanted: str, remedy: str, where: Path | str) -> str:
    """Names the file of the error, and `where` when it has none."""
    known = [name for name in (error.filename2, error.filename) if name is not None]
    what = known[0] if known else where
    what = os.fsdecode(what) if isinstance(what, bytes) else what
    said = error.strerror or str(error)
    return f"{what} cannot be used ({said}), expected {wanted}; {remedy}"
