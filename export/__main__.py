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
from sklearn.metrics import roc_auc_score

import contract
from contract import GateFailed
from export import parity
from export.config import ExportConfig
from export.parity import Comment, Finding, integer_matmuls
from export.repository import publish
from export.scorer import Scorer
from export.serving_graph import build, build_int8, choose_groups, linear_layers
from export.torchscript import TORCHSCRIPT_FILE, torchscript_runner, write_torchscript
from export.trace import trace
from train.artifacts import (
    METRICS_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    check_split,
    load_checkpoint,
    read_json,
    sha256_of,
    write_json,
)
from train.batches import TokenizedOnTheFly
from train.cli import parse_config, run
from train.data import load_comments
from train.evaluate import logits_of
from train.qat import Ranges, difference, int8_reference, ranges_of, table_lines
from train.split import Split, split_comments

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
    names = ("traced", "fp32", "int8", "fp32_ragged", "int8_ragged")
    traced, fp32, int8, *ragged_of = (config.out / f"{name}.onnx" for name in names)
    model, published, ragged = subject.checkpoint.model, fp32, ragged_of[0]
    print("tracing to ONNX ...", flush=True)
    trace(model, traced)
    training = np.random.default_rng(config.seed).permutation(subject.split.train)
    lengths = [len(subject.ids[row]) for row in training[:_LENGTHS]]
    groups = choose_groups(lengths, subject.max_len)
    print(f"building the serving graph, attention widths {groups} ...", flush=True)
    build(model, fp32, groups, ragged)
    findings = _fp32_gates(subject, traced, fp32, config.seed)
    findings.append(_ragged_parity("fp32", subject, fp32, ragged, config.seed))
    if config.torchscript:
        findings.append(_torchscript_gate(subject, config.out / TORCHSCRIPT_FILE, config.seed))
    if config.precision == "int8":
        chosen = training[: config.calibration_comments]
        by = f"calibrated on {len(chosen)} training comments"
        print(f"quantizing, {'with the ranges of QAT' if subject.ranges else by} ...", flush=True)
        calibration = (subject.ids[row] for row in chosen)
        published, ragged = int8, ragged_of[1]
        build_int8(model, int8, groups, calibration, ragged, ranges=subject.ranges)
        findings += _int8_gates(subject, int8, config.seed)
        findings.append(_ragged_parity("int8", subject, int8, ragged, config.seed))
    for finding in findings:
        print(finding, flush=True)
    metrics = read_json(config.checkpoint / METRICS_FILE, "run `make train`")
    if subject.ranges:
        print(*table_lines(metrics["quantization"], len(subject.validation)), sep="\n")

    report: dict[str, Any] = {
        "precision": config.precision,
        "gates": [finding.to_json() for finding in findings],
        "published": None,
        "checkpoint": {
            "sha256": sha256_of(config.checkpoint / WEIGHTS_FILE),
            "config": subject.checkpoint.config,
            "test": metrics["test"],
            "quantization": metrics.get("quantization"),
        },
        "attention_widths": list(groups),
        "calibration_comments": config.calibration_comments,
        "seed": config.seed,
        "onnx": {path.name: _described(path) for path in (traced, fp32, published, ragged)},
        "torchscript": _described(config.out / TORCHSCRIPT_FILE) if config.torchscript else None,
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
            "qat": subject.ranges is not None,
            "attention_widths": list(groups),
            "tolerances": {finding.gate: finding.bound for finding in findings},
            "measured": {finding.gate: finding.value for finding in findings},
            "checkpoint_sha256": report["checkpoint"]["sha256"],
            "versions": report["versions"],
        }
        version = publish(
            config.repository,
            onnx_path=published,
            ragged_path=ragged,
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
    int8_reference: np.ndarray  # the same, of what the INT8 form must equal
    ranges: Ranges | None  # of a QAT checkpoint

    @property
    def max_len(self) -> int:
        return self.checkpoint.tokenizer.max_len


def _load_subject(config: ExportConfig) -> _Subject:
    """Raises BadInput when the comments are not those of the training run any more."""
    checkpoint = load_checkpoint(config.checkpoint)
    settings = checkpoint.config["train"]
    source = config.data or settings["data"]
    comments = load_comments(
        source, text_column=settings["text_column"], label_column=settings["label_column"]
    )
    fractions, seed = tuple(settings["fractions"]), settings["seed"]
    split = split_comments(comments.texts, comments.labels, fractions=fractions, seed=seed)
    check_split(config.checkpoint, split.fingerprint, source)
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    validation = [parity.named(int(i), comments.texts[i], ids[i]) for i in split.validation]
    chosen = np.random.default_rng(config.seed).permutation(len(validation))[:_SAMPLE]
    sample = [validation[i] for i in chosen]
    over_long = "you are fine . " * checkpoint.tokenizer.max_len
    for name, text in {"empty": "", "one letter": "a", "over-long": over_long}.items():
        sample.append(parity.named(name, text, checkpoint.tokenizer.encode(text)))
    ranges = ranges_of(checkpoint)
    reference = logits = logits_of(checkpoint.model, ids, split.validation)
    if ranges:
        reference = logits_of(int8_reference(checkpoint), ids, split.validation)
    return _Subject(
        checkpoint=checkpoint,
        texts=comments.texts,
        labels=comments.labels,
        ids=ids,
        split=split,
        sample=sample,
        validation=validation,
        validation_logits=logits,
        int8_reference=reference,
        ranges=ranges,
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
    served = _served(subject, int8)
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
            subject.int8_reference,
            served,
            [comment.name for comment in subject.validation],
        ),
        *(_qat_gates(subject, served) if subject.ranges else []),
    ]


