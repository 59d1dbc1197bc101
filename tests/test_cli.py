"""How a command ends: one line and a status whatever happens, silence when nobody reads."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk_limit import largest_file

from console import options as cli
from contract import BadInput, GateFailed
from storage.files import write_atomically
from storage.system_errors import explained
from train.artifacts import write_json
from train.data.batches import pretokenize
from train.data.tokenizer import build_tokenizer

ROOT = Path(__file__).parent.parent


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and stderr of a command that ends as `main` does."""
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


# --- Errors ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BadInput("x is 1\n2, expected 3"), 2, "error: x is 1\\n2, expected 3\n"),
        (GateFailed("gate"), 3, "error: gate\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was half-written\n"),
        (
            KeyError("key"),
            1,
            "internal error: KeyError: 'key'; run again with TOXICITY_TRACEBACK=1 to see where\n",
        ),
        (
            MemoryError(),
            1,
            "internal error: MemoryError; run again with TOXICITY_TRACEBACK=1 to see where\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: the output cannot be used (No space left on device), expected room to write "
            "it; free some space, or name a place that has it\n",
        ),
        (
            ConnectionResetError(errno.ECONNRESET, "reset"),
            1,
            "internal error: ConnectionResetError: [Errno 104] reset; run again with "
            "TOXICITY_TRACEBACK=1 to see where\n",
        ),
    ],
)
def test_every_error_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error), capsys) == (status, line)


def test_a_broken_pipe_to_somebody_else_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = ended(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), capsys)
    assert status == 1 and said.startswith("internal error: BrokenPipeError")


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "1")
    status, said = ended(raising(ZeroDivisionError("0")), capsys)
    assert status == 1 and "raise error" in said
    assert said.splitlines()[-1].startswith("internal error: ZeroDivisionError: 0;")


# --- What the system refuses -------------------------------------------------------------
def test_files_that_cannot_be_written_name_path_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for path, named, words in (
        (tmp_path / "folder", None, "Is a directory), expected a file; name a file, or move"),
        (tmp_path / "file" / "x", tmp_path / "file", "File exists), expected no such file there"),
        (
            tmp_path / "file" / "x" / "y",
            tmp_path / "file" / "x",
            "Not a directory), expected a folder; name",
        ),
        (tmp_path / ("x" * 250), None, "File name too long), expected a name that the file"),
        (Path("/proc/x"), None, "), expected "),
    ):
        status, said = ended(lambda path=path: write_json(path, {}), capsys)
        assert status == 2 and said.count("\n") == 1, said
        assert said.startswith(f"error: {named or path}"), said
        assert words in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"

    def main() -> None:
        user = os.geteuid()
        tmp_path.chmod(0o555)
        os.seteuid(user or 65534)  # root has leave for everything
        try:
            write_atomically(path, "{}")
        finally:
            os.seteuid(user)
            tmp_path.chmod(0o755)

    status, said = ended(main, capsys)
    assert status == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path}") and said.endswith(
        " cannot be used (Permission denied), expected leave to use it; change its permissions, or "
        "name another place\n"
    )


def test_a_file_that_may_not_grow_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.json"
    write_atomically(old, "before")

    def main() -> None:
        with largest_file(10_000):
            write_atomically(old, b"x" * 10_001)

    status, said = ended(main, capsys)
    assert status == 2 and said.startswith(f"error: {old} cannot be used (File too large), ")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_token_ids_that_have_no_room_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NumPy's own writing would not say why."""
    texts = ["a b c d e f"] * 1000

    def main() -> None:
        with largest_file(10_000):
            pretokenize(texts, build_tokenizer(texts, max_vocab=20, max_len=9), tmp_path)

    status, said = ended(main, capsys)
    assert status == 2 and "ids.npy cannot be used (File too large)" in said
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no leave to mount a tiny disk: a full one is tried by RLIMIT_FSIZE alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_and_a_read_only_one(
    tiny_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_disk / "a.json"
    status, said = ended(lambda: write_atomically(path, b"x" * 100_000), capsys)
    assert status == 2 and said.startswith(f"error: {path} cannot be used (No space left on de")
    assert not list(tiny_disk.iterdir())
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    status, said = ended(lambda: write_atomically(path, b"x"), capsys)
    assert status == 2 and f"{path} cannot be used (Read-only file system), expected a" in said


def test_what_no_user_mends_is_not_explained() -> None:
    assert explained(OSError("without a number")) is None
    assert explained(OSError(errno.EISDIR, "Is a directory", b"caf\xe9")) == (
        "caf\udce9 cannot be used (Is a directory), expected a file; name a file, or move the "
        "folder away"
    )


# --- Nobody reads ------------------------------------------------------------------------
def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        cwd=ROOT,
        **options,
    )


MANY = "[print('line', n) for n in range(20_000)]"


@pytest.mark.parametrize(
    "main",
    [
        MANY,
        "print('line\\n' * 100_000)",
        "(print('line'), time.sleep(0.3))",  # written when it ends
        "(print('line', flush=True), time.sleep(0.3), print('line'))",
        "(print('line', flush=True), time.sleep(0.3), sys.exit(1), print())",
        "(time.sleep(0.3), argparse.ArgumentParser().parse_args(['--help']))",
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_silence(main: str, unbuffered: str) -> None:
    code = f"import argparse, sys, time; from console.options import run; run(lambda: {main})"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdout and process.stderr
        if "flush" in main or "sleep" not in main:
            assert process.stdout.readline().startswith(b"line")
        process.stdout.close()
        assert process.stderr.read() == b""
    if "--help" in main and unbuffered:
        assert process.returncode == 0  # argparse takes no notice
    else:
        assert process.returncode == (1 if "exit" in main else -signal.SIGPIPE)


def test_the_first_line_of_a_real_command() -> None:
    line = f"set -o pipefail; {sys.executable} -m serve.door status --run-dir nowhere | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("main", ["print('a')", "print('a' * 100_000)", MANY])
def test_an_output_without_room_is_one_line(main: str) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", f"from console.options import run; run(lambda: {main})"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "error: the output cannot be used (No space left on device), expected room to write it; "
        "free some space, or name a place that has it\n"
    )


def test_what_an_alphabet_lacks_is_escaped() -> None:
    code = "from console.options import run; run(lambda: print('caf\\u00e9 \\U0001f642 \\udce9'))"
    done = python(code, env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.endswith("\\U0001f642 \\udce9\n")
