"""What each form of a graph must prove before it is published; `python -m export` calls it.

The checks themselves are in `export.gates.parity` and `export.gates.placement`; here is which of
them a precision must pass, within which bounds of the contract.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from sklearn.metrics import roc_auc_score

import contract
from export.cascade import Cascade, load_cascade
from export.config import ExportConfig
from export.gates import parity, placement
from export.gates.parity import Comment, Finding, Runner
from export.gates.placement import Placement, placement_of
from export.graph.encoder import linear_layers
from export.graph.qdq import qdq_logits
from export.graph.torchscript import torchscript_runner
from export.scorer import LongText, Scorer, Scores
from train.artifacts import Checkpoint, load_checkpoint
from train.data.batches import TokenizedOnTheFly
from train.data.split import Split, comments_of_run
from train.methods import attributes
from train.methods.qat import Ranges, difference, int8_reference, ranges_of
from train.model import ToxicityEncoder, every_head

_SAMPLE = 64
"""Validation comments that the gates score in every company; each costs about 40 runs."""
_UNSURE = 8
"""Comments that a cascade's teacher is asked for, which the sample has at least."""
_TIMED = 160
"""Validation comments that time the forms, five batches."""
_LONG = (1, 2, 3, 4, 6, 10, 3 * contract.MAX_WINDOWS)
"""Lengths of the texts that try the windows, in halves of one."""
_LONG_TEXT_ATOL = {
    "fp32": contract.FP32_LOGIT_ATOL,
    "fp16": contract.FP16_LOGIT_ATOL,
    "int8": contract.INT8_LOGIT_ATOL,
}
_INVARIANCE_ATOL = {
    "fp32": contract.FP32_INVARIANCE_ATOL,
    "fp16": contract.FP16_INVARIANCE_ATOL,
    "int8": contract.INT8_INVARIANCE_ATOL,
}


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of the serving graph for one device, and its file with the ragged interface."""

    precision: str
    device: str
    path: Path
    ragged: Path

    @property
    def files(self) -> tuple[Path, Path]:
        return self.path, self.ragged


@dataclasses.dataclass(frozen=True)
class GateSubject:
    """A checkpoint and the comments of its training run; `sample` is what most gates look at."""

    checkpoint: Checkpoint
    texts: Sequence[str]
    labels: np.ndarray  # 0/1 [n]
    ids: TokenizedOnTheFly
    split: Split
    sample: list[Comment]
    timed: list[Comment]  # in random order
    validation: list[Comment]
    validation_logits: np.ndarray  # float32 [n] of PyTorch
    int8_reference: np.ndarray  # the same, of what the INT8 form must equal
    ranges: Ranges | None  # of a QAT checkpoint
    long_text: LongText
    cascade: Cascade | None  # whose model is then the checkpoint's
    auroc_loss: float
    shares: np.ndarray  # float32 [n, A], the attributes' labels of the validation comments
    attribute_logits: np.ndarray  # float32 [n, A] of PyTorch, as validation_logits
    int8_attributes: np.ndarray  # the same, as int8_reference

    @property
    def attributes(self) -> tuple[str, ...]:
        return self.checkpoint.model.config.attributes

    @property
    def max_len(self) -> int:
        return self.checkpoint.tokenizer.max_len

    def reference_logits(self, texts: Sequence[str], precision: str) -> np.ndarray:
        """float32 [n, 1 + A] logits of `texts` by the PyTorch model that a form must equal."""
        int8_after_qat = precision == "int8" and self.ranges is not None
        states = int8_reference(self.checkpoint) if int8_after_qat else None
        heads = every_head(self.checkpoint.model, states)
        asked = heads, texts, self.checkpoint.tokenizer, self.long_text
        return _columns(parity.reference_logits(*asked))


def load_subject(config: ExportConfig) -> GateSubject:
    """Raises BadInput when the comments are not those of the training run any more."""
    checkpoint = load_checkpoint(config.checkpoint)
    comments, split = comments_of_run(config.checkpoint, config.data)
    ids = TokenizedOnTheFly(comments.texts, checkpoint.tokenizer)
    validation = [
        parity.named(
            int(comments.rows[i]),
            ids[i],
            f"row {at} of the validation split",
            comments.texts[i] if config.show_comments else None,
        )
        for at, i in enumerate(split.validation)
    ]
    order = np.random.default_rng(config.seed).permutation(len(validation))
    timed = [validation[i] for i in order[:_TIMED]]
    sample = timed[:_SAMPLE]
    over_long = "you are fine . " * checkpoint.tokenizer.max_len
    for name, text in {"empty": "", "one letter": "a", "over-long": over_long}.items():
        sample.append(parity.named(name, checkpoint.tokenizer.encode(text)))
    cascade = None
    if config.student:
        cascade = load_cascade(
            config.student, checkpoint, ids, comments.labels, split, config.auroc_loss
        )
        print(f"cascade: {cascade.model.band}", flush=True)
        # The teacher's branch must run in every gate, however seldom it is asked.
        sample += [validation[i] for i in np.flatnonzero(cascade.unsure)[:_UNSURE]]
        # It has all that the gates use: forward, config, token_embedding.
        model = cast(ToxicityEncoder, cascade.model)
        checkpoint = dataclasses.replace(checkpoint, model=model)
    ranges, long_text = ranges_of(checkpoint), config.long_text_for(checkpoint.tokenizer.max_len)
    held_out = [comments.texts[row] for row in split.validation], checkpoint.tokenizer, long_text
    heads = every_head(checkpoint.model)
    reference = logits = _columns(parity.reference_logits(heads, *held_out))
    if ranges:
        heads = every_head(checkpoint.model, int8_reference(checkpoint))
        reference = _columns(parity.reference_logits(heads, *held_out))
    names = checkpoint.model.config.attributes
    attributes.check_columns(names, comments)
    return GateSubject(
        checkpoint=checkpoint,
        texts=comments.texts,
        labels=comments.labels,
        ids=ids,
        split=split,
        sample=sample,
        timed=timed,
        validation=validation,
        validation_logits=logits[:, 0],
        int8_reference=reference[:, 0],
        ranges=ranges,
        long_text=long_text,
        cascade=cascade,
        auroc_loss=config.auroc_loss,
        shares=attributes.targets(names, comments, len(comments.texts))[split.validation],
        attribute_logits=logits[:, 1:],
        int8_attributes=reference[:, 1:],
    )


def _columns(logits: np.ndarray) -> np.ndarray:
    """[n] as [n, 1], and [n, 1 + A] as it is."""
    return logits.reshape(len(logits), -1)


# --- Gates of the reference ---------------------------------------------------------------
def reference_gates(subject: GateSubject, traced: Path, seed: int) -> list[Finding]:
    """The traced graph against PyTorch: every form rests on it."""
    torch_run = parity.torch_runner(every_head(subject.checkpoint.model))
    names, bound = ("fp32_shapes", "fp32_edge_cases"), contract.FP32_LOGIT_ATOL
    return _same_logits(names, bound, torch_run, parity.onnx_runner(traced), subject, seed)


def torchscript_gate(subject: GateSubject, path: Path, seed: int) -> Finding:
    return parity.shape_parity(
        "torchscript_shapes",
        contract.TORCHSCRIPT_LOGIT_ATOL,
        parity.torch_runner(subject.checkpoint.model),
        torchscript_runner(path),
        subject.sample,
        max_len=subject.max_len,
        seed=seed,
    )


def tensorrt_gates(subject: GateSubject, path: Path) -> list[Finding]:
    """INT8's bounds for the file as it is written; what a GPU makes of it is not seen here."""
    texts = [subject.texts[row] for row in subject.split.validation]
    windows, counts = parity.windows_of(texts, subject.checkpoint.tokenizer, subject.long_text)
    logits = qdq_logits(path, [Comment("", ids) for ids in windows])
    candidate = subject.long_text.combine(logits, counts)
    found = _quality("int8", subject, subject.validation_logits, candidate)
    return [
        dataclasses.replace(finding, gate=finding.gate.replace("int8", "tensorrt"))
        for finding in found
    ]


