"""Watch what serves: drift, calibration, groups, latency, replicas; for people and Prometheus.

    toxicity monitor                               # each minute, until Ctrl-C
    toxicity monitor --once                        # for cron: 0 all is well, 1 an alarm, 2 an error
    toxicity monitor --curated sets/ --labels labels/ --reference traffic

Reads the servers' metrics and, where told to, sends curated comments through the live server and
joins labels with scores. Into --out go monitor.json, monitor.html and the state; no comment's text
but for the redacted sample that --sample asks for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from console.options import parse_config, run
from contract import BadInput, ToxicityError
from monitor.config import MonitorConfig
from monitor.exporter import Exporter, serve
from monitor.live import tell_page
from monitor.report import HTML_FILE, JSON_FILE, screen, write_report
from monitor.sample import CommentSample, forget
from monitor.state import MonitorState
from monitor.targets import watched
from monitor.watch import DAY_S, Document, Monitor
from storage.files import write_json

_PAGE_S = 300
"""So often the page is drawn again, and whenever an alarm comes or goes."""


def main() -> None:
    config = parse_config(
        MonitorConfig,
        None,
        prog="python -m monitor",
        description="Watch what serves.",
    )
    run_monitor(config)


def run_monitor(config: MonitorConfig) -> None:
    """Read, judge and tell, once or until it is ended. Exits with 1 when `once` finds an alarm.

    Raises BadInput for flags and files that cannot be used.
    """
    if config.sample and not config.labels:
        raise BadInput(
            f"--sample is {config.sample} without --labels, expected the labels whose comments are "
            "kept; give --labels"
        )
    where = watched(config)
    state = MonitorState(config.out)
    try:
        monitor = Monitor(config, where, state, _sample(config))

        def tell(document: Document) -> None:
            tell_page(config, where, state, document)

        if config.once:
            _once(config, monitor, tell)
        else:
            _forever(config, monitor, tell)
    finally:
        state.close()


def _sample(config: MonitorConfig) -> CommentSample | None:
    """What it keeps of comments. Without the flag nothing, and nothing of before stays."""
    if config.sample:
        return CommentSample(config.out, config.sample, DAY_S * config.labels_days)
    forget(config.out)
    return None


def _once(config: MonitorConfig, monitor: Monitor, tell: Callable[[Document], None]) -> None:
    try:
        document = monitor.step()
    except ToxicityError as error:
        raise BadInput(str(error)) from error  # for cron 1 is an alarm
    write_report(document, config.out)
    tell(document)
    print(screen(document))
    if document["state"] == "alarm":
        sys.exit(1)
    if document["errors"]:
        raise BadInput(document["errors"][0])


def _forever(config: MonitorConfig, monitor: Monitor, tell: Callable[[Document], None]) -> None:
    exporter = Exporter()
    if config.port:
        serve(config, exporter)
        print(f"metrics     http://{config.address}:{config.port}/metrics")
    print(f"report      {config.out / HTML_FILE}", flush=True)
    told: list[str] | None = None
    due = drawn = time.monotonic()
    while True:
        document = monitor.step()
        exporter.show(document)
        tell(document)
        write_json(config.out / JSON_FILE, document)
        names = [line.partition(":")[0] for line in (*document["alarms"], *document["errors"])]
        if names != told:  # the figures of an alarm may change without being news
            print(screen(document), flush=True)
        if names != told or time.monotonic() >= drawn + _PAGE_S:
            write_report(document, config.out)
            drawn = time.monotonic()
        told = names
        due = max(due + config.every_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    run(main)
