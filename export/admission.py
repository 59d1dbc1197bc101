"""How much of what waits a model process takes on: the bound on the queue of the served model.

`export.repository.publish` copies this file beside the public model. Standard library only.

Triton hands over everything that waits, up to MAX_REQUEST_COMMENTS, in one call, and queues what
arrives during the call, unseen and without a bound; its own bounds stall (deploy/README.md). So
the call is what must stay short. Normally it takes on what can begin within CALM_WAIT_S and
refuses the rest. From then on, until everything that waits can begin within OVERLOADED_WAIT_S,
calls are that short and the rest is refused: Triton's queue is emptied every few milliseconds
and cannot grow, a refusal comes that quickly, and the model works without a pause.

Clients that send again the moment they are refused would keep that state up, though they fit in
the calm one. So it ends by itself after a while, twice as long each time it comes straight back.
"""

from __future__ import annotations

from collections.abc import Sequence

from contract import CALM_WAIT_S, MAX_REQUEST_COMMENTS, OVERLOADED_WAIT_S

_SMOOTHING = 0.1
"""Weight of the newest call in the mean time of a comment."""
_SHORTEST_S, _LONGEST_S = 0.25, 8.0
"""Longest stay in the overloaded state, the first time and in the end."""


class Admission:
    """Decides for one model process. Starts without a limit, until a first call was timed."""

    def __init__(self) -> None:
        self.overloaded = False
        self._seconds_a_comment = 0.0
        self._stay_s, self._until = _SHORTEST_S, 0.0

    def admit(self, comments: Sequence[int], now: float) -> int:
        """How many of the requests, in order, to score now; refuse the others.

        `comments` is the number of comments of each request at hand. The first one is always
        admitted, so that a large request is not refused for its own size. `now` is in seconds
        of any steady clock.
        """
        if self.overloaded and now >= self._until:
            self.overloaded = False
            self._stay_s = min(2 * self._stay_s, _LONGEST_S)
        limit = OVERLOADED_WAIT_S if self.overloaded else CALM_WAIT_S
        ahead, admitted = 0, 0
        for count in comments:
            if ahead * self._seconds_a_comment > limit:
                break
            ahead += count
            admitted += 1
        # A full call says that more waits behind it.
        exceeded = admitted < len(comments) or sum(comments) >= MAX_REQUEST_COMMENTS
        if exceeded and not self.overloaded:
            self._until = now + self._stay_s
        if self.overloaded and not exceeded:
            self._stay_s = _SHORTEST_S
        self.overloaded = exceeded
        return admitted

    def observe(self, comments: int, seconds: float) -> None:
        """Learn from a call that scored so many comments in so much time."""
        if comments:
            newest = seconds / comments
            known = self._seconds_a_comment or newest
            self._seconds_a_comment = known + _SMOOTHING * (newest - known)
