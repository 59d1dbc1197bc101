"""Every id of the core against the plain Python reference of the rule, text by text.

    python -m tests.compare_tokenizers --texts 1000000 --tokenizer runs/model/tokenizer.json

The texts are all comments of the files given, and generated ones: random code points, and words of
the vocabulary with swapped, repeated, hidden and odd characters, joined in odd ways. Each is read
with room for more and for fewer ids than the tokenizer's own; of the generated ones, a third
without the respelling and a third with phrases. Prints the counts and writes them as JSON; exit
status 1 when a text differs. The same seed gives the same texts on any number of cores.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import platform
import random
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bench.traffic.comments import REAL_COMMENTS
from contract import SPECIAL_TOKENS, BadInput, ToxicityError
from core import build
from core.binding import NativeTokenizer
from tests.reference_tokenizer import ReferenceTokenizer
from train.artifacts import write_json
from train.data.load import TEXT_COLUMNS

_PART = 2000
"""Texts that one task of a process compares."""
_EXAMPLES = 20
_FREQUENT = 60
"""So many of the first words are met often, and every two of them are a phrase of VARIANTS."""
VARIANTS = ("as it is", "without respelling", "with phrases")
"""Of the tokenizer, in turns."""
_FULL_WIDTH, _BOLD = 0xFF41 - ord("a"), 0x1D41A - ord("a")
_ODD = [
    *"éßẞİıſﬁłж中ａ１½①\u0301\u0308\u200b\u200d\u00ad\u00a0\u2028\u3000\ufeff\ud800–’“…😀",
    "\r\n",
]
_PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789 .,!?*$@()[]'\"-/:=_#&\t\n\x00\x7f"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compare_tokenizers", description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000, help="how many are generated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/model/tokenizer.json"))
    parser.add_argument(
        "--comments", type=Path, nargs="*", help="CSV files; default: all real ones"
    )
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    parser.add_argument("--out", type=Path, default=Path("bench/out/tokenizer_agreement.json"))
    arguments = parser.parse_args()
    comments = real_comments() if arguments.comments is None else arguments.comments
    if not comments:
        print("SKIPPED real comments: none are beside this checkout", flush=True)
    try:
        document = compare(
            arguments.tokenizer, comments, arguments.texts, arguments.seed, arguments.workers
        )
    except ToxicityError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    write_json(arguments.out, document)
    print(json.dumps(document, indent=2))
    return int(document["differences"] > 0)


def real_comments() -> list[Path]:
    """Files of real comments beside this checkout, where there are any."""
    return sorted(REAL_COMMENTS.parent.glob("*.csv.gz"))


def read_comments(path: Path) -> list[str]:
    """Every comment of a CSV file, whatever its labels. Raises BadInput for one without any."""
    if not path.is_file():
        raise BadInput(f"no file at {path}, expected comments; give another path with --comments")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    column = next((name for name in TEXT_COLUMNS if name in frame.columns), None)
    if column is None:
        raise BadInput(f"{path} has no column of {', '.join(TEXT_COLUMNS)}; expected comments")
    return list(frame[column])


def compare(
    tokenizer: Path, comments: Sequence[Path], texts: int, seed: int, workers: int | None = None
) -> dict[str, Any]:
    """Counts of texts compared and of those that differ. Raises BadInput for a file to be read."""
    if not tokenizer.is_file():
        raise BadInput(f"no file at {tokenizer}, expected a tokenizer; set --tokenizer")
    raw = tokenizer.read_bytes()
    real = {path.name: read_comments(path) for path in comments}
    described = build.described()  # builds the library once, before several processes would
    tasks: list[tuple[str | int, Sequence[str] | int]] = []
    for found in real.values():
        tasks += [("comments", found[at : at + _PART]) for at in range(0, len(found), _PART)]
    tasks += [(n, min(_PART, texts - at)) for n, at in enumerate(range(0, texts, _PART))]
    differing: list[str] = []
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start, initargs=(raw.decode(), seed)
    ) as pool:
        for found in tqdm(pool.map(_task, tasks), total=len(tasks), disable=None):
            differing += found
    vocabulary = json.loads(raw)["vocabulary"]
    return {
        "tokenizer": {
            "sha256": hashlib.sha256(raw).hexdigest(),
            "tokens": len(vocabulary),
            "phrases": sum(" " in token for token in vocabulary),
        },
        "comments": {name: len(found) for name, found in real.items()},
        "generated": texts,
        "variants": VARIANTS,
        "seed": seed,
        "compared": texts + sum(map(len, real.values())),
        "differences": len(differing),
        "examples": list(map(ascii, differing[:_EXAMPLES])),
        "versions": {
            "python": platform.python_version(),
            "unicode": unicodedata.unidata_version,
            "compiler": described["compiler"],
            "sources_sha256": described["sources"],
        },
    }


def differences(
    native: NativeTokenizer, reference: ReferenceTokenizer, texts: Iterable[str], rng: random.Random
) -> list[str]:
    """Texts that the core reads otherwise than the reference: tokens, ids, or whether it is cut."""
    found = []
    for text in texts:
        most = rng.choice([reference.max_len, 4 * reference.max_len, rng.randrange(1, 80)])
        same = native.encode(text, most) == reference.encode_and_cut(text, most)
        if not (same and native.split(text) == reference.tokens(text)):
            found.append(text)
    return found


# --- One process ----------------------------------------------------------------------------
_document = ""
_seed = 0


def _start(document: str, seed: int) -> None:
    global _document, _seed
    _document, _seed = document, seed


@functools.cache
def _readers(variant: str) -> tuple[NativeTokenizer, ReferenceTokenizer, list[str]]:
    text = json.dumps(varied(json.loads(_document), variant))
    words = [w for w in json.loads(_document)["vocabulary"][len(SPECIAL_TOKENS) :] if " " not in w]
    return NativeTokenizer(text), ReferenceTokenizer.from_json(text), words


def varied(document: dict[str, Any], variant: str) -> dict[str, Any]:
    """One of VARIANTS of a tokenizer's document."""
    vocabulary = document["vocabulary"]
    if variant == "without respelling":
        return document | {"respelling": None}
    if variant == "with phrases":
        frequent = list(filter(str.isalnum, vocabulary[len(SPECIAL_TOKENS) :]))[:_FREQUENT]
        pairs = [f"{first} {second}" for first in frequent for second in frequent]
        return document | {"vocabulary": list(dict.fromkeys([*vocabulary, *pairs]))}
    return document


