"""What `bench.hostile.soak` does to a running door: publish, roll back, kill a server, end the
balancer.

Works on a copy of a repository. A published version differs from the one before by a constant in
the logit, so that an answer of the wrong one shows.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.hostile.watch import REPLICA
from bench.serving.servers import quietly
from contract import (
    ENCODER_MODEL,
    LOGIT,
    ONNX_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    TOKENIZER_FILE,
    ToxicityError,
)
from export.publish import publish
from export.repository import current, read_artifact, versions
from export.switch import rollback
from serve import control, door, haproxy, triton
from serve.supervisor import Supervisor

Kind = Literal["publish", "rollback", "kill", "balancer"]
_KEEP = 10_000
"""Versions that stay in the copy: each is scored offline at the end."""
_MOST_S = 60.0
"""Longest wait for the end of an incident."""
_POLL_S = 0.02
_OWN = ("version", "files", "encoder", "ragged", "core")
"""Of artifact.json: what `publish` writes itself."""
_SHIFT = 0.5


@dataclass
class Incident:
    """One of them; times are monotonic."""

    kind: Kind
    began_s: float
    recovered_s: float
    words: str


def schedule(counts: dict[Kind, int], seconds: float, seed: int) -> list[tuple[float, Kind]]:
    """Seconds after the start and what is done then, in order: one in each of equal parts.

    The first tenth and the last third are quiet; each incident has at least half a part to recover.
    """
    rng = random.Random(seed)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    if "rollback" in kinds and "publish" in kinds:  # there must be something to go back from
        first, back = kinds.index("publish"), kinds.index("rollback")
        if back < first:
            kinds[first], kinds[back] = kinds[back], kinds[first]
    part = (2 / 3 - 0.1) * seconds / max(1, len(kinds))
    return [
        (0.1 * seconds + part * (number + rng.random() / 2), kind)
        for number, kind in enumerate(kinds)
    ]


class Incidents:
    """Causes them to one door, one after the other, and waits until all is well again."""

    def __init__(self, config: door.DoorConfig) -> None:
        self._config, self._repository = config, config.repository
        self._supervisor = Supervisor(config.run_dir)
        self.published = list(versions(config.repository))
        """Versions that may answer."""
        self.kills = self.balancer_ends = 0

    def cause(self, kind: Kind) -> Incident:
        """Do it. Raises ToxicityError when it is not well again within _MOST_S."""
        began = time.monotonic()
        act: dict[Kind, Callable[[], str]] = {
            "publish": self._publish,
            "rollback": self._roll_back,
            "kill": self._kill,
            "balancer": self._end_balancer,
        }
        words = act[kind]()
        return Incident(kind, began, time.monotonic(), words)

    # --- Versions ------------------------------------------------------------------------
    def _publish(self) -> str:
        version = publish_shifted(self._repository, _SHIFT)
        self.published.append(version)
        return self._serve(version)

    def _roll_back(self) -> str:
        return self._serve(rollback(self._repository))

    def _serve(self, version: int) -> str:
        quietly(door.start, self._config)
        return f"version {version}"

    # --- Processes -----------------------------------------------------------------------
    def _kill(self) -> str:
        before = self._supervisor.states()[REPLICA].pid
        os.kill(before, signal.SIGKILL)
        self.kills += 1
        socket = self._supervisor.program_folder(REPLICA) / control.HTTP_SOCKET
        self._wait(lambda: self._pid(REPLICA) not in (0, before) and control.scores(socket))
        return f"process {before}"

    def _end_balancer(self) -> str:
        before = self._supervisor.states()[haproxy.NAME].pid
        os.kill(before, signal.SIGTERM)
        self.balancer_ends += 1
        url = f"http://127.0.0.1:{self._config.http_port}"
        self._wait(lambda: self._pid(haproxy.NAME) not in (0, before) and triton.scores_at(url))
        return f"process {before}"

    def _pid(self, name: str) -> int:
        state = self._supervisor.states().get(name)
        return state.pid if state else 0

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _MOST_S
        while not condition():
            if time.monotonic() > deadline:
                raise ToxicityError(f"nothing is well again after {_MOST_S:g} s; see the logs")
            time.sleep(_POLL_S)


# --- The repository ------------------------------------------------------------------------
def copy_of(repository: Path, folder: Path) -> Path:
    """A copy that may be published into; `repository` stays as it is."""
    current(repository)  # raises when there is nothing to copy
    return Path(shutil.copytree(repository, folder / "model_repository"))


def publish_shifted(repository: Path, by: float) -> int:
    """Publish the current version anew with another constant in its logit; the new number."""
    version = current(repository)
    artifact = read_artifact(repository, version)
    with tempfile.TemporaryDirectory() as folder:
        graphs = [
            _shifted(repository / model / str(version) / ONNX_FILE, Path(folder) / model, by)
            for model in (ENCODER_MODEL, RAGGED_MODEL, PUBLIC_MODEL)
        ]
        return publish(
            repository,
            onnx_path=graphs[0],
            ragged_path=graphs[1],
            served_path=graphs[2],
            tokenizer_path=repository / PUBLIC_MODEL / str(version) / TOKENIZER_FILE,
            artifact={name: value for name, value in artifact.items() if name not in _OWN},
            keep_versions=_KEEP,
        )


def _shifted(source: Path, target: Path, by: float) -> Path:
    """A copy of a graph whose logit is larger by a constant."""
    model = onnx.load(source)
    graph = model.graph
    number = sum(node.name.startswith("shift_") for node in graph.node)
    before = f"logit_before_shift_{number}"
    for node in graph.node:
        node.output[:] = [before if name == LOGIT else name for name in node.output]
        node.input[:] = [before if name == LOGIT else name for name in node.input]
    constant = numpy_helper.from_array(np.array(by, np.float32), f"shift_by_{number}")
    graph.initializer.append(constant)
    add = helper.make_node("Add", [before, constant.name], [LOGIT], name=f"shift_{number}")
    graph.node.append(add)
    onnx.save(model, target)
    return target


def deaths_not_caused(
    starts: dict[str, int], kills: int, balancer_ends: int, names: Sequence[str]
) -> dict[str, int]:
    """By program, starts beyond the first that nobody caused."""
    caused = {REPLICA: kills, haproxy.NAME: balancer_ends, haproxy.LARGE_NAME: 0}
    return {name: starts.get(name, 0) - 1 - caused.get(name, 0) for name in names}
