"""Actors on a Ray cluster in the place of worker processes: `score --file FILE --engine ray`.

The command reads the file, cuts the same chunks as without Ray and writes the same parts, so the
nodes need neither the input nor the output: a chunk goes to an actor that holds the core, and its
part comes back. The published version travels once. An actor that is lost, with its node or alone,
is replaced and its chunks are scored again; a part appears whole or not at all, and once.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from console.options import unexpected
from contract import ARTIFACT_FILE, ONNX_FILE, ORT_FILE, TOKENIZER_FILE, BadInput, ToxicityError
from serve.offline.job import Done, Job, write_part
from serve.offline.rows import Chunk
from serve.offline.worker import open_scorer, scored_part
from serve.offline.workers import CHUNKS_A_WORKER

_MOST_LOSSES = 3
"""Of actors under one chunk, or one after the other without a chunk done: it is no accident."""
_NEEDED = (ARTIFACT_FILE, ONNX_FILE, TOKENIZER_FILE, ORT_FILE)
_STORE_BYTES = 256 << 20
"""Object store of a Ray that is started here: a few chunks an actor, and the version."""


class ScoringActor:
    """The core on one node; made an actor by `RayWorkers`. Errors come back as values."""

    def __init__(self, version: dict[str, bytes], job: Job) -> None:
        self._unpacked = tempfile.TemporaryDirectory(prefix="toxicity-version-")
        folder = Path(self._unpacked.name) / job.version_folder.name
        folder.mkdir()
        for name, data in version.items():
            (folder / name).write_bytes(data)
        self._job = dataclasses.replace(job, version_folder=folder)
        self._scorer: Any = None

    def open(self) -> Exception | None:
        """Open the scorer."""
        try:
            self._scorer = open_scorer(self._job.version_folder)
        except (ToxicityError, OSError) as error:
            return error
        except Exception as error:  # to be told by the command, in its one line
            return ToxicityError(f"an actor failed: {unexpected(error)}")
        return None

    def score(self, chunk: Chunk) -> tuple[Done, bytes] | Exception:
        """What is to be said of a chunk, and the bytes of its part."""
        try:
            return scored_part(self._scorer, chunk, self._job)
        except (ToxicityError, OSError) as error:
            return error
        except Exception as error:
            return ToxicityError(f"an actor failed: {unexpected(error)}")


class RayWorkers:
    """As `serve.offline.workers.Workers`, on a cluster. Raises BadInput without Ray or cluster."""

    def __init__(self, job: Job, count: int | None, address: str | None, device: str) -> None:
        self._job, self._asked, self._address, self._device = job, count, address, device
        self._waiting: dict[Any, tuple[Any, Chunk | None]] = {}
        """Actor by what it is to answer, and the chunk; None where it opens its scorer."""
        self._again: deque[Chunk] = deque()
        self._losses: Counter[int] = Counter()
        self._losses_in_turn = 0
        self._dead: set[Any] = set()
        self._actors: list[Any] = []
        self.count = 0
        self.idle: list[Any] = []
        """An actor for each chunk that it could take now."""
        self.busy = 0
        self.ready_at: float | None = None

    def __enter__(self) -> RayWorkers:
        self._ray, self._ours = _connected(self._address, self._asked)
        resources = self._ray.cluster_resources()
        kind = "GPU" if self._device == "cuda" else "CPU"
        self.count = self._asked or max(1, int(resources.get(kind, 1)))
        try:
            self._actor_class = self._ray.remote(
                num_cpus=1, num_gpus=int(kind == "GPU"), max_restarts=0
            )(ScoringActor)
            folder = self._job.version_folder
            files = {n: (folder / n).read_bytes() for n in _NEEDED if (folder / n).is_file()}
            self._version = self._ray.put(files)
            for _ in range(self.count):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for actor in self._actors:
            if actor not in self._dead:
                self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def _start(self) -> None:
        actor = self._actor_class.remote(self._version, self._job)
        self._actors.append(actor)
        self._waiting[actor.open.remote()] = actor, None

    def give(self, chunk: Chunk) -> None:
        """Send a chunk to an idle actor."""
        self._send(chunk)
        self.busy += 1

    def _send(self, chunk: Chunk) -> None:
        actor = self.idle.pop()
        self._waiting[actor.score.remote(chunk)] = actor, chunk

    def wait(self) -> Iterator[Done]:
        """Wait for one of them: what it did, nothing when it has just started or was lost."""
        while self._again and self.idle:
            self._send(self._again.popleft())
        (answered,), _ = self._ray.wait(list(self._waiting), num_returns=1)
        actor, chunk = self._waiting.pop(answered)
        try:
            answer = self._ray.get(answered)
        except (
            self._ray.exceptions.RayActorError,
            self._ray.exceptions.ObjectLostError,
            self._ray.exceptions.WorkerCrashedError,
        ) as error:
            self._lost(actor, chunk, error)
            return
        except self._ray.exceptions.RayError as error:
            raise ToxicityError(
                f"a Ray actor failed ({_first_line(error)}), expected it to score; the package of "
                "this command must be installed on every node"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        if chunk is None:
            self.ready_at = self.ready_at or time.monotonic()
            self.idle += [actor] * CHUNKS_A_WORKER
            return
        done, part = answer
        write_part(self._job.parts, chunk.number, part)
        self._losses_in_turn = 0
        self.busy -= 1
        if actor not in self._dead:
            self.idle.append(actor)
        yield done

    def _lost(self, actor: Any, chunk: Chunk | None, error: Exception) -> None:
        """Another in its place, and its chunk once more."""
        if chunk is not None:
            self._again.append(chunk)
            self._losses[chunk.number] += 1
        if actor not in self._dead:
            self._dead.add(actor)
            self.idle = [other for other in self.idle if other is not actor]
            self._losses_in_turn += 1
            self._ray.kill(actor)  # one that only cannot be reached
            self._start()
        here = self._losses[chunk.number] if chunk else 0
        if here >= _MOST_LOSSES or self._losses_in_turn > _MOST_LOSSES * self.count:
            raise ToxicityError(
                f"{self._losses_in_turn} Ray actors were lost in turn, the last with "
                f"{_first_line(error)!r}, expected them to go on; look at the memory of the nodes, "
                "or give fewer --processes"
            ) from error


def _connected(address: str | None, processes: int | None) -> tuple[Any, bool]:
    """Ray, and whether this connected it: to a cluster, or to one that is started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise BadInput(
            "--engine is ray, which is not installed, expected the package ray; run "
            "`.venv/bin/pip install -c constraints.txt -e '.[ray]'`"
        ) from error
    if ray.is_initialized():
        return ray, False
    flags: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        flags |= {"num_cpus": processes, "object_store_memory": _STORE_BYTES}
        flags |= {"include_dashboard": False}
    try:
        ray.init(address=address or "local", **flags)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"--ray-address is {address or 'left out'}, where no cluster answers "
            f"({_first_line(error)}), expected HOST:PORT of a Ray cluster; start one with "
            "`ray start --head`"
        ) from error
    # Ray has set its own: both end this command in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return ray, True


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
