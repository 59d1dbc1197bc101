"""Turn a checkpoint into a served artifact: `make export`, or `python -m export --help`.

Trace to ONNX as the reference, build the serving graph from the same weights, pass the gates of
`export.gates.run`, time the forms, fill `model_repository/`. When a gate fails nothing is
published, the version that serves stays, and the exit status is 3. The report is
`report-<version>.json` in --out and, as the latest one, `report.json`; one export at a time writes
an --out.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

import contract
from console.options import parse_config, run
from contract import BadInput, GateFailed
from export.config import ExportConfig
from export.gates import rates
from export.gates.operating import checked_subject, of_form
from export.gates.parity import Finding, onnx_runner
from export.gates.placement import Placement
from export.gates.run import (
    Form,
    GateSubject,
    form_gates,
    reference_gates,
    scorer_of,
    tensorrt_gates,
    torchscript_gate,
)
from export.graph.build import build, build_int8, build_packed
from export.graph.groups import groups_for
from export.graph.qdq import TENSORRT_FILE, write_qdq
from export.graph.torchscript import TORCHSCRIPT_FILE, write_torchscript
from export.graph.trace import trace
from export.profile import Profile
from export.publish import publish
from export.reference import profile_of
from export.signing import load_private_key
from storage.files import clear_unfinished, read_json, sha256_of, write_json
from storage.locks import LOCK_FILE, locked
from storage.system_errors import refusing_disk_errors
from train.artifacts import METRICS_FILE, WEIGHTS_FILE
from train.data.curated import load_curated
from train.data.load import Comments
from train.methods.qat import table_lines
from train.operating.words import told

_LENGTHS = 10_000
"""Training comments whose lengths fix the attention groups."""
_NOT_FOR = {
    ("int8", "cuda"): "the CUDA provider has no kernels for its matmuls",
    ("fp16", "cpu"): "its operators exist for CUDA only",
}
"""Why a form is not served on a device."""
_OTHER = {"cpu": "int8", "cuda": "fp16"}
"""What a device serves beside FP32."""


def main() -> None:
    export(
        parse_config(ExportConfig, None, prog="python -m export", description="Export and publish.")
    )


def export(config: ExportConfig) -> dict[str, Any]:
    """Run the export and return its report, which is also written to `config.out`.

    Raises GateFailed when a gate of the chosen precision fails, with "auto" when one of every
    precision does; nothing is published then. Raises BadInput for a precision and a device that
    do not go together, while another export writes `config.out`, and when that or the repository
    cannot be written.
    """
    device = _device(config)
    if config.sign_key:
        load_private_key(config.sign_key)  # not after the work
    with refusing_disk_errors(
        config.out, "free some space or allow writing there, or give another folder with --out"
    ):
        wait = "wait for it, or give another folder with --out"
        with locked(config.out / LOCK_FILE, f"--out {config.out}", wait):
            clear_unfinished(config.out)
            return _export(config, device)


def _export(config: ExportConfig, device: str) -> dict[str, Any]:
    began = time.monotonic()
    curated = load_curated(config.curated)  # not after the work
    subject = checked_subject(config)
    _refuse_forms(config, device, subject)
    traced = config.out / "traced.onnx"
    print("tracing to ONNX ...", flush=True)
    trace(subject.checkpoint.model, traced)
    training = np.random.default_rng(config.seed).permutation(subject.split.train)
    lengths = (len(subject.ids[row]) for row in training[:_LENGTHS])
    groups = groups_for(subject.checkpoint.model.config, lengths)
    forms = _build(config, device, subject, groups, training)

    findings, placements = _prove(config, subject, traced, forms)
    runners = {form.precision: onnx_runner(form.path, device) for form in forms}
    measured = rates.measure(runners, subject.timed)
    needed = {form.precision: _needed(form, findings) for form in forms}
    broken = {name: [gate for gate in own if not gate.holds] for name, own in needed.items()}
    chosen = _choose(config, forms, broken, measured)
    here = rates.lines(measured, _verdicts(device, chosen, broken))
    print(rates.table(here))
    report: dict[str, Any] = {
        "precision": chosen.precision,
        "device": device,
        "gates": [finding.to_json() for found in findings.values() for finding in found],
        "placement": {precision: placed.to_json() for precision, placed in placements.items()},
        "rates": rates.to_json(here, device, len(subject.timed)),
        "published": None,
        "attention_widths": list(groups),
        "cascade": subject.cascade.to_json() if subject.cascade else None,
        **_sources(config, subject, [traced, *(path for form in forms for path in form.files)]),
    }
    if subject.ranges:
        quantization = report["checkpoint"]["quantization"]
        print(*table_lines(quantization, len(subject.validation)), sep="\n")
    failed = broken[chosen.precision]
    if not failed:
        passed, rate = needed[chosen.precision], measured[chosen.precision]
        report["published"] = _publish(config, subject, chosen, passed, report, rate, curated)
    report["seconds"] = round(time.monotonic() - began, 1)
    _write_report(config.out, report)
    if failed:
        raise GateFailed(
            f"gate {failed[0].gate} is {failed[0].value:.3g}, expected at most "
            f"{failed[0].bound:.3g} ({failed[0].worst}); nothing was published, see "
            f"{config.out / 'report.json'}"
        )
    print(
        f"published {chosen.precision} as version {report['published']['version']} of "
        f"{config.repository} (sha256 "
        f"{report['published']['files'][contract.ONNX_FILE]['sha256'][:12]}, "
        f"{report['seconds']:.0f} s)"
    )
    return report


def _write_report(out: Path, report: Mapping[str, Any]) -> None:
    """As the latest one, and under its version's number where no other report is."""
    if report["published"]:
        name = f"report-{report['published']['version']}"
        path, again = out / f"{name}.json", 2
        while path.exists():  # another repository has that version, too
            path, again = out / f"{name}-{again}.json", again + 1
        write_json(path, report)
    write_json(out / "report.json", report)


