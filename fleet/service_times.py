"""What a call of the model takes, fitted from measured runs: a + b x comments + c x tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from contract import BadInput

OUTSIDE = ("balancer", "application", "server")
"""Parts of `cpu_us` that are not the model's."""


@dataclass(frozen=True)
class ServiceTimes:
    """CPU seconds of one call; tokens are of the comments that no cache knows."""

    call_s: float
    comment_s: float
    token_s: float
    error: float = 0.0
    """Mean relative error of the fit over the runs it was made from."""
    runs: int = 0

    def of(self, comments: int, tokens: float) -> float:
        """Seconds of a call with so many comments of so many tokens in all."""
        return self.call_s + self.comment_s * comments + self.token_s * tokens


def fit(runs: Sequence[Mapping[str, Any]]) -> ServiceTimes:
    """From runs as `bench.traffic.one_run.Result` has them, by non-negative least squares.

    Relative errors are weighed alike (Lawson & Hanson, "Solving Least Squares Problems", 1974,
    chapter 23). The time is the model's CPU time, not the clock's: what else the cores did is the
    simulation's to add. Raises BadInput with fewer than three runs, which three unknowns need.
    """
    used = [run for run in runs if run["mean_batch"] > 0 and run["cpu_us"]["tokenizer"] > 0]
    if len(used) < 3:
        raise BadInput(
            f"{len(used)} runs have batches, expected at least 3; run `toxicity bench road`"
        )
    batch = np.array([run["mean_batch"] for run in used], float)
    tokens = np.array([run["tokens"] for run in used], float)
    model = [run["cpu_us"]["tokenizer"] + run["cpu_us"]["encoder"] for run in used]
    seconds = 1e-6 * batch * np.array(model, float)
    terms = np.stack([np.ones_like(batch), batch, batch * tokens], axis=1)
    # In microseconds and tens of tokens, so that the columns are of one size.
    scale = np.array([1e-4, 1e-5, 1e-6])
    found, _ = nnls(terms * scale / seconds[:, None], np.ones_like(seconds))
    error = float(np.mean(np.abs(terms @ (found * scale) / seconds - 1)))
    call, comment, token = (float(value) for value in found * scale)
    return ServiceTimes(call, comment, token, error, len(used))


@dataclass(frozen=True)
class OutsideTimes:
    """CPU seconds outside of the model: haproxy's, the application's and Triton's front end."""

    request_s: float
    call_s: float
    """What wakes up for a call does so for all of its requests."""
    door_share: float
    """haproxy's part of both."""
    error: float = 0.0
    """Mean relative error of the fit over the runs it was made from."""


def fit_outside(runs: Sequence[Mapping[str, Any]]) -> OutsideTimes:
    """From runs as `fit` takes them: request_s + call_s / comments of a call, for each request.

    Raises BadInput with fewer than two runs.
    """
    used = [run for run in runs if run["mean_batch"] > 0]
    if len(used) < 2:
        raise BadInput(f"{len(used)} runs have batches, expected 2 or more; measure more of them")
    batch = np.array([run["mean_batch"] for run in used], float)
    spent = [sum(run["cpu_us"].get(part, 0.0) for part in OUTSIDE) for run in used]
    seconds = 1e-6 * np.array(spent, float)
    terms = np.stack([np.ones_like(batch), 1 / batch], axis=1)
    found, _ = nnls(1e-4 * terms / seconds[:, None], np.ones_like(seconds))
    request, call = (float(value) for value in 1e-4 * found)
    door = [run["cpu_us"].get("balancer", 0.0) for run in used]
    error = float(np.mean(np.abs(terms @ (1e-4 * found) / seconds - 1)))
    return OutsideTimes(request, call, sum(door) / max(1e-9, sum(spent)), error)
