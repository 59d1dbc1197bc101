"""The address of the page for people; starts the server when none runs.

    python -m serve.ui           # make ui
    python -m serve.ui --open    # and shows it in the browser

Flags of `serve` are for a server that does not run yet.
"""

from __future__ import annotations

import dataclasses
import webbrowser
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import HOST, BadInput
from serve import door
from serve.app import settings as app
from serve.settings import DoorConfig, Settings, read_settings
from serve.supervisor import Supervisor
from serve.telling import app_scores

_ANY_ADDRESS = ("0.0.0.0", "::", "*")


@dataclass(frozen=True)
class UiConfig(DoorConfig):
    """Flags of `python -m serve.ui`."""

    action: Literal["start"] = Field("start", description="start, when nothing runs")
    open: bool = Field(False, description="open the page in the browser")


def main() -> None:
    config = parse_config(
        UiConfig,
        None,
        prog="python -m serve.ui",
        description="Print the address of the page for people.",
    )
    show(config)


def show(config: UiConfig) -> None:
    """Print the page's address, once it answers there.

    Raises BadInput where haproxy is not in front, and what a start of the server raises.
    """
    settings = running(config.run_dir)
    if settings is None:
        door.start(dataclasses.replace(config, foreground=False))
        settings = read_settings(config.run_dir)
    assert settings is not None  # door.start wrote them
    if not settings.balanced:
        raise BadInput(
            "haproxy is not in front of the server, expected it for the page; "
            "`apt-get install haproxy`, then `make stop ui`"
        )
    if not app_scores(Supervisor(config.run_dir).program_folder(app.NAME) / app.SOCKET):
        raise BadInput(
            f"the application does not score; see `make status` and the logs in {config.run_dir}"
        )
    address = page_address(settings)
    print(f"page        {address}")
    if settings.keys:
        print("it asks for a key; `toxicity keys add --name NAME` makes one")
    if config.open and not webbrowser.open(address):
        raise BadInput("no browser was found, expected one for --open; open the address yourself")


def running(run_dir: Path) -> Settings | None:
    """How what runs from there was started; None when nothing does."""
    return read_settings(run_dir) if Supervisor(run_dir).running() else None


def page_address(settings: Settings) -> str:
    """Where the page of a running door is, from this machine."""
    scheme = "https" if settings.tls_certificate else "http"
    host = HOST if settings.address in _ANY_ADDRESS else settings.address
    return f"{scheme}://{host}:{settings.http_port}{app.PAGE_PATH}/"


if __name__ == "__main__":
    run(main)
