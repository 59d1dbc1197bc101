"""Run the benches one after the other, in one sitting and for one artifact, into bench/results.

Used by `python -m bench.report.figures --measure`. `STEPS` lists what is run. Each document names
its artifact, hardware, versions and commit; the command is added under "sitting". A bench that
misses its own targets still counts as measured.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.report import plan_tables
from contract import BadInput
from export.repository import verify
from fleet.measured import ROAD
from storage.files import write_json

_LONGEST_SHOWN = 500
"""Characters of a bench's line."""
_PORTS = ("--http-port=8200", "--grpc", "--grpc-port=8201", "--metrics-port=8202")


@dataclass(frozen=True)
class Sitting:
    """What is measured, and on which comments."""

    repository: Path = Field(
        Path("runs/student_repository"), description="published repository to measure"
    )
    checkpoint: Path = Field(
        Path("runs/best/student"), description="weights that the repository was exported from"
    )
    traced: Path = Field(
        Path("runs/best/version/traced.onnx"), description="traced graph of the same export"
    )
    comments: str = Field("synthetic", description="labelled file, or 'synthetic'")
    vocabulary: str = Field(
        "", description="labelled file for the tokenizer's vocabulary; left out: the comments'"
    )
    quality_data: tuple[str, ...] = Field(
        ("test",), description="labelled files for the quality; 'test' is the run's test split"
    )
    curated: tuple[str, ...] = Field((), description="files of comments in groups, or a folder")
    steps: tuple[str, ...] = Field(
        (), description="documents to measure, as in road peers; left out: every one"
    )


@plain_dataclass(frozen=True)
class Step:
    """One bench: its module, its arguments, and where its document goes.

    In the arguments, {repository}, {checkpoint}, {traced} and {comments} are the sitting's,
    {tuned} is a copy of the repository that may be changed and {run_dir} that of a running server.
    An argument that is exactly {quality_data} or {curated} becomes those words; without any, its
    flag goes too.
    """

    module: str
    arguments: tuple[str, ...]
    document: str
    """Relative to bench/results; its name is the one that the bench gives it."""
    server: bool = False
    """Whether the bench loads a server that runs already."""
    compared_with: tuple[str, ...] = ()
    """Packages that the bench skips where they are missing."""

    @property
    def name(self) -> str:
        """Of its folder under bench/results."""
        return Path(self.document).parent.name


_PUBLISHED = ("--repository={repository}", "--comments={comments}")
_COMPARED = (*_PUBLISHED, "--traced={traced}")
_RUNNING = ("--run-dir={run_dir}", "--comments={comments}")
STEPS = (
    Step("bench.serving.road", _PUBLISHED, "road/road.json"),
    Step(
        "bench.serving.peers",
        (*_COMPARED, "--checkpoint={checkpoint}"),
        "peers/peers.json",
        compared_with=("fastapi", "litserve", "uvicorn"),
    ),
    Step(
        "bench.serving.app",
        (*_PUBLISHED, "--checkpoint={checkpoint}"),
        "app/app.json",
        compared_with=("fastapi", "uvicorn"),
    ),
    Step("bench.serving.capacity", _COMPARED, "capacity/capacity.json"),
    Step("bench.serving.overload", _RUNNING, "overload/overload.json", server=True),
    Step("bench.run", ("--users=32", "--seconds=15", *_RUNNING), "load/bench.json", server=True),
    Step(
        "bench.model.parity",
        ("--checkpoint={checkpoint}", *_RUNNING),
        "parity/parity.json",
        server=True,
    ),
    Step("bench.serving.cache", _PUBLISHED, "cache/cache.json"),
    Step("bench.serving.histograms", _PUBLISHED, "histograms/histograms.json"),
    Step("bench.serving.offline", _PUBLISHED, "offline/offline.json"),
    Step(
        "bench.model.encoder",
        ("--checkpoint={checkpoint}", "--comments={comments}"),
        "encoder/encoder.json",
        compared_with=("openvino",),
    ),
    Step(
        "bench.model.tokenizer",
        ("--comments={comments}",),
        "tokenizer/tokenizer.json",
        compared_with=("tokenizers",),
    ),
    Step("bench.model.length", (), "length/length.json"),
    Step(
        "quality",
        (
            *("--run={checkpoint}", "--models", "{checkpoint}", "{repository}", "baseline"),
            *("baseline-words", "--misspell", "--checklist"),
            *("--data", "{quality_data}", "--curated", "{curated}"),
        ),
        "eval/evaluation.json",
    ),
    Step("bench.hostile.attack", _PUBLISHED, "attack/attack.json"),
    Step("bench.hostile.soak", _PUBLISHED, "soak/soak.json"),
    # The last one: it changes how the repository that it is given serves.
    Step("bench.serving.tune", ("--repository={tuned}", "--comments={comments}"), "tune/tune.json"),
)


