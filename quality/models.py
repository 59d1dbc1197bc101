"""What can be measured: anything that gives a logit for a text, named the way a user names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from contract import ATTRIBUTES, ONNX_FILE, PUBLIC_MODEL, THRESHOLDS_FILE, BadInput
from export.manifest import stated_threshold
from export.repository import load_scorer, read_artifact, version_folder
from quality.baseline import BASELINE, WORDS, fit_baseline
from quality.decisions import StatedThreshold
from serve.client import Protocol, score_comments, served_threshold
from storage.files import sha256_of
from train.artifacts import WEIGHTS_FILE, load_checkpoint
from train.data.batches import TokenizedOnTheFly
from train.data.load import Comments
from train.data.split import Split
from train.methods.calibration import fit_platt
from train.methods.qat import int8_reference
from train.model import every_head
from train.operating.document import read_thresholds
from train.validation import logits_of


def _no_attributes(texts: Sequence[str]) -> np.ndarray:
    return np.empty((len(texts), 0), np.float32)


@dataclass(frozen=True)
class Model:
    """A model whose quality is measured."""

    name: str
    kind: str
    """pytorch, published, server or baseline."""
    about: dict[str, Any]
    """What names it beyond doubt: sha256, precision, version; JSON."""
    logits: Callable[[Sequence[str]], np.ndarray]
    """Texts -> float32 [n]; the probability is the logistic function."""
    decides: StatedThreshold = field(default_factory=StatedThreshold)
    attributes: tuple[str, ...] = ()
    """What it has a logit of beside toxicity."""
    attribute_logits: Callable[[Sequence[str]], np.ndarray] = _no_attributes
    """Texts -> float32 [n, A] of them."""


def models_here() -> tuple[str, ...]:
    """What `make train export` and a distillation have left, and the baselines."""
    runs = [f"runs/{name}" for name in ("model", "student")]
    repositories = ["model_repository", "runs/student_repository", "runs/cascade_repository"]
    return (
        *(name for name in runs if Path(name, WEIGHTS_FILE).is_file()),
        *(name for name in repositories if Path(name, PUBLIC_MODEL).is_dir()),
        *(BASELINE, WORDS),
    )


def load_model(spec: str, comments: Comments, split: Split) -> Model:
    """The model that `spec` names.

    Args:
        spec: a checkpoint folder; a repository (what serves) or a version folder in it, as
            model_repository/toxicity/2; http://HOST:PORT or grpc://HOST:PORT of a live server; or
            `baseline` or `baseline-words`, which is fitted now.
        comments: those of a training run, for a baseline.
        split: the parts of `comments` that it is fitted and calibrated on.

    Raises:
        BadInput: for anything else, or a model that is damaged.
    """
    folder = Path(spec)
    if spec in (BASELINE, WORDS):
        return _baseline(spec, comments, split)
    if spec.startswith(("http://", "grpc://")):
        return _server(spec)
    if (folder / WEIGHTS_FILE).is_file():
        return _checkpoint(folder)
    if (folder / PUBLIC_MODEL).is_dir():
        return _published(folder, None)
    if folder.parent.name == PUBLIC_MODEL and folder.name.isdecimal():
        return _published(folder.parent.parent, int(folder.name))
    raise BadInput(
        f"--models names {spec}, expected a checkpoint folder with {WEIGHTS_FILE}, a model "
        f"repository, http://HOST:PORT, grpc://HOST:PORT, '{BASELINE}' or '{WORDS}'; run "
        "`make train export`"
    )


def _checkpoint(folder: Path) -> Model:
    checkpoint = load_checkpoint(folder)
    model = int8_reference(checkpoint)

    heads, names = every_head(checkpoint.model, model), checkpoint.model.config.attributes

    def logits(texts: Sequence[str]) -> np.ndarray:
        ids = TokenizedOnTheFly(texts, checkpoint.tokenizer)
        return logits_of(model, ids, np.arange(len(texts)))

    def attribute_logits(texts: Sequence[str]) -> np.ndarray:
        ids = TokenizedOnTheFly(texts, checkpoint.tokenizer)
        return logits_of(heads, ids, np.arange(len(texts)))[:, 1:]

    about = {
        "precision": "fp32" if model is checkpoint.model else "fp32, rounded as INT8 is",
        "calibration": checkpoint.config.get("calibration"),
        "checkpoint_sha256": sha256_of(folder / WEIGHTS_FILE),
    }
    name = f"{folder} {about['precision']}"
    curve, decides = folder / THRESHOLDS_FILE, StatedThreshold()
    if curve.is_file():
        found = read_thresholds(curve, f"train {folder} again, or remove it")
        decides = StatedThreshold(found.decision.threshold, "operating curve")
    return Model(name, "pytorch", about, logits, decides, names, attribute_logits)


def _published(repository: Path, version: int | None) -> Model:
    scorer = load_scorer(repository, version)
    artifact = read_artifact(repository, version)
    number, stated = version_folder(repository, version).name, stated_threshold(artifact)
    about = {
        "version": int(number),
        "precision": artifact["precision"],
        "calibration": artifact.get("calibration"),
        "cascade": artifact.get("cascade"),
        "checkpoint_sha256": artifact.get("checkpoint_sha256"),
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
    }
    name = f"{repository} v{number} {artifact['precision']}"
    return Model(
        *(name, "published", about, lambda texts: scorer.score(texts).logit),
        StatedThreshold() if stated is None else StatedThreshold(stated, "manifest"),
        tuple(artifact.get(ATTRIBUTES, ())),
        lambda texts: scorer.score(texts).attributes,
    )


def _server(url: str) -> Model:
    protocol: Protocol = "grpc" if url.startswith("grpc") else "http"
    address = url.partition("://")[2].rstrip("/")

    def logits(texts: Sequence[str]) -> np.ndarray:
        return score_comments(texts, protocol=protocol, url=address).logit

    first = score_comments([""], protocol=protocol, url=address)
    names, about = tuple(first.attributes[0]), {"version": int(first.model_version[0])}

    def attribute_logits(texts: Sequence[str]) -> np.ndarray:
        rows = score_comments(texts, protocol=protocol, url=address).attributes
        if any(row.keys() != first.attributes[0].keys() for row in rows):
            raise BadInput(
                f"{url} answered by versions of different attributes, expected one version; wait "
                "for the update, or end the canary"
            )
        probability = np.array([[row[name] for name in names] for row in rows])
        return np.asarray(logit(probability.clip(1e-7, 1 - 1e-7)), np.float32)

    stated = served_threshold(protocol=protocol, url=address)
    decides = StatedThreshold() if stated is None else StatedThreshold(stated, "server")
    return Model(url, "server", about, logits, decides, names, attribute_logits)


def _baseline(name: str, comments: Comments, split: Split) -> Model:
    """Calibrated on the validation split as a checkpoint is."""
    train, validation = (
        [comments.texts[row] for row in rows] for rows in (split.train, split.validation)
    )
    print(f"fitting {name} on {len(train):,} comments ...", flush=True)
    model = fit_baseline(name, train, comments.labels[split.train])
    platt = fit_platt(comments.labels[split.validation], model.decision_function(validation))

    def logits(texts: Sequence[str]) -> np.ndarray:
        return platt(model.decision_function(texts)).astype(np.float32)

    about = {
        "fitted_on": comments.source["name"],
        "features": len(model[0].get_feature_names_out()),
    }
    return Model(name, "baseline", about, logits)
