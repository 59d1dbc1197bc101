"""What the application is told when it starts: app.json, which `make serve` writes."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from contract import BadInput
from storage.files import read_json

NAME = "app"
"""Of the program, and of its folder in the run folder."""
SETTINGS_FILE, SOCKET = "app.json", "app.sock"
MODULE = "serve.app"
HEALTH_PATH = "/app/health"
OPENAPI_PATH = "/openapi.json"
SCORE_PATH = "/score"
MODERATION_PATH = "/v1/moderations"
ANALYZE_PATH = "/v1alpha1/comments:analyze"
PERSPECTIVE_PATHS = "/v1alpha1/comments:"
PAGE_PATH = "/ui"
SUGGEST_PATH = "/v1alpha1/comments:suggestscore"
OVERLOADED = "overloaded: more comments wait than can be scored in time; try again"


@dataclass(frozen=True)
class AppSettings:
    """Paths are those of the running door; every socket is the user's alone."""

    socket: str
    """Where the application listens."""
    servers: str
    """Where haproxy takes requests for the servers, of at most LARGE_BODY_BYTES each."""
    large: str
    """Where it takes larger ones."""
    views: tuple[str, ...] = ()
    """Folders of what the servers load; the versions' manifests lie there."""
    canary_views: tuple[str, ...] = ()
    """The same of a canary, where there is one."""
    labels: str | None = None
    """File to which corrections of scores are appended; without one they are refused."""
    repository: str | None = None
    """Whose published versions the page can compare."""
    public_key: str | None = None
    """File of the key that they must be signed for."""
    metrics: str = ""
    """Where haproxy tells its metrics."""
    monitor: str | None = None
    """File that a monitor of these servers writes after each reading."""
    get_score: bool = False
    """Whether `GET /score?text=` is answered: comments in addresses end up in logs."""


def read_app_settings(path: Path) -> AppSettings:
    """The settings in a file. Raises BadInput when it is none."""
    document = read_json(path, "run `make serve`")
    try:
        return TypeAdapter(AppSettings).validate_python(document)
    except ValidationError as error:
        raise BadInput(
            f"{path} is not the application's settings; run `make stop serve`"
        ) from error
