"""Turn a checkpoint into a served artifact: `make export`, or `python -m export --help`.

Trace to ONNX as the reference, build the serving graph from the same weights, pass the gates,
fill `model_repository/`. When a gate fails nothing is published, the version that serves stays,
and the exit status is 3.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

import contract
from contract import GateFailed
from export import parity
from export.config import ExportConfig
from export.parity import Comment, Finding
from export.quantize import integer_matmuls
from export.repository import publish
from export.scorer import Scorer
from export.serving_graph import build, build_int8, choose_groups, linear_layers
from export.trace import trace
from train.artifacts import (
    METRICS_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    load_checkpoint,
    read_json,
    sha256_of,
    write_json,
)
from train.batches import TokenizedOnTheFly
from train.cli import parse_config, run
from train.evaluate import logits_of
from train.split import Split, comments_of_run

_SAMPLE = 64
"""Validation comments that the gates score in every company; each costs about 40 runs."""
_LENGTHS = 10_000
"""Training comments whose lengths fix the attention groups."""


def main() -> None:
    export(
        parse_config(ExportConfig, None, prog="python -m export", description="Export and publish.")
    )


def export(config: ExportConfig) -> dict[str, Any]:
    """Run the export and return its report, which is also written to `config.out`.

    Raises GateFailed when a gate of the chosen precision fails; nothing is published then.
    """
    began = time.monotonic()
    subject = _load_subject(config)
    traced, fp32, int8 = (config.out / f"{n}.onnx" for n in ("traced", "fp32", "int8"))
    model, published = subject.checkpoint.model, fp32
    print("tracing to ONNX ...", flush=True)
    trace(model, traced)
    training = np.random.default_rng(config.seed).permutation(subject.split.train)
    lengths = [len(subject.ids[row]) for row in training[:_LENGTHS]]
    groups = choose_groups(lengths, subject.max_len)
    print(f"building the serving graph, attention widths {groups} ...", flush=True)
    build(model, fp32, groups)
    findings = _fp32_gates(subject, traced, fp32, config.seed)
    if config.precision == "int8":
        chosen = training[: config.calibration_comments]
        print(f"quantizing, calibrated on {len(chosen)} training comments ...", flush=True)
        build_int8(model, int8, groups, (subject.ids[row] for row in chosen))
        findings += _int8_gates(subject, int8, config.seed)
        published = int8
    for finding in findings:
        print(finding, flush=True)

    report: dict[str, Any] = {
        "precision": config.precision,
        "gates": [finding.to_json() for finding in findings],
        "published": None,
        "checkpoint": {
            "sha256": sha256_of(config.checkpoint / WEIGHTS_FILE),
            "config": subject.checkpoint.config,
            "test": read_json(config.checkpoint / METRICS_FILE, "run `make train`")["test"],
        },
        "attention_widths": list(groups),
        "calibration_comments": config.calibration_comments,
        "seed": config.seed,
        "onnx": {path.name: _described(path) for path in (traced, fp32, published)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
        },
    }
    failed = [finding for finding in findings if not finding.holds]
    if not failed:
        artifact = {
            "precision": config.precision,
            "device": "cpu",
            "max_len": subject.max_len,
            "attention_widths": list(groups),
            "tolerances": {finding.gate: finding.bound for finding in findings},
            "measured": {finding.gate: finding.value for finding in findings},
            "checkpoint_sha256": report["checkpoint"]["sha256"],
            "versions": report["versions"],
        }
        version = publish(
            config.repository,
            onnx_path=published,
            tokenizer_path=config.checkpoint / contract.TOKENIZER_FILE,
            artifact=artifact,
            instances=config.instances,
        )
        folder = config.repository / contract.PUBLIC_MODEL / str(version)
        report["published"] = {
            "model": contract.PUBLIC_MODEL,
            "version": version,
            "files": {path.name: _described(path) for path in sorted(folder.iterdir())},
        }
    report["seconds"] = round(time.monotonic() - began, 1)
    write_json(config.out / "report.json", report)
    if failed:
        raise GateFailed(
            f"gate {failed[0].gate} is {failed[0].value:.3g}, expected at most "
            f"{failed[0].bound:.3g} ({failed[0].worst}); nothing was published, see "
            f"{config.out / 'report.json'}"
        )
    print(
        f"published {config.precision} as version {version} of {config.repository} "
        f"(sha256 {report['published']['files'][contract.ONNX_FILE]['sha256'][:12]}, "
        f"{report['seconds']:.0f} s)"
    )
    return report


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A checkpoint and the comments of its training run; `sample` is what most gates look at."""

    checkpoint: Checkpoint
    texts: list[str]
    labels: np.ndarray  # 0/1 [n]
    ids: TokenizedOnTheFly
    split: Split
    sample: list[Comment]
    validation: list[Comment]
    validation_logits: np.ndarray  # float32 [n] of PyTorch

    @property
    def max_len(self) -> int:
        return self.checkpoint.tokenizer.max_len


