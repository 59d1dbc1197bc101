"""What is done of a file so far: the folder of its parts, which one command at a time writes.

A command that was interrupted leaves them, and the same command goes on with them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract import ARTIFACT_FILE, ONNX_FILE, BadInput
from serve.offline.config import ScoreFileConfig
from serve.offline.job import Job, Part, part_path, read_part, write_whole
from serve.offline.records import CHUNK_BYTES, CHUNK_ROWS
from serve.offline.rows import STDIN, Chunk
from storage.files import json_object, read_json, sha256_of
from storage.locks import locked
from storage.remote import Place, RemotePath, place_of
from storage.system_errors import naming

STATE_FILE = "state.json"
_BEGIN_AGAIN = "give another --out, or --overwrite to begin again"


def beside(out: Place, suffix: str) -> Any:
    """A name next to the output, which begins with its own."""
    return out.with_name(out.name + suffix)


def stamp(name: str) -> tuple[int, int] | None:
    """Size in bytes and time of the last change in ns of an input; None for a pipe."""
    if name == STDIN:
        return None
    stat = place_of(name).stat()
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def alone(config: ScoreFileConfig, out: Place, bad: Place, job: Job) -> Iterator[None]:
    """Let no other command write the same output. Raises BadInput where one does.

    Nor may the output, or the quarantine file `bad` that was asked for, be there already.

    S3 has no locks: there two commands that begin at once write the same parts, each of them whole.
    """
    with contextlib.ExitStack() as held:
        if isinstance(out, Path):
            path, wait = out.with_name(f".{out.name}.lock"), "wait for it, or give another --out"
            with naming(out):
                held.enter_context(locked(path, f"--out {out}", wait, remove=True))
        begun = (job.parts / STATE_FILE).exists() or (
            isinstance(job.parts, Path) and job.parts.exists()
        )
        written = (out, bad) if config.quarantine else (out,)
        taken = [place for place in written if place.exists()]
        if taken and not config.overwrite and not begun:
            raise BadInput(f"{taken[0]} is there already, expected no file; {_BEGIN_AGAIN}")
        if config.overwrite or config.file == STDIN:
            drop(job.parts)
        yield


def go_on_or_begin(config: ScoreFileConfig, job: Job, artifact: dict[str, Any]) -> None:
    """Check that the parts which are there are of this very command, or begin."""
    state = {
        "input": _fingerprint(config.file),
        "text_column": job.text_column,
        "columns": job.keep,
        "version": artifact["version"],
        "artifact_sha256": sha256_of(job.version_folder / ARTIFACT_FILE),
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
        "form": job.form,
        "threshold": job.threshold,
        "chunk": {"rows": CHUNK_ROWS, "bytes": CHUNK_BYTES, "raw": True},
    }
    state = json.loads(json.dumps(state))
    path = job.parts / STATE_FILE
    if path.is_file():
        began = _began(path)
        for name in {**began, **state}:
            expected = began.get(name)
            if state.get(name) != expected:
                raise BadInput(
                    f"{job.parts} was begun with {name} {json.dumps(expected)}, and now it is "
                    f"{json.dumps(state.get(name))}; give what it was begun with to go on, "
                    f"{_BEGIN_AGAIN}"
                )
        return
    drop(job.parts)
    if isinstance(job.parts, Path):
        job.parts.mkdir(parents=True)
    write_whole(path, (json.dumps(state, indent=2) + "\n").encode())


def _began(path: Place) -> dict[str, Any]:
    if isinstance(path, Path):
        return read_json(path, _BEGIN_AGAIN)
    return json_object(path.read_bytes(), path, _BEGIN_AGAIN)


def _fingerprint(name: str) -> dict[str, Any] | None:
    if name == STDIN:
        return None
    path = place_of(name)
    stat = path.stat()
    if isinstance(path, Path):
        return {"name": path.name, "bytes": stat.st_size, "sha256": sha256_of(path)}
    return {"name": path.name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def drop(parts: Place) -> None:
    """Remove the parts, of which none counts from the first moment on."""
    if isinstance(parts, RemotePath):
        (parts / STATE_FILE).unlink()
        parts.remove_all()
        return
    old = parts.with_name(f".{parts.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        parts.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def done_parts(parts: Place) -> set[str]:
    """Names of the parts that are there."""
    if isinstance(parts, RemotePath):
        return set(parts.names())
    return {path.name for path in parts.iterdir()}


def done_part(parts: Place, chunk: Chunk, done: set[str]) -> Part | None:
    """What a chunk's part says, None without one among the `done` that is as it was written.

    Raises BadInput for one of other rows.
    """
    path = part_path(parts, chunk.number)
    if path.name not in done or (found := read_part(path)) is None:
        return None
    part, _ = found
    if (part.first_row, part.rows) != (chunk.first_row, chunk.rows):
        raise BadInput(
            f"{path} holds rows {part.first_row} to {part.first_row + part.rows - 1}, expected "
            f"{chunk.first_row} to {chunk.first_row + chunk.rows - 1}: another release cuts the "
            f"file otherwise; {_BEGIN_AGAIN}"
        )
    return part
