"""The bound on what waits: calls stay short once a queue grew, and calm returns by itself."""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest

from contract import CALM_WAIT_S, MAX_REQUEST_COMMENTS, OVERLOADED_S, OVERLOADED_WAIT_S
from core.binding import Admission

SECONDS = 0.002
"""Of one comment in these tests."""
IN_CALM = math.floor(CALM_WAIT_S / SECONDS + 1e-9) + 1
IN_OVERLOAD = math.floor(OVERLOADED_WAIT_S / SECONDS + 1e-9) + 1


@pytest.fixture
def admission() -> Admission:
    timed = Admission()
    timed.observe(50, 50 * SECONDS)
    return timed


def test_calm_call_takes_on_what_begins_in_time(admission: Admission) -> None:
    assert admission.admit([1] * IN_CALM, now=0) == IN_CALM
    assert not admission.overloaded
    assert admission.admit([1] * (IN_CALM + 9), now=0) == IN_CALM
    assert admission.overloaded


def test_overloaded_calls_are_short_until_no_one_was_refused_for_a_while(
    admission: Admission,
) -> None:
    admission.admit([1] * (IN_CALM + 9), now=0)
    for now in (0.1, 0.2, 0.3):
        assert admission.admit([1] * (IN_OVERLOAD + 1), now) == IN_OVERLOAD
        assert admission.overloaded
    assert admission.admit([1] * IN_OVERLOAD, now=0.4) == IN_OVERLOAD
    assert admission.overloaded  # another process may just have emptied the queue
    assert admission.admit([1] * IN_CALM, now=0.56) == IN_CALM
    assert not admission.overloaded


def test_full_calls_in_a_row_mean_that_more_waits() -> None:
    fast = Admission()
    fast.observe(1000, 0.001)
    full = [1] * MAX_REQUEST_COMMENTS
    for now in (0.0, 0.1, 0.2):
        assert fast.admit(full, now) == MAX_REQUEST_COMMENTS
        fast.ended(now + 0.1)
        assert not fast.overloaded  # the machine may just have paused
    for now in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        fast.admit(full, now)
        fast.ended(now + 0.1)
    assert fast.overloaded
    other = Admission()
    other.observe(1000, 0.001)
    for now in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):  # each time the queue was emptied in between
        other.admit(full, now)
        other.ended(now + 0.1)
        other.admit([1], now + 0.1)
        other.ended(now + 0.2)
    assert not other.overloaded


def test_large_requests_with_pauses_between_them_are_no_overload() -> None:
    one = Admission()
    one.observe(1000, 0.01)
    for number in range(200):
        assert one.admit([MAX_REQUEST_COMMENTS], 0.01 * number) == 1
        one.ended(0.01 * number + 0.006)
    assert not one.overloaded


def test_large_request_is_not_refused_for_its_own_size(admission: Admission) -> None:
    admission.admit([1] * (IN_CALM + 9), now=0)
    assert admission.admit([200, 1], now=0) == 1
    assert admission.admit([200], now=0) == 1
    assert admission.admit([], now=0) == 0


def test_unknown_speed_has_no_limit_and_is_learnt() -> None:
    new = Admission()
    assert new.admit([1] * (IN_CALM + 1), now=0) == IN_CALM + 1
    new.observe(0, 1.0)
    for _ in range(100):
        new.observe(10, 10 * SECONDS)
    assert new.admit([1] * (IN_CALM + 9), now=0) == pytest.approx(IN_CALM, abs=1)


def test_clients_who_never_wait_find_the_calm_state_again(admission: Admission) -> None:
    """100 users who send again at once: they fit in a calm call, never in an overloaded one."""
    users = [1] * 100
    admission.admit([1] * (IN_CALM + 9), now=0)
    for now in (0.2, 0.4):
        assert admission.admit(users, now) == IN_OVERLOAD
    assert admission.admit(users, now=0.5) == 100
    assert not admission.overloaded


def test_lasting_overload_is_probed_ever_more_rarely(admission: Admission) -> None:
    crowd, probes, now = [1] * (IN_CALM + 9), [], 0.0
    while now < 100:
        if admission.admit(crowd, now) == IN_CALM:
            probes.append(now)
        now += 0.01
    gaps = [round(b - a, 1) for a, b in itertools.pairwise(probes)]
    assert gaps[:6] == pytest.approx([0.5, 1, 2, 4, 8, 8], abs=0.1)
    assert set(gaps[6:]) == {8.0}
    calm = now + OVERLOADED_S
    assert admission.admit([1], calm) == 1  # the next stay is a short one again
    again = [admission.admit(crowd, calm + later) for later in (0.1, 0.3, 0.5, 0.65)]
    assert again == [IN_CALM, IN_OVERLOAD, IN_OVERLOAD, IN_CALM]