def _device(config: ExportConfig) -> str:
    """Where to serve; "auto" takes a GPU that ONNX Runtime and torch both see, never for INT8."""
    gpu = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()
    device = config.device
    if device == "auto":
        device = "cuda" if gpu and config.precision != "int8" else "cpu"
    if reason := _NOT_FOR.get((config.precision, device)):
        raise BadInput(
            f"--precision is '{config.precision}' for the device '{device}', expected fp32, auto "
            f"or {_OTHER[device]} ({reason}); set another --precision or --device"
        )
    if config.student and config.tensorrt:
        raise BadInput("--tensorrt with --student, expected one of them; leave one out")
    if config.student and device == "cuda":
        raise BadInput("--device is cuda with --student, expected cpu; set --device cpu")
    if device == "cuda" and not gpu:
        raise BadInput(
            "--device is cuda, expected a GPU that ONNX Runtime and torch both see; run "
            "`make install` on a machine with an NVIDIA driver, or give --device cpu"
        )
    return device


def _refuse_forms(config: ExportConfig, device: str, subject: GateSubject) -> None:
    """Raise BadInput for what this checkpoint cannot be written as."""
    attention = subject.checkpoint.model.config.attention
    if device == "cuda" and attention != "softmax":
        raise BadInput(
            f"{config.checkpoint} has {attention} attention, expected softmax for the device "
            "'cuda' (PackedMultiHeadAttention computes no other); set --device cpu"
        )
    if config.tensorrt and subject.attributes:
        raise BadInput(
            f"{config.checkpoint} has the attributes {' '.join(subject.attributes)}, expected none "
            "with --tensorrt, which quantizes every head but toxicity's; leave it out"
        )


def _build(
    config: ExportConfig,
    device: str,
    subject: GateSubject,
    groups: Sequence[int],
    training: np.ndarray,
) -> list[Form]:
    """FP32, and what else is asked for or, with "auto", can be served on the device."""

    def form_of(precision: str) -> Form:
        names = f"{precision}.onnx", f"{precision}_ragged.onnx"
        return Form(precision, device, *(config.out / name for name in names))

    model, fp32, other = subject.checkpoint.model, form_of("fp32"), form_of(_OTHER[device])
    forms = [fp32] if config.precision == "fp32" else [fp32, other]
    print(f"building the serving graph, attention widths {tuple(groups)} ...", flush=True)
    if device == "cuda":
        for form in forms:
            build_packed(model, form.path, form.precision, form.ragged)
        return forms
    build(model, fp32.path, groups, fp32.ragged)
    if other in forms:
        chosen = training[: config.calibration_comments]
        by = f"calibrated on {len(chosen)} training comments"
        print(f"quantizing, {'with the ranges of QAT' if subject.ranges else by} ...", flush=True)
        calibration = (subject.ids[row] for row in chosen)
        build_int8(model, other.path, groups, calibration, other.ragged, ranges=subject.ranges)
    return forms


def _needed(form: Form, findings: Mapping[str, list[Finding]]) -> list[Finding]:
    """What must hold before `form` is published.

    The reference's gates and its own; on a CPU those of FP32 too, which prove the layout that
    INT8 shares to a bound that rounding would hide.
    """
    first = ["reference", "fp32"] if form.device == "cpu" else ["reference"]
    return [gate for name in dict.fromkeys([*first, form.precision]) for gate in findings[name]]


def _choose(
    config: ExportConfig,
    forms: Sequence[Form],
    broken: Mapping[str, list[Finding]],
    measured: Mapping[str, float],
) -> Form:
    """The form that was asked for; with "auto" the fastest that passes, or just the fastest."""
    wanted = [form for form in forms if config.precision in (form.precision, "auto")]
    passing = [form for form in wanted if not broken[form.precision]]
    return max(passing or wanted, key=lambda form: measured[form.precision])


