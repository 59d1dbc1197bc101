"""The gates between a checkpoint and the repository: an ONNX graph against its PyTorch model.

Every gate returns a `Finding`; all are collected before one of them stops an export, so that a
report shows the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import contract
from contract import (
    ACCUMULATED_COUNTS,
    ATTENTION_MASK,
    ATTRIBUTES,
    CLS_ID,
    INPUT_IDS,
    LOGIT,
    UNK_ID,
)
from export.scorer import LongText
from export.session import open_session
from train.data.batches import collate
from train.data.tokenizer import Tokenizer
from train.methods.attributes import auroc
from train.model import ToxicityEncoder
from train.validation import logits_of, probability_of

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(input_ids int64 [B, L], attention_mask int64 [B, L]) -> logits float32 [B].

[B, 1 + A] of a model with attributes, toxicity first. A gate then bounds the worst of a comment's.
"""

_QUALITY = {
    "int8": (
        contract.INT8_LOGIT_ATOL,
        contract.INT8_LOGIT_MEAN_ATOL,
        contract.INT8_AUROC_ATOL,
        contract.INT8_FLIPPED_SHARE,
    ),
    "fp16": (
        contract.FP16_LOGIT_ATOL,
        contract.FP16_LOGIT_MEAN_ATOL,
        contract.FP16_AUROC_ATOL,
        contract.FP16_FLIPPED_SHARE,
    ),
}


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


def named(
    row: int | str, ids: Sequence[int] | np.ndarray, place: str = "", shown: str | None = None
) -> Comment:
    """A comment called by its row of the data and its length, and where else it stands.

    With `shown`, its text, by the start of that as well, on one line of ASCII; only who asks for
    it may see what people wrote.
    """
    name = f"comment {row} ({len(ids)} tokens{f', {place}' if place else ''})"
    if shown is not None:
        name += f" '{shown[:60].encode('unicode_escape', 'surrogatepass').decode('ascii')}'"
    return Comment(name, ids)


def torch_runner(model: nn.Module) -> Runner:
    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return np.asarray(logits.numpy())

    return run


def onnx_runner(path: Path, device: str = "cpu") -> Runner:
    session = open_session(path, device)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return _logits(session, {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask})

    return run


def ragged_runner(path: Path, device: str = "cpu") -> Runner:
    """The ragged form, fed as Triton's ragged batching feeds one request a comment."""
    session = open_session(path, device)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return _logits(session, ragged_feeds(input_ids, attention_mask))

    return run


