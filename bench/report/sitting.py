"""Run the benches one after the other, in one sitting and for one artifact, into bench/results.

Used by `python -m bench.report.figures --measure`. `STEPS` lists what is run. A document names what
its bench knows; the artifact and its precision, the versions, the commit and the command are added
under "sitting". A bench that misses its own targets still counts as measured.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import ONNX_FILE, BadInput
from export.repository import verify
from storage.files import write_json

_OUT = Path("bench/out")
"""Where every bench writes unless told otherwise."""
_LONGEST_SHOWN = 500
"""Characters of a bench's line."""
_PACKAGES = ("torch", "onnxruntime", "numpy")
_PORTS = ("--http-port=8200", "--grpc-port=8201", "--metrics-port=8202")


@dataclass(frozen=True)
class Sitting:
    """What is measured, and on which comments."""

    repository: Path = Field(
        Path("runs/student_repository"), description="published repository to measure"
    )
    checkpoint: Path = Field(
        Path("runs/student"), description="weights that the repository was exported from"
    )
    traced: Path = Field(
        Path("runs/export_student/traced.onnx"), description="traced graph of the same export"
    )
    comments: str = Field("synthetic", description="labelled file, or 'synthetic'")
    vocabulary: str = Field(
        "", description="labelled file for the tokenizer's vocabulary; left out: the comments'"
    )


@plain_dataclass(frozen=True)
class Step:
    """One bench: its module, its arguments, and where its document goes.

    In the arguments, {repository}, {checkpoint}, {traced} and {comments} are the sitting's,
    {tuned} is a copy of the repository that may be changed, {run_dir} that of a running server and
    {capacity} the rate that `bench.serving.capacity` found just before.
    """

    module: str
    arguments: tuple[str, ...]
    document: str
    """Relative to bench/results."""
    server: bool = False
    """Whether the bench loads a server that runs already."""
    of_artifact: bool = True
    """Whether it measures the published files; else it makes graphs of its own, or needs none."""


_PUBLISHED = ("--repository={repository}", "--comments={comments}")
_COMPARED = (*_PUBLISHED, "--traced={traced}")
STEPS = (
    Step("bench.serving.road", _PUBLISHED, "road/road.json"),
    Step("bench.serving.peers", (*_COMPARED, "--checkpoint={checkpoint}"), "peers/peers.json"),
    Step("bench.serving.app", (*_PUBLISHED, "--checkpoint={checkpoint}"), "app/app.json"),
    Step("bench.serving.capacity", _COMPARED, "capacity/capacity.json"),
    Step(
        "bench.serving.overload",
        ("--capacity={capacity}", "--comments={comments}", "--run-dir={run_dir}"),
        "overload/overload.json",
        server=True,
    ),
    Step("bench.serving.cache", _PUBLISHED, "cache/cache.json"),
    Step("bench.serving.offline", _PUBLISHED, "offline/offline.json"),
    Step(
        "bench.model.encoder",
        ("--checkpoint={checkpoint}", "--comments={comments}"),
        "encoder/encoder.json",
        of_artifact=False,
    ),
    Step(
        "bench.model.tokenizer",
        ("--comments={comments}",),
        "tokenizer/tokenizer.json",
        of_artifact=False,
    ),
    Step("bench.model.length", (), "length/length.json", of_artifact=False),
    # The last one: it changes how the repository that it is given serves.
    Step("bench.serving.tune", ("--repository={tuned}", "--comments={comments}"), "tune/tune.json"),
)


