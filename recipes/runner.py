"""Run the stages of a recipe that are not done yet, side by side where the cores allow it.

Each stage has a folder under `out`: what its command wrote, `<stage>.log` beside it, and
`<stage>.json` with the key of what it was made of (recipes/keys.py). A stage whose key is the same
and whose result is there is not run again. One that was interrupted goes on where it stopped, if
nothing that it depends on has changed, and starts over otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import graphlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract import ONNX_FILE, BadInput, ToxicityError
from export.repository import read_artifact, versions
from recipes.display import Display
from recipes.keys import key_of
from recipes.recipe import Recipe, Stage
from storage.files import read_json, sha256_of, write_json
from train.artifacts import WEIGHTS_FILE

_MADE = {"train": WEIGHTS_FILE, "quality": "evaluation.json", "quality.card": "card.md"}
"""By module, the file that is there when a stage is done; of an export a published version is."""
_STOP_WITHIN_S = 30.0


@dataclass(frozen=True)
class StageOutcome:
    """How one stage ended."""

    stage: str
    seconds: float
    ran: bool
    """False where its result was there already."""
    digest: str
    """Of what it made."""


@dataclass
class RecipeRun:
    """One run of a recipe."""

    recipe: Recipe
    settings: Mapping[str, str]
    out: Path
    cores: int
    restart: bool
    display: Display
    places: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the stages that are not under `out`, by name."""
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)

    async def run(self) -> list[StageOutcome]:
        """All stages, each after those that it needs.

        Raises ToxicityError of the first stage that fails, with its last line and its exit status;
        those that run beside it are stopped, and go on the next time.
        """
        order = graphlib.TopologicalSorter({s.name: s.needs for s in self.recipe.stages})
        order.prepare()
        stages = {stage.name: stage for stage in self.recipe.stages}
        waiting: list[Stage] = []
        running: dict[asyncio.Task[StageOutcome], Stage] = {}
        try:
            while order.is_active():
                waiting += [stages[name] for name in order.get_ready()]
                self._start(waiting, running)
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    stage = running.pop(task)
                    self.outcomes[stage.name] = task.result()
                    order.done(stage.name)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self.display.close()
        return [self.outcomes[stage.name] for stage in self.recipe.stages]

    def _start(
        self, waiting: list[Stage], running: dict[asyncio.Task[StageOutcome], Stage]
    ) -> None:
        """Start what fits beside what runs; a stage never waits for more cores than there are."""
        for stage in list(waiting):
            busy = sum(min(one.threads, self.cores) for one in running.values())
            if not running or busy + min(stage.threads, self.cores) <= self.cores:
                waiting.remove(stage)
                running[asyncio.create_task(self._stage(stage))] = stage

    async def _stage(self, stage: Stage) -> StageOutcome:
        folder = self._folder(stage)
        made = {s.name: str(self._folder(s)) for s in self.recipe.stages}
        arguments = stage.arguments(self.settings, made)
        digests = {name: self.outcomes[name].digest for name in stage.needs}
        key = await asyncio.to_thread(key_of, stage, arguments, digests)
        before = _record(self.out, stage)
        found = self._result(stage, digests)
        if (
            found
            and before.get("key") == key
            and before.get("digest") == found
            and not self.restart
        ):
            self.display.end(stage.name, "unchanged")
            return StageOutcome(stage.name, float(before.get("seconds", 0)), False, found)
        goes_on = before.get("key") == key and not before.get("digest") and not self.restart
        self.display.begin(stage.name, _why(before, goes_on))
        write_json(_record_path(self.out, stage), {"key": key})
        began = time.monotonic()
        if stage.command.module == "train" and not goes_on:
            arguments = [*arguments, "--restart"]
        await self._follow(stage, [*arguments, "--out", str(folder)])
        found = self._result(stage, digests)
        if not found:
            raise ToxicityError(
                f"stage {stage.name} ended without its result in {folder}; see {self._log(stage)}"
            )
        seconds = round(time.monotonic() - began, 1)
        seconds += float(before.get("seconds", 0)) if goes_on else 0.0
        write_json(_record_path(self.out, stage), {"key": key, "digest": found, "seconds": seconds})
        self.display.end(stage.name, f"{seconds:,.0f} s")
        return StageOutcome(stage.name, seconds, True, found)

    async def _follow(self, stage: Stage, arguments: list[str]) -> None:
        """Run the stage's command, its lines into the log and the display."""
        threads = str(min(stage.threads, self.cores))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        log = self._log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        last = ""
        with log.open("w", encoding="utf-8") as written:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", stage.command.module, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches it once, by `_stop`
                limit=1 << 20,
            )
            assert process.stdout
            try:
                async for raw in process.stdout:
                    text = raw.decode("utf-8", "replace").rstrip()
                    written.write(f"{text}\n")
                    written.flush()
                    if text:
                        last = text
                        self.display.line(stage.name, text)
                status = await process.wait()
            finally:
                if process.returncode is None:
                    await _stop(process)
        if status:
            error = ToxicityError(f"stage {stage.name}: {last.removeprefix('error: ')}; see {log}")
            error.exit_status = status if status > 0 else 1
            raise error

    def _result(self, stage: Stage, needs: Mapping[str, str]) -> str:
        """Digest of what the stage's command made, empty where it is not there."""
        if stage.command.module not in _MADE:
            return self._published(set(needs.values()))
        made = self._folder(stage) / _MADE[stage.command.module]
        return sha256_of(made) if made.exists() else ""

    def _folder(self, stage: Stage) -> Path:
        return self.places.get(stage.name, self.out / stage.name)

    def _log(self, stage: Stage) -> Path:
        return self.out / f"{stage.name}.log"

    def _published(self, checkpoints: set[str]) -> str:
        """The newest version that was exported from one of these weights, as its graph's digest."""
        repository = Path(self.settings["repository"])
        for number in reversed(versions(repository)):
            with contextlib.suppress(BadInput):
                artifact = read_artifact(repository, number)
                if artifact.get("checkpoint_sha256") in checkpoints:
                    return f"{number}:{artifact['files'][ONNX_FILE]['sha256']}"
        return ""


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a command as Ctrl-C does, so that it saves how far it is; kill it if it does not."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await process.wait()
        except TimeoutError:
            process.kill()


def _record_path(out: Path, stage: Stage) -> Path:
    return out / f"{stage.name}.json"


def _record(out: Path, stage: Stage) -> dict[str, Any]:
    """What is known of the stage's last run; of a damaged record nothing, so it runs anew."""
    path = _record_path(out, stage)
    with contextlib.suppress(BadInput):
        return read_json(path, "run it again") if path.exists() else {}
    return {}


def _why(before: Mapping[str, Any], goes_on: bool) -> str:
    if not before:
        return "for the first time"
    return "where it stopped" if goes_on else "anew: something that it depends on is not as it was"
