"""The commands that list, publish, roll back and sign; each counts whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyModel

from bench.faults import child as fault_child
from contract import (
    ARTIFACT_FILE,
    ONNX_FILE,
    PUBLIC_MODEL,
    REQUIRE_SIGNATURE,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    BadInput,
    GateFailed,
)
from export import switch, versions
from export.model_config import CONFIG_FILE, Tuning
from export.repository import (
    current,
    load_scorer,
    read_tuning,
    served_files,
    served_tuning,
    verify,
)
from export.repository import versions as published
from export.signing import make_keys
from export.switch import rollback, serve_version, tune
from storage.files import sha256_of, write_json

ROOT = Path(__file__).parent.parent


def _run(*flags: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export.versions", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _main(monkeypatch: pytest.MonkeyPatch, *flags: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["versions", *map(str, flags)])
    versions.main()


@pytest.fixture
def repository(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """Three versions, the last one serves."""
    for _ in range(3):
        tiny_model.publish(tmp_path / "repository")
    return tmp_path / "repository"


# --- Which one serves --------------------------------------------------------------------
def test_a_rollback_goes_back_the_way_that_was_come(
    tiny_model: TinyModel, repository: Path
) -> None:
    assert current(repository) == 3
    assert rollback(repository) == current(repository) == 2
    assert tiny_model.publish(repository) == current(repository) == 4
    assert rollback(repository) == 2  # 3 was left for a reason
    assert published(repository) == [2, 3, 4]
    with pytest.raises(BadInput, match=r"version 2 .* is the first that served.*\[2, 3, 4\]"):
        rollback(repository)
    assert serve_version(repository) == current(repository) == 4
    assert serve_version(repository, 3) == verify(repository)["version"] == 3
    assert rollback(repository) == 4


def test_each_version_serves_as_it_did_until_one_is_tuned(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    tiny_model.publish(tmp_path, instances=1, cache_bytes=1000)
    tiny_model.publish(tmp_path, instances=2, cache_bytes=2000)
    assert rollback(tmp_path) == 1
    assert served_tuning(tmp_path) == Tuning(1)
    assert '"1000"' in (tmp_path / PUBLIC_MODEL / CONFIG_FILE).read_text()
    tune(tmp_path, Tuning(3, 2.0, 16), {})
    assert serve_version(tmp_path, 2) == 2
    assert served_tuning(tmp_path) == read_tuning(tmp_path) == Tuning(3, 2.0, 16)
    assert '"2000"' in (tmp_path / PUBLIC_MODEL / CONFIG_FILE).read_text()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_what_serves_and_what_did_before_are_kept(
    tiny_model: TinyModel, repository: Path, keep: int
) -> None:
    serve_version(repository, 1)
    tiny_model.publish(repository, keep_versions=keep)
    assert published(repository) == {1: [4], 2: [1, 4], 3: [1, 3, 4]}[keep]
    verify(repository)


def test_a_damaged_version_or_one_without_gates_is_refused(
    tiny_model: TinyModel, repository: Path
) -> None:
    ungated = {k: v for k, v in tiny_model.artifact.items() if k != "measured"}
    failed = {**tiny_model.artifact, "measured": {"fp32_shapes": 1.0}}
    for artifact in (ungated, failed):
        tiny_model.publish(repository, artifact=artifact, keep_versions=9)
    serve_version(repository, 3)
    with pytest.raises(GateFailed, match=rf"4/{ARTIFACT_FILE} carries no gates.*make export"):
        serve_version(repository, 4)
    with pytest.raises(GateFailed, match=r"gate fp32_shapes of .* is 1, expected at most 0.0001"):
        serve_version(repository)
    (repository / PUBLIC_MODEL / "2" / TOKENIZER_FILE).write_text("{}")
    with pytest.raises(BadInput, match=rf"2/{TOKENIZER_FILE} is damaged"):
        serve_version(repository, 2)
    with pytest.raises(BadInput, match=r"version is 7, expected one of \[1, 2, 3, 4, 5\]"):
        serve_version(repository, 7)
    assert current(repository) == 3
    shutil.rmtree(repository / PUBLIC_MODEL / "3")
    with pytest.raises(BadInput, match=rf"3/{ARTIFACT_FILE} is missing"):
        verify(repository)
    assert serve_version(repository, 1) == verify(repository)["version"] == 1


def test_an_altered_configuration_is_written_again(repository: Path) -> None:
    path = repository / PUBLIC_MODEL / CONFIG_FILE
    text = path.read_text()
    path.write_text(text.replace('"64"', '"8"'))
    with pytest.raises(BadInput, match=r"max_batch.*'8', expected '64'; run `make publish`"):
        current(repository)
    assert serve_version(repository) == current(repository) == 3
    assert path.read_text() == text


def test_readers_beside_a_writer_see_one_state_or_the_other(repository: Path) -> None:
    def switching() -> None:
        for version in (1, 2, 3) * 4:
            serve_version(repository, version)

    def reading(process: Any) -> None:
        while not fault_child.pause(process, 0):
            raise AssertionError("it ended before it began")
        while fault_child.pause(process, 0):
            seen.add(verify(repository)["version"])

    seen: set[int] = set()
    assert fault_child.run(switching, repository, meanwhile=reading).status == 0
    assert seen <= {1, 2, 3} and len(seen) > 1


def test_a_second_writer_waits_and_then_is_refused(
    tiny_model: TinyModel, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "LOCK_WAIT_S", 0.1)
    with (
        switch.writing(repository),
        pytest.raises(BadInput, match=rf"in use by process {os.getpid()} \(.*expected one writer"),
    ):
        tiny_model.publish(repository)
    assert tiny_model.publish(repository) == 4


# --- Command lines -----------------------------------------------------------------------
def test_commands(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    flags = "--repository", repository
    _main(monkeypatch, "rollback", *flags)
    assert "version 2 of" in (said := capsys.readouterr().out) and "make serve" in said
    (repository / PUBLIC_MODEL / "1" / "numpy.py").write_text("")
    _main(monkeypatch, "list", *flags)
    rows = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["version", "1", "2", "3"]
    sha256 = served_files(repository)[ONNX_FILE][:12]
    assert rows[2][1:3] == ["fp32", sha256] and rows[2][-1].split()[-1] == "serves"
    assert rows[3][-1].split()[-1] == "published"
    assert "damaged" in " ".join(rows[1]) and "numpy.py" in " ".join(rows[1])
    _main(monkeypatch, "publish", *flags)
    assert current(repository) == 3


@pytest.mark.slow
def test_commands_end_with_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for flags, words in (
        (("list", "--repository", tmp_path / "nowhere"), "holds no published model"),
        (("publish", "--repository", tmp_path / "file"), "cannot be used"),
        (("rollback", "--version", "3"), "--version is given with rollback, expected publish"),
        (("keygen", "--private-key", tmp_path / "a"), "--public-key is for keygen, which needs it"),
    ):
        done = _run(*flags)
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_make_takes_any_path(tiny_model: TinyModel, tmp_path: Path) -> None:
    repository = tmp_path / "it's $HOME; (für)"
    tiny_model.publish(repository)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    command = ["make", "-f", ROOT / "Makefile", "-o", ".venv/.ready", "versions"]
    done = subprocess.run(
        [*command, "VENV=.venv", f"REPOSITORY={repository}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MAKELEVEL": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Before make 4.4 one below another says where it is, whatever the Makefile wants.
    table = [line for line in done.stdout.splitlines() if not line.startswith("make[")]
    assert table[-1].split()[-1] == "serves"


# --- Signatures --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Private and public key of one, then of another."""
    folder = tmp_path_factory.mktemp("keys")
    names = [folder / name for name in ("private", "public", "other", "other-public")]
    make_keys(*names[:2])
    make_keys(*names[2:])
    return names


