"""Every choice of `python -m quality`, in one frozen dataclass."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from console.options import JSON_HELP, RESAMPLES_HELP
from quality.baseline import BASELINE, WORDS

TEST = "test"
_MODELS: JsonDict = {"group": "Models and the run they are measured by"}
_SETS: JsonDict = {"group": "Labelled comments"}
_CURATED: JsonDict = {"group": "Curated groups"}
_STATISTICS: JsonDict = {"group": "Thresholds and intervals"}
_OUTPUT: JsonDict = {"group": "What is written"}


@dataclass(frozen=True)
class QualityConfig:
    """Flags of `python -m quality`."""

    data: tuple[str, ...] = Field(
        (TEST,),
        description="labelled files, or YAML files of sources, each of which is a set; "
        f"'{TEST}' is the test split of --run",
        json_schema_extra=_SETS,
    )
    models: tuple[str, ...] = Field(
        (),
        description="checkpoint folders, repositories or their version folders, http://HOST:PORT "
        f"or grpc://HOST:PORT of live servers, '{BASELINE}', '{WORDS}'; the others are compared "
        "with the first; left out: what `make train export` left here, and both baselines",
        json_schema_extra=_MODELS,
    )
    curated: tuple[str, ...] = Field(
        (),
        description="files of comments in groups, or a folder that holds some",
        json_schema_extra=_CURATED,
    )
    run: Path = Field(
        Path("runs/model"),
        description="finished run: its validation split fixes the thresholds, its training split "
        "the baseline",
        json_schema_extra=_MODELS,
    )
    train_data: str | None = Field(
        None,
        description="file of the comments of --run, if they moved; left out: where they were",
        json_schema_extra=_MODELS,
    )
    text_column: str | None = Field(
        None,
        description="column of the comment in --data, if no known name",
        json_schema_extra=_SETS,
    )
    label_column: str | None = Field(
        None, description="column of the label in --data, if no known name", json_schema_extra=_SETS
    )
    label_map: tuple[str, ...] = Field(
        (),
        description="what the labels of --data mean, as in toxic=1 non-toxic=0",
        json_schema_extra=_SETS,
    )
    curated_text_column: str | None = Field(
        None,
        description="column of the comment in --curated, if no known name",
        json_schema_extra=_CURATED,
    )
    curated_label_column: str | None = Field(
        None,
        description="column of the label in --curated, if no known name",
        json_schema_extra=_CURATED,
    )
    curated_label_map: tuple[str, ...] = Field(
        (),
        description="what the labels of --curated mean, as in toxic=1 non-toxic=0",
        json_schema_extra=_CURATED,
    )
    wanted_precision: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="precision, from 0 to 1, that a threshold is chosen for",
        json_schema_extra=_STATISTICS,
    )
    wanted_fpr: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="false-positive rate, from 0 to 1, that a threshold is chosen for",
        json_schema_extra=_STATISTICS,
    )
    misspell: bool = Field(
        False, description="score misspelled comments, too", json_schema_extra=_SETS
    )
    checklist: bool = Field(
        False,
        description="also the functional tests of quality/checklist: sentences by capability",
        json_schema_extra=_SETS,
    )
    resamples: int = Field(1000, ge=100, description=RESAMPLES_HELP, json_schema_extra=_STATISTICS)
    seed: int = Field(
        0,
        ge=0,
        description="seed of the bootstrap and the misspellings",
        json_schema_extra=_STATISTICS,
    )
    out: Path = Field(
        Path("runs/eval"),
        description="folder of the JSON and the HTML report",
        json_schema_extra=_OUTPUT,
    )
    json: bool = Field(False, description=JSON_HELP, json_schema_extra=_OUTPUT)
