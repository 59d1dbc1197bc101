"""The program of the application, which the supervisor of `make serve` starts.

python -m serve.app FOLDER/app.json
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path

import uvicorn

from serve.app.factory import create_app
from serve.app.settings import AppSettings, read_app_settings

_BACKLOG = 1024
_STOP_S = 30


def main(path: Path) -> None:
    """Serve until SIGTERM, then finish what is in flight."""
    settings = read_app_settings(path)
    server = uvicorn.Server(server_config(settings))
    gc.collect()
    gc.freeze()  # what is there now stays: no pause to look through it again
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)  # the socket is the user's alone
        listener.bind(settings.socket)
        os.umask(before)
        listener.listen(_BACKLOG)
        server.run(sockets=[listener])


def server_config(settings: AppSettings) -> uvicorn.Config:
    """How uvicorn runs it: no line a request, no header that names it."""
    return uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=3600,  # haproxy closes what lies idle
        timeout_graceful_shutdown=_STOP_S,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
