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
from dataclasses import dataclass
from pathlib import Path

from contract import BadInput, ToxicityError
from serve import control
from serve.balancer import HTTP_BACKEND, metrics_socket
from serve.metrics_door import BALANCER_METRICS

NAME, LARGE_NAME = "haproxy", "haproxy-large"
NAMES = (NAME, LARGE_NAME)
"""The front first: it is stopped first."""
CONFIG_FILE, MASTER_SOCKET = "haproxy.cfg", "master.sock"
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
"""Of its processes. A buffer for the largest body is a mapping of its own, which goes back to the
system when the request is over. glibc would else raise the threshold with the first that is freed
(mallopt(3)) and keep the most that was ever needed: 250 MiB under attack."""
_MASTER_TIMEOUT_S = 5
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


def states(folder: Path) -> dict[str, str]:
    """Replica -> what the front makes of it ("UP", "DOWN", ...); empty when it does not answer.

    `folder` is the front's. The socket is that of the newest worker, as the port is not: one that
    ends after a reload may still take connections of that.
    """
    try:
        _, content = control.read(metrics_socket(folder), BALANCER_METRICS)
    except OSError:
        return {}
    line = rf'^haproxy_server_status{{proxy="{HTTP_BACKEND}",server="(.*)",state="(.*)"}} 1$'
    found = dict(re.findall(line, content.decode("utf-8", "replace"), re.MULTILINE))
    found.pop("waiting", None)
    return found


# --- The master process, which has a worker for each file that it read -------------------
@dataclass(frozen=True)
class HaproxyWorkers:
    """What a master says of its workers."""

    pids: frozenset[int]
    """Of those with the newest file."""
    failed_reloads: int


def command(folder: Path) -> list[str]:
    """Of a balancer whose file and sockets lie in `folder`."""
    master = f"{master_socket(folder)},mode,600"
    return [executable(), "-W", "-S", master, "-f", str(folder / CONFIG_FILE)]


def master_socket(folder: Path) -> Path:
    """Where the master is asked."""
    return folder / MASTER_SOCKET


def workers(folder: Path) -> HaproxyWorkers | None:
    """Of the balancer of `folder`; None while its master does not answer, as during a reload.

    Keywords as in the haproxy 2.6 management guide, "Master CLI".
    """
    said = _tell_master(folder, "show proc")
    if "# workers" not in said:
        return None
    newest = said.partition("# workers")[2].partition("\n#")[0]
    failed = re.search(r"\[failed: (\d+)\]", said)
    pids = re.findall(r"^(\d+)\s+worker", newest, re.MULTILINE)
    return HaproxyWorkers(frozenset(map(int, pids)), int(failed[1]) if failed else 0)


def tell_to_reload(folder: Path) -> None:
    """Have the master read its file; it does not answer until a worker has it."""
    _tell_master(folder, "reload")


def _tell_master(folder: Path, words: str) -> str:
    """What it answers; "" where it does not."""
    parts = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as master:
        master.settimeout(_MASTER_TIMEOUT_S)
        master.connect(str(master_socket(folder)))
        master.sendall(f"{words}\n".encode())
        master.shutdown(socket.SHUT_WR)
        while part := master.recv(65536):
            parts.append(part)
    return b"".join(parts).decode("utf-8", "replace")
