"""The dashboard with real data: servers behind haproxy, load, the monitor, Prometheus, one picture.

    python -m bench.monitor.dashboard                  # docs/images/dashboard.png, in six minutes
    python -m bench.monitor.dashboard --comments comments.csv.gz --curated sets/

All of it is started here and ends with it. Comments come at a rate that rises and falls, some with
a label a little later, as moderators give them; in the last third only toxic ones come, which the
monitor is to see. Each query of each panel must find something (`monitor.picture`). No measurement:
what is drawn is how the dashboard looks, not how fast anything is.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.monitor.stack import send_comments, watched_server, wave
from bench.report.result import LOAD, RESULT, SERVER, begin
from console.options import make_config, run
from contract import ToxicityError
from monitor.picture import Panel, PictureConfig, draw
from serve.client import score_comments
from train.data.load import load_comments

_SCRAPE_S, _MOST_COMMENTS = 2, 8
"""Between two readings; of a request."""


@dataclass(frozen=True)
class DashboardBenchConfig:
    """Flags of `python -m bench.monitor.dashboard`."""

    repository: Path = Field(
        Path("model_repository"), description="repository that serves", json_schema_extra=SERVER
    )
    comments: str = Field(
        "synthetic:4000", description="labelled comments to send", json_schema_extra=LOAD
    )
    curated: tuple[str, ...] = Field(
        (),
        description="curated sets; else one of the comments, in groups by their lengths",
        json_schema_extra=LOAD,
    )
    rate: float = Field(
        20, gt=0, description="requests a second, in the mean", json_schema_extra=LOAD
    )
    minutes: float = Field(5, gt=0, description="minutes of load", json_schema_extra=LOAD)
    seed: int = Field(0, description="of what is drawn", json_schema_extra=LOAD)
    out: Path = Field(
        Path("docs/images/dashboard.png"), description="picture", json_schema_extra=RESULT
    )


def main() -> None:
    config = begin(DashboardBenchConfig, "bench.monitor.dashboard", "Draw the dashboard at work.")
    pictured(config)
    print(config.out)


def pictured(config: DashboardBenchConfig) -> list[Panel]:
    """Start all, send, draw; what was drawn.

    Raises BadInput without Prometheus, and where a query has no data.
    """
    loaded = load_comments(config.comments)
    comments, seconds = (loaded.texts, loaded.labels), 60 * config.minutes
    rows = np.arange(len(loaded.labels))
    toxic = rows[loaded.labels > 0]

    def rate(passed_s: float) -> float:
        return wave(config.rate, passed_s / seconds)

    def draw_rows(rng: np.random.Generator, passed_s: float) -> np.ndarray:
        drawn_from = rows if passed_s < 2 / 3 * seconds else toxic
        return rng.choice(drawn_from, rng.integers(1, _MOST_COMMENTS + 1))

    quick = ("--every-s", _SCRAPE_S, "--windows-s", 60, 600, "--curated-every-s", 60)
    watched = watched_server(
        config.repository, comments, config.curated, *quick, scrape_s=_SCRAPE_S
    )
    with watched as server:

        def ask(texts: list[str]) -> None:
            with contextlib.suppress(ToxicityError):  # refused: the dashboard shows it
                score_comments(texts, url=server.url)

        send_comments(server, comments, seconds, rate, draw_rows, ask, config.seed)
        wanted = {"prometheus": server.prometheus, "minutes": config.minutes}
        return draw(
            make_config(PictureConfig, {**wanted, "scrape_s": _SCRAPE_S, "out": config.out})
        )


if __name__ == "__main__":
    run(main)
