"""What became of hostile requests, by family; and what must not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.hostile.exchange import Exchange, Outcome
from bench.hostile.legality import Reading, ServedVersions, read_requests
from bench.report.tables import aligned
from bench.traffic.answers import Answer, Oracle, fault_of, scores_of, scores_over_http2

_SHOWN_BYTES = 4000
_SHOWN = 20
"""Faults kept of a family, the smallest input of each kind."""


@dataclass
class FamilyTally:
    """One family; requests, but for what is said to be of connections."""

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """By status."""
    closed: int = 0
    """Sent and not answered, on connections that the door closed."""
    left: int = 0
    """The same where the client went, by plan or because the door rightly waited for more."""
    hung: int = 0
    """Neither answered nor closed within any bound of the door."""
    no_connection: int = 0
    other: int = 0
    """Connections with an answer that is not HTTP/1."""
    wrong: int = 0
    """Exchanges with a score that must not have come."""
    unexpected: int = 0
    """Answers that say the server is at fault."""
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By what is wrong: how often, and the smallest input as text of Latin-1."""

    def add(self, other: FamilyTally) -> None:
        """Count what another process counted."""
        for name in ("sent", "closed", "left", "hung", "no_connection", "other", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unexpected += other.unexpected
        self.answers.update(other.answers)
        for why, fault in other.faults.items():
            self.blame(why, fault["input"].encode("latin-1"), fault["count"], fault["bytes"])

    def blame(self, why: str, data: bytes, count: int = 1, size: int | None = None) -> None:
        """Keep a fault, with its input when that is the smallest."""
        size = len(data) if size is None else size
        known = self.faults.get(why)
        if known is None and len(self.faults) >= _SHOWN:
            return
        text = data[:_SHOWN_BYTES].decode("latin-1")
        if known is None or size < known["bytes"]:
            so_far = known["count"] if known else 0
            self.faults[why] = {"count": so_far + count, "bytes": size, "input": text}
        else:
            known["count"] += count


class Tally:
    """Of one process, and then of all; judges each answer as it comes."""

    def __init__(self, oracle: Oracle | None = None, served: ServedVersions | None = None) -> None:
        self.families: dict[str, FamilyTally] = {}
        self._oracle, self._served = oracle, served

    @property
    def oracle(self) -> Oracle:
        """What it judges by."""
        assert self._oracle
        return self._oracle

    def of(self, family: str) -> FamilyTally:
        return self.families.setdefault(family, FamilyTally())

    def count(self, exchange: Exchange, outcome: Outcome) -> str:
        """Count an exchange; what is wrong with it, if something is."""
        tally = self.of(exchange.family)
        if outcome.ending == "refused":
            tally.no_connection += 1
            return ""
        tally.sent += exchange.requests
        tally.answers.update(str(answer.status) for answer in outcome.answers)
        tally.other += bool(outcome.other)
        unanswered = max(0, exchange.requests - len(outcome.answers))
        if outcome.other and not outcome.answers:
            unanswered = 0
        if outcome.ending in ("closed", "answered"):
            tally.closed += unanswered
        elif outcome.ending == "left":
            tally.left += unanswered
        else:
            tally.hung += unanswered
            tally.blame("neither answered nor closed", exchange.sent)
        unexpected = [answer for answer in outcome.answers if is_unexpected(answer)]
        tally.unexpected += len(unexpected)
        fault = self._fault(exchange, outcome)
        tally.wrong += bool(fault)
        if unexpected and not fault:
            answer = unexpected[0]
            fault = f"{answer.status} {answer.body[:120].decode('latin-1')}"
        if fault:
            tally.blame(fault, exchange.sent)
        return fault

    def _fault(self, exchange: Exchange, outcome: Outcome) -> str:
        assert self._served
        if exchange.http2 is not None:
            texts = (exchange.http2,) if exchange.http2 else ()
            right = Reading(texts, "" if texts else "the frames are not those of a request")
            found = scores_over_http2(outcome.other)
            return fault_of(self.oracle, found, [right] * len(found))
        scores = [scores_of(answer) for answer in outcome.answers]
        if not any(scores):
            return ""
        return fault_of(self.oracle, scores, read_requests(exchange.sent, self._served))


def is_unexpected(answer: Answer) -> bool:
    """Whether an answer says that the server is at fault, other than by too much load."""
    if answer.status < 500:
        return False
    return answer.status != 503 or b"overloaded" not in answer.body


def merged(tallies: Iterable[dict[str, FamilyTally]]) -> dict[str, FamilyTally]:
    """Sum of several processes' families."""
    total = Tally()
    for tally in tallies:
        for name, family in tally.items():
            total.of(name).add(family)
    return total.families


def total(families: dict[str, FamilyTally], name: str) -> int:
    """Sum of one count over the families."""
    return sum(int(getattr(family, name)) for family in families.values())


def to_json(families: dict[str, FamilyTally]) -> dict[str, Any]:
    """Of all families, by name."""
    return {
        name: {**asdict(family), "answers": dict(sorted(family.answers.items()))}
        for name, family in families.items()
    }


def table(families: dict[str, FamilyTally]) -> str:
    """A line for each family."""
    head = ["family", "sent", "200", "4xx", "503", "other 5xx", "closed", "left"]
    head += ["hung", "not HTTP/1", "wrong"]
    lines = [head]
    for name, family in families.items():
        refused = sum(n for status, n in family.answers.items() if status.startswith("4"))
        right = sum(n for status, n in family.answers.items() if status[0] in "23O")
        counts = [family.sent, right, refused, family.answers["503"], family.unexpected]
        counts += [family.closed, family.left, family.hung, family.other, family.wrong]
        lines.append([name, *(f"{count:,}" for count in counts)])
    statuses = Counter[str]()
    for family in families.values():
        statuses.update(family.answers)
    by_status = ", ".join(f"{status}: {n:,}" for status, n in sorted(statuses.items()))
    return f"{aligned(lines)}\nanswers by status: {by_status}"
