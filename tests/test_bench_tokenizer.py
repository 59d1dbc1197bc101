"""bench.model.tokenizer: ids that must be equal are, other ids show, a slow rule breaks its bar."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.model import tokenizer as bench
from bench.model.tokenizer import (
    CORE,
    CORE_UNK,
    OURS,
    UNK,
    WORD_LEVEL,
    TokenizerBenchConfig,
    measure,
)
from bench.traffic.comments import SYNTHETIC
from train.data.tokenizer import build_tokenizer

CONFIG = TokenizerBenchConfig(comments=SYNTHETIC, max_vocab=400, rounds=1)


def test_every_contender_is_timed_on_the_same_comments() -> None:
    document = measure(CONFIG)
    assert {CORE, CORE_UNK, OURS, UNK} <= document["us_per_85_tokens"].keys()
    assert all(us > 0 for us in document["us_per_85_tokens"].values())
    assert document["equal_ids_on_ascii"][UNK] == 1
    assert document["oov"]["after"] < document["oov"]["before"]
    assert 43 <= document["comments"]["mean_tokens"] <= 170


def test_word_level_with_our_split_gives_our_ids() -> None:
    pytest.importorskip("tokenizers")
    document = measure(CONFIG)
    assert document["equal_ids_on_ascii"][WORD_LEVEL] == 1
    assert document["bars"]["word_level_equal_ids"]["holds"]


def test_other_ids_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(bench, "_SPLIT", r"[^ ]+")
    document = measure(CONFIG)
    assert document["equal_ids_on_ascii"][WORD_LEVEL] < 1
    assert not document["bars"]["word_level_equal_ids"]["holds"]


def test_bars_can_fail() -> None:
    equal = {WORD_LEVEL: 1.0}
    fast = bench._bars({CORE: 9.0, WORD_LEVEL: 91.0}, equal)
    assert all(bar["holds"] for bar in fast.values())
    slow = bench._bars({CORE: 11.0, WORD_LEVEL: 100.0}, equal)
    assert not any(bar["holds"] for name, bar in slow.items() if name != "word_level_equal_ids")
    assert "word_level_over_ours" not in bench._bars({CORE: 9.0}, {})


def test_contenders_are_skipped_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_has_tokenizers", lambda: False)
    document = measure(replace(CONFIG, max_vocab=100))
    assert document["us_per_85_tokens"].keys() == {CORE, CORE_UNK, OURS, UNK}


def test_all_ids_are_counted_where_they_are_timed() -> None:
    native = build_tokenizer(["you are , an idiot"], max_vocab=20, max_len=4).native
    texts = ["you are", "", "é" * 9, "you are an idiot you"]
    for most in (1, 4, 100):
        total, cpu_s = native.time_encoding(texts, most)
        assert total == sum(len(native.encode(text, most)[0]) for text in texts)
        assert cpu_s > 0
    assert native.time_encoding([], 4)[0] == 0
