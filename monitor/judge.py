"""From counts, labels and curated comments to what is wrong: every check with its figures.

A check is one question of one version: its state is "ok", "alarm", or "few" where there is too
little to judge. What is an alarm stands in `MonitorConfig` and in docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monitor import drift, series
from monitor.calibration import Calibration, calibration_of
from monitor.config import MonitorConfig
from monitor.curated import compared
from monitor.reference import Reference, comments_of, shares_of

QUANTILES = (0.5, 0.95, 0.99)
OBJECTIVE = 0.99
_INVALID = "invalid"
"""Reason of a refusal that is the client's own fault: no sign of a server that is too small."""
CHECKS = (
    "score_drift",
    "length_drift",
    "unknown_words_drift",
    "respelled_words_drift",
    "comments_cut_drift",
    "calibration",
    "group_errors",
    "latency",
    "refusals",
    "versions_differ",
    "server_down",
)
"""Every `check` that can be."""


@dataclass(frozen=True)
class Check:
    """The answer to one question."""

    check: str
    version: str
    window_s: float | None
    state: str
    """ok, alarm or few."""
    value: float | None
    bound: float | None
    """From which `value` on it is an alarm, where chance does not explain it."""
    comments: float
    """How many comments, requests or labels the value is of."""
    words: str
    p_value: float | None = None


def window_checks(
    config: MonitorConfig,
    version: str,
    window_s: float,
    counts: series.Counts,
    traffic: series.Counts,
    reference: Reference | None,
) -> Iterator[Check]:
    """Of a version's window: `traffic` is `counts` without what the monitor itself asked for."""
    if reference is not None:
        yield from _drift(config, version, window_s, traffic, reference)
    yield from _service(config, version, window_s, counts)


def _drift(
    config: MonitorConfig,
    version: str,
    window_s: float,
    traffic: series.Counts,
    reference: Reference,
) -> Iterator[Check]:
    comments = comments_of(traffic)
    for check, name, bins in (
        ("score_drift", series.SCORE, reference.score_bins),
        ("length_drift", series.TOKENS, reference.token_bins),
    ):
        found = series.histogram(traffic, name)
        if found is None or bins is None:
            continue
        window = _aligned(found[1], len(bins))
        if window is None:
            words = f"{len(found[0])} bins where the {reference.source} has {len(bins)}"
            yield Check(check, version, window_s, "few", None, config.psi, comments, words)
            continue
        difference = drift.of_bins(bins, window)
        words = f"stability index {difference.size:.3f} from the {reference.source}"
        over = difference.size >= config.psi
        yield _difference(config, check, version, window_s, difference, config.psi, over, words)
    for quantity, some in shares_of(traffic).items():
        if quantity == "flagged" or quantity not in reference.shares:
            continue
        difference = drift.of_shares(reference.shares[quantity], some, comments, reference.comments)
        shown = [100 * a / b for a, b in (reference.shares[quantity], some)]
        words = f"{shown[1]:.2f} % where the {reference.source} has {shown[0]:.2f} %"
        over = not 1 / config.share_ratio < difference.size < config.share_ratio
        check = f"{quantity}_drift"
        yield _difference(
            config, check, version, window_s, difference, config.share_ratio, over, words
        )


def _aligned(window: np.ndarray, bins: int) -> np.ndarray | None:
    """The window's bins as the reference has them: an empty one beyond the last bound goes."""
    if len(window) == bins + 1 and not window[-1]:
        return window[:-1]
    return window if len(window) == bins else None


def _difference(
    config: MonitorConfig,
    check: str,
    version: str,
    window_s: float,
    found: drift.Difference,
    bound: float,
    over: bool,
    words: str,
) -> Check:
    few = found.comments < config.least_comments
    alarm = over and found.p_value < config.p_value
    state = "few" if few else "alarm" if alarm else "ok"
    return Check(
        check, version, window_s, state, found.size, bound, found.comments, words, found.p_value
    )


def _service(
    config: MonitorConfig, version: str, window_s: float, counts: series.Counts
) -> Iterator[Check]:
    times = series.histogram(counts, series.REQUEST_S)
    if times is not None:
        p99 = series.quantile(*times, OBJECTIVE)
        requests = float(times[1].sum())
        late = p99 is not None and 1000 * p99 > config.p99_ms
        state = "few" if requests < config.least_comments else "alarm" if late else "ok"
        words = "no request" if p99 is None else f"p99 {1000 * p99:.1f} ms"
        yield Check("latency", version, window_s, state, p99, config.p99_ms / 1000, requests, words)
    scored, refused = _scored_refused(counts)
    if scored is not None:
        yield _refusals(config, version, window_s, scored, refused, "")


