"""The gates between a checkpoint and the repository: an ONNX graph against its PyTorch model.

Every gate returns a `Finding`; all are collected before one of them stops an export, so that a
report shows the whole picture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sklearn.metrics import roc_auc_score

import contract
from contract import ACCUMULATED_COUNTS, ATTENTION_MASK, CLS_ID, INPUT_IDS, LOGIT, UNK_ID
from train.batches import collate
from train.evaluate import probability_of
from train.model import ToxicityEncoder

_INTEGER_MATMULS = {"QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}
Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(input_ids int64 [B, L], attention_mask int64 [B, L]) -> logits float32 [B]."""


@dataclass(frozen=True)
class Finding:
    """One gate's result: it holds when `value` is at most `bound`. `worst` says where."""

    gate: str
    value: float
    bound: float
    worst: str

    @property
    def holds(self) -> bool:
        """False for NaN as well."""
        return self.value <= self.bound

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "FAILS"
        return f"{self.gate:<26} {self.value:10.3g} <= {self.bound:<8.3g} {verdict}  {self.worst}"


@dataclass(frozen=True)
class Comment:
    """A comment as the gates know it: `name` is how a report calls it, `ids` int [L]."""

    name: str
    ids: Sequence[int] | np.ndarray


def named(row: int | str, text: str, ids: Sequence[int] | np.ndarray) -> Comment:
    """A comment called by its row and the start of its text, on one line of ASCII."""
    start = text[:60].encode("unicode_escape").decode("ascii")
    return Comment(f"comment {row} ({len(ids)} tokens) '{start}'", ids)


def torch_runner(model: ToxicityEncoder) -> Runner:
    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return np.asarray(logits.numpy())

    return run


def onnx_runner(path: Path) -> Runner:
    session = _session(path)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        return np.asarray(session.run([LOGIT], feed)[0])

    return run


