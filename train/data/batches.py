"""Length-bucketed batches of token ids, tokenized once to disk, or on the fly.

Both ways give the identical batches: the order depends on the token lengths, the seed and the
epoch alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from contract import PAD_ID
from storage.files import clear_unfinished, put_folder, staging
from storage.locks import LOCK_FILE, SHARED_WAIT_S, locked
from storage.system_errors import naming
from train.data.tokenizer import Tokenizer

_ID = np.dtype(np.int32)
_FORMAT = b"2 "
"""Of the files that `pretokenize` writes: another one is never read."""
BATCHES_PER_BUCKET = 50
"""Comments are shuffled, then sorted by length within this many batches at a time: enough that
padding stays under a tenth of the tokens, few enough that batches stay mixed."""


EVALUATION_PAIRS = 128 * 256 * 256
"""Most pairs of tokens that are evaluated together, padding included."""


class CommentIds(Protocol):
    """Token ids by row number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray:
        """int32 [L] ids of one comment."""


class TokenizedOnTheFly:
    """Tokenizes a comment each time it is asked for."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        self._texts, self._tokenizer = texts, tokenizer

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(self._texts[row]), dtype=np.int32)

    def count_cut(self, first: int) -> int:
        """How many of the `first` comments are cut at max_len."""
        return sum(self._tokenizer.encode_and_cut(text)[1] for text in self._texts[:first])


class Pretokenized:
    """Reads ids that `pretokenize` stored, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._was_cut = np.load(folder / "cut.npy", allow_pickle=False)
        self._ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self._ids[self._offsets[row] : self._offsets[row + 1]]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """How many ids each of `rows`, int64 [n], has."""
        return np.asarray(self._offsets[rows + 1] - self._offsets[rows])

    def count_cut(self, first: int) -> int:
        """How many of the `first` comments are cut at max_len."""
        return int(self._was_cut[:first].sum())


TextIds = Pretokenized | TokenizedOnTheFly
"""Of texts, whichever way they are read."""


def pretokenize(texts: Sequence[str], tokenizer: Tokenizer, folder: Path) -> Pretokenized:
    """Tokenize `texts` once into `folder/<key>`; the key covers the tokenizer and every text."""
    digest = hashlib.sha256(_FORMAT + tokenizer.to_json().encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    target = folder / digest.hexdigest()[:16]
    if not target.exists():
        with locked(folder / LOCK_FILE, str(folder), "wait for it", SHARED_WAIT_S):
            clear_unfinished(folder)
            if not target.exists():  # another training may have made it meanwhile
                _store(texts, tokenizer, target)
    return Pretokenized(target)


def _store(texts: Sequence[str], tokenizer: Tokenizer, target: Path) -> None:
    with staging(target.parent) as staged:
        # The ids go to the disk as they come: of a comment 9 bytes stay in memory.
        was_cut, offsets = np.zeros(len(texts), bool), np.zeros(len(texts) + 1, np.int64)
        raw = staged / "ids.raw"
        with naming(raw), raw.open("w+b", buffering=1 << 20) as file:
            for row in range(len(texts)):
                ids, was_cut[row] = tokenizer.encode_and_cut(texts[row])
                offsets[row + 1] = offsets[row] + len(ids)
                file.write(np.asarray(ids, dtype=_ID).tobytes())
        _add_head(raw, staged / "ids.npy", int(offsets[-1]))
        _save(staged / "offsets.npy", offsets)
        _save(staged / "cut.npy", was_cut)
        put_folder(staged, target)


def _add_head(raw: Path, path: Path, count: int) -> None:
    """What `np.save` would write of these `count` ids, a piece at a time; `raw` goes."""
    npy: Any = np.lib.format  # without types in NumPy 1
    head = {"descr": npy.dtype_to_descr(_ID), "fortran_order": False, "shape": (count,)}
    with naming(path), path.open("w+b") as file, raw.open("rb") as ids:
        npy.write_array_header_1_0(file, head)
        shutil.copyfileobj(ids, file, 1 << 20)
    raw.unlink()


def _save(path: Path, array: np.ndarray) -> None:
    # Not by name: NumPy would write by itself, and forget why it could not.
    with naming(path), path.open("w+b") as file:
        np.save(file, array, allow_pickle=False)


@dataclass(frozen=True)
class Batch:
    """`rows` int64 [B] are the comments' row numbers; the tensors are as in contract.py."""

    rows: np.ndarray
    input_ids: torch.Tensor  # int64 [B, L]
    attention_mask: torch.Tensor  # int64 [B, L]

    def part(self, rank: int, world: int) -> Batch:
        """Every `world`-th comment from `rank` on, so that the processes' lengths match."""
        keep = slice(rank, None, world)
        return Batch(self.rows[keep], self.input_ids[keep], self.attention_mask[keep])


def collate(rows: np.ndarray, ids: Sequence[Sequence[int] | np.ndarray]) -> Batch:
    """Right-pad the ids of `rows` to the longest of them."""
    input_ids = torch.full((len(ids), max(map(len, ids))), PAD_ID, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(ids):
        input_ids[index, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        attention_mask[index, : len(row)] = 1
    return Batch(rows, input_ids, attention_mask)


def training_batches(
    ids: CommentIds, rows: np.ndarray, *, batch_size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[Batch]:
    """Batches of one epoch over `rows` (int64 [n]), from batch number `start` on.

    A bucket of `BATCHES_PER_BUCKET` batches is sorted by length, cut, and its batches shuffled.
    The order is a function of (rows, lengths, batch_size, seed, epoch).
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    bucket_size = batch_size * BATCHES_PER_BUCKET
    for bucket, at in enumerate(range(0, len(order), bucket_size)):
        first = bucket * BATCHES_PER_BUCKET
        if first + BATCHES_PER_BUCKET <= start:
            continue
        chosen = order[at : at + bucket_size]
        taken = [ids[row] for row in chosen]
        by_length = np.argsort([len(row) for row in taken], kind="stable")
        cuts = [by_length[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        shuffled = np.random.default_rng([seed, epoch, bucket]).permutation(len(cuts))
        for number, which in enumerate(shuffled, start=first):
            if number >= start:
                members = cuts[which]
                yield collate(chosen[members], [taken[i] for i in members])


def evaluation_batches(ids: CommentIds, rows: np.ndarray, *, batch_size: int) -> Iterator[Batch]:
    """All `rows`, longest first, so that running out of memory shows at once.

    Fewer than `batch_size` of them at a time where attention would take too much memory.
    """
    of: CommentIds | dict[int, np.ndarray] = ids
    if isinstance(ids, Pretokenized):
        lengths = ids.lengths(rows)
    else:  # each is read once, so all are held
        of = dict(zip(rows.tolist(), (ids[row] for row in rows), strict=True))
        lengths = np.array([len(of[row]) for row in rows.tolist()], np.int64)
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        pairs = int(lengths[order[at]]) ** 2
        members = order[at : at + min(batch_size, max(1, EVALUATION_PAIRS // pairs))]
        at += len(members)
        yield collate(rows[members], [of[row] for row in rows[members].tolist()])
