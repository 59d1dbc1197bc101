"""What a server loads: a private copy of one verified version, in a folder of the server's own.

    <folder>/toxicity/config.pbtxt      rendered from the values that were checked
    <folder>/toxicity/<N>/              the files that the manifest lists, and no others

Nobody else writes there, so what was verified is what is loaded, whatever happens to the repository
meanwhile; old versions can be removed from it while one serves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from contract import ORT_FILE, PUBLIC_MODEL, BadInput
from export.repository import current, served_files, serving_config, verify, version_folder
from export.tuning import CONFIG_FILE
from storage.files import sha256_of, write_atomically

FOLDER = "models"


def stage(
    repository: Path,
    folder: Path,
    like: Sequence[Path] = (),
    public_key: Path | None = None,
    version: int | None = None,
) -> int:
    """Make `folder` a view of a version, the current one by default; return the version.

    `like` names other views whose files may be shared, `public_key` the key that the version must
    be signed for. Raises BadInput as `verify` does, and when a file changes while it is copied.
    """
    version = version or current(repository)
    verify(repository, version, public_key)
    shutil.rmtree(folder, ignore_errors=True)
    model = folder / PUBLIC_MODEL
    model.mkdir(parents=True)
    _put(repository, version, model, like)
    write_atomically(model / CONFIG_FILE, serving_config(repository, version))
    return version


@contextlib.contextmanager
def changed(
    repository: Path, folder: Path, like: Sequence[Path] = (), public_key: Path | None = None
) -> Iterator[None]:
    """Within the block `folder` is a view of the current version; kept unless the block raises.

    The version of before stays beside it until the block ends: a server may still be reading it.
    """
    version = current(repository)
    verify(repository, version, public_key)
    model = folder / PUBLIC_MODEL
    before = (model / CONFIG_FILE).read_text("utf-8")
    _put(repository, version, model, like)
    write_atomically(model / CONFIG_FILE, serving_config(repository, version))
    try:
        yield
    except BaseException:
        write_atomically(model / CONFIG_FILE, before)
        _keep(model, *_numbers(model, but=version))
        raise
    _keep(model, version)


def hashes(folder: Path) -> dict[str, str]:
    """Path within the view -> sha256 of every file of it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def _put(repository: Path, version: int, model: Path, like: Sequence[Path]) -> None:
    target = model / str(version)
    if target.exists():
        return
    staging = model / f".{version}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    source = version_folder(repository, version)
    for name, sha256 in served_files(repository, version).items():
        shared = [other / PUBLIC_MODEL / str(version) / name for other in like]
        if name == ORT_FILE:
            # The same file, so that a server maps it once: it never unmaps it, and each version's
            # own copy took 30 MB of its memory for good.
            before = (model / str(number) / name for number in _numbers(model))
            shared += [path for path in before if path.is_file() and sha256_of(path) == sha256]
        for path in shared:
            with contextlib.suppress(OSError):
                os.link(path, staging / name)
                break
        else:
            shutil.copyfile(source / name, staging / name)
        if sha256_of(staging / name) != sha256:
            raise BadInput(
                f"{source / name} changed while it was copied, expected the published file; "
                "run `make export` to publish a new version"
            )
    staging.rename(target)


def _numbers(model: Path, but: int | None = None) -> list[int]:
    if not model.is_dir():
        return []
    names = (path.name for path in model.iterdir())
    return sorted(int(name) for name in names if name.isdecimal() and int(name) != but)


def _keep(model: Path, *kept: int) -> None:
    for number in _numbers(model):
        if number not in kept:
            shutil.rmtree(model / str(number), ignore_errors=True)