def ragged_runner(path: Path) -> Runner:
    """The ragged form, fed as Triton's ragged batching feeds one request a comment."""
    session = _session(path)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        counts = attention_mask.sum(axis=1).cumsum().astype(np.int32)
        feed = {INPUT_IDS: input_ids[attention_mask != 0], ACCUMULATED_COUNTS: counts}
        return np.asarray(session.run([LOGIT], feed)[0])

    return run


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # as it is served
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # likewise
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def integer_matmuls(path: Path) -> int:
    """How many integer matmuls ONNX Runtime really runs after its optimizer on this CPU."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the optimised file is for this CPU only
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return sum(node.op_type in _INTEGER_MATMULS for node in graph.node)


def run_batch(run: Runner, comments: Sequence[Comment], pad_to: int = 0) -> np.ndarray:
    """float32 [B] logits of `comments` as one batch, padded to at least `pad_to` tokens."""
    batch = collate(np.arange(len(comments)), [comment.ids for comment in comments])
    extra = max(0, pad_to - batch.input_ids.shape[1])
    pad = [(0, 0), (0, extra)]
    input_ids = np.pad(batch.input_ids.numpy(), pad, constant_values=contract.PAD_ID)
    return run(input_ids, np.pad(batch.attention_mask.numpy(), pad))


def shape_parity(
    gate: str,
    bound: float,
    reference: Runner,
    candidate: Runner,
    comments: Sequence[Comment],
    *,
    max_len: int,
    seed: int,
) -> Finding:
    """Max |logit difference| over PARITY_BATCHES x (PARITY_LENGTHS + max_len), ragged masks.

    The rows of a case are cut from `comments` to random lengths; one has the full length and,
    from batch 3 on, one is empty ([CLS] alone).
    """
    rng = np.random.default_rng(seed)
    pool = np.concatenate([np.asarray(comment.ids[1:]) for comment in comments])
    worst, where = 0.0, ""
    for batch_size in contract.PARITY_BATCHES:
        for length in sorted({min(n, max_len) for n in (*contract.PARITY_LENGTHS, max_len)}):
            lengths = rng.integers(1, length + 1, size=batch_size)
            lengths[0] = length
            if batch_size >= 3:
                lengths[1] = 1
            rows = [
                Comment(
                    f"batch {batch_size} x length {length}, row {i} ({n} tokens)",
                    [CLS_ID, *rng.choice(pool, size=n - 1)],
                )
                for i, n in enumerate(lengths)
            ]
            difference = _gap(run_batch(reference, rows), run_batch(candidate, rows))
            at = int(np.argmax(difference))
            if difference[at] > worst:
                worst, where = float(difference[at]), rows[at].name
    return Finding(gate, worst, bound, where or "no difference at all")


def comment_parity(
    gate: str, bound: float, reference: np.ndarray, candidate: np.ndarray, names: Sequence[str]
) -> Finding:
    """Max |logit difference| over the same comments; both are float32 [n]."""
    difference = _gap(reference, candidate)
    at = int(np.argmax(difference))
    where = f"{names[at]}: {candidate[at]:.6f}, expected {reference[at]:.6f}"
    return Finding(gate, float(difference[at]), bound, where)


def quality_parity(
    labels: np.ndarray, reference: np.ndarray, candidate: np.ndarray, names: Sequence[str]
) -> list[Finding]:
    """INT8's own bounds on the validation split: logits, AUROC, flipped decisions.

    `labels` 0/1 [n]; `reference` and `candidate` float32 [n] logits of PyTorch and INT8.
    """
    difference = _gap(reference, candidate)
    # NaN counts as 0 in the counts below: int8_logit_max is already infinite then.
    logits = np.nan_to_num(np.stack([reference, candidate]))
    before, after = (float(roc_auc_score(labels, row)) for row in logits)
    decided = probability_of(logits) >= contract.DECISION_THRESHOLD
    flipped = decided[0] != decided[1]
    at = int(np.argmax(np.where(flipped, difference, 0.0)))
    return [
        comment_parity("int8_logit_max", contract.INT8_LOGIT_ATOL, reference, candidate, names),
        Finding(
            "int8_logit_mean",
            float(difference.mean()),
            contract.INT8_LOGIT_MEAN_ATOL,
            f"over {len(labels)} validation comments",
        ),
        Finding(
            "int8_auroc",
            abs(before - after),
            contract.INT8_AUROC_ATOL,
            f"PyTorch {before:.5f}, INT8 {after:.5f}",
        ),
        Finding(
            "int8_flipped_share",
            float(flipped.mean()),
            contract.INT8_FLIPPED_SHARE,
            f"{int(flipped.sum())} of {len(labels)}"
            + (f", furthest {names[at]}" if flipped.any() else ""),
        ),
    ]


def batch_invariance(
    gate: str,
    bound: float,
    run: Runner,
    comments: Sequence[Comment],
    mates: Sequence[Comment],
    *,
    max_len: int,
    seed: int,
) -> Finding:
    """Max change of a comment's logit, alone against in company.

    Company: random batches of 8 and 32, sorted by length, padded to several lengths, beside the
    longest comment, and beside each of the adversarial `mates`.
    """
    rng = np.random.default_rng(seed)
    alone = np.array([run_batch(run, [comment])[0] for comment in comments])
    worst, where = 0.0, ""

    def compare(rows: Sequence[int], company: Sequence[Comment], how: str, pad_to: int = 0) -> None:
        nonlocal worst, where
        together = run_batch(run, [*(comments[row] for row in rows), *company], pad_to)[: len(rows)]
        change = _gap(together, alone[list(rows)])
        at = int(np.argmax(change))
        if change[at] > worst:
            worst, where = float(change[at]), f"{comments[rows[at]].name} {how}"

    everyone = range(len(comments))
    for size in (8, 32):
        order = rng.permutation(len(comments))
        for at in range(0, len(order), size):
            compare(order[at : at + size].tolist(), [], f"in a random batch of {size}")
    by_length = sorted(everyone, key=lambda row: len(comments[row].ids))
    compare(by_length, [], "in a batch sorted by length")
    longest = max(comments, key=lambda comment: len(comment.ids))
    for row in everyone:
        compare([row], [longest], "beside the longest comment")
        for pad_to in (len(comments[row].ids) + 1, 64, max_len):
            compare([row], [], f"padded to {pad_to}", min(pad_to, max_len))
    for mate in mates:
        compare(list(everyone), [mate], f"beside {mate.name}")
    return Finding(gate, worst, bound, where or "no change at all")


def adversarial_mates(model: ToxicityEncoder, *, max_len: int, seed: int) -> list[Comment]:
    """Comments made to widen any range that a batch shares: extreme tokens at full length."""
    rng = np.random.default_rng(seed)
    weight = model.token_embedding.weight.detach().numpy()
    norm = np.linalg.norm(weight, axis=1)
    loudest = np.argsort(-norm)[: max_len - 1]
    largest = int(np.abs(weight).max(axis=1).argmax())
    full = max_len - 1
    return [
        Comment("the loudest embedding repeated", [CLS_ID] + [int(loudest[0])] * full),
        Comment("the largest single weight repeated", [CLS_ID] + [largest] * full),
        Comment("the loudest embeddings in turn", [CLS_ID, *loudest.tolist()]),
        Comment("unknown words only", [CLS_ID] + [UNK_ID] * full),
        Comment("random ids", [CLS_ID, *rng.integers(3, len(weight), size=full).tolist()]),
    ]


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|, infinite where either is not a number: NaN never passes a gate."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b)
    return np.where(np.isnan(difference), np.inf, difference)
