"""What can be evaluated: anything that gives a logit for a text, named the way a user names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract import ONNX_FILE, PUBLIC_MODEL, BadInput
from evaluate.baseline import fit_baseline
from export.repository import load_scorer, read_artifact, version_folder
from serve.client import Protocol, score_comments
from train.artifacts import WEIGHTS_FILE, load_checkpoint, sha256_of
from train.batches import TokenizedOnTheFly
from train.data import Comments
from train.evaluate import logits_of
from train.split import Split

BASELINE = "baseline"


@dataclass(frozen=True)
class Model:
    """A model under evaluation."""

    name: str
    kind: str
    """pytorch, published, server or baseline."""
    about: dict[str, Any]
    """What names it beyond doubt: sha256, precision, version; JSON."""
    logits: Callable[[Sequence[str]], np.ndarray]
    """Texts -> float32 [n]; the probability is the logistic function."""


def load_model(spec: str, run_comments: Callable[[], tuple[Comments, Split]]) -> Model:
    """The model that `spec` names.

    Args:
        spec: a checkpoint folder; a repository (its newest version) or a version folder in it, as
            model_repository/toxicity/2; http://HOST:PORT or grpc://HOST:PORT of a live server; or
            `baseline`, which is fitted now.
        run_comments: gives the comments and the split that a baseline is fitted on.

    Raises:
        BadInput: for anything else, or a model that is damaged.
    """
    folder = Path(spec)
    if spec == BASELINE:
        return _baseline(*run_comments())
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
        f"repository, http://HOST:PORT, grpc://HOST:PORT or '{BASELINE}'; run `make train export`"
    )


def _checkpoint(folder: Path) -> Model:
    checkpoint = load_checkpoint(folder)

    def logits(texts: Sequence[str]) -> np.ndarray:
        ids = TokenizedOnTheFly(texts, checkpoint.tokenizer)
        return logits_of(checkpoint.model, ids, np.arange(len(texts)))

    about = {"precision": "fp32", "checkpoint_sha256": sha256_of(folder / WEIGHTS_FILE)}
    return Model(str(folder), "pytorch", about, logits)


def _published(repository: Path, version: int | None) -> Model:
    scorer = load_scorer(repository, version)
    artifact = read_artifact(repository, version)
    number = version_folder(repository, version).name
    about = {
        "version": int(number),
        "precision": artifact["precision"],
        "checkpoint_sha256": artifact.get("checkpoint_sha256"),
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
    }
    name = f"{repository} v{number} {artifact['precision']}"
    return Model(name, "published", about, lambda texts: scorer.score(texts).logit)


def _server(url: str) -> Model:
    protocol: Protocol = "grpc" if url.startswith("grpc") else "http"
    address = url.partition("://")[2].rstrip("/")

    def logits(texts: Sequence[str]) -> np.ndarray:
        return score_comments(texts, protocol=protocol, url=address).logit

    versions = score_comments([""], protocol=protocol, url=address).model_version
    return Model(url, "server", {"version": int(versions[0])}, logits)


def _baseline(comments: Comments, split: Split) -> Model:
    model = fit_baseline([comments.texts[row] for row in split.train], comments.labels[split.train])
    about = {
        "fitted_on": comments.source["name"],
        "split": split.fingerprint,
        "terms": len(model[0].vocabulary_),
    }
    return Model(
        BASELINE, "baseline", about, lambda texts: model.decision_function(texts).astype(np.float32)
    )
