"""Every choice of `toxicity migrate`, in one frozen dataclass."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from console.options import JSON_HELP, RESAMPLES_HELP
from train.data.labels import parse_label_map

_LOG: JsonDict = {"group": "The log of old scores"}
_MODEL: JsonDict = {"group": "Model that takes over"}
_STATISTICS: JsonDict = {"group": "Thresholds and intervals"}
_OUTPUT: JsonDict = {"group": "What is written"}
_DISTILL: JsonDict = {"group": "A student of the old scores"}


@dataclass(frozen=True)
class MigrateConfig:
    """Flags of `toxicity migrate`."""

    source: Literal["perspective"] = Field(
        description="the service whose scores are in the log", json_schema_extra=_LOG
    )
    scores: Path = Field(
        description="a log of your own: texts, old scores from 0 to 1, labels where you have them; "
        ".csv, .csv.gz, .zip, .parquet, .jsonl or .jsonl.gz, of JSON also the service's answers",
        json_schema_extra=_LOG,
    )
    text_column: str | None = Field(
        None,
        description="column of the text, if no known name, as in body; in JSON a path, as in "
        "comment.text",
        json_schema_extra=_LOG,
    )
    score_column: str | None = Field(
        None, description="column of the old score, if no known name", json_schema_extra=_LOG
    )
    label_column: str | None = Field(
        None,
        description="column of your moderators' decision, if no known name",
        json_schema_extra=_LOG,
    )
    label_map: tuple[str, ...] = Field(
        (),
        description="what labels mean that are no numbers in [0, 1], as in rejected=1 approved=0",
        json_schema_extra=_LOG,
    )
    attribute: str = Field(
        "TOXICITY",
        description="attribute of the service's answers whose score is meant",
        json_schema_extra=_LOG,
    )
    repository: Path = Field(
        Path("model_repository"), description="Triton model repository", json_schema_extra=_MODEL
    )
    version: int | None = Field(
        None,
        ge=1,
        description="number of its version; left out: the one that serves",
        json_schema_extra=_MODEL,
    )
    url: str | None = Field(
        None,
        description="HOST:PORT or grpc://HOST:PORT of a running server to ask, instead of "
        "--repository",
        json_schema_extra=_MODEL,
    )
    address: str = Field(
        "http://127.0.0.1:8000",
        description="where your site will reach the server, for the lines to change",
        json_schema_extra=_MODEL,
    )
    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="old score from which your site acts",
        json_schema_extra=_STATISTICS,
    )
    resamples: int = Field(1000, ge=100, description=RESAMPLES_HELP, json_schema_extra=_STATISTICS)
    seed: int = Field(
        0, ge=0, description="seed of the bootstrap and the training", json_schema_extra=_STATISTICS
    )
    out: Path = Field(
        Path("runs/migration"),
        description="folder of the report as JSON, HTML and Markdown",
        json_schema_extra=_OUTPUT,
    )
    show_text: int = Field(
        0,
        ge=0,
        le=1000,
        description="so many of the comments that the two disagree most on, with their text",
        json_schema_extra=_OUTPUT,
    )
    json: bool = Field(False, description=JSON_HELP, json_schema_extra=_OUTPUT)
    distill: bool = Field(
        False,
        description="train a student on the old scores, and judge it on comments held out",
        json_schema_extra=_DISTILL,
    )
    student: Path = Field(
        Path("runs/migrated"), description="folder of that run", json_schema_extra=_DISTILL
    )
    width: int = Field(
        64, ge=1, description="numbers a token of the student", json_schema_extra=_DISTILL
    )
    layers: int = Field(1, ge=1, description="its encoder blocks", json_schema_extra=_DISTILL)
    epochs: int = Field(
        3, ge=1, description="passes over the training part, at most", json_schema_extra=_DISTILL
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="peak learning rate of AdamW", json_schema_extra=_DISTILL
    )

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not address.startswith(("http://", "https://")) or not address.isprintable():
            raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
        return address.rstrip("/")

    @field_validator("url")
    @classmethod
    def _is_a_server(cls, url: str | None) -> str | None:
        scheme = (url or "").partition("://")[0] if "://" in (url or "") else "http"
        if scheme not in ("http", "grpc"):
            raise ValueError("expected HOST:PORT, http://HOST:PORT or grpc://HOST:PORT")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> MigrateConfig:
        parse_label_map(self.label_map)
        if self.url and self.version:
            raise ValueError("--version is of a repository, expected none with --url")
        if self.out.resolve() == self.student.resolve():
            raise ValueError(f"--student is {self.student}, expected another folder than --out")
        return self