def _prove(
    config: ExportConfig, subject: GateSubject, traced: Path, forms: Sequence[Form]
) -> tuple[dict[str, list[Finding]], dict[str, Placement]]:
    """Every gate by what it is about, "reference" or a precision, and where each form ran."""
    findings = {"reference": reference_gates(subject, traced, config.seed)}
    if config.torchscript:
        write_torchscript(subject.checkpoint.model, config.out / TORCHSCRIPT_FILE)
        gate = torchscript_gate(subject, config.out / TORCHSCRIPT_FILE, config.seed)
        findings["reference"].append(gate)
    if config.tensorrt:
        training = np.random.default_rng(config.seed).permutation(subject.split.train)
        calibration = (subject.ids[row] for row in training[: config.calibration_comments])
        write_qdq(traced, config.out / TENSORRT_FILE, calibration, symmetric=True)
        findings["reference"] += tensorrt_gates(subject, config.out / TENSORRT_FILE)
    print(*findings["reference"], sep="\n", flush=True)
    placements = {}
    for form in forms:
        gated, placed = form_gates(subject, form, traced, config.seed)
        findings[form.precision], placements[form.precision] = gated, placed
        print(*gated, f"{form.precision.upper()}: {placed}", sep="\n", flush=True)
    return findings, placements


def _verdicts(device: str, chosen: Form, broken: Mapping[str, list[Finding]]) -> dict[str, str]:
    verdicts = {}
    for precision in ("int8", "fp16", "fp32"):
        if precision not in broken:
            verdicts[precision] = _NOT_FOR.get((precision, device), "not asked for")
        elif broken[precision]:
            verdicts[precision] = f"fails {broken[precision][0].gate}"
        else:
            verdicts[precision] = "published" if precision == chosen.precision else "passes"
    return verdicts


def _sources(config: ExportConfig, subject: GateSubject, graphs: Sequence[Path]) -> dict[str, Any]:
    """What the report says of what went in and of the files that came out."""
    metrics = read_json(config.checkpoint / METRICS_FILE, "run `make train`")
    return {
        "checkpoint": {
            "sha256": sha256_of(config.checkpoint / WEIGHTS_FILE),
            "config": subject.checkpoint.config,
            "test": metrics["test"],
            "quantization": metrics.get("quantization"),
        },
        "calibration_comments": config.calibration_comments,
        "seed": config.seed,
        "onnx": {path.name: _described(path) for path in graphs},
        "tensorrt": _described(config.out / TENSORRT_FILE) if config.tensorrt else None,
        "torchscript": _described(config.out / TORCHSCRIPT_FILE) if config.torchscript else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
        },
    }


def _publish(
    config: ExportConfig,
    subject: GateSubject,
    form: Form,
    needed: Sequence[Finding],
    report: Mapping[str, Any],
    comments_per_s: float,
    curated: Mapping[str, Comments],
) -> dict[str, Any]:
    """What the report says of the published version."""
    artifact = {
        "precision": form.precision,
        "device": form.device,
        "max_len": subject.max_len,
        "qat": subject.ranges is not None,
        "calibration": subject.checkpoint.config.get("calibration"),
        "attention_widths": report["attention_widths"],
        "long_text": dataclasses.asdict(subject.long_text),
        "cascade": report["cascade"],
        "tolerances": {finding.gate: finding.bound for finding in needed},
        "measured": {finding.gate: finding.value for finding in needed},
        "checkpoint_sha256": report["checkpoint"]["sha256"],
        "versions": report["versions"],
        "comments_per_s": round(comments_per_s),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if subject.attributes:
        artifact[contract.ATTRIBUTES] = list(subject.attributes)
        artifact["attribute_calibration"] = subject.checkpoint.config.get("attribute_calibration")
    thresholds = of_form(config, subject, form)
    print(*told(thresholds), sep="\n")
    version = publish(
        config.repository,
        onnx_path=form.path,
        ragged_path=form.ragged,
        tokenizer_path=config.checkpoint / contract.TOKENIZER_FILE,
        artifact=artifact,
        cache_bytes=config.cache_bytes,
        instances=config.instances,
        sign_key=config.sign_key,
        thresholds=thresholds,
        profile=_profile(subject, form, curated, thresholds.decision.threshold),
    )
    folder = config.repository / contract.PUBLIC_MODEL / str(version)
    return {
        "model": contract.PUBLIC_MODEL,
        "version": version,
        "files": {path.name: _described(path) for path in sorted(folder.iterdir())},
    }


def _profile(
    subject: GateSubject, form: Form, curated: Mapping[str, Comments], threshold: float
) -> Profile:
    rows = subject.split.validation
    return profile_of(
        scorer_of(subject, form),
        [subject.texts[row] for row in rows],
        subject.labels[rows],
        threshold=threshold,
        curated=curated,
    )


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


if __name__ == "__main__":
    run(main)
