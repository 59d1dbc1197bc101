"""The haproxy programs of `make serve`: whether haproxy is there, takes its files, and works.

What it is told is `serve.balancer`; `serve.door` starts and stops it. The files that it wrote last
are haproxy.cfg in the folders of the two programs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from http.client import HTTPException
from pathlib import Path

from contract import HOST, BadInput, ToxicityError
from serve.balancer import HTTP_BACKEND
from serve.metrics_door import BALANCER_METRICS

NAME, LARGE_NAME = "haproxy", "haproxy-large"
NAMES = (NAME, LARGE_NAME)
"""The front first: it is stopped first."""
CONFIG_FILE = "haproxy.cfg"
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
"""Of its processes. A buffer for the largest body is a mapping of its own, which goes back to the
system when the request is over. glibc would else raise the threshold with the first that is freed
(mallopt(3)) and keep the most that was ever needed: 250 MiB under attack."""
_SBIN = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian puts haproxy, and the PATH of a plain user does not look."""


def found() -> str | None:
    """Path of haproxy, if it is installed."""
    return shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def executable() -> str:
    """`found`. Raises BadInput where there is none."""
    path = found()
    if path is None:
        raise BadInput(
            "haproxy is not installed, expected it as the door; run `apt-get install haproxy`, or "
            "serve one server on 127.0.0.1 without --replicas, --grpc, --tls-certificate and --keys"
        )
    return path


def check(path: Path) -> None:
    """Raise ToxicityError when haproxy itself refuses the configuration at `path`."""
    done = subprocess.run(
        [executable(), "-c", "-f", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "[ALERT]" in line]
        why = lines[0].split("parsing ", 1)[-1] if lines else done.stderr.strip()
        raise ToxicityError(f"haproxy refuses its configuration: {why}; report this")


def accepts(path: Path) -> bool:
    """Whether something listens on the socket at `path`."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def states(metrics_port: int) -> dict[str, str]:
    """Replica -> what haproxy makes of it ("UP", "DOWN", ...); empty when it does not answer."""
    try:
        with urllib.request.urlopen(
            f"http://{HOST}:{metrics_port}{BALANCER_METRICS}", timeout=5
        ) as answer:
            text = str(answer.read(), "utf-8")
    except (OSError, HTTPException, ValueError):
        return {}
    line = rf'^haproxy_server_status{{proxy="{HTTP_BACKEND}",server="(.*)",state="(.*)"}} 1$'
    found = dict(re.findall(line, text, re.MULTILINE))
    found.pop("waiting", None)
    return found
