"""Worker processes of `score --file`, each with a chunk to score and one more to go on with."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any, Protocol, Self

from contract import ToxicityError
from serve.offline.job import Done, Job
from serve.offline.rows import Chunk, send_chunk
from serve.offline.worker import work

CHUNKS_A_WORKER = 2
"""One is on its way while the other is scored."""


class WorkerPool(Protocol):
    """What scores chunks: `Workers`, or `serve.offline.on_ray.RayWorkers`."""

    idle: list[Any]
    busy: int
    count: int
    ready_at: float | None

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...

    def give(self, chunk: Chunk) -> None:
        """Send a chunk to an idle worker."""

    def wait(self) -> Iterator[Done]:
        """Wait for one or more of them: what they did, nothing when they have just started."""


def scored(chunks: Iterable[Chunk], workers: WorkerPool) -> Iterator[Done]:
    """Every chunk's `Done`, in the order in which they come.

    A chunk is taken when the one before has its worker, so that no more are held than
    CHUNKS_A_WORKER for each, and one.
    """
    for chunk in chunks:
        while not workers.idle:
            yield from workers.wait()
        workers.give(chunk)
    while workers.busy:
        yield from workers.wait()


class Workers:
    """Processes that each score a chunk after the other. When this one dies, they end too."""

    def __init__(self, job: Job, count: int) -> None:
        self._job, self.count = job, count
        self._processes: dict[Any, Any] = {}
        self.idle: list[Any] = []
        """A worker for each chunk that it could take now, those without any last."""
        self.busy = 0
        self._has: Counter[Any] = Counter()
        """Chunks by worker."""
        self.ready_at: float | None = None
        """When the first could begin."""

    def __enter__(self) -> Workers:
        context = multiprocessing.get_context("spawn")
        # Ctrl-C goes to all of a terminal's processes; they inherit that this one deals with it.
        resource_tracker.ensure_running()  # its start would unblock the signal
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self.count):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, self._job), daemon=True)
                process.start()
                theirs.close()
                self._processes[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self

    def __exit__(self, *_: Any) -> None:
        # A part is whole or not there; one that is still starting is not worth the wait.
        for pipe, process in self._processes.items():
            process.kill()
            process.join()
            pipe.close()

    def give(self, chunk: Chunk) -> None:
        """Send a chunk to an idle worker."""
        pipe = self.idle.pop()
        try:
            send_chunk(pipe, chunk)
        except BrokenPipeError as error:
            raise self._lost(pipe) from error
        self.busy += 1
        self._has[pipe] += 1

    def wait(self) -> Iterator[Done]:
        """Wait for one or more of them: what they did, nothing when they have just started."""
        ready: list[Any] = connection.wait(list(self._processes))
        for pipe in ready:
            try:
                answer = pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._lost(pipe) from error
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                self.ready_at = self.ready_at or time.monotonic()
                self.idle = [*[pipe] * (CHUNKS_A_WORKER - 1), *self.idle, pipe]
                continue
            self.busy -= 1
            self._has[pipe] -= 1
            self.idle.insert(0 if self._has[pipe] else len(self.idle), pipe)
            yield answer

    def _lost(self, pipe: Any) -> ToxicityError:
        process = self._processes[pipe]
        process.join()
        return ToxicityError(
            f"a worker ended with status {process.exitcode}, expected it to go on; when the "
            "machine ran out of memory, give fewer --processes"
        )