def measure(sitting: Sitting, results: Path) -> None:
    """Run every step and write its document under `results`, with the command that makes it.

    Raises BadInput for a repository that does not verify, for a step that there is not, for one
    that would skip what it compares with, and for a bench that ends without a document; what was
    measured before it stays.
    """
    verify(sitting.repository)
    steps = chosen(sitting)
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
        for number, step in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {step.module}", flush=True)
            with _server(words) if step.server else contextlib.nullcontext():
                document = _run(step, arguments(step, words, sitting), Path(scratch) / step.name)
            said = {"sitting": {"command": shown(step, words, sitting)}}
            target = results / kept_as(step, document)
            write_json(target, {**document, **said})
            for plot in (Path(scratch) / step.name).glob("*.png"):
                shutil.copy2(plot, target.parent)


def kept_as(step: Step, document: dict[str, Any]) -> str:
    """Where a step's document goes, relative to bench/results: its place, mostly.

    One that no plan can be made of does not take the place of one that plans are made of; it goes
    beside it, by the processor's instructions.
    """
    if step.document != str(ROAD):
        return step.document
    try:
        plan_tables.measured(document)
    except BadInput as error:
        beside = ROAD.with_name(f"{document['hardware']['isa'][-1]}.json")
        print(f"no plan can be made of it ({error}): it goes to {beside}", flush=True)
        return str(beside)
    return step.document


def chosen(sitting: Sitting) -> list[Step]:
    """The steps that it names, or all of them. See `measure` for what is refused."""
    names = [step.name for step in STEPS]
    for name in sitting.steps:
        if name not in names:
            raise BadInput(
                f"there is no step {name!r}, expected some of {', '.join(names)}; mend --steps"
            )
    found = [step for step in STEPS if not sitting.steps or step.name in sitting.steps]
    for step in found:
        missing = [name for name in step.compared_with if not importlib.util.find_spec(name)]
        if missing:
            raise BadInput(
                f"{step.name} compares with {', '.join(missing)}, expected it to be installed, for "
                "hours of measuring would leave it out; run `python -m pip install -c "
                f"constraints.txt {' '.join(missing)}`, or name other --steps"
            )
    return found


def arguments(step: Step, words: dict[str, str], sitting: Sitting) -> list[str]:
    """The step's arguments with the sitting's words in them."""
    many = {"{quality_data}": sitting.quality_data, "{curated}": sitting.curated}
    filled: list[str] = []
    for argument in step.arguments:
        if argument not in many:
            filled.append(argument.format(**words))
        elif many[argument]:
            filled += many[argument]
        else:
            filled.pop()
    if sitting.vocabulary and step.module == "bench.model.tokenizer":
        filled.append(f"--vocabulary={sitting.vocabulary}")
    return filled


def shown(step: Step, words: dict[str, str], sitting: Sitting) -> str:
    """The step's command as a person would run it: without the folders of one sitting."""
    own = {**words, "tuned": words["repository"], "run_dir": "runs/serve"}
    return " ".join(["python -m", step.module, *arguments(step, own, sitting)])


def _run(step: Step, command: list[str], out: Path) -> dict[str, Any]:
    """The bench's document; it and its plots go to `out`."""
    status = _followed([sys.executable, "-m", step.module, *command, f"--out={out}"])
    written = out / Path(step.document).name
    if not written.exists():
        raise BadInput(
            f"{step.module} ended with status {status} and without a document, expected "
            f"{written.name}; run `python -m {step.module} {' '.join(command)}` to see why"
        )
    document: dict[str, Any] = json.loads(written.read_text("utf-8"))
    return document


def _followed(command: list[str]) -> int:
    """Exit status of a command whose lines are shown as they come, but for very long ones."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if len(line) <= _LONGEST_SHOWN:
                print(line, end="", flush=True)
    return process.returncode


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
