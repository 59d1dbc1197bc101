"""The comments that a benchmark sends, with their length mix and a hash that names them.

Real text where there is some; otherwise the embedded SYNTHETIC comments, joined and cut to a
length mix like that of real ones: lognormal in tokens, median 43, mean 59, cut at 256. Real
Wikipedia talk pages have a longer tail (median 44, mean 84, or 70 once cut at 256), so real
comments cost about a fifth more.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract import SPECIAL_TOKENS, BadInput
from train.data.load import load_texts
from train.data.synthetic import generate
from train.data.tokenizer import Tokenizer

REAL_COMMENTS = Path(__file__).parents[2] / "../shared/data/jigsaw_wiki_test.csv.gz"
"""Used by default where it is there; it is no part of the project."""
SYNTHETIC, AUTO = "synthetic", "auto"
COMMENTS_HELP = "a labelled file, 'synthetic', or 'auto': real ones where this machine has them"
POOL = 5000
_MEDIAN_TOKENS, _MEAN_TOKENS, _MOST_TOKENS = 43, 59, 256
_SOURCE_ROWS = 4000
_SIGMA = float(np.sqrt(2 * np.log(_MEAN_TOKENS / _MEDIAN_TOKENS)))  # mean of a lognormal


@dataclass(frozen=True)
class LengthMix:
    """Tokens a comment, [CLS] not counted and nothing cut."""

    mean: float
    median: float
    p90: float
    p99: float
    mean_cut_at_256: float
    """What an encoder of the default max_len reads."""


@dataclass(frozen=True)
class Pool:
    """Comments in the order in which they are sent."""

    texts: list[str]
    name: str
    lengths: LengthMix
    sha256: str

    def summary(self) -> str:
        """One line for people."""
        tokens = self.lengths
        return (
            f"{len(self.texts):,} comments from {self.name}; tokens: mean {tokens.mean:g} "
            f"({tokens.mean_cut_at_256:g} cut at {_MOST_TOKENS}), median {tokens.median:g}, "
            f"p90 {tokens.p90:g}, p99 {tokens.p99:g}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "comments": len(self.texts),
            "sha256": self.sha256,
            "tokens": asdict(self.lengths),
        }


def default_source() -> str:
    """The real comments when they are there, else SYNTHETIC."""
    return str(REAL_COMMENTS) if REAL_COMMENTS.is_file() else SYNTHETIC


def load_pool(source: str, *, size: int = POOL, seed: int = 0) -> Pool:
    """`size` comments of `source` (as `train.data.load.load_texts` takes it), shuffled by `seed`.

    Raises BadInput when the source cannot be read or holds none.
    """
    if source == AUTO:
        source = default_source()
    if source == SYNTHETIC:
        texts = _with_real_lengths(size, seed)
        name = "SYNTHETIC comments (nobody wrote them) with a length mix like that of real ones"
    else:
        loaded = load_texts(source, flag=None)
        if not loaded:
            raise BadInput(f"{source} holds no comment, expected some; name another file")
        order = np.random.default_rng(seed).permutation(len(loaded))[:size]
        texts = [loaded[row] for row in order]
        name = Path(source).name
    rule = Tokenizer(SPECIAL_TOKENS, max_len=_MOST_TOKENS)
    tokens = np.array([len(list(rule.tokens(text))) for text in texts])
    lengths = LengthMix(
        mean=round(float(tokens.mean()), 1),
        median=float(np.median(tokens)),
        p90=round(float(np.percentile(tokens, 90)), 1),
        p99=round(float(np.percentile(tokens, 99)), 1),
        mean_cut_at_256=round(float(np.minimum(tokens, _MOST_TOKENS).mean()), 1),
    )
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    return Pool(texts, name, lengths, digest)


def _with_real_lengths(size: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    wanted = np.clip(rng.lognormal(np.log(_MEDIAN_TOKENS), _SIGMA, size), 1, _MOST_TOKENS)
    source, _ = generate(_SOURCE_ROWS, seed)
    words = " ".join(source).split()
    # A word of this generator is a token or one with a mark behind it: about 1.1 tokens.
    counts = np.maximum(1, wanted / 1.1).astype(int)
    starts = rng.integers(0, len(words) - _MOST_TOKENS, size)
    return [" ".join(words[at : at + n]) for at, n in zip(starts, counts, strict=True)]