def measure(sitting: Sitting, results: Path) -> None:
    """Run every step and write its document under `results`.

    Raises BadInput for a repository that does not verify, and for a bench that ends without a
    document; what was measured before it stays.
    """
    manifest = verify(sitting.repository)
    artifact = {
        "onnx_sha256": manifest["files"][ONNX_FILE]["sha256"],
        "precision": manifest["precision"],
    }
    versions = {"python": platform.python_version(), **_installed()}
    shared = {"versions": versions, "commit": _commit()}
    with tempfile.TemporaryDirectory() as scratch:
        tuned = Path(scratch) / "repository"
        shutil.copytree(sitting.repository, tuned, symlinks=True)
        words = {
            "repository": str(sitting.repository),
            "checkpoint": str(sitting.checkpoint),
            "traced": str(sitting.traced),
            "comments": sitting.comments,
            "tuned": str(tuned),
            "run_dir": str(Path(scratch) / "serve"),
        }
        for number, step in enumerate(STEPS, 1):
            print(f"[{number}/{len(STEPS)}] {step.module}", flush=True)
            command = arguments(step, words, sitting.vocabulary)
            with _server(words) if step.server else contextlib.nullcontext():
                document, plots = _run(step, command)
            if step.module == "bench.serving.capacity":
                words["capacity"] = str(_capacity(document))
            said = {**shared, "command": shown(step, words, sitting.vocabulary)}
            if step.of_artifact:
                said["artifact"] = artifact
            write_json(results / step.document, {**document, "sitting": said})
            for plot in plots:
                shutil.copy2(plot, (results / step.document).parent)


def arguments(step: Step, words: dict[str, str], vocabulary: str = "") -> list[str]:
    """The step's arguments with the sitting's words in them."""
    filled = [argument.format(**words) for argument in step.arguments]
    if vocabulary and step.module == "bench.model.tokenizer":
        filled.append(f"--vocabulary={vocabulary}")
    return filled


def shown(step: Step, words: dict[str, str], vocabulary: str = "") -> str:
    """The step's command as a person would run it: without the folders of one sitting."""
    own = {**words, "tuned": words["repository"], "run_dir": "runs/serve"}
    return " ".join(["python -m", step.module, *arguments(step, own, vocabulary)])


def _run(step: Step, command: list[str]) -> tuple[dict[str, Any], list[Path]]:
    """The bench's document, from the file that it wrote or its last line, and its plots."""
    began = time.time()
    status, last = _followed([sys.executable, "-m", step.module, *command])
    name = Path(step.document).name
    plots = _written("*.png", began)
    if documents := _written(name, began):
        return json.loads(documents[-1].read_text("utf-8")), plots
    with contextlib.suppress(json.JSONDecodeError):
        found = json.loads(last)
        if isinstance(found, dict):
            return found, plots
    raise BadInput(
        f"{step.module} ended with status {status} and without a document, expected "
        f"{_OUT / name}; run `python -m {step.module} {' '.join(command)}` to see why"
    )


def _written(pattern: str, since: float) -> list[Path]:
    """Results of that name written since then, the newest last."""
    times = {path: path.stat().st_mtime for path in _OUT.rglob(pattern)}
    return sorted((path for path, at in times.items() if at >= since - 1), key=times.__getitem__)


def _followed(command: list[str]) -> tuple[int, str]:
    """Exit status and last line of a command whose lines are shown as they come.

    A document on one line is not shown: it is too long to read.
    """
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for last in process.stdout:
            if len(last) <= _LONGEST_SHOWN:
                print(last, end="", flush=True)
    return process.returncode, last


@contextlib.contextmanager
def _server(words: dict[str, str]) -> Iterator[None]:
    """A server of the sitting's repository, in a run folder of its own."""
    door = [sys.executable, "-m", "serve.door"]
    folder = f"--run-dir={words['run_dir']}"
    subprocess.run(
        [*door, "start", f"--repository={words['repository']}", folder, *_PORTS], check=True
    )
    try:
        yield
    finally:
        subprocess.run([*door, "stop", folder], check=False)


def _capacity(document: dict[str, Any]) -> float:
    """Highest rate of the published version on one server without repeated comments."""
    return max(
        rung["capacity_rps"]
        for rung in document["rungs"]
        if rung["rung"]["graph"] == "published"
        and not rung["rung"]["repeats"]
        and not rung["rung"]["replicas"]
    )


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None
