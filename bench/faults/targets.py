"""What `bench.faults.run` hurts, and what must be true of it afterwards.

A target is a command on files of its own: it says what is there before, what to run, and what is
broken. `bench.faults.registry` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import contract
from console.options import make_config
from contract import ENCODER_MODEL, PUBLIC_MODEL, RAGGED_MODEL, TOKENIZER_FILE, BadInput
from export import repository as repo
from export.__main__ import export
from export.config import ExportConfig
from export.graph.build import build
from export.model_config import MODELS
from export.publish import publish
from storage.files import sha256_of
from storage.locks import LOCK_FILE
from train.artifacts import load_checkpoint
from train.config import TrainConfig
from train.data.tokenizer import build_tokenizer
from train.loop import train
from train.model import ModelConfig, ToxicityEncoder
from train.terminal import StopRequest

_TEMPORARY = (".writing-", ".staging-", ".removed-")
_VERSIONS = 3
"""In the repository before a fault; as many are kept."""
_SMALL: dict[str, Any] = {
    **{"data": "synthetic:600", "max_vocab": 500, "max_len": 24, "d_model": 16, "n_layers": 1},
    **{"n_heads": 2, "epochs": 2, "batch_size": 32, "checkpoint_steps": 5, "device": "cpu"},
}
Found = dict[str, str]
"""What must stay: sha256 by path."""
Broken = dict[str, str]
"""Invariant -> what breaks it."""
INVARIANTS = ("orderly", "verifies", "old_versions_stay", "noticed", "next_works", "no_litter")


class Target(Protocol):
    """A command and its files."""

    @property
    def share(self) -> int:
        """Of all trials, in relation to the other targets'."""

    @property
    def base(self) -> str:
        """Name of what its trials start from; targets may have one together."""

    @property
    def spared(self) -> tuple[str, ...]:
        """Names of the faults that do not befall it."""

    def make(self, base: Path) -> None:
        """Make what every trial starts from; runs in a child, once."""

    def work(self, scratch: Path) -> None:
        """The command."""

    def again(self, scratch: Path) -> None:
        """The command that follows, by somebody who knows of no fault, and must work."""

    def found(self, scratch: Path) -> Found:
        """What is there before the fault."""

    def broken(self, scratch: Path, before: Found, *, settled: bool) -> Broken:
        """What does not hold; `settled` once the command that follows has ended."""

    def files(self, scratch: Path) -> list[Path]:
        """Files that may be damaged, each of which is loaded."""

    def notices(self, scratch: Path, damaged: Path) -> Broken:
        """What is wrong with how a damaged file is refused."""

    def recovered(self, scratch: Path) -> Broken:
        """What does not hold once the command has followed that damage."""

    def clean(self, scratch: Path) -> None:
        """End what a trial left running."""


# --- A repository of published versions --------------------------------------------------
def make_repository(base: Path) -> None:
    """Three versions of a tiny random model, of which the newest serves."""
    base.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(["you are a kind awful person"], max_vocab=50, max_len=16)
    shape = make_config(
        ModelConfig,
        {
            **{"vocab_size": len(tokenizer.vocabulary), "max_len": 16},
            **{"d_model": 16, "n_layers": 1, "n_heads": 2},
        },
    )
    build(ToxicityEncoder(shape).eval(), base / "dense.onnx", (8, 16), base / "ragged.onnx")
    (base / TOKENIZER_FILE).write_text(tokenizer.to_json(), "utf-8")
    for _ in range(_VERSIONS):
        publish_tiny(base, base / "repository")


def publish_tiny(sources: Path, repository: Path) -> None:
    gate = {"fp32_shapes": contract.FP32_LOGIT_ATOL}
    publish(
        repository,
        onnx_path=sources / "dense.onnx",
        ragged_path=sources / "ragged.onnx",
        tokenizer_path=sources / TOKENIZER_FILE,
        artifact={
            **{"precision": "fp32", "device": "cpu", "max_len": 16},
            **{"tolerances": gate, "measured": dict.fromkeys(gate, 0.0)},
        },
        instances=1,
        keep_versions=_VERSIONS,
    )


@dataclass(frozen=True)
class RepositoryTarget:
    """A command on a repository; `command` takes the folder of the sources and the repository."""

    command: Callable[[Path, Path], object]
    share: int
    base: str = "repository"
    spared: tuple[str, ...] = ()

    def make(self, base: Path) -> None:
        make_repository(base)

    def work(self, scratch: Path) -> None:
        self.command(scratch, scratch / "repository")

    def again(self, scratch: Path) -> None:
        publish_tiny(scratch, scratch / "repository")
        repo.verify(scratch / "repository")

    def found(self, scratch: Path) -> Found:
        return bits_of_versions(scratch / "repository")

    def broken(self, scratch: Path, before: Found, *, settled: bool) -> Broken:
        return broken_versions(scratch / "repository", before, settled=settled)

    def files(self, scratch: Path) -> list[Path]:
        repository = scratch / "repository"
        found = [path for model in MODELS for path in (repository / model).rglob("*")]
        return sorted(path for path in found if path.is_file())

    def notices(self, scratch: Path, damaged: Path) -> Broken:
        name = damaged.parent.name
        try:
            repo.verify(scratch / "repository", int(name) if name.isdecimal() else None)
        except BadInput as error:
            named = str(damaged) in str(error) and "\n" not in str(error)
            return {} if named else {"noticed": f"{damaged} is damaged, refused is: {error}"}
        return {"noticed": f"{damaged} is damaged and the version verifies"}

    def recovered(self, scratch: Path) -> Broken:
        try:
            repo.verify(scratch / "repository")
        except BadInput as error:
            return {"verifies": str(error)}
        return {}

    def clean(self, scratch: Path) -> None:
        pass


