"""One machine as `toxicity serve` fills it: haproxy, replicas with their queues, and its cores.

A request takes CPU time on its way in (the generator where one shares the machine, haproxy,
Triton's front end), waits in the queue of the replica with fewest connections, is scored in a call
with the others that wait, and takes CPU time on its way out. What is taken on of a call, and what
is refused, is decided by the server's own rule, the compiled `Admission` of core/src/admission.cpp.
All work of a machine shares its cores (fleet/cores.py), a generator's before the rest. haproxy and
each server's front end do it in a few threads, to one of which a connection belongs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

import contract
from core.binding import Admission
from fleet.cores import Cores, Steps, Thread
from fleet.requests import ANSWERED, FAILED, REFUSED, Outcomes, SimulatedRequest
from fleet.service_times import ServiceTimes

LOST = "lost"
"""Outcome of a request whose replica died: haproxy sends it to another."""
MOST_TRIES_S = 5.0
"""haproxy's waiting room: a request without a replica fails after it (serve/balancer.py)."""
_TRY_S = 0.1
_TURNED_AWAY = 0.5
"""Part of `in_s` that a request takes which haproxy turns away before its body (assumed)."""
_FRONT_THREADS = 8
"""Of a server's front end: tritonserver's --http-thread-count. haproxy has one a core."""


@dataclass(frozen=True)
class Shape:
    """What a machine has, and what a request costs it."""

    cores: int
    replicas: int
    instances: int
    """Sessions of the model in each replica."""
    window_s: float
    """Longest wait for others of a batch."""
    service: ServiceTimes
    in_s: float
    """CPU seconds of a request before its queue: half of haproxy's and Triton's (assumed)."""
    out_s: float
    call_s: float = 0.0
    """CPU seconds of a call, not of its requests, outside of the model: programs that wake up."""
    door_share: float = 0.5
    """haproxy's part of these three."""
    generator_s: float = 0.0
    """Of a load generator on the same cores."""
    start_s: float = 1.0
    """From a replica's death until it scores again; one core is busy as long in a rollout."""
    most_comments: int = contract.MAX_REQUEST_COMMENTS
    """Of one call."""


