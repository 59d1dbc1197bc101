"""Every choice of an evaluation, in one frozen dataclass."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import PUBLIC_MODEL
from quality.baseline import BASELINE, WORDS
from train.artifacts import WEIGHTS_FILE

TEST = "test"


def models_here() -> tuple[str, ...]:
    """What `make train export` and a distillation have left, and the baselines."""
    runs = [f"runs/{name}" for name in ("model", "student")]
    repositories = ["model_repository", "runs/student_repository", "runs/cascade_repository"]
    return (
        *(name for name in runs if Path(name, WEIGHTS_FILE).is_file()),
        *(name for name in repositories if Path(name, PUBLIC_MODEL).is_dir()),
        *(BASELINE, WORDS),
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Flags of `python -m quality`."""

    data: tuple[str, ...] = Field(
        (TEST,), description=f"labelled files; '{TEST}' is the test split of --run"
    )
    models: tuple[str, ...] = Field(
        models_here(),
        description="checkpoint folders, repositories or their version folders, http://HOST:PORT "
        f"or grpc://HOST:PORT of live servers, '{BASELINE}', '{WORDS}'; the others are compared "
        "with the first",
        json_schema_extra={"default": "the runs and repositories that are here, and the baselines"},
    )
    curated: tuple[str, ...] = Field(
        (), description="files of comments in groups, or a folder that holds some"
    )
    run: Path = Field(
        Path("runs/model"),
        description="finished run: its validation split fixes the thresholds, its training split "
        "the baseline",
    )
    train_data: str | None = Field(
        None, description="where the comments of --run are now, if they moved"
    )
    text_column: str | None = Field(None, description="of --data, if not a known name")
    label_column: str | None = Field(None, description="of --data, if not a known name")
    label_map: tuple[str, ...] = Field(
        (), description="of --data: what its labels mean, as in toxic=1 non-toxic=0"
    )
    curated_text_column: str | None = Field(None, description="the same of --curated")
    curated_label_column: str | None = Field(None, description="the same of --curated")
    curated_label_map: tuple[str, ...] = Field((), description="the same of --curated")
    wanted_precision: float = Field(
        0.9, gt=0, lt=1, description="precision that a threshold is chosen for"
    )
    wanted_fpr: float = Field(
        0.02, gt=0, lt=1, description="false-positive rate that a threshold is chosen for"
    )
    misspell: bool = Field(False, description="score misspelled comments, too")
    resamples: int = Field(1000, ge=100, description="of the bootstrap")
    seed: int = Field(0, ge=0, description="of the bootstrap and the misspellings")
    out: Path = Field(Path("runs/eval"), description="folder of the JSON and the HTML report")
    json: bool = Field(False, description="print the document as the last line")
