"""The README's own commands, run as they stand, on a small model and free ports.

Its links and variables are checked with those of the other pages: tests/test_docs.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core import build
from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SMALL = "--d-model 48 --n-layers 2 --max-len 64 --max-vocab 3000 --epochs 3 --lr 2e-3"


def commands() -> list[str]:
    """Lines of the README's bash blocks, without the one that fetches the repository."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "git clone"))]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tracked files as they are now, with the environment and the core of this test."""
    if not (Path(sys.prefix) / ".ready").exists():
        pytest.skip("this Python is not of the environment that `make install` makes")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        target = tmp_path / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    checkout = tmp_path / "checkout"
    (checkout / ".venv").symlink_to(sys.prefix)
    for name in ("pyproject.toml", "constraints.txt"):  # else a newer one would be installed
        os.utime(checkout / name, (0, 0))
    shutil.copytree(build.library().parent, checkout / build.lib_folder().relative_to(ROOT))
    return checkout


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_commands_work_in_order(checkout: Path) -> None:
    listed = commands()
    assert listed[0] == "make train export serve"
    assert "make stop" in listed
    assert any(line.startswith("locust -f bench/load.py") for line in listed)
    environment = {
        **os.environ,
        "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "DATA": "synthetic:3000",
        "TRAIN_ARGS": f"{SMALL} --batch-size 32",
        "USERS": "2",
        "SECONDS_EACH": "2",
        "HTTP_PORT": str(free_port()),
        "GRPC_PORT": str(free_port()),
        "METRICS_PORT": str(free_port()),
        # Locust reads its flags from the environment too: no web page, a short run.
        "LOCUST_HEADLESS": "1",
        "LOCUST_RUN_TIME": "2s",
    }
    try:
        for line in listed:
            if line == "make test":  # it runs this test
                continue
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=checkout,
                env=environment,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    finally:
        stop = ["make", "-o", ".venv/.ready", "stop"]
        subprocess.run(stop, cwd=checkout, env=environment, capture_output=True)