def _qat_gates(subject: _Subject, served: np.ndarray) -> list[Finding]:
    """INT8 after QAT: the graph is the model that was trained, and costs no quality.

    Against the float model that QAT started from only a loss of AUROC counts: the weights went
    on learning, so decisions differ for that reason too. The differences from the tuned weights
    in float are reported, not bounded: those weights were never meant to run in float.
    """
    before = subject.checkpoint.config["quantization"]["start_validation_auroc"]
    after = float(roc_auc_score(subject.labels[subject.split.validation], np.nan_to_num(served)))
    gap = difference(subject.validation_logits, served)
    follows = difference(subject.int8_reference, served)
    return [
        Finding(
            "qat_reference",
            follows["logit_mean"] / max(gap["logit_mean"], 1e-9),
            contract.QAT_REFERENCE_SHARE,
            f"mean logit difference {follows['logit_mean']:.3g} from the fake-quantized model, "
            f"{gap['logit_mean']:.3g} from the same weights in float",
        ),
        Finding(
            "qat_auroc_loss",
            before - after,
            contract.QAT_AUROC_LOSS,
            f"float before QAT {before:.5f}, INT8 {after:.5f}; INT8 against its weights in float: "
            f"logit max {gap['logit_max']:.3g}, mean {gap['logit_mean']:.3g}, "
            f"{gap['flipped']} of {len(served)} flipped",
        ),
    ]


def _torchscript_gate(subject: _Subject, path: Path, seed: int) -> Finding:
    model, max_len = subject.checkpoint.model, subject.max_len
    write_torchscript(model, path)
    return parity.shape_parity(
        "torchscript_shapes",
        contract.TORCHSCRIPT_LOGIT_ATOL,
        parity.torch_runner(model),
        torchscript_runner(path),
        subject.sample,
        max_len=max_len,
        seed=seed,
    )


def _ragged_parity(
    precision: str, subject: _Subject, dense: Path, ragged: Path, seed: int
) -> Finding:
    """One graph behind two interfaces: as close as a comment is to itself in other company."""
    bounds = {"fp32": contract.FP32_INVARIANCE_ATOL, "int8": contract.INT8_INVARIANCE_ATOL}
    return parity.shape_parity(
        f"{precision}_ragged_vs_dense",
        bounds[precision],
        parity.onnx_runner(dense),
        parity.ragged_runner(ragged),
        subject.sample,
        max_len=subject.max_len,
        seed=seed,
    )


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
