"""What the door turns away while a server refuses, as rules of haproxy.

To refuse a request of many comments costs a server a good part of what it costs to score it: the
body is held, checked, handed over, read again. So while a server refuses, few requests may be at it
at once: half as many with each refusal, twice as many with each step of time without. How many they
are is a matter of the servers' refusals alone: what is turned away here cannot keep the bound up,
and as it is lifted in steps, not all comes at once. The numbers are `contract`'s; `fleet.machine`
simulates the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import contract
from serve.app import settings as app
from serve.refusals import turn_away
from serve.request_rules import APP_POST, INFER

_REFUSED_AT, _MOST = "proc.refused_at", "proc.most_requests"
"""Variables of the whole process: Unix time in ms, and the bound of `rules` then."""
_SINCE = f"date(0,ms),sub({_REFUSED_AT})"
_STEPS_MS = tuple(contract.OVERLOADED_STEP_MS * k for k in range(1, contract.OVERLOADED_STEPS + 1))
"""Since the last refusal: at each the bound doubles, at the last it ends."""
_LATELY = f"0:{_STEPS_MS[-1] - 1}"
"""Not before: a clock that was set back tells nothing."""


def rules(backends: Sequence[str]) -> list[str]:
    """Turn away what a server would refuse, before its body is read; see `refusals_noted`."""
    lines = [
        f"acl refused_lately var({_REFUSED_AT}) -m found",
        *(f"acl scored path -m reg {pattern}" for pattern in (INFER, APP_POST)),
        f"http-request set-var(txn.since) {_SINCE} if refused_lately scored",
        f"acl overload var(txn.since) -m int {_LATELY}",
        "http-request set-var(txn.over) int(0) if overload",
    ]
    for name in backends:
        lines += [
            f"http-request set-var(txn.there) be_conn({name}) if overload",
            "http-request set-var(txn.over) var(txn.over),add(txn.there) if overload",
        ]
    lines.append(f"http-request set-var(txn.most) var({_MOST}) if overload")
    for after in _STEPS_MS[:-1]:
        lines.append(
            "http-request set-var(txn.most) var(txn.most),mul(2) "
            f"if overload {{ var(txn.since) -m int ge {after} }}"
        )
    over = "{ var(txn.over),sub(txn.most) -m int ge 0 }"
    return [*lines, turn_away(503, app.OVERLOADED, f"overload {over}")]


def refusals_noted(replicas: int) -> list[str]:
    """Rules of a backend: when a server last refused, and how many requests may be there then."""
    least, most = (count * replicas for count in contract.OVERLOADED_REQUESTS)
    set_most = f"http-response set-var({_MOST})"
    refused = "{ status 503 }"
    lines = [f"http-response set-var(txn.since) {_SINCE} if {refused}"]
    # Of what was there at the same time, one refusal counts.
    times_ms = (contract.OVERLOADED_SAME_MS, *_STEPS_MS)
    for step, (begin, end) in enumerate(itertools.pairwise(times_ms)):
        times = f"mul({1 << step}),div(2)"
        between = f"{{ var(txn.since) -m int {begin}:{end - 1} }}"
        lines.append(f"{set_most} var({_MOST}),{times} if {refused} {between}")
    new = f"!{{ var(txn.since) -m int {_LATELY} }}"
    same = f"{{ var(txn.since) -m int 0:{contract.OVERLOADED_SAME_MS - 1} }}"
    return [
        *lines,
        f"{set_most} int({most}) if {refused} {new}",
        f"{set_most} int({most}) if {refused} {{ var({_MOST}) -m int gt {most} }}",
        f"{set_most} int({least}) if {refused} {{ var({_MOST}) -m int lt {least} }}",
        f"http-response set-var({_REFUSED_AT}) date(0,ms) if {refused} !{same}",
    ]
