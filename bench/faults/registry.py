"""The commands that `bench.faults.run` may hurt, by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench.faults.serve_target import ServeTarget
from bench.faults.targets import ExportTarget, RepositoryTarget, Target, TrainTarget, publish_tiny
from export import repository as repo
from export import switch


def _tune(_: Path, repository: Path) -> None:
    standing = repo.served_tuning(repository)
    other = dataclasses.replace(standing, instances=standing.instances + 1, window_ms=2.0)
    switch.tune(repository, other, {"rows": []})


TARGETS: dict[str, Target] = {
    "publish": RepositoryTarget(publish_tiny, share=40),
    "rollback": RepositoryTarget(lambda _, repository: switch.rollback(repository), share=24),
    "serve version": RepositoryTarget(
        lambda _, repository: switch.serve_version(repository, 1), share=10
    ),
    "tune": RepositoryTarget(_tune, share=12),
    "verify": RepositoryTarget(lambda _, repository: repo.verify(repository), share=8),
    "train": TrainTarget(),
    "export": ExportTarget(),
    "serve": ServeTarget(),
}