def _load_subject(config: ExportConfig) -> _Subject:
    """Raises BadInput when the comments are not those of the training run any more."""
    checkpoint = load_checkpoint(config.checkpoint)
    comments, split = comments_of_run(config.checkpoint, config.data)
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    validation = [parity.named(int(i), comments.texts[i], ids[i]) for i in split.validation]
    chosen = np.random.default_rng(config.seed).permutation(len(validation))[:_SAMPLE]
    sample = [validation[i] for i in chosen]
    over_long = "you are fine . " * checkpoint.tokenizer.max_len
    for name, text in {"empty": "", "one letter": "a", "over-long": over_long}.items():
        sample.append(parity.named(name, text, checkpoint.tokenizer.encode(text)))
    logits = logits_of(checkpoint.model, ids, split.validation)
    return _Subject(
        checkpoint, comments.texts, comments.labels, ids, split, sample, validation, logits
    )


def _fp32_gates(subject: _Subject, traced: Path, fp32: Path, seed: int) -> list[Finding]:
    """The traced graph against PyTorch, then the serving graph against both."""
    torch_run = parity.torch_runner(subject.checkpoint.model)
    traced_run, serving_run = parity.onnx_runner(traced), parity.onnx_runner(fp32)
    sample, max_len = subject.sample, subject.max_len
    names = [comment.name for comment in sample]
    by_torch, by_traced, by_serving = (
        parity.run_batch(runner, sample) for runner in (torch_run, traced_run, serving_run)
    )
    atol, serving_atol = contract.FP32_LOGIT_ATOL, contract.SERVING_LOGIT_ATOL
    return [
        parity.shape_parity(
            "fp32_shapes", atol, torch_run, traced_run, sample, max_len=max_len, seed=seed
        ),
        parity.comment_parity("fp32_edge_cases", atol, by_torch, by_traced, names),
        parity.shape_parity(
            "serving_vs_traced_shapes",
            serving_atol,
            traced_run,
            serving_run,
            sample,
            max_len=max_len,
            seed=seed,
        ),
        parity.comment_parity("serving_vs_traced", serving_atol, by_traced, by_serving, names),
        parity.comment_parity(
            "fp32_served_text",
            atol,
            subject.validation_logits,
            _served(subject, fp32),
            [comment.name for comment in subject.validation],
        ),
        _invariance("fp32_batch_invariance", contract.FP32_INVARIANCE_ATOL, subject, fp32, seed),
    ]


def _int8_gates(subject: _Subject, int8: Path, seed: int) -> list[Finding]:
    layers = linear_layers(subject.checkpoint.model)
    running = integer_matmuls(int8)
    return [
        Finding(
            "int8_layers_in_float",
            layers - running,
            0,
            f"{running} integer matmuls run, of {layers}",
        ),
        _invariance("int8_batch_invariance", contract.INT8_INVARIANCE_ATOL, subject, int8, seed),
        *parity.quality_parity(
            subject.labels[subject.split.validation],
            subject.validation_logits,
            _served(subject, int8),
            [comment.name for comment in subject.validation],
        ),
    ]


def _served(subject: _Subject, path: Path) -> np.ndarray:
    """float32 [n] logits of the validation texts from the very code that a server runs."""
    texts = [subject.texts[row] for row in subject.split.validation]
    return Scorer(path, subject.checkpoint.tokenizer).score(texts).logit


def _invariance(gate: str, bound: float, subject: _Subject, path: Path, seed: int) -> Finding:
    model, max_len = subject.checkpoint.model, subject.max_len
    return parity.batch_invariance(
        gate,
        bound,
        parity.onnx_runner(path),
        subject.sample,
        parity.adversarial_mates(model, max_len=max_len, seed=seed),
        max_len=max_len,
        seed=seed,
    )


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


if __name__ == "__main__":
    run(main)
