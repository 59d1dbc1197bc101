"""Files that outlast a kill, a full disk and a crash of the machine; every command writes by these.

What is written gets a temporary name, is flushed to the disk and renamed; what is removed is
renamed away first. So a command that was killed leaves what was there before it or all that it
made, and beside it at most names with the prefixes below, which the next command clears. One
writer at a time is `storage.locks`' matter.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from contract import BadInput
from storage.system_errors import naming

_WRITING, _STAGING, _REMOVED = ".writing-", ".staging-", ".removed-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What renameat2 says on a filesystem that cannot exchange two names."""


def write_atomically(
    path: Path, data: bytes | str, mode: int = 0o644, *, to_disk: bool = True
) -> None:
    """Write `data` (text as UTF-8) to `path`: temporary name, fsync, rename, fsync the folder.

    Without `to_disk` there is no fsync, for what has a checksum and can be made again: a kill
    leaves it whole, a crash of the machine perhaps not.

    Raises OSError that names `path`, or the folder above it that is in the way; what was there
    before then stays.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_WRITING}{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                os.fchmod(file.fileno(), mode)  # mkstemp's 0600 would hide it from a server's user
                file.flush()
                if to_disk:
                    os.fsync(file.fileno())
            os.replace(name, path)  # noqa: PTH105
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if to_disk:
            fsync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document for people and programs: indented, keys in the order given."""
    # Bytes of a file's name that are no text come out as JSON's own escapes.
    write_atomically(path, json_text(document).encode("utf-8", "backslashreplace"))


def json_text(document: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """JSON object in `path`. Raises BadInput that ends with `remedy`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing, expected a JSON file; {remedy}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    return json_object(data, path, remedy)


def json_object(data: bytes, name: object, remedy: str) -> dict[str, Any]:
    """JSON object that `name` holds as `data`, UTF-8. Raises BadInput that ends with `remedy`."""
    try:
        document = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise BadInput(f"{name} is not valid JSON (nested too deeply); {remedy}") from error
    except ValueError as error:
        raise BadInput(f"{name} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise BadInput(f"{name} holds a JSON {type(document).__name__}, not an object; {remedy}")
    return document


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_texts(texts: Iterable[str]) -> str:
    """Hex digest of the texts in their order, each with its length."""
    digest = hashlib.sha256()
    for text in texts:
        part = text.encode("utf-8", "surrogatepass")
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def fsync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: without it a crash may undo a rename in it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- Folders -----------------------------------------------------------------------------
@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder` to fill and then rename; dropped if it still is there."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder, prefix=_STAGING))
    try:
        staged.chmod(0o755)  # mkdtemp's 0700 would hide it from a server's user
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def put_folder(staged: Path, target: Path) -> None:
    """Rename the filled folder `staged` to `target`, where nothing is, once it is on the disk."""
    _fsync_tree(staged)
    staged.rename(target)
    fsync_folder(target.parent)


def replace_folder(staged: Path, target: Path) -> None:
    """Put the filled folder `staged` in the place of `target`, which may exist, in one step."""
    _fsync_tree(staged)
    recover(target)
    if not os.path.lexists(target):
        staged.rename(target)
    elif not _exchange(staged, target):
        target.rename(_old(target))
        staged.rename(target)
        remove(_old(target))
    fsync_folder(target.parent)
    if os.path.lexists(staged):  # now it is what was there before
        remove(staged)


def recover(target: Path) -> None:
    """Put `target` back if a kill hit `replace_folder` where two names cannot be exchanged."""
    if os.path.lexists(_old(target)):
        if os.path.lexists(target):
            remove(_old(target))
        else:
            _old(target).rename(target)


def remove(path: Path) -> None:
    """Remove a file or folder: with one rename it is out of sight, whatever comes after."""
    away = path.with_name(f"{_REMOVED}{path.name}-{secrets.token_hex(4)}")
    path.rename(away)
    fsync_folder(path.parent)
    _drop(away)


def clear_removed(folder: Path) -> None:
    """Drop what a killed `remove` left in `folder`; nobody can need it."""
    _clear(folder.glob(f"{_REMOVED}*"))


def clear_unfinished(folder: Path, *, below: bool = False) -> None:
    """Drop every temporary name in `folder`, or `below` it too; its lock must be held."""
    for prefix in (_REMOVED, _WRITING, _STAGING):
        _clear(folder.rglob(f"{prefix}*") if below else folder.glob(f"{prefix}*"))


def _clear(paths: Iterator[Path]) -> None:
    for path in list(paths):
        _drop(path)


def _drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what is left has its temporary name
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system or the filesystem cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    if (reason := ctypes.get_errno()) in _NOT_HERE:
        return False
    raise OSError(reason, os.strerror(reason), str(other))


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(Path(parent))