def test_only_a_signed_version_verifies_where_that_is_required(
    tiny_model: TinyModel, tmp_path: Path, keys: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public, other, _ = keys
    tiny_model.publish(tmp_path)
    tiny_model.publish(tmp_path, sign_key=private)
    tiny_model.publish(tmp_path, sign_key=other)
    verify(tmp_path)
    verify(tmp_path, 2, public)
    with pytest.raises(BadInput, match=rf"/1 is not signed.*{public}.*make publish.*SIGN_KEY"):
        verify(tmp_path, 1, public)
    with pytest.raises(BadInput, match=rf"3/{SIGNATURE_FILE} is no signature of {ARTIFACT_FILE}"):
        verify(tmp_path, 3, public)
    monkeypatch.setenv(REQUIRE_SIGNATURE, str(public))
    with pytest.raises(BadInput, match="is no signature"):
        load_scorer(tmp_path)
    with pytest.raises(BadInput, match="is no signature"):
        serve_version(tmp_path, 3)
    assert serve_version(tmp_path, 2) == 2
    with pytest.raises(BadInput, match=rf"{REQUIRE_SIGNATURE} is .*--sign-key"):
        tiny_model.publish(tmp_path)
    with pytest.raises(BadInput, match="is no signature"):
        tiny_model.publish(tmp_path, sign_key=other)
    with pytest.raises(BadInput, match="is not signed"):
        serve_version(tmp_path, 1)
    assert serve_version(tmp_path, 1, sign_key=private) == verify(tmp_path)["version"] == 1
    assert published(tmp_path) == [1, 2, 3]


def test_a_signature_covers_every_byte_of_the_manifest(
    tiny_model: TinyModel, tmp_path: Path, keys: list[Path]
) -> None:
    """An attacker who may write the repository, serving.json included, but has no key."""
    tiny_model.publish(tmp_path, sign_key=keys[0])
    folder = tmp_path / PUBLIC_MODEL / "1"
    artifact = json.loads((folder / ARTIFACT_FILE).read_text())
    serving = tmp_path / PUBLIC_MODEL / "serving.json"
    before = served_files(tmp_path)[ARTIFACT_FILE]
    write_json(folder / ARTIFACT_FILE, {**artifact, "max_len": 8})
    said = json.loads(serving.read_text().replace(before, sha256_of(folder / ARTIFACT_FILE)))
    said.pop("sha256")  # which says only that the file is whole
    write_json(serving, {**said, "format": 1})
    verify(tmp_path)
    with pytest.raises(BadInput, match="is no signature"):
        verify(tmp_path, public_key=keys[1])


def test_keys_are_kept_from_others_and_never_replaced(keys: list[Path], tmp_path: Path) -> None:
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    made = [tmp_path / "a", tmp_path / "b"]
    done = _run("keygen", "--private-key", made[0], "--public-key", made[1])
    assert done.returncode == 0 and stat.S_IMODE(made[0].stat().st_mode) == 0o600
    with pytest.raises(BadInput, match="a is there already"):
        make_keys(*made)
    for bad, words in (
        (keys[1], "holds no private key"),
        (tmp_path / "none", "none is missing"),
        (tmp_path, "is no regular file"),
    ):
        with pytest.raises(BadInput, match=words):
            switch.load_private_key(bad)


def test_openssl_reads_the_signature(
    tiny_model: TinyModel, tmp_path: Path, keys: list[Path]
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    tiny_model.publish(tmp_path, sign_key=keys[0])
    folder = tmp_path / PUBLIC_MODEL / "1"
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin"]
    command += ["-in", folder / ARTIFACT_FILE, "-sigfile", folder / SIGNATURE_FILE]
    subprocess.run(command, check=True, capture_output=True)


def test_signing_that_is_killed_leaves_a_version_that_verifies(
    tiny_model: TinyModel, tmp_path: Path, keys: list[Path]
) -> None:
    tiny_model.publish(tmp_path)
    work = partial(serve_version, tmp_path, 1, sign_key=keys[0])
    for step in range(1, 40, 3):
        ended = fault_child.run(work, tmp_path, fault_child.Limits(kill_at=step))
        verify(tmp_path)
        (tmp_path / PUBLIC_MODEL / "1" / SIGNATURE_FILE).unlink(missing_ok=True)
        if ended.signal is None:
            break
    work()
    verify(tmp_path, public_key=keys[1])
