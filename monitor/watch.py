"""One reading after another: count, send, join, judge; the document of what was found."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from contract import BadInput, ToxicityError
from monitor import series
from monitor.config import MonitorConfig
from monitor.curated import errors_of, read_sets
from monitor.judge import (
    QUANTILES,
    Check,
    as_json,
    group_checks,
    label_check,
    refusals_check,
    server_checks,
    window_checks,
)
from monitor.labels import OUTCOMES, read_labels
from monitor.reference import (
    Decides,
    Reference,
    comments_of,
    decides,
    of_traffic,
    read_reference,
    shares_of,
)
from monitor.sample import CommentSample
from monitor.state import MonitorState
from monitor.targets import MetricsTarget, Watched, read_door, read_metrics, send

Document = dict[str, Any]
_SETTLE_S = 0.5
"""A server counts an answer a little after it gave it."""
DAY_S = 86400.0


class Monitor:
    """What `toxicity monitor` does each time."""

    def __init__(
        self,
        config: MonitorConfig,
        where: Watched,
        state: MonitorState,
        sample: CommentSample | None = None,
    ) -> None:
        """Raises BadInput for a curated set that cannot be used now."""
        self._config, self._where, self._state = config, where, state
        self._sample = sample
        if config.curated:
            read_sets(config.curated)
        if (config.curated or config.labels) and not where.url and not where.sockets:
            raise BadInput(
                "--url is missing, expected HOST:PORT of the server that scores, for --curated "
                "and --labels; give it beside --metrics-url"
            )
        self._profiles: dict[str, Reference | None] = {}
        self._deciding: dict[str, Decides] = {}
        self._up: dict[str, bool] = {}
        self._doors_up: dict[str, bool] = {}
        self._served: dict[str, str] = {}
        self._errors: list[str] = []

    def step(self) -> Document:
        """One reading and what it says. What a server or a file refuses is in its "errors"."""
        self._errors = []
        self._deciding.clear()
        self._count(own=False)
        self._send_curated()
        self._read_labels()
        now = time.time()
        longest = max(self._config.windows_s)
        with self._state.change():
            self._state.drop_before(now - longest, now - DAY_S * self._config.labels_days)
        return self._judged(now)

    # --- Counting ------------------------------------------------------------------------
    def _count(self, *, own: bool) -> None:
        now = time.time()
        for target in self._where.targets:
            try:
                totals = read_metrics(target)
            except OSError:
                self._up[target.name] = False
                self._served.pop(target.name, None)
                continue
            self._up[target.name] = True
            versions = [int(version) for version in totals if version.isdecimal()]
            if versions:
                self._served[target.name] = str(max(versions))
            with self._state.change():
                new = self._counted(target, now, totals, own=own)
                if not own and self._config.reference == "traffic":
                    self._keep_first_traffic(new)
        for door in self._where.doors:
            try:
                totals = read_door(door)
            except OSError as error:
                self._doors_up[door.url] = False
                self._tell(ToxicityError(f"what a door turns away is not counted: {error}"))
                continue
            self._doors_up[door.url] = True
            with self._state.change():
                self._counted(door, now, totals, own=own)

    def _counted(
        self, target: MetricsTarget, now: float, totals: series.ByVersion, *, own: bool
    ) -> series.ByVersion:
        """Keep what a target counted since it was read last; nothing of one that is new."""
        before = self._state.last_totals(target.url)
        self._state.keep_totals(target.url, now, totals)
        new = {} if before is None else series.added(before, totals)
        self._state.add(now, new, own=own)
        return new

    def _keep_first_traffic(self, new: series.ByVersion) -> None:
        for version, counts in new.items():
            known = self._state.remembered(f"first {version}", {})
            if comments_of(known) < self._config.reference_comments:
                self._state.remember(f"first {version}", series.summed([known, counts]))

    def _reference(self, version: str) -> Reference | None:
        """What the version is held against; None while there is nothing yet."""
        if self._config.reference == "profile":
            return self._profile(version)
        known = self._state.remembered(f"first {version}", {})
        if comments_of(known) < self._config.reference_comments:
            return None
        return of_traffic(known)

    def _profile(self, version: str) -> Reference | None:
        if version not in self._profiles:
            try:
                self._profiles[version] = read_reference(self._where.repository, version)
            except BadInput as error:
                self._tell(error)
                return None
        return self._profiles[version]

    def _decides(self, version: str) -> Decides:
        """From where the version flags; looked up once a reading."""
        if version not in self._deciding:
            try:
                found = decides(self._where.repository, version, self._profile(version))
            except BadInput as error:
                self._tell(error)
                found = Decides()
            self._deciding[version] = found
        return self._deciding[version]

    def _tell(self, error: Exception) -> None:
        """Once in a document."""
        if str(error) not in self._errors:
            self._errors.append(str(error))

    # --- Asking --------------------------------------------------------------------------
    def _send(self, texts: Sequence[str]) -> Iterable[tuple[float, str]]:
        return send(self._where, texts, self._config.curated_rate)

    def _send_curated(self) -> None:
        last = self._state.remembered("curated", {"time": 0.0})
        if not self._config.curated or time.time() - last["time"] < self._config.curated_every_s:
            return
        try:
            sets = read_sets(self._config.curated)  # as they are now
        except BadInput as error:
            self._errors.append(f"curated sets were not read: {error}")
            return
        try:
            found = errors_of(sets, self._send, lambda v: self._decides(v).threshold)
        except ToxicityError as error:
            self._errors.append(f"curated sets were not sent: {error}")
            return
        finally:
            self._forget_own()
        rows = [{**row, "threshold": self._decides(row["version"]).threshold} for row in found]
        self._state.remember("curated", {"time": time.time(), "rows": rows})
        first = self._state.remembered("first groups", {})
        for row in rows:
            first.setdefault(_group_key(row), row)
        self._state.remember("first groups", first)

    def _read_labels(self) -> None:
        if self._config.labels is None:
            return
        asked = False

        def score(texts: Sequence[str]) -> Iterable[tuple[float, str]]:
            nonlocal asked
            asked = True
            return list(self._send(texts))

        try:
            found = read_labels(self._state, self._config.labels, time.time(), score, self._sample)
        except (ToxicityError, OSError) as error:
            self._errors.append(f"labels were not read: {error}")
            return
        finally:
            self._save_sample()
            if asked:
                self._forget_own()
        known = self._state.remembered("labels", {})
        counted = {name: known.get(name, 0) + found.outcomes[name] for name in OUTCOMES}
        self._state.remember("labels", counted)

    def _save_sample(self) -> None:
        if self._sample is None:
            return
        try:
            self._sample.save(time.time())
        except OSError as error:
            self._errors.append(f"the sample was not written: {error}")

    def _forget_own(self) -> None:
        """What was counted while the monitor itself asked says nothing of people's comments."""
        time.sleep(_SETTLE_S)
        self._count(own=True)

    # --- Judging -------------------------------------------------------------------------
    def _judged(self, now: float) -> Document:
        checks = list(server_checks(self._up, self._served))
        versions: dict[str, Document] = {}
        turned_away: dict[str, float] = {}
        for window_s in self._config.windows_s:
            everything = self._state.counted(now - window_s, now, own=True)
            traffic = self._state.counted(now - window_s, now, own=False)
            for version in sorted({*everything, *self._served.values()} - {""}):
                counts = everything.get(version, {})
                own = traffic.get(version, {})
                reference = self._reference(version)
                checks += window_checks(self._config, version, window_s, counts, own, reference)
                about = versions.setdefault(version, _about(reference, self._decides(version)))
                about["windows"][f"{window_s:g}"] = _window(counts, own)
            if self._where.doors:
                checks.append(refusals_check(self._config, window_s, everything))
                turned_away[f"{window_s:g}"] = series.turned_away(everything)
        checks += self._label_checks(now, versions)
        checks += self._group_checks(versions)
        alarms = [check for check in checks if check.state == "alarm"]
        return {
            "format": 1,
            "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
            "state": "alarm" if alarms else "error" if self._errors else "ok",
            "alarms": [_line(check) for check in alarms],
            "errors": self._errors,
            "servers": [
                {
                    "name": target.name,
                    "metrics": target.url,
                    "answers": self._up[target.name],
                    "version": self._served.get(target.name),
                }
                for target in self._where.targets
            ],
            "doors": [
                {"name": door.name, "metrics": door.url, "answers": self._doors_up[door.url]}
                for door in self._where.doors
            ],
            "turned_away": turned_away,
            "checks": [as_json(check) for check in checks],
            "versions": versions,
            "labels": {
                **dict.fromkeys(OUTCOMES, 0),
                **self._state.remembered("labels", {}),
                "unjoined": self._state.waiting(),
            },
        }

    def _label_checks(self, now: float, versions: dict[str, Document]) -> list[Check]:
        since = now - DAY_S * self._config.labels_days
        checks = []
        for version, (labels, scores) in self._state.labelled(since).items():
            profile, own = self._profile(version), self._decides(version)
            check, found = label_check(
                self._config, version, labels, scores, profile, own.threshold
            )
            checks.append(check)
            about = versions.setdefault(version, _about(profile, own))
            about["calibration"] = {
                "labels": found.labels,
                "toxic": found.toxic,
                "error": found.error,
                "by_chance": found.by_chance,
                "p_value": found.p_value,
                "precision": found.precision,
                "bins": found.bins,
            }
        return checks

    def _group_checks(self, versions: dict[str, Document]) -> list[Check]:
        rows = self._state.remembered("curated", {}).get("rows", [])
        first = self._state.remembered("first groups", {})
        checks = []
        for row in rows:
            profile = self._profile(row["version"])
            of_profile = profile.groups if profile else {}
            reference = of_profile.get((row["set"], row["group"]))
            known = reference or first.get(_group_key(row))
            own = self._decides(row["version"])
            about = versions.setdefault(row["version"], _about(profile, own))
            for check, shown in group_checks(self._config, row, known, len(rows)):
                checks.append(check)
                against = {"against": "profile" if reference else "first"}
                about["groups"].append({**shown, **against, "threshold": row.get("threshold")})
        return checks