def _logits(session: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    names = [LOGIT, ATTRIBUTES][: len(session.get_outputs())]
    outputs = session.run(names, feeds)
    return np.column_stack(outputs) if len(outputs) > 1 else np.asarray(outputs[0])


def ragged_feeds(input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
    """The same batch joined: INPUT_IDS int64 [T], ACCUMULATED_COUNTS int32 [B]."""
    counts = attention_mask.sum(axis=1).cumsum().astype(np.int32)
    return {INPUT_IDS: input_ids[attention_mask != 0], ACCUMULATED_COUNTS: counts}


def run_batch(run: Runner, comments: Sequence[Comment], pad_to: int = 0) -> np.ndarray:
    """float32 [B] logits of `comments` as one batch, padded to at least `pad_to` tokens."""
    return run(*feeds_of(comments, pad_to).values())


def run_batches(run: Runner, comments: Sequence[Comment], most: int | None = None) -> np.ndarray:
    """float32 [n] logits of `comments`, as many in a batch as `most` and PARITY_PAIRS allow."""
    batches: list[list[Comment]] = [[]]
    for comment in comments:
        longest = max(len(other.ids) for other in [*batches[-1], comment])
        rows = max(1, contract.PARITY_PAIRS // longest**2)
        if len(batches[-1]) >= min(rows, most or rows):
            batches.append([])
        batches[-1].append(comment)
    return np.concatenate([run_batch(run, batch) for batch in batches])


def feeds_of(comments: Sequence[Comment], pad_to: int = 0) -> dict[str, np.ndarray]:
    """`comments` as one batch, INPUT_IDS and ATTENTION_MASK int64 [B, L], L at least `pad_to`."""
    batch = collate(np.arange(len(comments)), [comment.ids for comment in comments])
    extra = max(0, pad_to - batch.input_ids.shape[1])
    pad = [(0, 0), (0, extra)]
    input_ids = np.pad(batch.input_ids.numpy(), pad, constant_values=contract.PAD_ID)
    return {INPUT_IDS: input_ids, ATTENTION_MASK: np.pad(batch.attention_mask.numpy(), pad)}


def windows_of(
    texts: Sequence[str], tokenizer: Tokenizer, long_text: LongText
) -> tuple[list[np.ndarray], list[int]]:
    """All windows of `texts`, each int [L], and how many of them each text has."""
    reader = long_text.reader(tokenizer)
    ids = (np.asarray(reader.encode(text), np.int32) for text in texts)
    parts = [long_text.split(row, tokenizer.max_len) for row in ids]
    return [window for windows in parts for window in windows], [len(p) for p in parts]


def reference_logits(
    model: torch.nn.Module, texts: Sequence[str], tokenizer: Tokenizer, long_text: LongText
) -> np.ndarray:
    """float32 [n] logits of `texts` by PyTorch, long ones by the rule that the server follows.

    [n, 1 + A] of `train.model.AllHeads`.
    """
    windows, counts = windows_of(texts, tokenizer, long_text)
    return long_text.combine(logits_of(model, windows, np.arange(len(windows))), counts)


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
    from batch 3 on, one is empty ([CLS] alone). PARITY_PAIRS bounds the batches, but to no less
    than two rows.
    """
    rng = np.random.default_rng(seed)
    pool = np.concatenate([np.asarray(comment.ids[1:]) for comment in comments])
    worst, where = 0.0, ""
    for batch_size in contract.PARITY_BATCHES:
        for length in sorted({min(n, max_len) for n in (*contract.PARITY_LENGTHS, max_len)}):
            rows_in_memory = max(2, contract.PARITY_PAIRS // length**2)
            lengths = rng.integers(1, length + 1, size=min(batch_size, rows_in_memory))
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
    """Max |logit difference| over the same comments; both are float32 [n], or [n, 1 + A]."""
    difference = _gap(reference, candidate)
    at = int(np.argmax(difference))
    got, wanted = (np.atleast_1d(logits[at]) for logits in (candidate, reference))
    head = int(np.argmax(np.abs(got - wanted)))
    where = f"{names[at]}: {got[head]:.6f}, expected {wanted[head]:.6f}"
    return Finding(gate, float(difference[at]), bound, where)


def quality_parity(
    precision: str,
    labels: np.ndarray,
    reference: np.ndarray,
    candidate: np.ndarray,
    names: Sequence[str],
) -> list[Finding]:
    """Bounds of "int8" or "fp16" on the validation split: logits, AUROC, flipped decisions.

    `labels` 0/1 [n]; `reference` and `candidate` float32 [n] logits of PyTorch and of the form.
    """
    logit_max, logit_mean, auroc, flipped_share = _QUALITY[precision]
    difference = _gap(reference, candidate)
    # NaN counts as 0 in the counts below: the largest difference is already infinite then.
    logits = np.nan_to_num(np.stack([reference, candidate]))
    before, after = (float(roc_auc_score(labels, row)) for row in logits)
    decided = probability_of(logits) >= contract.DECISION_THRESHOLD
    flipped = decided[0] != decided[1]
    at = int(np.argmax(np.where(flipped, difference, 0.0)))
    return [
        comment_parity(f"{precision}_logit_max", logit_max, reference, candidate, names),
        Finding(
            f"{precision}_logit_mean",
            float(difference.mean()),
            logit_mean,
            f"over {len(labels)} validation comments",
        ),
        Finding(
            f"{precision}_auroc",
            abs(before - after),
            auroc,
            f"PyTorch {before:.5f}, {precision.upper()} {after:.5f}",
        ),
        Finding(
            f"{precision}_flipped_share",
            float(flipped.mean()),
            flipped_share,
            f"{int(flipped.sum())} of {len(labels)}"
            + (f", furthest {names[at]}" if flipped.any() else ""),
        ),
    ]


def attribute_parity(
    precision: str,
    shares: np.ndarray,
    reference: np.ndarray,
    candidate: np.ndarray,
    names: Sequence[str],
    attributes: Sequence[str],
) -> list[Finding]:
    """Bounds of "int8" or "fp16" for the attributes on the validation split: logits and AUROC.

    `shares` [n, A] are the labels, NaN where there is none; `reference` and `candidate` float32
    [n, A] logits of PyTorch and of the form; `names` are the comments'.
    """
    logit_max, logit_mean, _, _ = _QUALITY[precision]
    mean_by_attribute = np.abs(np.nan_to_num(reference - candidate, nan=np.inf)).mean(axis=0)
    worst, at = 0.0, ""
    for column, name in enumerate(attributes):
        found = [
            auroc(shares[:, column], np.nan_to_num(logits[:, column]))
            for logits in (reference, candidate)
        ]
        positive, before, after = found[0]["positive"], found[0]["auroc"], found[1]["auroc"]
        rarer = min(positive, found[0]["comments"] - positive)
        if rarer >= contract.ATTRIBUTE_EXAMPLES and abs(before - after) >= worst:
            worst, at = abs(before - after), f"{name}: PyTorch {before:.5f}, now {after:.5f}"
    furthest = int(np.argmax(mean_by_attribute))
    prefix = f"{precision}_{ATTRIBUTES}"
    return [
        comment_parity(f"{prefix}_logit_max", logit_max, reference, candidate, names),
        Finding(
            f"{prefix}_logit_mean",
            float(mean_by_attribute[furthest]),
            logit_mean,
            f"{attributes[furthest]}, over {len(shares)} validation comments",
        ),
        Finding(f"{prefix}_auroc", worst, contract.ATTRIBUTE_AUROC_ATOL, at or "few examples"),
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
    """|a - b| [n], the largest of a row; infinite where one is NaN, which passes no gate."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b).reshape(len(a), -1)
    return np.where(np.isnan(difference), np.inf, difference).max(axis=1)
