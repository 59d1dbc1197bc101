"""What the mirror (serve/mirror.py) is told when it starts: mirror.json, in its folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from contract import BadInput
from storage.files import read_json

MODULE = "serve.mirror"
SETTINGS_FILE, LINES_SOCKET, HTTP_SOCKET = "mirror.json", "lines.sock", "http.sock"
COMPARISON_PATH = "/comparison"


@dataclass(frozen=True)
class MirrorSettings:
    """mirror.json, which `toxicity canary` writes; paths are those of sockets and folders."""

    lines: str
    http: str
    canary: str
    stable: tuple[str, ...]
    views: tuple[str, ...]
    """What the servers load; manifests lie there."""
    balancer: str
    """Where haproxy tells its metrics."""
    share: float
    shadow: bool


def read_mirror_settings(path: Path) -> MirrorSettings:
    """The settings in a file. Raises BadInput when it is none."""
    document = read_json(path, "run `make serve`")
    try:
        return TypeAdapter(MirrorSettings).validate_python(document)
    except ValidationError as error:
        raise BadInput(f"{path} is not the mirror's settings; run `make stop serve`") from error
