"""Programs beside the servers, such as Prometheus: started, waited for, ended."""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contract import HOST, ToxicityError

_ROOT = Path(__file__).parents[2]
_READY_S = 60.0


@contextlib.contextmanager
def running(command: Sequence[Any], log: Path) -> Iterator[int]:
    """A program until the end of the block, by its process id; what it says is in `log`.

    Raises ToxicityError when it ended by itself.
    """
    words = list(map(str, command))
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=_ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process.pid
        if process.poll() is not None:
            raise ToxicityError(f"{words[0]} ended ({_last_line(log)})")
    finally:
        process.terminate()
        process.wait()


def answers(url: str, logs: Path, words: str = "", within_s: float = _READY_S) -> None:
    """Wait until it does, with these words.

    Raises ToxicityError with the last line of each log in the folder `logs` when it does not.
    """
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if words in answer.read().decode():
                return
        time.sleep(0.2)
    said = "; ".join(map(_last_line, sorted(logs.glob("*.log"))))
    raise ToxicityError(f"{url} does not answer within {within_s:g} s ({said})")


@contextlib.contextmanager
def running_prometheus(settings: Path, folder: Path, port: int) -> Iterator[str]:
    """The address of a ready one until the end of the block; series and log are in `folder`.

    Raises ToxicityError when it is not ready in time, or ends by itself.
    """
    address = f"{HOST}:{port}"
    command = ["prometheus", "--config.file", settings, "--storage.tsdb.path", folder / "series"]
    command += ["--web.listen-address", address]
    with running(command, folder / "prometheus.log"):
        answers(f"http://{address}/-/ready", folder)
        yield f"http://{address}"


def _last_line(log: Path) -> str:
    return log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
