"""The server's program: where it is, how it is called, and what its log says.

It is the one inside the nvidia-pytriton wheel, nothing else of which is used, or the one that the
environment names, as on the vendor's image: /opt/tritonserver.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

from contract import ARRIVAL_HEADER, PUBLIC_MODEL, BadInput
from serve import view

LOG_FILE = "tritonserver.log"
TRITON_FOLDER = "TOXICITY_TRITON_FOLDER"
"""Environment variable: folder of an installed server, which has bin/tritonserver."""
STACK_BYTES = 1 << 30
"""Stack of each server thread. A JSON body of 8 MB ended the whole of release 24.10 under the usual
limit of 8 MB, and did not under this one. Address space only; a page counts once it is touched."""
RESTRICTED = "model-repository,shared-memory,trace,logging"
"""What `--http-restricted-api` and `--grpc-restricted-protocol` call all but inference, metadata,
the model's configuration, which has its decision threshold, health and statistics."""
KEY_HEADER = "toxicity-key"
CLOSED = "\n"
"""A key that no request can carry: a header's value has no line feed."""
Address = tuple[str, int]
"""Host and port, or ("unix:/path", any port)."""


def command(
    folder: Path,
    *,
    http: Address,
    metrics: Address,
    grpc: Address | None,
    http_key: str | None,
    grpc_key: str | None,
    exit_timeout_s: int,
) -> list[str]:
    """Arguments of a server of the model that `view.stage` put into `folder`.

    A key opens the control plane of its protocol to requests that carry it in KEY_HEADER; CLOSED
    opens it to nobody, None to everybody: only for a socket that nobody else can open. Raises
    BadInput for an incomplete installation.
    """
    backends = folder / "backends"  # none but the model's own
    backends.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_executable(installed() / "bin" / "tritonserver")),
        f"--model-repository={folder / view.FOLDER}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        f"--load-model={PUBLIC_MODEL}",
        "--disable-auto-complete-config",
        f"--allow-grpc={str(grpc is not None).lower()}",
        f"--exit-timeout-secs={exit_timeout_s}",
    ]
    for service, address in (("http", http), ("metrics", metrics), ("grpc", grpc)):
        if address:
            arguments += [f"--{service}-address={address[0]}", f"--{service}-port={address[1]}"]
        if address and service != "metrics" and http[0].startswith("unix:"):  # haproxy alone asks
            arguments.append(f"--{service}-header-forward-pattern=^{ARRIVAL_HEADER}$")
    if http_key:
        arguments.append(f"--http-restricted-api={RESTRICTED}:{KEY_HEADER}={http_key}")
    if grpc and grpc_key:
        arguments.append(f"--grpc-restricted-protocol={RESTRICTED}:{KEY_HEADER}={grpc_key}")
    return arguments


def installed() -> Path:
    """Folder of the server that is run. Raises BadInput when none is there."""
    if not (named := os.environ.get(TRITON_FOLDER)):
        return wheel()
    if not (Path(named) / "bin" / "tritonserver").is_file():
        raise BadInput(
            f"{TRITON_FOLDER} is {named}, expected a folder with bin/tritonserver; mend or unset it"
        )
    return Path(named)


def wheel() -> Path:
    """The server in its package. Raises BadInput without it."""
    spec = find_spec("pytriton")
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (wheel := Path(root) / "tritonserver").is_dir():
            return wheel
    raise BadInput(
        f"nvidia-pytriton is not installed for {sys.executable}, expected its tritonserver; "
        "run `make serve`, or `pip install --no-deps nvidia-pytriton==0.7.0`"
    )


_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""A version's weights are mappings of their own, which go back to the system with it. glibc would
else raise the threshold with the first that is freed (mallopt(3)): a server took 17 MB more with
each of the first updates, and kept them."""


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a server needs in its environment, beside the inherited one."""
    named = inherited.get(TRITON_FOLDER)
    libraries = [
        str(Path(named) / "lib" if named else wheel().parent.parent / "nvidia_pytriton.libs"),
        inherited.get("LD_LIBRARY_PATH", ""),
    ]
    own = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)), **_ALLOCATOR}
    if allocator := find_library("jemalloc"):
        own["LD_PRELOAD"] = " ".join(filter(None, [inherited.get("LD_PRELOAD"), allocator]))
    return own


def _executable(path: Path) -> Path:
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return path


def reason(log: Path) -> str:
    """The most telling line of a Triton log: why it ended, else its last error, else its end."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    for start in (r"error: ", r"E\d{4} ", r"."):
        if found := [line for line in lines if re.match(start, line)]:
            return found[-1].split("] ", 1)[-1].strip('"').split("\\n")[0]
    return "its log is empty"
