"""Every choice of an export, in one frozen dataclass; recorded in its report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from contract import DEFAULT_CACHE_BYTES, BadInput
from export.scorer import LongText, LongTextRule

_PRECISIONS = ("int8", "fp16", "fp32", "auto")
_INPUT: JsonDict = {"group": "Checkpoint and comments"}
_OUTPUT: JsonDict = {"group": "What is written"}
_PRECISION: JsonDict = {"group": "Precision and device"}
_CASCADE: JsonDict = {"group": "Cascade"}
_LONG: JsonDict = {"group": "Long comments"}
_SERVING: JsonDict = {"group": "Serving"}
_THRESHOLD: JsonDict = {"group": "Default threshold"}


@dataclass(frozen=True)
class ExportConfig:
    """Flags of `python -m export`."""

    checkpoint: Path = Field(
        Path("runs/model"),
        description="folder of the finished run to export",
        json_schema_extra=_INPUT,
    )
    repository: Path = Field(
        Path("model_repository"),
        description="Triton model repository to add a version to",
        json_schema_extra=_OUTPUT,
    )
    out: Path = Field(
        Path("runs/export"),
        description="folder of the ONNX files and the report",
        json_schema_extra=_OUTPUT,
    )
    precision: str = Field(
        "int8",
        description="int8 (CPU), fp16 (GPU), fp32, or auto: the fastest here that passes its gates",
        json_schema_extra=_PRECISION,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="where it will serve; auto: a GPU that is here, for int8 the CPU",
        json_schema_extra=_PRECISION,
    )
    student: Path | None = Field(
        None,
        description="distilled student of --checkpoint: publish the cascade of both, in which "
        "the checkpoint is asked only where the student is unsure (CPU)",
        json_schema_extra=_CASCADE,
    )
    auroc_loss: float = Field(
        0.002,
        gt=0,
        le=0.5,
        description="most validation AUROC (of 1) that the cascade may lose to --checkpoint",
        json_schema_extra=_CASCADE,
    )
    data: str | None = Field(
        None,
        description="file of the training comments, if they moved since; left out: where they were",
        json_schema_extra=_INPUT,
    )
    curated: tuple[str, ...] = Field(
        (),
        description="files of comments in groups, or a folder that holds some, whose errors the "
        "version's reference profile has",
        json_schema_extra=_INPUT,
    )
    long_text: LongTextRule = Field(
        "cut",
        description="what becomes of a comment beyond the checkpoint's max_len: cut there, or read "
        "in windows whose logits' max or mean is the comment's",
        json_schema_extra=_LONG,
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="tokens from one window to the next; left out: half of max_len",
        json_schema_extra=_LONG,
    )
    calibration_comments: int = Field(
        512,
        ge=1,
        description="training comments that fix the INT8 activation ranges",
        json_schema_extra=_PRECISION,
    )
    instances: int | None = Field(
        None,
        ge=1,
        description="sessions of one thread side by side; left out: as `make tune` found, else one "
        "a CPU core, on a GPU one a GPU",
        json_schema_extra=_SERVING,
    )
    cache_bytes: int = Field(
        DEFAULT_CACHE_BYTES,
        ge=0,
        description="bytes of a server's memory for the logits of repeated comments; 0 for none",
        json_schema_extra=_SERVING,
    )
    sign_key: Path | None = Field(
        None,
        description="file of an Ed25519 private key that signs the version; see export.signing",
        json_schema_extra=_SERVING,
    )
    threshold_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="precision that the default threshold is chosen for, such as 0.9; left out: "
        "0.5 decides, or where no validation score reaches it, what has half of its alarms right",
        json_schema_extra=_THRESHOLD,
    )
    prevalence: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of toxic comments where it will serve, such as 0.01; left out: that of "
        "the validation split",
        json_schema_extra=_THRESHOLD,
    )
    torchscript: bool = Field(
        False, description="also write and check model.torchscript.pt", json_schema_extra=_OUTPUT
    )
    tensorrt: bool = Field(
        False,
        description="also write and check tensorrt.onnx, symmetric INT8 of the traced graph",
        json_schema_extra=_OUTPUT,
    )
    show_comments: bool = Field(
        False,
        description="show the start of the comment that a gate names, on the screen and in the "
        "report; else its row in the data and its length alone",
        json_schema_extra=_OUTPUT,
    )
    seed: int = Field(
        0,
        ge=0,
        description="seed of the calibration and parity samples",
        json_schema_extra=_PRECISION,
    )

    def long_text_for(self, max_len: int) -> LongText:
        """The rule for an encoder of so many tokens. Raises BadInput if it would leave some out."""
        stride = max_len // 2 if self.stride is None else self.stride
        if stride >= max_len:
            raise BadInput(
                f"--stride is {stride}, expected less than the checkpoint's max_len, {max_len}: "
                "text would fall between two windows; set a smaller --stride"
            )
        return LongText.by(self.long_text, stride)

    @model_validator(mode="after")
    def _prevalence_is_of_a_precision(self) -> ExportConfig:
        if self.prevalence is not None and self.threshold_precision is None:
            raise ValueError(
                f"--prevalence is {self.prevalence:g}, expected --threshold-precision with it"
            )
        return self

    @model_validator(mode="after")
    def _stride_is_of_windows(self) -> ExportConfig:
        if self.stride is not None and self.long_text == "cut":
            raise ValueError(f"--stride is {self.stride}, expected --long-text max or mean with it")
        if self.student and self.long_text != "cut":
            raise ValueError(f"--long-text is {self.long_text}, expected cut with --student")
        return self

    @field_validator("precision")
    @classmethod
    def _servable(cls, precision: str) -> str:
        if precision == "dynamic":
            raise ValueError(
                "a dynamic scale is taken over the whole batch, so a comment's score would depend "
                f"on its batch-mates, expected one of {', '.join(_PRECISIONS)}"
            )
        if precision not in _PRECISIONS:
            raise ValueError(f"expected one of {', '.join(_PRECISIONS)}")
        return precision
