"""How much of what waits a model process takes on: the bound on the queue of the served model.

`export.repository.publish` copies this file beside the public model. Standard library only.

Triton hands over everything that waits, up to MAX_REQUEST_COMMENTS, in one call, and queues what
arrives during the call, unseen and without a bound; its own bounds stall (deploy/README.md). So
the call is what must stay short. Normally it takes on what can begin within CALM_WAIT_S and
refuses the rest. Once it had to, it takes on what can begin within OVERLOADED_WAIT_S only, until
that was enough for a while: Triton's queue is emptied every few milliseconds and cannot grow, a
refusal comes that quickly, and the model works without a pause.

What is counted is rows of the encoder's batches: a comment, or each window of a long one.

Clients that send again the moment they are refused would keep that state up, though they fit in
the calm one. So it ends by itself after a time, twice as long each time it comes straight back.
"""

from __future__ import annotations

from collections.abc import Sequence

from contract import CALM_WAIT_S, MAX_REQUEST_COMMENTS, OVERLOADED_WAIT_S

_SMOOTHING = 0.1
"""Weight of the newest call in the mean time of a row."""
_QUIET_S = 0.25
"""The overloaded state ends after so long without a refusal; a single call may see few requests
because another process has just emptied the queue."""
_SHORTEST_S, _LONGEST_S = 0.5, 8.0
"""Longest stay in the overloaded state, the first time and in the end."""


class Admission:
    """Decides for one model process. Starts without a limit, until a first call was timed."""

    def __init__(self) -> None:
        self.overloaded = False
        self._seconds_a_row = 0.0
        self._stay_s, self._entered, self._exceeded = _SHORTEST_S, 0.0, 0.0

    def admit(self, rows: Sequence[int], now: float, comments: int | None = None) -> int:
        """How many of the requests, in order, to score now; refuse the others.

        `rows` is the number of rows of each request at hand, `comments` of all their comments,
        where that is another. The first one is always admitted, so that a large request is not
        refused for its own size. `now` is in seconds of any steady clock.
        """
        self._leave_if_time(now)
        limit = OVERLOADED_WAIT_S if self.overloaded else CALM_WAIT_S
        ahead, admitted = 0, 0
        for count in rows:
            if ahead * self._seconds_a_row > limit:
                break
            ahead += count
            admitted += 1
        # A full call says that more waits behind it.
        comments = sum(rows) if comments is None else comments
        if admitted < len(rows) or comments >= MAX_REQUEST_COMMENTS:
            self._entered = self._entered if self.overloaded else now
            self._exceeded, self.overloaded = now, True
        return admitted

    def _leave_if_time(self, now: float) -> None:
        if self.overloaded and now - self._exceeded >= _QUIET_S:
            self.overloaded, self._stay_s = False, _SHORTEST_S
        elif self.overloaded and now - self._entered >= self._stay_s:
            self.overloaded, self._stay_s = False, min(2 * self._stay_s, _LONGEST_S)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a call that scored so many rows in so much time."""
        if rows:
            newest = seconds / rows
            known = self._seconds_a_row or newest
            self._seconds_a_row = known + _SMOOTHING * (newest - known)