def _loaded(
    requests: int, *, overload: float, row_s: float, other: int = 0, seconds: float = 6.0
) -> dict[str, float]:
    """One instance under so many times its capacity, as Triton hands over what waits.

    Requests are of `requests` comments, every fourth of `other` where given; a comment takes
    `row_s`, a call 0.5 ms more. Waiting is of the comments' own queue, in seconds.
    """
    admission, queue, now, due, sent = (
        Admission(),
        collections.deque[tuple[float, int]](),
        0.0,
        0.0,
        0,
    )
    admission.observe(50, 50 * row_s)
    scored, refused, waits, refusals = 0, 0, [], []
    while now < seconds:
        while due <= now:
            size = other if other and sent % 4 == 3 else requests
            queue.append((due, size))
            sent += 1
            due += size * row_s / overload
        call, room = list[tuple[float, int]](), MAX_REQUEST_COMMENTS
        while queue and queue[0][1] <= room:
            call.append(queue.popleft())
            room -= call[-1][1]
        if not call:
            now = due
            continue
        rows = [size for _, size in call]
        admitted = admission.admit(rows, now)
        spent = sum(rows[:admitted]) * row_s + 0.0005
        admission.observe(sum(rows[:admitted]), spent)
        refusals += [now - came for came, _ in call[admitted:]]
        now += spent
        admission.ended(now)
        waits += [now - came for came, _ in call[:admitted]]
        scored, refused = scored + sum(rows[:admitted]), refused + sum(rows[admitted:])
    return {
        "left_s": sum(size for _, size in queue) * row_s,
        "longest_s": max(waits),
        "median_refusal_s": float(np.median(refusals)) if refusals else 0.0,
        "busy": scored * row_s / now,
        "refused_share": refused / (scored + refused),
    }


@pytest.mark.parametrize("requests", [1, 60, 200, 256])
@pytest.mark.parametrize("overload", [1.5, 3, 10])
@pytest.mark.parametrize("row_s", [1e-4, 2e-3])
def test_no_queue_outlives_an_overload_whatever_the_requests(
    requests: int, overload: float, row_s: float
) -> None:
    found = _loaded(requests, overload=overload, row_s=row_s)
    assert found["longest_s"] <= (2 * CALM_WAIT_S + 3 * MAX_REQUEST_COMMENTS * row_s) * overload
    assert found["left_s"] <= (2 * CALM_WAIT_S + 3 * MAX_REQUEST_COMMENTS * row_s) * overload
    assert found["median_refusal_s"] <= CALM_WAIT_S + 2 * MAX_REQUEST_COMMENTS * row_s
    assert found["busy"] >= 0.6
    assert found["refused_share"] >= (1 - 1 / overload) * 0.8


def test_no_queue_outlives_an_overload_of_small_and_large_requests() -> None:
    for other in (120, 200, 256):
        found = _loaded(1, other=other, overload=3, row_s=1e-4)
        assert found["longest_s"] <= 3 * 2 * CALM_WAIT_S
        assert found["refused_share"] >= 0.5


@pytest.mark.parametrize("load", [0.3, 0.6])
@pytest.mark.parametrize(("requests", "other"), [(1, 0), (1, 256), (100, 0), (200, 256), (256, 0)])
def test_below_its_capacity_nothing_is_refused(requests: int, other: int, load: float) -> None:
    found = _loaded(requests, other=other, overload=load, row_s=2e-4)
    assert found["refused_share"] == 0


@pytest.mark.parametrize("overload", [1.5, 3, 10])
def test_queue_stays_short_and_the_model_busy_at_any_overload(
    admission: Admission, overload: float
) -> None:
    """Arrivals at a multiple of the capacity, one process: what waits is bounded by two calls."""
    arriving, waiting, scored, refused, seconds = 0.0, 0, 0, 0, 0.0
    longest = 0
    for _ in range(2000):
        batch = min(waiting, MAX_REQUEST_COMMENTS) or 1
        admitted = admission.admit([1] * batch, seconds)
        spent = admitted * SECONDS + 0.0005
        admission.observe(admitted, spent)
        seconds += spent
        scored, refused = scored + admitted, refused + batch - admitted
        arriving += spent * overload / SECONDS
        waiting = max(0, int(arriving) - scored - refused)
        longest = max(longest, waiting)
    assert longest <= 2 * (CALM_WAIT_S / SECONDS * overload + MAX_REQUEST_COMMENTS)
    assert waiting <= 2 * IN_OVERLOAD * overload
    assert scored * SECONDS >= 0.9 * seconds
    assert refused >= (1 - 1 / overload) * arriving * 0.9