def bits_of_versions(repository: Path) -> Found:
    """sha256 of every file of every version, by its path in the repository."""
    sums: dict[int, str] = {}  # a file that versions share is read once
    found = {}
    for model in MODELS:
        for path in sorted((repository / model).glob("[0-9]*/*")):
            inode = path.stat().st_ino
            sums[inode] = sums.get(inode) or sha256_of(path)
            found[str(path.relative_to(repository))] = sums[inode]
    return found


def broken_versions(repository: Path, before: Found, *, settled: bool) -> Broken:
    """Old versions are as they were or gone whole, all that are listed verify, one serves."""
    broken, now = {}, bits_of_versions(repository)
    try:
        listed, serves = repo.versions(repository), repo.current(repository)
        for version in listed:
            repo.verify(repository, version)
        repo.verify(repository)
    except BadInput as error:
        return {"verifies": str(error)}
    if serves not in listed:
        broken["verifies"] = f"version {serves} serves and is not listed in {listed}"
    for path, sha256 in before.items():
        version = int(Path(path).parent.name)
        if version in listed and now.get(path) != sha256:
            broken["old_versions_stay"] = f"{path} is changed"
    gone = {int(Path(path).parent.name) for path in before} - set(listed)
    if len(gone) > max(0, max(listed) - _VERSIONS):
        broken["old_versions_stay"] = f"versions {sorted(gone)} are gone, {listed} are there"
    if settled:
        broken |= litter(repository, {str(n) for n in listed})
    return broken


def litter(repository: Path, listed: set[str]) -> Broken:
    """Temporary names, and folders of versions that are not published."""
    for path in repository.rglob(".*"):
        if path.name.startswith(_TEMPORARY):
            return {"no_litter": f"{path.relative_to(repository)} is left"}
    for model in (PUBLIC_MODEL, ENCODER_MODEL, RAGGED_MODEL):
        there = {path.name for path in (repository / model).iterdir() if path.is_dir()}
        if there != listed:
            return {"no_litter": f"{model} has {sorted(there)}, published are {sorted(listed)}"}
    return {}


# --- Training and export -----------------------------------------------------------------
class TrainTarget:
    """A training that is to replace a finished run."""

    share = 3
    base = "train"
    spared: tuple[str, ...] = ()

    def make(self, base: Path) -> None:
        self._train(base, seed=0)

    def work(self, scratch: Path) -> None:
        self._train(scratch, seed=1)

    def again(self, scratch: Path) -> None:
        try:
            self._train(scratch, seed=1)
        except BadInput as error:  # what is cut of its progress is refused, and says how to go on
            if "--restart" not in str(error):
                raise
            self._train(scratch, seed=1, restart=True)
        load_checkpoint(scratch / "model")

    def found(self, scratch: Path) -> Found:
        return {path.name: sha256_of(path) for path in (scratch / "model").iterdir()}

    def broken(self, scratch: Path, before: Found, *, settled: bool) -> Broken:
        try:
            load_checkpoint(scratch / "model")
        except BadInput as error:
            return {"verifies": str(error)}
        now = self.found(scratch)
        if now != before and now.keys() != before.keys():
            return {"old_versions_stay": f"model has {sorted(now)}"}
        if settled:
            left = {path.name for path in scratch.iterdir()} - {"model", f".model{LOCK_FILE}"}
            if left:
                return {"no_litter": f"{min(left)} is left"}
        return {}

    def files(self, scratch: Path) -> list[Path]:
        """Those of an interrupted run, which the next one goes on from."""
        found = [path for path in (scratch / "model.partial").rglob("*") if path.is_file()]
        return sorted(found)

    def notices(self, scratch: Path, damaged: Path) -> Broken:  # noqa: ARG002
        return {}  # `again` does, or need not: the file may be one that nothing reads any more

    def recovered(self, scratch: Path) -> Broken:
        return self.broken(scratch, self.found(scratch), settled=True)

    def clean(self, scratch: Path) -> None:
        pass

    def _train(self, folder: Path, **changes: Any) -> None:
        torch.set_num_threads(1)
        stop = StopRequest()
        stop.listen()
        config = make_config(TrainConfig, {**_SMALL, "out": folder / "model", **changes})
        train(config, torch.device("cpu"), stop=stop)


class ExportTarget(TrainTarget):
    """An export of a small run into a repository that has versions already."""

    share = 3
    base = "export"

    def make(self, base: Path) -> None:
        super().make(base)
        make_repository(base)

    def work(self, scratch: Path) -> None:
        torch.set_num_threads(1)
        folders = {"checkpoint": "model", "repository": "repository", "out": "out"}
        settings = {
            **{flag: scratch / name for flag, name in folders.items()},
            **{"precision": "fp32", "device": "cpu", "instances": 1},
        }
        export(make_config(ExportConfig, settings))

    def again(self, scratch: Path) -> None:
        self.work(scratch)
        repo.verify(scratch / "repository")

    def found(self, scratch: Path) -> Found:
        return bits_of_versions(scratch / "repository")

    def broken(self, scratch: Path, before: Found, *, settled: bool) -> Broken:
        broken = broken_versions(scratch / "repository", before, settled=settled)
        if settled:
            for path in (scratch / "out").rglob(".*"):
                if path.name.startswith(_TEMPORARY):
                    broken["no_litter"] = f"{path.relative_to(scratch)} is left"
        return broken

    def files(self, scratch: Path) -> list[Path]:
        return _REPOSITORY.files(scratch)

    def notices(self, scratch: Path, damaged: Path) -> Broken:
        return _REPOSITORY.notices(scratch, damaged)

    def recovered(self, scratch: Path) -> Broken:
        return _REPOSITORY.recovered(scratch)


_REPOSITORY = RepositoryTarget(publish_tiny, share=40)
