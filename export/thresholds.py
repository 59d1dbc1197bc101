"""Where a published version decides, and what that does: `toxicity thresholds`.

    toxicity thresholds                                      # of the version that serves
    toxicity thresholds --prevalence 0.02 --json
    toxicity thresholds --data labelled.csv --publish        # from a site's own labels
    toxicity thresholds --threshold-precision 0.9 --prevalence 0.01 --publish

With --data the version scores the file as the server does; thresholds are chosen on its labels and
judged on folds that they were not chosen on, all copies of a text in one. --publish adds a version
that differs in the thresholds alone; --out writes them to a file. No text of a comment is in it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import THRESHOLDS_FILE, BadInput
from export.manifest import decision_threshold
from export.repository import load_scorer, verify
from export.rethreshold import asked_version, publish_thresholds, published_thresholds
from storage.files import write_atomically
from train.data.load import load_comments
from train.data.split import essence
from train.methods.calibration import fit_platt, quality
from train.operating.choice import Labelled, Wish
from train.operating.document import (
    SiteCalibration,
    Thresholds,
    decided_by,
    goals_at,
    thresholds_of,
)
from train.operating.words import summary, table
from train.validation import probability_of

_VERSION: JsonDict = {"group": "Version"}
_DATA: JsonDict = {"group": "Labels of your own"}
_WISH: JsonDict = {"group": "Default threshold"}
_OUTPUT: JsonDict = {"group": "What is written"}


@dataclass(frozen=True)
class ThresholdsConfig:
    """Flags of `toxicity thresholds`."""

    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=_VERSION
    )
    version: int | None = Field(
        None,
        ge=1,
        description="number of its version; left out: the one that serves",
        json_schema_extra=_VERSION,
    )
    data: str | None = Field(
        None,
        description="labelled comments to choose on, instead of the validation split",
        json_schema_extra=_DATA,
    )
    text_column: str | None = Field(
        None, description="column of the comment, if no known name", json_schema_extra=_DATA
    )
    label_column: str | None = Field(
        None, description="column of the label, if no known name", json_schema_extra=_DATA
    )
    label_map: tuple[str, ...] = Field(
        (), description="what the labels mean, as in toxic=1 non-toxic=0", json_schema_extra=_DATA
    )
    threshold_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="precision that the default threshold is chosen for, such as 0.9",
        json_schema_extra=_WISH,
    )
    prevalence: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of toxic comments where it serves, such as 0.01; left out: that of the "
        "labelled comments",
        json_schema_extra=_WISH,
    )
    publish: bool = Field(
        False,
        description="add a version that differs in its thresholds alone, and let it serve",
        json_schema_extra=_OUTPUT,
    )
    sign_key: Path | None = Field(
        None, description="private key that signs that version", json_schema_extra=_OUTPUT
    )
    out: Path | None = Field(
        None, description="file to write the thresholds to, as JSON", json_schema_extra=_OUTPUT
    )
    json: bool = Field(
        False, description="print one JSON document instead of a table", json_schema_extra=_OUTPUT
    )

    @model_validator(mode="after")
    def _something_is_new(self) -> ThresholdsConfig:
        if self.publish and not (self.data or self.threshold_precision):
            raise ValueError("--publish is given, expected --data or --threshold-precision with it")
        if self.sign_key and not self.publish:
            raise ValueError(f"--sign-key is {self.sign_key}, expected --publish with it")
        return self


def main() -> None:
    config = parse_config(
        ThresholdsConfig,
        None,
        prog="toxicity thresholds",
        description="Where a published version decides, and what that does.",
    )
    version = asked_version(config.repository, config.version)
    found = thresholds(config, version)
    if found is None:
        _tell_none(config, version)
        return
    more = goals_at(found, config.prevalence) if config.prevalence and not config.data else ()
    if config.json:
        document: dict[str, Any] = {"version": version, **found.to_json()}
        document["goals"] = [dataclasses.asdict(one) for one in (*more, *found.goals)]
        print(json.dumps(document))
    else:
        print(*summary(found), table(found, more), sep="\n")
    if config.out:
        write_atomically(config.out, found.to_text())
    if config.publish:
        number = publish_thresholds(config.repository, version, found, sign_key=config.sign_key)
        if not config.json:
            print(
                f"published as version {number} of {config.repository}: version {version} but for "
                "its thresholds; `make serve` loads it into the running server"
            )


def thresholds(config: ThresholdsConfig, version: int) -> Thresholds | None:
    """What is asked for; None of a version without any. Raises BadInput."""
    if config.data:
        return _of_labels(config, version)
    found = published_thresholds(config.repository, version)
    if found is None and (config.threshold_precision or config.prevalence or config.out):
        raise BadInput(
            f"version {version} of {config.repository} has no {THRESHOLDS_FILE}, expected it for a "
            "threshold of a precision or prevalence; give labelled comments with --data, or export "
            "again"
        )
    if found is not None and config.threshold_precision is not None:
        return decided_by(found, config.threshold_precision, config.prevalence)
    return found


def _of_labels(config: ThresholdsConfig, version: int) -> Thresholds:
    assert config.data
    comments = load_comments(
        config.data,
        text_column=config.text_column,
        label_column=config.label_column,
        label_map=config.label_map,
    )
    artifact = verify(config.repository, version)
    logits = load_scorer(config.repository, version).score(comments.texts).logit
    logits = np.nan_to_num(logits).astype(np.float64)
    groups = [essence(text) for text in comments.texts]
    labelled = Labelled.of(comments.labels, probability_of(logits), groups)
    return thresholds_of(
        labelled,
        source=Path(config.data).name,
        scores=f"version {version}, {artifact['precision'].upper()}",
        wish=Wish(config.threshold_precision, config.prevalence),
        calibration=_calibration(labelled, logits),
    )


def _calibration(labelled: Labelled, logits: np.ndarray) -> SiteCalibration | None:
    """Fitted on all; measured on folds that it was not fitted on, None where there are none."""
    if not labelled.folds:
        return None
    labels, mapped = labelled.labels, logits.copy()
    for rows, held in labelled.folds:
        mapped[held] = fit_platt(labels[rows], logits[rows])(logits[held])
    before, after = (quality(labels, x) for x in (logits, mapped))
    fitted = fit_platt(labels, logits)
    return SiteCalibration(
        fitted.slope,
        fitted.offset,
        (before["ece"], after["ece"]),
        (before["log_loss"], after["log_loss"]),
    )


def _tell_none(config: ThresholdsConfig, version: int) -> None:
    """Of a version that is older than thresholds.json."""
    threshold = decision_threshold(verify(config.repository, version))
    if config.json:
        print(json.dumps({"version": version, "decision": {"threshold": threshold}}))
        return
    print(
        f"version {version} of {config.repository} has no {THRESHOLDS_FILE}: it decides from "
        f"{threshold:g} on, and nothing says what that does; give labelled comments with --data, "
        "or export again"
    )


if __name__ == "__main__":
    run(main)
