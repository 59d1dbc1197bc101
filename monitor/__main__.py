"""Watch what serves: drift, calibration, groups, latency, replicas; for people and Prometheus.

    toxicity monitor                               # each minute, until Ctrl-C
    toxicity monitor --once                        # for cron: 0 all is well, 1 an alarm, 2 an error
    toxicity monitor --curated sets/ --labels labels/ --reference traffic

Reads the servers' metrics and, where told to, sends curated comments through the live server and
joins labels with scores. Into --out go monitor.json, monitor.html and the state; no comment's text.
"""

from __future__ import annotations

import sys
import time

from console.options import parse_config, run
from contract import BadInput, ToxicityError
from monitor.config import MonitorConfig
from monitor.exporter import Exporter, serve
from monitor.report import screen, write_report
from monitor.state import MonitorState
from monitor.targets import watched
from monitor.watch import Document, Monitor


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
    where = watched(config)
    state = MonitorState(config.out)
    try:
        monitor = Monitor(config, where, state)
        if config.once:
            _once(config, monitor)
        else:
            _forever(config, monitor)
    finally:
        state.close()


def _once(config: MonitorConfig, monitor: Monitor) -> None:
    try:
        document = monitor.step()
    except ToxicityError as error:
        raise BadInput(str(error)) from error  # for cron 1 is an alarm
    write_report(document, config.out)
    print(screen(document))
    if document["state"] == "alarm":
        sys.exit(1)
    if document["errors"]:
        raise BadInput(document["errors"][0])


def _forever(config: MonitorConfig, monitor: Monitor) -> None:
    exporter = Exporter()
    if config.port:
        serve(config, exporter)
        print(f"metrics     http://{config.address}:{config.port}/metrics")
    print(f"report      {config.out / 'monitor.html'}", flush=True)
    told: list[str] | None = None
    due = time.monotonic()
    while True:
        document = monitor.step()
        exporter.show(document)
        write_report(document, config.out)
        told = _tell(document, told)
        due = max(due + config.every_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def _tell(document: Document, before: list[str] | None) -> list[str]:
    """Print what is new; what the figures of an alarm are may change without being news."""
    now = [*document["alarms"], *document["errors"]]
    names = [line.partition(":")[0] for line in now]
    if before is None or names != before:
        print(screen(document), flush=True)
    return names


if __name__ == "__main__":
    run(main)
