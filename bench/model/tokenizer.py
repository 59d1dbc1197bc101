"""What text -> ids costs, beside Hugging Face's `tokenizers`: `make bench-tokenizer`.

    python -m bench.model.tokenizer --vocabulary train.csv.gz --comments test.csv.gz

Our rule in the core, by itself as the server calls it and one comment a call from Python, each with
and without the respelling of unknown words; WordLevel of `tokenizers` with the same split as a
regular expression, and with its BertPreTokenizer, which splits otherwise. One thread, CPU time. In
each round every contender is new, reads comments of the file that the vocabulary is from, and is
then timed on comments that it has not met. Where the rule is the same (ASCII text) the ids must be.
Texts made to cost much are timed too, against as many bytes of comments. Read ratios within one
run. Prints a table and writes `tokenizer.json`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from bench.report.machine import versions
from bench.report.result import (
    LOAD,
    RUNS,
    Bars,
    ResultOptions,
    at_least,
    at_most,
    begin,
    document,
    exactly,
    report,
)
from bench.report.tables import aligned
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from console.options import run
from contract import SPECIAL_TOKENS
from train.data.load import load_texts
from train.data.tokenizer import Respelling, Tokenizer, build_tokenizer, oov_rates

Encode = Callable[[str], list[int]]
TOKENS = 85
"""All times are for a comment of so many tokens: the mean of Wikipedia talk pages."""
_FEWEST, _MOST = 43, 170
"""Tokens of the comments that are timed: none is cut, and none is mostly the cost of a call."""
_US = 10.0
_WARM_UP = 20_000
_SPLIT = r"[\p{L}\p{M}\p{N}]+|[^\p{L}\p{M}\p{N}\p{Z}\p{Cc}\p{Cs}]"
CORE, CORE_UNK = "ours", "ours, without respelling"
OURS, UNK = f"{CORE}, from Python", f"{CORE_UNK}, from Python"
WORD_LEVEL, BERT = "WordLevel", "BertPreTokenizer"
HOSTILE = (
    *(
        "a ",
        "a",
        "a.",
        "f*",
        "*",
        "@1",
        "i\u200bd",
        "e\u0301",
        "\u0301",
        "1",
        "f u c k ",
        "\U0001f600",
    ),
    *("\u4e2d", "\uac00", "\uff21", "\ufdfa", " ", "\n", "$h1t ", "i.d-i_o*t ", "SHOUT ", "soooo "),
    *("-", "_", "\u200d", "\0", "\U0010ffff", "'", "a'"),
)
"""Repeated, each makes some step of the rule work: spaced letters, disguises, marks, runs."""
_KILOBYTE, _LARGE, _LARGEST = 1000, 16_000, 256_000
_HOSTILE_OVER_MEAN, _LINEAR = 10, 2


@pydantic_dataclasses.dataclass(frozen=True)
class TokenizerBenchConfig(ResultOptions):
    """Flags of `python -m bench.model.tokenizer`."""

    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    vocabulary: str | None = Field(
        None,
        description="comments that the vocabulary is from; default: half of --comments",
        json_schema_extra=LOAD,
    )
    max_vocab: int = Field(
        30_000, ge=4, description="tokens kept, special ones included", json_schema_extra=LOAD
    )
    rounds: int = Field(
        5,
        ge=1,
        description="turns of every contender; the median counts",
        json_schema_extra=RUNS,
    )


def main() -> None:
    config = begin(TokenizerBenchConfig, "bench.model.tokenizer", "Time text -> ids.")
    found = measure(config)
    report(config, found, table(found))


def measure(config: TokenizerBenchConfig) -> dict[str, Any]:
    """The whole comparison as one document. Raises BadInput when comments cannot be read."""
    known, new, name = _comments(config)
    plain = build_tokenizer(known, max_vocab=config.max_vocab, max_len=256)
    lengths = {text: len(list(plain.tokens(text))) for text in new}
    timed = [text for text in new if _FEWEST <= lengths[text] <= _MOST]
    tokens = sum(lengths[text] for text in timed)
    contenders = _contenders(plain)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    ids: dict[str, list[list[int]]] = {}
    for _ in range(config.rounds):
        for name, make in contenders.items():
            encode = make()
            for text in known[:_WARM_UP]:
                encode(text)
            began = time.thread_time()
            found = [encode(text) for text in timed]
            seconds[name].append(time.thread_time() - began)
            ids[name] = found
        for name, tokenizer in ((CORE, _respelling(plain)), (CORE_UNK, _plain(plain))):
            tokenizer.native.time_encoding(known[:_WARM_UP], plain.max_len)
            _, cpu_s = tokenizer.native.time_encoding(timed, plain.max_len)
            seconds.setdefault(name, []).append(cpu_s)
    hostile = _hostile(_respelling(plain), timed, config.rounds)
    us = {name: 1e6 * statistics.median(s) / tokens * TOKENS for name, s in seconds.items()}
    ascii_rows = [row for row, text in enumerate(timed) if text.isascii()]
    equal = {
        name: float(np.mean([found[row] == ids[UNK][row] for row in ascii_rows]))
        for name, found in ids.items()
    }
    return document(
        "tokenizer",
        config,
        versions=versions("tokenizers"),
        comments={"timed": len(timed), "of": name, "mean_tokens": tokens / len(timed)},
        vocabulary={
            "of": Path(config.vocabulary).name if config.vocabulary else name,
            "tokens": len(plain.vocabulary),
        },
        oov=oov_rates(timed, _respelling(plain)),
        us_per_85_tokens=us,
        equal_ids_on_ascii=equal,
        hostile=hostile,
        bars={**_bars(us, equal), **_hostile_bars(hostile)},
    )


def _hostile(tokenizer: Tokenizer, comments: list[str], rounds: int) -> dict[str, Any]:
    """CPU time a byte, ns: of the comments, and of each hostile text by its size in bytes."""

    def ns(texts: list[str]) -> float:
        size = sum(len(text.encode()) for text in texts)
        found = [tokenizer.native.time_encoding(texts, tokenizer.max_len)[1] for _ in range(rounds)]
        return 1e9 * min(found) / size

    def text(pattern: str, size: int) -> str:
        return pattern * (size // len(pattern.encode()))

    return {
        "comments_ns": ns(comments),
        "ns": {
            pattern: {size: ns([text(pattern, size)]) for size in (_KILOBYTE, _LARGE, _LARGEST)}
            for pattern in HOSTILE
        },
    }


def _hostile_bars(hostile: dict[str, Any]) -> Bars:
    """A hostile kilobyte over the mean one, and growth with size beyond the linear."""
    of = hostile["ns"].values()
    dear = max(ns[_KILOBYTE] for ns in of) / hostile["comments_ns"]
    growth = max(ns[_LARGEST] / ns[_LARGE] for ns in of)
    return {
        "hostile_over_mean": at_most(dear, _HOSTILE_OVER_MEAN),
        "hostile_growth": at_most(growth, _LINEAR),
    }


def _bars(us: dict[str, float], equal: dict[str, float]) -> Bars:
    bars = {"us_over_10": at_most(us[CORE] / _US, 1)}
    if WORD_LEVEL in us:
        bars["word_level_over_ours"] = at_least(us[WORD_LEVEL] / us[CORE], 10)
        bars["word_level_equal_ids"] = exactly(equal[WORD_LEVEL], 1)
    return bars


# --- Contenders -----------------------------------------------------------------------------
def _contenders(plain: Tokenizer) -> dict[str, Callable[[], Encode]]:
    """Name -> what makes a new one of it, that has met no comment."""
    made: dict[str, Callable[[], Encode]] = {
        OURS: lambda: _respelling(plain).encode,
        UNK: lambda: _plain(plain).encode,
    }
    if not _has_tokenizers():
        print("SKIPPED tokenizers: not installed; `make bench-tokenizer` installs it", flush=True)
        return made
    from tokenizers import Regex, pre_tokenizers

    by_regex = pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True)
    made[WORD_LEVEL] = lambda: _word_level(plain, by_regex)
    made[BERT] = lambda: _word_level(plain, pre_tokenizers.BertPreTokenizer())
    return made


def _plain(plain: Tokenizer) -> Tokenizer:
    return Tokenizer(plain.vocabulary, plain.max_len, plain.rule)


def _respelling(plain: Tokenizer) -> Tokenizer:
    return Tokenizer(plain.vocabulary, plain.max_len, plain.rule, Respelling())


def _word_level(plain: Tokenizer, split: Any) -> Encode:
    from tokenizers import Tokenizer as HubTokenizer
    from tokenizers import models, normalizers, processors

    _, unk, cls = SPECIAL_TOKENS
    id_of = {token: i for i, token in enumerate(plain.vocabulary)}
    made = HubTokenizer(models.WordLevel(id_of, unk_token=unk))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = split
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A", special_tokens=[(cls, id_of[cls])]
    )
    made.enable_truncation(plain.max_len)
    return lambda text: made.encode(text).ids


def _has_tokenizers() -> bool:
    return find_spec("tokenizers") is not None


def _comments(config: TokenizerBenchConfig) -> tuple[list[str], list[str], str]:
    """Comments that the vocabulary is from, others to be timed, and the name of the latter."""
    pool = load_pool(config.comments)
    texts = pool.texts
    if config.vocabulary is None:
        return texts[: len(texts) // 2], texts[len(texts) // 2 :], pool.name
    return load_texts(config.vocabulary, flag=None), texts, pool.name


def table(found: dict[str, Any]) -> str:
    """A line a contender."""
    comments, oov = found["comments"], found["oov"]
    lines = [["", f"us a comment of {TOKENS}", "ids equal on ASCII"]]
    for name, us in found["us_per_85_tokens"].items():
        equal = found["equal_ids_on_ascii"].get(name)
        lines.append([name, f"{us:.1f}", "" if equal is None else f"{equal:.1%}"])
    return (
        f"{comments['timed']:,} comments of {comments['of']}, mean {comments['mean_tokens']:.0f} "
        f"tokens; {oov['before']:.2%} of them unknown, {oov['after']:.2%} after respelling\n"
        f"{aligned(lines)}"
    )


if __name__ == "__main__":
    run(main)
