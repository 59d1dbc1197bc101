"""What `bench.model.encoder` measures: the files of all contenders, and batches of comments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.serving.contenders import MODEL_CONFIG, Feed
from console.options import make_config
from contract import CLS_ID
from export.gates import parity
from export.gates.parity import Comment
from export.graph import build as serving_graph
from export.graph.groups import groups_for
from export.graph.qdq import write_dynamic, write_qdq
from export.graph.trace import trace
from train.artifacts import load_checkpoint, save_weights, sha256_of, write_json
from train.data.batches import TokenizedOnTheFly
from train.data.tokenizer import Tokenizer, build_tokenizer
from train.model import ModelConfig, ToxicityEncoder

FILES = ("serving_int8", "serving_fp32", "traced_fp32", "dynamic_int8", "static_int8")
STUDENT = "serving_int8_student"
STUDENT_SHAPE = {"d_model": 96, "n_layers": 2, "n_heads": 4}
CALIBRATION = 128


class Subject:
    """The model, a student of random weights, comments, and the files of all contenders."""

    def __init__(
        self, checkpoint: Path | None, texts: Sequence[str], sample: int, folder: Path
    ) -> None:
        """`sample` of `texts` are measured; the files go to `folder`."""
        self.source, self.folder = str(checkpoint or "random weights"), folder
        self.model, tokenizer = _load(checkpoint, texts)
        torch.manual_seed(1)
        student = dataclasses.asdict(self.model.config) | STUDENT_SHAPE
        self.student = ToxicityEncoder(ModelConfig(**student)).eval()
        ids = TokenizedOnTheFly(texts, tokenizer)
        lengths = [len(ids[row]) for row in range(len(ids))]
        rows = length_mix(lengths, sample)
        self.sample = [Comment(f"comment {row}", ids[row]) for row in rows]
        self.groups = groups_for(self.model.config, lengths)
        self._write_files([ids[-row] for row in range(1, CALIBRATION + 1)])
        self._logits: dict[tuple[bool, str], float] = {}

    def _write_files(self, calibration: list[np.ndarray]) -> None:
        path = {name: self.folder / f"{name}.onnx" for name in (*FILES, STUDENT)}
        serving_graph.build(self.model, path["serving_fp32"], self.groups)
        serving_graph.build_int8(self.model, path["serving_int8"], self.groups, calibration)
        serving_graph.build_int8(self.student, path[STUDENT], self.groups, calibration)
        trace(self.model, path["traced_fp32"])
        traced = path["traced_fp32"]
        write_dynamic(traced, path["dynamic_int8"])
        write_qdq(traced, path["static_int8"], calibration, symmetric=False)
        save_weights(self.folder, self.model)
        write_json(self.folder / MODEL_CONFIG, self.model.config.to_json())
        self.sha256 = {name: sha256_of(path[name]) for name in path}

    def feeds(self, cell: Cell) -> list[Feed]:
        """Batches of `cell`, each padded to its longest comment."""
        feeds: list[Feed] = []

        def keep(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            feeds.append((input_ids, attention_mask))
            return np.empty(0, np.float32)

        for rows in cell.batches:
            parity.run_batch(keep, rows)
        return feeds

    def expected(self, cell: Cell, contender: str) -> np.ndarray:
        """float32 logits of `cell` by PyTorch, comments in its order."""
        is_student = contender == STUDENT
        reference = parity.torch_runner(self.student if is_student else self.model)
        comments = [comment for rows in cell.batches for comment in rows]
        new = [comment for comment in comments if (is_student, comment.name) not in self._logits]
        for rows in cells_of(new, 32)[-1].batches:  # sorted, so that little is padding
            for comment, logit in zip(rows, parity.run_batch(reference, rows), strict=True):
                self._logits[is_student, comment.name] = float(logit)
        logits = [self._logits[is_student, comment.name] for comment in comments]
        return np.array(logits, np.float32)

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": self.source,
            "config": self.model.config.to_json(),
            "student": self.student.config.to_json(),
            "attention_widths": list(self.groups),
            "sha256": self.sha256,
        }


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: `batches` in the order in which they run."""

    name: str
    batch: int
    batches: list[list[Comment]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each comment."""
        return [len(comment.ids) for rows in self.batches for comment in rows]


def length_mix(lengths: Sequence[int], count: int) -> list[int]:
    """Rows of `count` comments, in random order, whose lengths are equally likely quantiles.

    So a few comments have the length mix of all.
    """
    by_length = np.argsort(lengths, kind="stable")
    at = (np.arange(count) + 0.5) / count * len(by_length)
    return np.random.default_rng(0).permutation(by_length[at.astype(int)]).tolist()


def cells_of(comments: Sequence[Comment], batch: int) -> list[Cell]:
    """`comments` cut into batches in the order they came, and sorted by length."""

    def cut(order: str, rows: Sequence[Comment]) -> Cell:
        batches = [list(rows[at : at + batch]) for at in range(0, len(rows), batch)]
        return Cell(f"batch {batch}, {order}", batch, batches)

    cells = [cut("random", comments)]
    if batch > 1:
        cells.append(cut("sorted", sorted(comments, key=lambda comment: len(comment.ids))))
    return cells


def uniform(comments: Sequence[Comment], length: int) -> Cell:
    """Batches of 32 comments of `length` tokens, their words those of `comments`."""
    rng = np.random.default_rng(length)
    words = np.concatenate([np.asarray(comment.ids[1:]) for comment in comments])
    count = max(1, 128 // length)  # enough of the short ones to time
    batches = [
        [Comment(f"{length} {i} {j}", [CLS_ID, *rng.choice(words, length - 1)]) for j in range(32)]
        for i in range(count)
    ]
    return Cell(f"{length} tokens", 32, batches)


def _load(folder: Path | None, texts: Sequence[str]) -> tuple[ToxicityEncoder, Tokenizer]:
    if folder is not None:
        checkpoint = load_checkpoint(folder)
        return checkpoint.model, checkpoint.tokenizer
    tokenizer = build_tokenizer(texts, max_vocab=30_000, max_len=256)
    torch.manual_seed(0)
    shape = make_config(ModelConfig, {"vocab_size": len(tokenizer.vocabulary)})
    return ToxicityEncoder(shape).eval(), tokenizer
