"""What the Locust processes of one run measured, and all of them as one.

Every time is kept, so percentiles of several workers are those of all their sends and not a mean of
percentiles. A worker sends its record to the master when the test stops; nothing need be shared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.traffic.arrivals import self_check

ARRAYS = ("latencies_ms", "sent_at_s", "failed_ms", "failed_at_s", "lags_ms")
"""float64 [n] each; see bench/load.py."""
FULL = "generator full"
"""Reason of a send that was given up because too many requests were in flight."""

Record = dict[str, Any]
"""ARRAYS; `errors` as JSON, `missed`, `cpu_s`, `began` and `ended` in Unix seconds, and `sends`: no
user runs in a master."""


def packed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as Locust's messages take it."""
    return {**record, **{name: np.asarray(record[name]).tobytes() for name in ARRAYS}}


def unpacked(message: Mapping[str, Any]) -> Record:
    """The record that was `packed`."""
    return {**message, **{name: np.frombuffer(message[name]) for name in ARRAYS}}


def write(folder: Path, records: Mapping[str, Record]) -> None:
    """Write a file for each process, by its name."""
    for name, record in records.items():
        np.savez(folder / f"{name.replace('/', '-')}.npz", **record)


def read(folder: Path) -> list[Record]:
    """The records of all processes whose files lie there."""
    return [dict(np.load(path, allow_pickle=False)) for path in sorted(folder.glob("*.npz"))]


def errors_of(records: Sequence[Record]) -> Counter[str]:
    """Failed requests by their reason."""
    errors: Counter[str] = Counter()
    for record in records:
        errors.update(json.loads(str(record["errors"])))
    return errors


def joined(records: Sequence[Record], name: str) -> np.ndarray:
    """One of ARRAYS over all processes, float64 [n]."""
    return np.concatenate([np.empty(0), *(record[name] for record in records)])


def busy(record: Record) -> float:
    """CPU seconds a second of a process."""
    return float(record["cpu_s"] / max(1e-9, float(record["ended"] - record["began"])))


def check(records: Sequence[Record], processes: int) -> dict[str, Any]:
    """`self_check` of all that send together, and invalid where one of them alone is.

    A run from which one of the `processes` gave no record is invalid, too: what it sent, and how
    late, is not known.
    """
    senders = [record for record in records if record["sends"]]
    merged = self_check(
        joined(senders, "lags_ms"),
        max(map(busy, senders), default=0.0),
        sum(int(record["missed"]) for record in senders),
        errors_of(senders)[FULL],
    )
    if not merged["invalid"]:
        # The rate is spread evenly: one late process of many is lost in the p99 of all.
        for record in senders:
            full = errors_of([record])[FULL]
            own = self_check(record["lags_ms"], busy(record), int(record["missed"]), full)
            merged["invalid"] += [f"one process: {reason}" for reason in own["invalid"]]
    if len(senders) < processes:
        merged["invalid"].append(f"{processes - len(senders)} of {processes} processes are lost")
    return merged


def told(records: Sequence[Record], processes: int) -> str:
    """One line for people: counts, latencies and whether the load was what was asked for."""
    found, latencies_ms = check(records, processes), joined(records, "latencies_ms")
    line = f"{len(latencies_ms)} answered, {errors_of(records).total()} failed"
    if len(latencies_ms):
        p50, p99 = np.percentile(latencies_ms, (50, 99))
        line += f", p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    verdict = f"INVALID: {'; '.join(found['invalid'])}" if found["invalid"] else "kept up"
    return f"{processes} process{'es' * (processes > 1)}: {line}; {verdict}"
