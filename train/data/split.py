"""Strict, stratified split of labelled comments; copies of a text never straddle two parts."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from contract import ATTRIBUTES, BadInput
from train.artifacts import CONFIG_FILE, SPLIT_FILE, check_split, read_json
from train.data.load import Comments, load_comments
from train.data.sources import is_sources_file, load_all, read_sources, sources_of, without

_FEWEST_OF_A_STRATUM = 30
"""Different comments of a class of a source that are split by themselves."""


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, sorted int64; disjoint and with `left_out` every row."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    fingerprint: str
    """sha256 over every text, its part, the fractions and the seed."""
    seed: int
    fractions: tuple[float, float, float]
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows too near to a comment that judges the model, see `train.data.near_duplicates`."""

    def without(self, rows: np.ndarray) -> Split:
        """The same split, `rows` (int64 [n]) of its training part left out."""
        return replace(
            self, train=np.setdiff1d(self.train, rows), left_out=np.union1d(self.left_out, rows)
        )

    def to_json(self) -> dict[str, Any]:
        """What a reader needs to make the same split, and to know that it is the same."""
        return {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "fractions": self.fractions,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            **({"left_out": self.left_out.tolist()} if len(self.left_out) else {}),
        }


def split_comments(
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    origin: np.ndarray | None = None,
) -> Split:
    """Split rows into training, validation and test part, stratified on the label.

    Exact duplicates of a text move as one; their label for the stratification is the mean one.
    The fractions hold for the different texts of each class, so a text with many copies can
    make its part larger. `labels` are 0 or 1, [n]; `origin` (`Comments.origin`) is stratified on
    likewise. Raises BadInput for fractions that cannot be, or for too few comments of a class.
    """
    fractions = _checked(fractions)
    _, first, group = np.unique(
        np.fromiter(map(_key, texts), "S17", len(texts)), return_index=True, return_inverse=True
    )
    # Groups are numbered by their first row, so that the split does not depend on the digest.
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    group = rank[group]
    positive_share = np.bincount(group, weights=labels) / np.bincount(group)
    group_label = positive_share >= 0.5
    strata = _strata(group_label, None if origin is None else origin[np.sort(first)])

    _, validation_share, test_share = fractions
    try:
        rest, test = train_test_split(
            np.arange(len(first)), test_size=test_share, stratify=strata, random_state=seed
        )
        train, validation = train_test_split(
            rest,
            test_size=validation_share / (1 - test_share),
            stratify=strata[rest],
            random_state=seed,
        )
    except ValueError as error:
        raise BadInput(
            f"{len(first)} different comments, {int(group_label.sum())} of them toxic, are too few "
            f"for a stratified split into {list(fractions)}; give more comments"
        ) from error
    part = np.empty(len(first), np.int64)
    for number, groups in enumerate((train, validation, test)):
        part[groups] = number
    part_of_row = part[group]
    rows = [np.flatnonzero(part_of_row == number) for number in range(3)]
    if any(len(np.unique(labels[chosen])) < 2 for chosen in rows):
        raise BadInput(
            f"{int(labels.sum())} toxic comments of {len(texts)} leave a part of the split with "
            "one class; give more comments"
        )
    fingerprint = _fingerprint(texts, part_of_row, fractions, seed)
    return Split(rows[0], rows[1], rows[2], fingerprint, seed, fractions)


def _checked(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    """As a tuple. Raises BadInput for shares that cannot be."""
    # Written so that NaN fails too.
    if not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-9):
        raise BadInput(
            f"--fractions is {list(fractions)}, expected three positive numbers that sum to 1; "
            "0.8 0.1 0.1 is the default"
        )
    return fractions[0], fractions[1], fractions[2]


def _strata(group_label: np.ndarray, origin: np.ndarray | None) -> np.ndarray:
    """Class of each group [n], and its source where there are several and enough of its class."""
    if origin is None:
        return group_label
    strata = 2 * origin + group_label
    rare = np.bincount(strata)[strata] < _FEWEST_OF_A_STRATUM
    return np.where(rare, group_label - 2, strata)


@dataclass(frozen=True)
class Overlap:
    """How many comments of one source stand in another, too."""

    comments: int
    same: int
    """Word for word."""
    alike: int
    """More of them but for case, punctuation and spaces."""

    def words(self) -> str:
        """What to say of it."""
        more = f", and {self.alike:,} but for case, punctuation and spaces" if self.alike else ""
        return f"{self.same:,} of {self.comments:,} comments{more}"


def overlap(texts: Sequence[str], known: Iterable[str]) -> Overlap:
    """Of `texts`, those that are among the `known` ones."""
    known = set(known)
    same = [text in known for text in texts]
    known_keys = {essence(text) for text in known}
    alike = [essence(text) in known_keys for text in texts]
    return Overlap(len(same), sum(same), sum(alike) - sum(same))


class _Essential(dict[int, str | None]):
    """For `str.translate`: drops spaces, control characters and punctuation, ASCII's signs too."""

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))[0]
        drop = category in "PZC" or (category == "S" and code < 128)  # an emoji means something
        self[code] = None if drop else chr(code)
        return self[code]


_ESSENTIAL = _Essential()


def essence(text: str) -> str:
    """What two texts have in common that differ in case, punctuation and spaces alone."""
    folded = text.casefold()
    return folded.translate(_ESSENTIAL) or "".join(folded.split())


def comments_of_run(folder: Path, data: str | None = None) -> tuple[Comments, Split]:
    """Comments and split of the finished training run in `folder`.

    `data` says where its comments are now, if they moved. Raises BadInput when they are not those
    of the run any more.
    """
    config = read_json(folder / CONFIG_FILE, "run `make train`")
    settings = config["train"]
    source = data or settings["data"]
    comments = _comments_of(config, data)
    fractions, seed = tuple(settings["fractions"]), settings["seed"]
    split = split_comments(
        comments.texts, comments.labels, fractions=fractions, seed=seed, origin=comments.origin
    )
    check_split(folder, split.fingerprint, str(source))
    left_out = read_json(folder / SPLIT_FILE, "run `make train`").get("left_out", [])
    return comments, split.without(np.array(left_out, np.int64)) if left_out else split


def _comments_of(config: Mapping[str, Any], data: str | None) -> Comments:
    """Comments of a run by its config.json; `data` as `comments_of_run` has it."""
    settings = config["train"]
    attributes = settings.get(ATTRIBUTES, ())
    if data and is_sources_file(data):
        sources = read_sources(Path(data))
        if held_out := settings.get("hold_out_source"):
            sources = without(sources, held_out)[0]
        return load_all(sources, data, attributes)
    if config.get("sources") and not data:
        sources = sources_of(config["sources"], CONFIG_FILE)
        return load_all(sources, CONFIG_FILE, attributes)
    return load_comments(
        data or settings["data"],
        text_column=settings["text_column"],
        label_column=settings["label_column"],
        label_map=settings.get("label_map", ()),
        attributes=attributes,
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _key(text: str) -> bytes:
    """Half of the digest: by chance, two of 10**8 texts share it once in 10**22 times."""
    # The last byte guards against NumPy, which drops zero bytes at the end of a fixed-width item.
    return _digest(text)[:16] + b"\x01"


def _fingerprint(
    texts: Sequence[str], part_of_row: np.ndarray, fractions: tuple[float, ...], seed: int
) -> str:
    digest = hashlib.sha256(f"{fractions} {seed} {len(texts)}".encode())
    for text, part in zip(texts, part_of_row, strict=True):
        # The 1 keeps the fingerprints of earlier runs.
        digest.update(_digest(text) + bytes([1, part]))
    return digest.hexdigest()