def _scored_refused(counts: series.Counts) -> tuple[float | None, float]:
    """Requests that servers scored and refused; None where nobody counts them."""
    reasons = series.by_label(counts, series.REFUSED, "reason")
    refused = (series.total(counts, series.REFUSED) or 0.0) - reasons.get(_INVALID, 0.0)
    return series.total(counts, series.REQUESTS), refused


def refusals_check(config: MonitorConfig, window_s: float, counted: series.ByVersion) -> Check:
    """Of all versions and the doors together: what a door turns away belongs to no version."""
    found = [_scored_refused(counts) for counts in counted.values()]
    at_door = series.turned_away(counted)
    scored = sum(one or 0.0 for one, _ in found)
    refused = sum(one for _, one in found) + at_door
    return _refusals(
        config, "", window_s, scored, refused, f", {at_door:,.0f} of them turned away at the door"
    )


def _refusals(
    config: MonitorConfig, version: str, window_s: float, scored: float, refused: float, more: str
) -> Check:
    everything = scored + refused
    share = refused / everything if everything else 0.0
    over = share > config.refused_share
    state = "few" if everything < config.least_comments else "alarm" if over else "ok"
    words = f"{100 * share:.2f} % of {everything:,.0f} requests refused{more}"
    return Check(
        "refusals", version, window_s, state, share, config.refused_share, everything, words
    )


def label_check(
    config: MonitorConfig,
    version: str,
    labels: np.ndarray,
    scores: np.ndarray,
    reference: Reference | None,
    threshold: float,
) -> tuple[Check, Calibration]:
    """Calibration of a version, which flags from `threshold` on; labels, scores: float64 [n]."""
    found = calibration_of(labels, scores, threshold)
    known = reference.calibration_error if reference else None
    usual = max(found.by_chance, known or 0.0)
    bound = usual + config.calibration_excess
    alarm = found.error >= bound and found.p_value < config.p_value
    few = found.labels < config.least_labels
    state = "few" if few else "alarm" if alarm else "ok"
    words = f"calibration error {found.error:.3f}; {usual:.3f} would be usual"
    check = Check(
        "calibration", version, None, state, found.error, bound, found.labels, words, found.p_value
    )
    return check, found


def group_checks(
    config: MonitorConfig,
    errors: Mapping[str, Any],
    reference: dict[str, int] | None,
    groups: int,
) -> Iterator[tuple[Check, dict[str, Any]]]:
    """Error rates of one group beside its reference; chance has `groups` tries of two rates."""
    for row in compared(dict(errors), reference):
        known, value = row["reference"], row["value"]
        bound = None if known is None else known + config.group_excess
        alarm = (
            bound is not None and value >= bound and row["p_value"] < config.p_value / (2 * groups)
        )
        name = f"{errors['set']}/{errors['group']}"
        words = f"{row['rate'].upper()} {value:.3f} of {name}"
        words += "" if known is None else f", {known:.3f} in its reference"
        state = "alarm" if alarm else "ok" if known is not None else "few"
        check = Check(
            "group_errors",
            str(errors["version"]),
            None,
            state,
            value,
            bound,
            row["of"],
            words,
            row["p_value"],
        )
        yield check, {"set": errors["set"], "group": errors["group"], **row}


def server_checks(up: Mapping[str, bool], served: Mapping[str, str]) -> Iterator[Check]:
    """Whether every server answers, and with the same version: by target."""
    down = sorted(name for name, answers in up.items() if not answers)
    words = f"no metrics from {', '.join(down)}" if down else f"{len(up)} of {len(up)} answer"
    yield Check("server_down", "", None, "alarm" if down else "ok", len(down), 1, len(up), words)
    versions = sorted(set(served.values()))
    several = len(versions) > 1
    words = f"versions {', '.join(versions) or 'none'}"
    yield Check(
        "versions_differ",
        "",
        None,
        "alarm" if several else "ok",
        len(versions),
        2,
        len(served),
        words,
    )


def as_json(check: Check) -> dict[str, Any]:
    """For the document."""
    return asdict(check)