# --- Gates of one form -------------------------------------------------------------------
def form_gates(
    subject: GateSubject, form: Form, traced: Path, seed: int
) -> tuple[list[Finding], Placement]:
    """Every gate of one form, and where its nodes ran."""
    scores = served_scores(subject, form)
    served = scores.logit
    feeds = parity.feeds_of(subject.sample)
    placed = placement_of(form.path, feeds, form.device)
    if form.precision == "fp32":
        findings = _fp32_gates(subject, form, traced, scores, seed)
    elif form.precision == "fp16":
        findings = _quality("fp16", subject, subject.validation_logits, served)
    else:
        findings = [
            placement.layers_in_float(placed, linear_layers(subject.checkpoint.model)),
            *_quality("int8", subject, subject.int8_reference, served),
            *(_qat_gates(subject, served) if subject.ranges else []),
            *(_cascade_gates(subject, subject.cascade, served) if subject.cascade else []),
        ]
    findings += _attribute_gates(subject, form, scores)
    findings += [_invariance(subject, form, seed), _ragged_parity(subject, form, seed)]
    if subject.long_text.windows > 1:
        findings += _long_text_gates(subject, form)
    if form.device == "cuda":
        joined = placement_of(form.ragged, parity.ragged_feeds(*feeds.values()), form.device)
        findings += placement.off_the_gpu(form.precision, placed)
        findings += placement.off_the_gpu(f"{form.precision}_ragged", joined)
    return findings, placed


def _fp32_gates(
    subject: GateSubject, form: Form, traced: Path, scores: Scores, seed: int
) -> list[Finding]:
    traced_run, form_run = parity.onnx_runner(traced), parity.onnx_runner(form.path, form.device)
    names, bound = ("serving_vs_traced_shapes", "serving_vs_traced"), contract.SERVING_LOGIT_ATOL
    return [
        *_same_logits(names, bound, traced_run, form_run, subject, seed),
        parity.comment_parity(
            "fp32_served_text",
            contract.FP32_LOGIT_ATOL,
            np.column_stack([subject.validation_logits, subject.attribute_logits]),
            scores.logits,
            [comment.name for comment in subject.validation],
        ),
    ]


