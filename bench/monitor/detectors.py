"""What looks for drift: the monitor's own rules, and river's detectors on the same comments."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from bench.monitor.streams import Population, counts_of
from console.options import make_config
from monitor.config import MonitorConfig
from monitor.judge import window_checks
from monitor.reference import of_traffic


class Detector(Protocol):
    """Sees window after window."""

    def alarm(self, window: Population) -> bool:
        """Whether something is wrong, now that this window was seen."""


class MonitorRules:
    """As `toxicity monitor` judges each window by itself."""

    def __init__(self, reference: Population) -> None:
        self._config = make_config(MonitorConfig, {})
        self._reference = of_traffic(counts_of(reference))

    def alarm(self, window: Population) -> bool:
        """By the checks of comments alone: there is no latency here."""
        counts = counts_of(window)
        checks = window_checks(self._config, "1", 3600, counts, counts, self._reference)
        return any(check.state == "alarm" for check in checks)


class River:
    """One of river's detectors for each of score, log of length and share of unknown words.

    They see comment after comment and have no reference but what they saw.
    """

    def __init__(self, make: Callable[[], Any], reference: Population) -> None:
        self._detectors = [make() for _ in range(3)]
        self.alarm(reference)

    def alarm(self, window: Population) -> bool:
        """Whether one of them found a drift within the window."""
        found = False
        columns = (window.score, np.log(window.tokens), window.unknown / window.words)
        for detector, values in zip(self._detectors, columns, strict=True):
            for value in values.tolist():
                detector.update(value)
                found |= bool(detector.drift_detected)
        return found


def detectors(seed: int) -> dict[str, Callable[[Population], Detector]]:
    """Name -> what makes it of a reference; river's only where it is installed."""
    found: dict[str, Callable[[Population], Detector]] = {"monitor": MonitorRules}
    if importlib.util.find_spec("river") is None:
        return found
    from river import drift

    def kswin() -> Any:
        return drift.KSWIN(seed=seed)

    for name, make in (
        ("ADWIN", drift.ADWIN),
        ("KSWIN", kswin),
        ("PageHinkley", drift.PageHinkley),
    ):
        found[name] = partial(River, make)
    return found
