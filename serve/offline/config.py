"""Every choice of `score --file`, in one frozen dataclass, and what follows from the files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from contract import FLAGGED, BadInput
from serve.offline.forms import SCORES
from serve.offline.job import OutputForm
from serve.offline.rows import STDIN, Source
from storage.remote import Place, place_of
from train.data.json_lines import JSON_SUFFIXES
from train.data.load import TEXT_COLUMNS
from train.data.tables import find_column, is_text, shown_names

_FORMS: dict[str, OutputForm] = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}
_INPUT_SUFFIXES = (".csv.gz", ".txt.gz", ".csv", ".zip", ".parquet", ".txt", *JSON_SUFFIXES[::-1])
_INPUT: JsonDict = {"group": "Comments"}
_OUTPUT: JsonDict = {"group": "What is written"}
_MODEL: JsonDict = {"group": "Model"}
_MACHINE: JsonDict = {"group": "Machine"}


@dataclass(frozen=True)
class ScoreFileConfig:
    """Flags of `score --file`."""

    file: str = Field(
        STDIN,
        description="comments: .csv, .csv.gz, .zip (one CSV inside), .parquet, .jsonl, .jsonl.gz "
        "(one object a line), .txt or .txt.gz (one comment a line), also "
        "s3://BUCKET/KEY, or '-' for lines from stdin",
        json_schema_extra=_INPUT,
    )
    out: Path | None = Field(
        None,
        description=".csv, .parquet or .jsonl file or s3://BUCKET/KEY to write; left out: "
        "<file>.scored.csv",
        json_schema_extra=_OUTPUT,
    )
    quarantine: Path | None = Field(
        None,
        description="file or s3://BUCKET/KEY for the rows without a score, an object a line with "
        "its number and the reason; left out: <out>.quarantine.jsonl",
        json_schema_extra=_OUTPUT,
    )
    text_column: str | None = Field(
        None,
        description=f"column of the comment; left out: the first of {', '.join(TEXT_COLUMNS)}",
        json_schema_extra=_INPUT,
    )
    keep_columns: tuple[str, ...] = Field(
        (),
        description="columns of the input to write beside the scores; left out: all",
        json_schema_extra=_OUTPUT,
    )
    ids_only: bool = Field(
        False,
        description="write the number of the row, from 0, in place of the input's columns",
        json_schema_extra=_OUTPUT,
    )
    decide: bool = Field(
        False,
        description=f"write a column '{FLAGGED}' too: whether the probability is at least the "
        "version's threshold",
        json_schema_extra=_OUTPUT,
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability to decide by instead, such as 0.8; --decide is then on",
        json_schema_extra=_OUTPUT,
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
    processes: int | None = Field(
        None,
        ge=1,
        description="worker processes, or actors; left out: one a core of the machine or cluster, "
        "a single one for a GPU",
        json_schema_extra=_MACHINE,
    )
    engine: Literal["processes", "ray"] = Field(
        "processes",
        description="what scores: processes on this machine, or actors on a Ray cluster",
        json_schema_extra=_MACHINE,
    )
    ray_address: str | None = Field(
        None,
        description="HOST:PORT of the cluster; left out: RAY_ADDRESS, else one is started here",
        json_schema_extra=_MACHINE,
    )
    overwrite: bool = Field(
        False,
        description="begin again: replace the output and what an earlier command left",
        json_schema_extra=_OUTPUT,
    )
    json: bool = Field(
        False,
        description="end with the counts as one JSON object, not in words",
        json_schema_extra=_OUTPUT,
    )


def checked_out(config: ScoreFileConfig) -> Place:
    """Where the output goes. Raises BadInput for one that is no new file of a known form."""
    if config.out is None:
        if config.file == STDIN:
            raise BadInput("--out is missing, expected it with lines from stdin; add --out FILE")
        name = place_of(config.file).name
        suffix = next((s for s in _INPUT_SUFFIXES if name.lower().endswith(s)), "")
        return place_of(config.file).with_name(f"{name[: len(name) - len(suffix)]}.scored.csv")
    out = place_of(config.out)
    form_of(out)
    if isinstance(out, Path) and out.is_dir():
        raise BadInput(f"--out is {out}, a folder, expected a file; set another")
    if config.file != STDIN and _same(out, place_of(config.file)):
        raise BadInput(f"--out is {out}, expected another file than --file; set another")
    return out


def checked_quarantine(config: ScoreFileConfig, out: Place) -> Place:
    """Where rows without a score are named. Raises BadInput for a place that is taken."""
    if config.quarantine is None:
        return out.with_name(f"{out.name}.quarantine.jsonl")
    bad = place_of(config.quarantine)
    if isinstance(bad, Path) and (bad.is_dir() or not bad.parent.is_dir()):
        raise BadInput(f"--quarantine is {bad}, expected a file in a folder that is there; set one")
    if _same(bad, out) or (config.file != STDIN and _same(bad, place_of(config.file))):
        raise BadInput(f"--quarantine is {bad}, expected another file than --file and --out")
    return bad


def _same(out: Place, file: Place) -> bool:
    if isinstance(out, Path) and isinstance(file, Path):
        return out.resolve() == file.resolve()
    return out == file


def check_engine(config: ScoreFileConfig) -> None:
    """Raises BadInput for flags of an engine that is not asked for."""
    if config.ray_address is not None and config.engine != "ray":
        raise BadInput(
            f"--ray-address is given with --engine {config.engine}, expected --engine ray; add it"
        )


def form_of(out: Place) -> OutputForm:
    """The form that the output's name asks for. Raises BadInput for another name."""
    if form := _FORMS.get(out.suffix.lower()):
        return form
    raise BadInput(f"--out is {out}, expected a name that ends in {', '.join(_FORMS)}; set another")


def chosen_columns(config: ScoreFileConfig, source: Source) -> tuple[str, tuple[str, ...] | None]:
    """The column of the text and the kept ones, checked."""
    text_column = find_column(
        source.names,
        config.file,
        "text",
        asked=config.text_column,
        known=TEXT_COLUMNS,
        flag="--text-column",
    )
    if source.types and not is_text(source.types[text_column]):
        raise BadInput(
            f"column {text_column!r} of {config.file} holds {source.types[text_column]}, expected "
            "text; name another with --text-column"
        )
    if config.ids_only and config.keep_columns:
        raise BadInput("--ids-only keeps no columns, expected it without --keep-columns; drop one")
    if unknown := [name for name in config.keep_columns if name not in source.names]:
        raise BadInput(
            f"--keep-columns names {unknown[0]!r}, expected columns of {config.file}; "
            f"{shown_names(config.file, source.names)}"
        )
    keep = None if config.ids_only else config.keep_columns or source.names
    counts = Counter((text_column, *source.names))
    written = (*SCORES, FLAGGED) if config.decide or config.threshold is not None else SCORES
    for name in keep or ():
        if name in written:
            raise BadInput(
                f"{config.file} has a column {name!r} already, expected none of "
                f"{', '.join(written)}; leave it out with --keep-columns or --ids-only"
            )
        if counts[name] > 1 + (name == text_column):
            raise BadInput(
                f"{config.file} has {counts[name]} columns {name!r}, expected one; rename them, or "
                "leave them out with --keep-columns or --ids-only"
            )
    return text_column, keep


def default_processes(device: str) -> int:
    """One a core that this process may use, a single one for a GPU."""
    return 1 if device == "cuda" else len(os.sched_getaffinity(0))