def _task(task: tuple[str | int, Sequence[str] | int]) -> list[str]:
    name, texts = task
    variant = VARIANTS[name % len(VARIANTS)] if isinstance(name, int) else VARIANTS[0]
    native, reference, words = _readers(variant)
    rng = random.Random(f"{_seed} {name}")
    if isinstance(texts, int):
        texts = list(generated(rng, words, texts))
    return differences(native, reference, texts, rng)


# --- Generated texts ------------------------------------------------------------------------
def generated(rng: random.Random, words: Sequence[str], count: int) -> Iterator[str]:
    """`count` texts of a few dozen characters, most of them near words of the vocabulary."""
    for _ in range(count):
        kind = rng.randrange(4)
        if kind == 0:
            yield "".join(_character(rng) for _ in range(rng.randrange(60)))
        elif kind == 1:
            yield " ".join(_changed(rng, words) for _ in range(rng.randrange(1, 8)))
        elif kind == 2:
            between = rng.choice([" ", "", ". ", "! ", "!", "-", "\u200b", "\x7f", "…"])
            yield between.join(_changed(rng, words) for _ in range(rng.randrange(1, 8)))
        else:
            parts = [_spelled_out(rng, words) for _ in range(rng.randrange(1, 8))]
            yield rng.choice([" ", "  ", ", ", ""]).join(parts)


def _character(rng: random.Random) -> str:
    kind = rng.randrange(8)
    if kind == 0:
        return chr(rng.randrange(sys.maxunicode + 1))  # lone surrogates, too
    if kind == 1:
        return chr(rng.randrange(0x3000))
    return rng.choice(_ODD if kind == 2 else _PLAIN)


def _changed(rng: random.Random, words: Sequence[str]) -> str:
    """A known word with up to three changes, as people write to be understood but not found."""
    word = rng.choice(words if rng.randrange(3) else words[:_FREQUENT])
    for _ in range(rng.randrange(4)):
        if not word:
            return word
        at = rng.randrange(len(word))
        before, char, after = word[:at], word[at], word[at + 1 :]
        word = rng.choice(
            [
                before + after[:1] + char + after[1:],
                before + char * rng.randrange(1, 5) + after,
                "".join(c * rng.randrange(1, 3) for c in word),
                before + after,
                before + rng.choice("013457$@!*") + after,
                before + _character(rng) + after,
                before + char + _character(rng) + after,
                before + char + rng.choice(["\u200b", "\u00ad", "\u0301", " "]) + after,
                rng.choice("!*$@") + word,
                word + rng.choice(["!", "*", "!!", "$", "'s", ".", "é"]),
                word + rng.choice(words),
                word.upper(),
                before + _lookalike(char, rng.choice([_FULL_WIDTH, _BOLD])) + after,
            ]
        )
    return word


def _lookalike(char: str, offset: int) -> str:
    return chr(ord(char) + offset) if "a" <= char <= "z" else char


def _spelled_out(rng: random.Random, words: Sequence[str]) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice("abcdefghijz0145$!é")
    if kind == 1:
        return " ".join(rng.choice("abcdefghinostu01345") for _ in range(rng.randrange(80)))
    return " ".join(_changed(rng, words)) if kind == 2 else _changed(rng, words)


if __name__ == "__main__":
    sys.exit(main())
