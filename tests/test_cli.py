"""How a command ends: one line and a status whatever happens, silence when nobody reads."""

from __future__ import annotations

import ast
import dataclasses
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from disk_limit import largest_file
from pydantic import Field
from pydantic.dataclasses import dataclass

from console import options as cli
from console.options import make_config
from contract import HOST, BadInput, GateFailed
from serve.score import none_toxic
from storage.files import write_atomically
from storage.system_errors import explained
from toxicity import doctor
from toxicity.commands import BENCH, COMMANDS
from train.artifacts import write_json
from train.data.batches import pretokenize
from train.data.tokenizer import build_tokenizer
from train.model import ModelConfig

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
    assert status == 2 and "ids.raw cannot be used (File too large)" in said
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


# --- toxicity ----------------------------------------------------------------------------
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "pandas", "sklearn", "matplotlib", "grpc"}
ENTRIES = {
    name: entry
    for table in (COMMANDS, BENCH)
    for entries in table.values()
    for name, entry in entries.items()
}


def toxicity(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toxicity", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


def test_help_lists_every_command_and_no_argument_is_help() -> None:
    done, bench = toxicity("--help"), toxicity("bench")
    assert (done.returncode, done.stderr, bench.returncode) == (0, "", 0)
    listed = set(re.findall(r"^  ([a-z][a-z-]*)  ", done.stdout + bench.stdout, re.MULTILINE))
    assert ENTRIES.keys() | {"bench", "completion"} == listed
    assert toxicity().stdout == done.stdout


@pytest.mark.parametrize(
    ("argv", "heavy"),
    [(["--help"], {*HEAVY, "pydantic"}), (["status", "--run-dir", "nowhere"], HEAVY)],
)
def test_what_answers_at_once_imports_nothing_heavy(argv: list[str], heavy: set[str]) -> None:
    code = (
        f"import sys; sys.argv = ['toxicity', *{argv}]\n"
        "from toxicity.__main__ import main\n"
        "try: main()\n"
        f"except SystemExit: print('imported', sorted({heavy} & sys.modules.keys()))"
    )
    assert python(code).stdout.endswith("imported []\n")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_command_has_its_module_and_its_config(name: str) -> None:
    entry = ENTRIES[name]
    module, _, config = entry.config.partition(":")
    assert {"main"} <= defined(entry.module) and {config} <= defined(module)


def defined(module: str) -> set[str]:
    """Names of the functions and classes of a module, without importing it."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    body = ast.parse(path.read_text("utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(
    "module", sorted({e.module for e in ENTRIES.values() if not e.module.startswith("bench.")})
)
def test_a_document_is_on_the_screen_only_where_it_is_wanted(module: str) -> None:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert not unasked_documents(path.read_text("utf-8"))


def test_an_unasked_document_is_found() -> None:
    printed = "print(json.dumps(x))\n"
    assert unasked_documents(printed) == unasked_documents(f"if not config.json:\n  {printed}") == 1
    assert not unasked_documents(f"if config.json:\n  {printed}else:\n  print(x)")


def unasked_documents(source: str) -> int:
    """How many `print(json.dumps(...))` do not stand under `if config.json`."""

    def printed(node: ast.AST) -> int:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "config.json":
            return sum(map(printed, node.orelse))
        if isinstance(node, ast.Call) and ast.unparse(node).startswith("print(json.dumps("):
            return 1
        return sum(map(printed, ast.iter_child_nodes(node)))

    return printed(ast.parse(source))


def config_of(name: str) -> type:
    module, _, config = ENTRIES[name].config.partition(":")
    found = getattr(import_module(module), config)
    assert isinstance(found, type)
    return found


@pytest.mark.parametrize("name", [n for n, entry in ENTRIES.items() if entry.fixed or entry.flags])
def test_what_a_command_fixes_and_offers_are_fields(name: str) -> None:
    entry = ENTRIES[name]
    fields = {field.name for field in dataclasses.fields(config_of(name))}
    assert {*entry.fixed, *entry.flags, *entry.defaults} <= fields


@pytest.mark.parametrize(
    "name", ["train", "export", "eval", "baseline", "migrate", "serve", "keygen", "score"]
)
def test_help_shows_no_word_of_python_and_no_place_of_this_machine(name: str) -> None:
    entry = ENTRIES[name]
    invocation = cli.Invocation(f"toxicity {name}", [], entry.fixed, entry.defaults, entry.flags)
    command = cli.command_of(config_of(name), invocation, entry.summary, entry.positional)
    with click.Context(command, info_name=name, auto_envvar_prefix="TOXICITY_X") as context:
        text = command.get_help(context)
    assert not re.search(r"None|Undefined|default: /|Path\(|\.\./", text), text
    assert "TOXICITY_X_" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "error: toxicity: No such command 'trian'. Did you mean 'train'?"),
        (["bench", "laod"], "error: toxicity bench: No such command 'laod'. Did you mean 'load'?"),
        (
            ["status", "--run-dri", "x"],
            "toxicity status: No such option '--run-dri'. Did you mean ",
        ),
        (["status", "--replicas", "2"], "error: toxicity status: No such option '--replicas'"),
        (["publish", "--version"], "--version has nothing behind it, expected a value"),
        (["publish", "--version", "--sign-key", "x"], "--version has --sign-key behind it"),
        (["publish", "--version", "x"], "error: --version is 'x': Input should be a valid integer"),
        (["keys"], "error: toxicity keys: Missing argument '{add|remove|list}'"),
        (["ablation"], "error: toxicity ablation: Missing option '--data'; see toxicity ablation"),
    ],
)
def test_a_mistyped_word_is_one_line(argv: list[str], words: str) -> None:
    done = toxicity(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "--vocab-size is missing, expected a value"),
        ({"vocab_size": 9, "n_layer": 2}, "'n_layer' is no setting of ModelConfig.*'n_layers'"),
        (
            {"vocab_size": 9, "colour": 1},
            "'colour' is no setting .* one of architecture, attention, ",
        ),
    ],
)
def test_a_config_takes_what_it_has_and_needs(values: dict[str, int], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        make_config(ModelConfig, values)


def test_a_variable_is_a_flag_and_a_mistyped_one_is_named(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert f"from {nowhere};" in toxicity("status", TOXICITY_STATUS_RUN_DIR=nowhere).stdout
    given = toxicity("status", "--run-dir", "there", TOXICITY_STATUS_RUN_DIR=nowhere)
    assert "from there;" in given.stdout
    done = toxicity("status", TOXICITY_STATUS_RUN_DRI=nowhere)
    assert done.returncode == 2
    assert "TOXICITY_STATUS_RUN_DRI is no flag. Did you mean 'TOXICITY_STATUS_RUN_DIR'?" in (
        done.stderr
    )
    others = toxicity("status", "--run-dir", "x", TOXICITY_STATUS_OTHER_RUN_DIR="of another")
    assert others.returncode == 0


def test_a_shell_completes_flags_values_and_commands() -> None:
    def completed(*words: str) -> list[str]:
        said = toxicity(
            _TOXICITY_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(["toxicity", *words]),
            COMP_CWORD=str(len(words)),
        ).stdout
        return [line.partition(",")[2] for line in said.splitlines()]

    assert completed("ver") == ["versions"]
    assert completed("bench", "of") == ["offline"]
    assert completed("publish", "--re") == ["--repository", "--require-signature"]
    assert completed("score", "--protocol", "") == ["http", "grpc"]
    assert "_TOXICITY_COMPLETE=bash_complete" in toxicity("completion", "bash").stdout


@dataclass(frozen=True)
class Options:
    """Of the tests below."""

    words: tuple[str, ...] = Field((), description="several")
    number: float = Field(1.5, description="one", json_schema_extra={"group": "numbers"})
    flag: bool = Field(True, description="on or off")
    maybe: bool | None = None
    needed: str = Field(description="no default", kw_only=True)


def parsed(*argv: str) -> Options:
    return cli.parse_config(Options, argv, prog="options", description="x", positional="needed")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--words", "a", "b c", "--no-flag", "n"], ("a", "b c")),
        (["n", "--no-flag", "--words=a", "--words", "b c"], ("a", "b c")),
        (["n", "--words", "-1=drop", "-1", "-", "--no-flag"], ("-1=drop", "-1", "-")),
        (["--words", "a=b=c", "", "--no-flag", "--", "n"], ("a=b=c", "")),
    ],
)
def test_several_values_stand_behind_one_flag(argv: list[str], words: tuple[str, ...]) -> None:
    assert parsed(*argv) == Options(words=words, flag=False, needed="n")


def test_a_value_behind_an_equals_sign_may_have_anything_in_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toxicity", "versions", f"--repository={tmp_path}/a b=c -- --d"],
        capture_output=True,
        text=True,
    )
    assert f"{tmp_path}/a b=c -- --d holds no published model" in done.stderr


def test_behind_two_dashes_everything_is_a_value() -> None:
    assert parsed("--number", "-2", "--", "--flag") == Options(number=-2, needed="--flag")


def test_groups_and_defaults_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert re.search(r"^Numbers:\n  --number NUMBER +one +\[default: 1.5\]$", said, re.MULTILINE)
    assert re.search(r"--flag / --no-flag +on or off +\[default: on\]", said)
    assert re.search(r"^  NEEDED +no default$", said, re.MULTILINE)
    assert "as --words is\nTOXICITY_OPTIONS_WORDS" in said or "TOXICITY_OPTIONS_WORDS" in said


def test_of_several_comments_none_may_be_toxic() -> None:
    assert none_toxic([0.1, 0.4999]) and "highest is 0.4999" in str(none_toxic([0.1, 0.4999]))
    assert none_toxic([0.1, 0.5]) is None
    assert none_toxic([0.1]) is None


# --- doctor ------------------------------------------------------------------------------
def findings_of(tmp_path: Path, **values: object) -> dict[str, list[doctor.Examined]]:
    given = {"repository": tmp_path / "nothing" / "here", "run_dir": tmp_path, **values}
    by_name: dict[str, list[doctor.Examined]] = {}
    for finding in doctor.examine(make_config(doctor.DoctorConfig, given)):
        by_name.setdefault(finding.name, []).append(finding)
    return by_name


def test_doctor_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = findings_of(tmp_path, http_port=port)
    (http,), (repository,) = found["http port"], found["repository"]
    assert http.state == "MISSING" and f"{port} is held by process {os.getpid()}" in http.found
    assert "--http-port" in http.remedy
    assert repository.state == "MISSING" and "make train export" in repository.found
    assert found["python"][0].state == "ok" and found["onnxruntime"][0].state == "ok"
    assert {"compiler", "core", "haproxy", "gpu", "cpu", "memory", "open files"} <= found.keys()
    for name in ("gpu", "clang", "haproxy"):
        assert all(finding.state != "MISSING" for finding in found[name])


def test_doctor_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: doctor.DoctorConfig) -> Iterator[doctor.Examined]:
        raise ZeroDivisionError("x\ny")
        yield

    monkeypatch.setitem(doctor.CHECKS, "cpu", broken)
    (finding,) = findings_of(tmp_path)["cpu"]
    assert finding.state == "note" and "ZeroDivisionError: x y" in finding.found
    monkeypatch.setenv("PATH", "")
    assert "apt-get" in findings_of(tmp_path)["clang"][0].remedy


def test_doctor_fails_only_when_it_is_asked_to(tmp_path: Path) -> None:
    nothing = ["doctor", "--repository", str(tmp_path)]
    done = toxicity(*nothing)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^MISSING  repository ", done.stdout, re.MULTILINE)
    checked = toxicity(*nothing, "--check", "--json")
    assert checked.returncode == 1 and checked.stderr.startswith("error: missing: ")
    document = json.loads(checked.stdout)
    assert {"name", "state", "found", "remedy"} == document["findings"][0].keys()
