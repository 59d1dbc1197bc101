"""Files outlast a kill, and a folder has one writer."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.faults import child as fault_child
from contract import BadInput
from storage import files
from storage.files import (
    clear_unfinished,
    read_json,
    remove,
    replace_folder,
    write_atomically,
)
from storage.locks import locked
from storage.system_errors import refusing_disk_errors

ROOT = Path(__file__).parent.parent


def _folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "a").write_text(text)
    (path / "b").write_text(text)
    return path


def _texts(path: Path) -> set[str]:
    return {part.read_text() for part in path.iterdir()}


def _killed_at_every_step(work: Callable[[], object], root: Path) -> Iterator[int]:
    """Kill `work` at its steps in turn, from the same files each time; the last is let through."""
    base, step, ended = root.with_name("base"), 0, False
    root.rename(base)
    while not ended:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(base, root)
        step += 1
        ended = fault_child.run(work, root, fault_child.Limits(kill_at=step)).signal is None
        yield step
    assert step > 3


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole_at_whatever_step_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:  # as on a network file system
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    root = tmp_path / "root"
    target = _folder(root / "model", "old")
    _folder(root / "staged", "new")
    seen = set()
    work = partial(replace_folder, root / "staged", target)
    for _ in _killed_at_every_step(work, root):
        files.recover(target)  # what the next command does first
        assert _texts(target) in ({"old"}, {"new"})
        assert len(list(target.iterdir())) == 2
        seen |= _texts(target)
    assert seen == ({"new"} if exchanges else {"old", "new"})  # an exchange is the first step


def test_a_removed_folder_is_whole_or_out_of_sight(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _folder(root / "7", "x")
    for _ in _killed_at_every_step(partial(remove, root / "7"), root):
        assert not (root / "7").exists() or len(list((root / "7").iterdir())) == 2
        clear_unfinished(root)
        assert {path.name for path in root.iterdir()} <= {"7"}


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "root" / "a.json"
    write_atomically(path, "old")
    for _ in _killed_at_every_step(partial(write_atomically, path, "new", 0o600), path.parent):
        assert path.read_text() in ("old", "new")
    write_atomically(path, "new", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    clear_unfinished(path.parent)
    assert [*path.parent.iterdir()] == [path]


def test_a_disks_error_names_the_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadInput, match=r"/file cannot be used \(File exists\).*give --out"),
        refusing_disk_errors(tmp_path, "give --out"),
    ):
        write_atomically(tmp_path / "file" / "x.json", "")
    with pytest.raises(BadInput, match="100 requested"), refusing_disk_errors(tmp_path, "x"):
        raise OSError("100 requested and 4 written")  # NumPy's, on a full disk
    with pytest.raises(ConnectionError), refusing_disk_errors(tmp_path, "x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"[" * 100_000, "nested too deeply"), (b"[]", "list"), (b"\xff", "not valid JSON")],
)
def test_json_that_is_none_is_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BadInput, match=f"a.json .*{words}.*; mend it"):
        read_json(tmp_path / "a.json", "mend it")
    with pytest.raises(BadInput, match="cannot be read"):
        read_json(tmp_path, "mend it")


def test_the_holder_of_a_lock_is_named_and_its_end_frees_it(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    code = (
        "import sys, time; from pathlib import Path; from storage.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'it', ''): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, file], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        words = rf"--out x is in use by process {holder.pid} \(`.*python -c .*`\) since 20.*; wait"
        with pytest.raises(BadInput, match=words) as caught, locked(file, "--out x", "wait"):
            pass
        assert "\n" not in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(file, "--out x", "wait"):
            assert json.loads(file.read_text())["pid"] == os.getpid()
    assert file.read_text() == ""


def test_a_lock_holds_on_a_full_disk_without_a_name(tmp_path: Path) -> None:
    file, before = tmp_path / ".lock", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # as a full disk: not a byte fits
    try:
        again = pytest.raises(BadInput, match="in use by another process")
        with locked(file, "it", ""), again, locked(file, "it", ""):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_lock_that_removes_its_file_still_locks(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with locked(file, "it", "", remove=True):
        assert file.exists()
    assert not file.exists()

    def other() -> None:  # opens the file that is about to be removed, and waits
        with locked(file, "it", "", 10, remove=True), pytest.raises(BadInput, match="in use"):
            locked(file, "it", "wait").__enter__()
        (tmp_path / "done").write_text("")

    def meanwhile(process: object) -> None:
        assert fault_child.pause(process, 0.3)
        held.__exit__(None, None, None)

    held = locked(file, "it", "", remove=True)
    held.__enter__()
    assert fault_child.run(other, tmp_path, meanwhile=meanwhile).status == 0
    assert (tmp_path / "done").exists() and not file.exists()


def test_a_lock_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / ".lock"

    def other() -> None:
        with locked(file, "it", "", 10):
            (tmp_path / "done").write_text("")

    def meanwhile(process: object) -> None:
        assert fault_child.pause(process, 0.3)
        assert not (tmp_path / "done").exists()
        held.__exit__(None, None, None)

    held = locked(file, "it", "")
    held.__enter__()
    assert fault_child.run(other, tmp_path, meanwhile=meanwhile).status == 0
    assert (tmp_path / "done").exists()
    assert not capsys.readouterr().err