class SimulatedReplica:
    """One tritonserver: a queue, and sessions that take from it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.alive = True
        self.in_flight = self.last = 0
        self._queue: deque[SimulatedRequest] = deque()
        self._idle: deque[simpy.Event] = deque()
        self._pending: dict[int, SimulatedRequest] = {}
        self._life = 0
        self.front = [machine.cores.thread() for _ in range(_FRONT_THREADS)]
        self._start()

    def _start(self) -> None:
        for _ in range(self.machine.shape.instances):
            self.machine.env.process(self._serve(self._life))

    def put(self, request: SimulatedRequest) -> simpy.Event:
        """Queue a request; the event comes with its outcome."""
        env = self.machine.env
        request.queued_s, request.done = env.now, env.event()
        self._queue.append(request)
        self._pending[id(request)] = request
        if self._idle:
            self._idle.popleft().succeed()
        return request.done

    def front_of(self, connection: int) -> Thread:
        """Of the front end."""
        return self.front[connection % len(self.front)]

    def kill(self) -> None:
        """Lose what is queued and under way; the supervisor starts it anew after `start_s`."""
        self.alive = False
        self._life += 1
        lost = list(self._pending.values())
        self._pending.clear()
        self._queue.clear()
        self._idle.clear()
        for request in lost:
            request.done.succeed(LOST)
        if self.machine.alive:
            self.machine.env.process(self._again())

    def _again(self) -> Steps:
        yield self.machine.env.timeout(self.machine.shape.start_s)
        if self.machine.alive:
            self.alive = True
            self._start()

    def _finish(self, request: SimulatedRequest, outcome: str) -> None:
        if self._pending.pop(id(request), None) is not None:
            request.done.succeed(outcome)

    def _serve(self, life: int) -> Steps:
        """One session: what waits, up to `most_comments`, is a call."""
        env, shape = self.machine.env, self.machine.shape
        admission, thread = Admission(), self.machine.cores.thread()
        while self._life == life:
            if not self._queue:
                woken = env.event()
                self._idle.append(woken)
                yield woken
                continue
            left = self._queue[0].queued_s + shape.window_s - env.now
            if left > 1e-9 and len(self._queue) < shape.most_comments:
                yield env.timeout(left)
                if self._life != life or not self._queue:
                    continue
            call = [
                self._queue.popleft() for _ in range(min(len(self._queue), shape.most_comments))
            ]
            yield from self._call(call, admission, thread, life)

    def _call(
        self, call: list[SimulatedRequest], admission: Admission, thread: Thread, life: int
    ) -> Steps:
        env, outcomes = self.machine.env, self.machine.outcomes
        admitted = admission.admit([1] * len(call), env.now)
        for request in call[admitted:]:
            self._finish(request, REFUSED)
        taken, began = call[:admitted], env.now
        if taken:
            outcomes.batches += 1
            outcomes.comments += len(taken)
            outcomes.waits_s += [began - request.queued_s for request in taken]
            tokens = sum(request.tokens for request in taken)
            yield from thread.work(self.machine.shape.service.of(len(taken), tokens))
            admission.observe(len(taken), max(1e-9, env.now - began))
        if self._life == life:
            if taken:
                env.process(self._hand_on(taken, life))
            admission.ended(env.now)

    def _hand_on(self, taken: list[SimulatedRequest], life: int) -> Steps:
        """The answers of a call, while the session goes on."""
        shape, first = self.machine.shape, taken[0].connection
        yield from self.front_of(first).work((1 - shape.door_share) * shape.call_s)
        yield from self.machine.door_of(first).work(shape.door_share * shape.call_s)
        if self._life == life:
            for request in taken:
                self._finish(request, ANSWERED)


class DoorBound:
    """How many requests haproxy lets to the replicas after a refusal (serve/overload_rules.py)."""

    def __init__(self, replicas: int) -> None:
        self._least, self._most = (count * replicas for count in contract.OVERLOADED_REQUESTS)
        self._bound, self._refused_s = 0, -math.inf

    def bound(self, now_s: float) -> float:
        """Requests that may be there."""
        steps = int(min(1e3, 1e3 * (now_s - self._refused_s) / contract.OVERLOADED_STEP_MS))
        return self._bound << steps if steps < contract.OVERLOADED_STEPS else math.inf

    def note_refusal(self, now_s: float) -> None:
        """A replica refused a request."""
        if now_s - self._refused_s < contract.OVERLOADED_SAME_MS / 1e3:
            return
        half = min(self._most, self.bound(now_s) / 2)
        self._bound, self._refused_s = max(self._least, int(half)), now_s


class Machine:
    """Cores, replicas and the balancer before them."""

    def __init__(self, env: simpy.Environment, shape: Shape, outcomes: Outcomes) -> None:
        self.env, self.shape, self.outcomes = env, shape, outcomes
        self.alive = True
        self.in_flight = self._at_replicas = self._turn = 0
        self._door = DoorBound(shape.replicas)
        self.cores = Cores(env, shape.cores)
        self._doors = [self.cores.thread() for _ in range(shape.cores)]
        self.replicas = [SimulatedReplica(self) for _ in range(shape.replicas)]

    def door_of(self, connection: int) -> Thread:
        """Of haproxy."""
        return self._doors[connection // _FRONT_THREADS % len(self._doors)]

    def kill(self) -> None:
        """Lose all of it, and what is in flight; it does not come back."""
        self.alive = False
        for replica in self.replicas:
            replica.kill()

    def roll_out(self) -> Steps:
        """Load another version into each replica, one after the other: a core's time for each."""
        for _ in self.replicas:
            yield from self.cores.thread().work(self.shape.start_s)

    def answer(self, request: SimulatedRequest) -> Steps:
        """The whole way of one request that was sent here."""
        self.in_flight += 1
        self.outcomes.most_in_flight = max(self.outcomes.most_in_flight, self.in_flight)
        outcome = FAILED
        if self.alive:
            if self.shape.generator_s:
                yield from self.cores.take(self.shape.generator_s)
            if self._at_replicas >= self._door.bound(self.env.now):
                yield from self.door_of(request.connection).work(_TURNED_AWAY * self.shape.in_s)
                outcome = REFUSED
            else:
                outcome = yield from self._let_in(request)
        self.in_flight -= 1
        self.outcomes.record(request, outcome if self.alive else FAILED, self.env.now)

    def _let_in(self, request: SimulatedRequest) -> Generator[simpy.Event, Any, str]:
        self._at_replicas += 1
        shape, door = self.shape, self.door_of(request.connection)
        yield from door.work(shape.door_share * shape.in_s)
        outcome = yield from self._scored(request)
        if outcome == REFUSED:
            self._door.note_refusal(self.env.now)
        if outcome != FAILED:
            yield from door.work(shape.door_share * shape.out_s)
        self._at_replicas -= 1
        return outcome

    def _lost(self) -> simpy.Event:
        return self.env.event().succeed(LOST)

    def _scored(self, request: SimulatedRequest) -> Generator[simpy.Event, Any, str]:
        """By the replica with fewest connections; by another when that one dies."""
        waited = 0.0
        while self.alive:
            ready = [replica for replica in self.replicas if replica.alive]
            if not ready:
                if waited >= MOST_TRIES_S:
                    return FAILED
                waited += _TRY_S
                yield self.env.timeout(_TRY_S)
                continue
            # haproxy's leastconn takes turns among equals.
            chosen = min(ready, key=lambda replica: (replica.in_flight, replica.last))
            chosen.in_flight += 1
            chosen.last = self._turn = self._turn + 1
            front, beyond = chosen.front_of(request.connection), 1 - self.shape.door_share
            yield from front.work(beyond * self.shape.in_s)
            outcome: str = yield chosen.put(request) if chosen.alive else self._lost()
            if outcome != LOST:
                yield from front.work(beyond * self.shape.out_s)
            chosen.in_flight -= 1
            if outcome != LOST:
                return outcome
            self.outcomes.retried += 1
        return FAILED