def _same_logits(
    gates: tuple[str, str],
    bound: float,
    reference: Runner,
    candidate: Runner,
    subject: GateSubject,
    seed: int,
) -> list[Finding]:
    """At every shape, and for the sample, as one batch unless its comments are very long."""
    sample, max_len = subject.sample, subject.max_len
    by_reference, by_candidate = (parity.run_batches(r, sample) for r in (reference, candidate))
    names = [comment.name for comment in sample]
    return [
        parity.shape_parity(
            gates[0], bound, reference, candidate, sample, max_len=max_len, seed=seed
        ),
        parity.comment_parity(gates[1], bound, by_reference, by_candidate, names),
    ]


def _quality(
    precision: str, subject: GateSubject, reference: np.ndarray, served: np.ndarray
) -> list[Finding]:
    labels = subject.labels[subject.split.validation]
    names = [comment.name for comment in subject.validation]
    findings = parity.quality_parity(precision, labels, reference, served, names)
    if subject.cascade:  # logits by branch, AUROC and decisions of the whole: see export.cascade
        by_branch = subject.cascade.by_branch(served)
        findings[:2] = parity.quality_parity(precision, labels, by_branch, served, names)[:2]
    return findings


def _attribute_gates(subject: GateSubject, form: Form, scores: Scores) -> list[Finding]:
    """What a lower precision does to the attributes; those of FP32 are in its other gates."""
    if form.precision == "fp32" or not subject.attributes:
        return []
    int8 = form.precision == "int8"
    reference = subject.int8_attributes if int8 else subject.attribute_logits
    names = [comment.name for comment in subject.validation]
    given = subject.shares, reference, scores.attributes, names, subject.attributes
    return parity.attribute_parity(form.precision, *given)


def _cascade_gates(subject: GateSubject, cascade: Cascade, served: np.ndarray) -> list[Finding]:
    """The AUROC that was promised, of the very artifact that is published."""
    before = cascade.model.band.teacher_auroc
    after = float(roc_auc_score(subject.labels[subject.split.validation], np.nan_to_num(served)))
    details = f"teacher {before:.5f}, INT8 cascade {after:.5f}"
    return [Finding("cascade_auroc_loss", before - after, subject.auroc_loss, details)]


def _qat_gates(subject: GateSubject, served: np.ndarray) -> list[Finding]:
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


def served_scores(subject: GateSubject, form: Form) -> Scores:
    """Of the validation texts from the very code that a server runs."""
    texts = [subject.texts[row] for row in subject.split.validation]
    return scorer_of(subject, form).score(texts)


def scorer_of(subject: GateSubject, form: Form) -> Scorer:
    """The code that a server runs, on the graph that it would."""
    tokenizer, long_text = subject.checkpoint.tokenizer, subject.long_text
    served = form.path if form.device == "cuda" else form.ragged  # as `publish` takes it
    return Scorer(served, tokenizer, form.device, long_text=long_text)


def _long_text_gates(subject: GateSubject, form: Form) -> list[Finding]:
    """Texts of one window to more than are read: as PyTorch has them, alone as in company."""
    words = itertools.cycle(
        word for row in subject.split.validation for word in subject.texts[row].split()
    )
    lengths = [windows * subject.max_len // 2 for windows in _LONG]
    texts = [" ".join(itertools.islice(words, length)) for length in lengths]
    names = [f"text of {length} words" for length in lengths]
    scorer = scorer_of(subject, form)
    served = scorer.score(texts).logits
    alone = np.concatenate([scorer.score([text]).logits for text in texts])
    expected = subject.reference_logits(texts, form.precision)
    bounds = _LONG_TEXT_ATOL[form.precision], _INVARIANCE_ATOL[form.precision]
    gate = f"{form.precision}_long_text"
    return [
        parity.comment_parity(gate, bounds[0], expected, served, names),
        parity.comment_parity(f"{gate}_invariance", bounds[1], alone, served, names),
    ]


def _invariance(subject: GateSubject, form: Form, seed: int) -> Finding:
    model, max_len = subject.checkpoint.model, subject.max_len
    return parity.batch_invariance(
        f"{form.precision}_batch_invariance",
        _INVARIANCE_ATOL[form.precision],
        parity.onnx_runner(form.path, form.device),
        subject.sample,
        parity.adversarial_mates(model, max_len=max_len, seed=seed),
        max_len=max_len,
        seed=seed,
    )


def _ragged_parity(subject: GateSubject, form: Form, seed: int) -> Finding:
    """One graph behind two interfaces: as close as a comment is to itself in other company."""
    return parity.shape_parity(
        f"{form.precision}_ragged_vs_dense",
        _INVARIANCE_ATOL[form.precision],
        parity.onnx_runner(form.path, form.device),
        parity.ragged_runner(form.ragged, form.device),
        subject.sample,
        max_len=subject.max_len,
        seed=seed,
    )
