"""The Makefile hands on what it is given, letter by letter, and runs nothing that is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contract import HOST
from serve import triton
from serve.client import score_comments

ROOT = Path(__file__).parent.parent
NASTY = [
    "it costs $HOME",
    "$$ $x ${HOME} $(HOME) $(shell touch ran) `touch ran` $(error no)",
    "a'b\"c`d\\e\\",
    "'; touch ran; '",
    '"; touch ran; "',
    "$'\\n' !! !x ~ * ? [a-z] {a,b} <x >x | x & ; ( ) #x %x",
    "two\nlines\n\tand\ttabs\n",
    "a \\\nb # c",
    "-",
    "--",
    "--json",
    "-n",
    "@echo",
    "+= := , $(TEXT) $(value TEXT)",
    "ünï 🙂 \u2028 \u00a0",
    "",
]
HANDED_ON = {
    "train": ("DATA", "MINUTES", "TEST_DATA"),
    "minutes": ("DATA", "TEST_DATA"),
    "export": ("PRECISION", "REPOSITORY"),
    "serve": ("GRPC_PORT", "HTTP_PORT", "METRICS_PORT", "REPLICAS", "REPOSITORY"),
    "ui": ("GRPC_PORT", "HTTP_PORT", "METRICS_PORT", "REPOSITORY"),
    "score": ("FILE", "REPOSITORY"),
    "bench": ("USERS", "RATE", "SECONDS_EACH", "COMMENTS"),
    "bench-road": ("REPOSITORY", "COMMENTS"),
    "overload": ("CAPACITY", "COMMENTS"),
    "native": ("SANITIZE", "TARGET"),
    "doctor": ("GRPC_PORT", "HTTP_PORT", "METRICS_PORT", "REPOSITORY"),
}
_STUB = """#!/bin/sh
printf '%s\\0' "$@" > arguments
env > environment
"""


@pytest.fixture(autouse=True)
def under_another_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make test` runs these: its variables and its level are in their environment."""
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setenv("MAKEFLAGS", "w")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `make` finds a `toxicity` that only says what it was called with."""
    return with_script(tmp_path, _STUB)


def with_script(folder: Path, text: str) -> Path:
    script = folder / "venv" / "bin" / "toxicity"
    script.parent.mkdir(parents=True)
    script.write_text(text)
    script.chmod(0o755)
    return folder


def make(folder: Path, target: str, *given: str, venv: str | Path = "venv") -> list[str]:
    """What the recipe calls `toxicity` with."""
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", f"{venv}/.ready", f"VENV={venv}"]
    done = subprocess.run(
        [*command, target, *given], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if (folder / "arguments").exists():
        return (folder / "arguments").read_text("utf-8").split("\0")[:-1]
    # Under another make, one before 4.4 tells its folder whatever the Makefile says.
    return ["".join(re.findall(r"^(?!make\[1\]: \w+ directory ).*\n", done.stdout, re.MULTILINE))]


def test_the_text_arrives_as_it_was_given(folder: Path) -> None:
    for text in NASTY:
        assert make(folder, "score", f"TEXT={text}")[-2:] == ["--", text]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("target", HANDED_ON)
def test_a_value_arrives_as_it_was_given(target: str, folder: Path) -> None:
    names = HANDED_ON[target]
    for text in filter(None, NASTY):  # an empty one is not given
        arguments = make(folder, target, *(f"{name}={name} {text}" for name in names))
        values = [a.partition("=")[2] for a in arguments if a.startswith("--")]
        assert set(values) == {f"{name} {text}" for name in names}, arguments
    assert not (folder / "ran").exists()


def test_the_environment_gives_them_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in [*NASTY, " \n spaces, which make itself strips on its command line"]:
        monkeypatch.setenv("TEXT", text)
        assert make(folder, "score")[-1] == text
    assert not (folder / "ran").exists()


def test_an_empty_one_is_not_given(folder: Path) -> None:
    """Locust reads COMMENTS too."""
    make(folder, "bench", "COMMENTS=", "USERS=3")
    environment = (folder / "environment").read_text("utf-8").splitlines()
    assert "USERS=3" in environment
    assert not [line for line in environment if line.startswith(("COMMENTS", "DATA", "FILE"))]


def test_minutes_are_given_only_where_they_are(folder: Path) -> None:
    """A training without them is a plain one, and a soak has a default of its own."""
    for target in ("train", "soak"):
        assert not [word for word in make(folder, target) if word.startswith("--minutes")]
        assert "--minutes=7" in make(folder, target, "MINUTES=7")


def test_flags_are_a_piece_of_a_command_line(folder: Path) -> None:
    given = "TRAIN_ARGS=--out 'my $runs' --seed 3\n--data \"a b\""
    assert make(folder, "train", given)[-6:] == [
        "--out",
        "my $runs",
        "--seed",
        "3",
        "--data",
        "a b",
    ]


def test_several_files_stand_between_spaces(folder: Path) -> None:
    """And one that is there may have spaces in its name."""
    assert make(folder, "eval", "DATA=a$x.csv b;.csv", "MODELS=m *")[1:] == [
        *("--data", "a$x.csv", "b;.csv", "--models", "m", "*")
    ]
    (folder / "a $(touch ran) b.csv").touch()
    arguments = make(folder, "baseline", "DATA=a $(touch ran) b.csv", "CURATED=c d")
    assert arguments == ["baseline", "--data", "a $(touch ran) b.csv", "--curated", "c", "d"]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("target", ["eval", "baseline", "capacity", "ladder", "build"])
def test_a_target_is_the_command_of_its_name(target: str, folder: Path) -> None:
    assert make(folder, "native" if target == "build" else target)[0] == target


def test_a_bench_is_one_of_bench(folder: Path) -> None:
    for target in ("bench-road", "bench-cache", "bench-offline", "bench-length", "parity"):
        assert make(folder, target)[:2] == ["bench", target.removeprefix("bench-")]


def test_the_status_of_a_command_is_not_lost(tmp_path: Path) -> None:
    with_script(tmp_path, "#!/bin/sh\necho 'error: no' >&2; exit 2\n")
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", "venv/.ready", "VENV=venv", "status"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no\n"), done.stderr


# --- clean -------------------------------------------------------------------------------
def clean(folder: Path, *given: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    """`make clean` with a terminal that says `answer`, or without one."""
    leader, terminal = os.openpty()
    if answer is not None:
        os.write(leader, answer.encode())
    command = ["make", "-f", str(ROOT / "Makefile"), "VENV=venv", "clean", *given]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL if answer is None else terminal,
        timeout=60,
    )
    os.close(leader)
    os.close(terminal)
    return done


@pytest.mark.parametrize(
    ("given", "answer", "goes"),
    [
        ((), None, False),
        ((), "n\n", False),
        ((), "\n", False),
        ((), "y\n", True),
        (("FORCE=1",), None, True),
        (("FORCE=",), None, False),
    ],
)
def test_clean_asks_before_a_model_goes(
    given: tuple[str, ...], answer: str | None, goes: bool, tmp_path: Path
) -> None:
    model = tmp_path / "runs" / "mine" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    done = clean(tmp_path, *given, answer=answer)
    assert model.exists() != goes
    assert done.returncode == (0 if goes else 2), done.stderr
    if answer is None and not goes:
        assert "error: runs/mine/model.safetensors is a trained model, expected FORCE=1" in (
            done.stderr
        )


def test_clean_does_not_ask_where_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "runs" / "eval").mkdir(parents=True)
    assert clean(tmp_path).returncode == 0
    assert not (tmp_path / "runs").exists()


def test_the_scored_text_is_the_given_one(served: triton.ServeConfig, tmp_path: Path) -> None:
    with_script(tmp_path, f'#!/bin/sh\nexec {sys.executable} -m toxicity "$@"\n')
    venv = tmp_path / "venv"
    for text in ("you $are a kind person $HOME", "-", "'awful';\n\"idea\" `not`\\"):
        expected = score_comments([text], url=f"{HOST}:{served.http_port}")
        (said,) = make(ROOT, "score", f"TEXT={text}", f"HTTP_PORT={served.http_port}", venv=venv)
        row = said.partition("\n")[2]
        probability, logit, _, _, shown = row.split(maxsplit=4)
        assert shown == text + "\n"
        assert (float(probability), float(logit)) == (
            pytest.approx(float(expected.probability[0]), abs=1e-4),
            pytest.approx(float(expected.logit[0]), abs=1e-4),
        )
