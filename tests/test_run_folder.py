"""The run folder: nothing is changed in a folder that no start has made."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from contract import BadInput
from serve import door, run_folder
from serve.settings import DoorConfig


def _config(action: str, folder: Path, tmp_path: Path) -> DoorConfig:
    return DoorConfig(action=action, run_dir=folder, repository=tmp_path / "none")


@pytest.mark.parametrize("action", ["status", "stop"])
def test_looking_makes_no_folder(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "typo"
    getattr(door, action)(_config(action, folder, tmp_path))
    assert capsys.readouterr().out.startswith(f"no server is running from {folder}")
    assert not folder.exists()


def test_stop_leaves_what_others_put_into_a_folder(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "database").mkdir(parents=True)
    theirs.chmod(0o755)
    kept = theirs / "database" / "database.sock", theirs / "serve.json"
    for path in kept:
        path.touch()
    door.stop(_config("stop", theirs, tmp_path))
    assert all(path.exists() for path in kept)
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_start_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    (theirs / "letter.txt").touch()
    with pytest.raises(BadInput, match=r"holds letter\.txt, expected a new or an empty folder"):
        door.start(_config("start", theirs, tmp_path))
    assert [path.name for path in theirs.iterdir()] == ["letter.txt"]
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_a_claimed_folder_is_the_users_own_and_can_be_claimed_again(tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with $signs"
    run_folder.claim(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert run_folder.plain(folder).resolve() == folder
    (folder / "left by a killed start").touch()
    run_folder.claim(folder)
    run_folder.plain(folder).unlink()