def _group_key(row: Document) -> str:
    """Of a version's group and where it was decided: another version may decide elsewhere."""
    return f"{row['version']}/{row['set']}/{row['group']}/{row.get('threshold')}"


def _about(reference: Reference | None, own: Decides) -> Document:
    return {
        "decides": {"threshold": own.threshold, "source": own.source, "words": own.words()},
        "reference": None
        if reference is None
        else {
            "source": reference.source,
            "comments": reference.comments,
            "score_bins": _listed(reference.score_bins),
            "token_bins": _listed(reference.token_bins),
            "shares": {name: some / of for name, (some, of) in reference.shares.items() if of},
            "threshold": reference.threshold,
            "calibration_error": reference.calibration_error,
        },
        "windows": {},
        "groups": [],
    }


def _listed(bins: np.ndarray | None) -> list[float] | None:
    return None if bins is None else bins.tolist()


def _window(counts: series.Counts, traffic: series.Counts) -> Document:
    """Of a window: what people sent, and how it was answered."""
    found: Document = {
        "comments": comments_of(traffic),
        "requests": series.total(counts, series.REQUESTS) or 0.0,
        "refused": series.by_label(counts, series.REFUSED, "reason")
        or {"": series.total(counts, series.REFUSED) or 0.0},
        "shares": {name: some / of for name, (some, of) in shares_of(traffic).items()},
    }
    for short, name in (("score_bins", series.SCORE), ("token_bins", series.TOKENS)):
        bins = series.histogram(traffic, name)
        found[short] = bins[1].tolist() if bins else None
        if bins:
            found[f"{short[:-5]}_bounds"] = [b if np.isfinite(b) else None for b in bins[0]]
    for short, name in (
        ("request_s", series.REQUEST_S),
        ("queue_s", series.QUEUE_S),
        ("compute_s", series.COMPUTE_S),
    ):
        times = series.histogram(counts, name)
        if times:
            found[short] = {f"{q:g}": series.quantile(*times, q) for q in QUANTILES}
    return found


def _line(check: Check) -> str:
    about = [f"version {check.version}"] if check.version else []
    about += [f"{check.window_s:g} s"] if check.window_s else []
    return f"{check.check}{f' ({chr(44).join(about)})' if about else ''}: {check.words}"
