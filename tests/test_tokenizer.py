"""The one text -> ids rule: written expectations, properties, and the copy that serves."""

from __future__ import annotations

import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import CLS_ID, SPECIAL_TOKENS, UNK_ID, BadInput
from train import tokenizer as tokenizer_module
from train.tokenizer import Tokenizer, build_tokenizer

TEXTS = ["you are a wonderful person !", "you are an idiot", "don't be an idiot , you"] * 3
TOKENIZER = build_tokenizer(TEXTS, max_vocab=100, max_len=12)
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=200)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("", []),
        (" \t\r\n\u00a0\u2003\u2028", []),
        ("don't stop", ["don", "'", "t", "stop"]),
        ("snake_case a-b", ["snake", "_", "case", "a", "-", "b"]),
        ("f\u200bu\u00adck", ["fuck"]),  # zero-width space and soft hyphen vanish
        ("ＦＵＣＫ 𝐟𝐮𝐜𝐤", ["fuck", "fuck"]),  # full-width and mathematical letters
        ("İstanbul ΣΑΣ", ["İstanbul", "σασ"]),  # no context: every sigma folds alike
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),  # a mark belongs to its word
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("😀😀 ok", ["😀", "😀", "ok"]),
        ("a\x00b\x7fc", ["a", "b", "c"]),
        ("½ ①", ["½", "1"]),
        ("[CLS] [PAD]", ["[", "cls", "]", "[", "pad", "]"]),
    ],
)
def test_rule(text: str, tokens: list[str]) -> None:
    assert list(TOKENIZER.tokens(text)) == tokens


@given(ANY_TEXT)
def test_ids_are_bounded_and_start_with_cls(text: str) -> None:
    ids, cut = TOKENIZER.encode_and_cut(text)
    assert ids[0] == CLS_ID
    assert 1 <= len(ids) <= TOKENIZER.max_len
    assert all(i == UNK_ID or 3 <= i < len(TOKENIZER.vocabulary) for i in ids[1:])
    assert cut == (len(list(TOKENIZER.tokens(text))) + 1 > TOKENIZER.max_len)


@given(ANY_TEXT, ANY_TEXT)
def test_tokens_of_joined_texts_are_the_joined_tokens(left: str, right: str) -> None:
    joined = [*TOKENIZER.tokens(left), *TOKENIZER.tokens(right)]
    assert list(TOKENIZER.tokens(f"{left} {right}")) == joined


@given(ANY_TEXT)
def test_case_and_tokens_are_stable(text: str) -> None:
    tokens = list(TOKENIZER.tokens(text))
    assert list(TOKENIZER.tokens(" ".join(tokens))) == tokens


@given(ANY_TEXT)
def test_rule_as_written(text: str) -> None:
    """The module's docstring, one code point at a time, without its tables."""
    tokens: list[str] = []
    word = ""
    for char in text:
        if unicodedata.category(char) == "Cf":
            continue
        compatible = unicodedata.normalize("NFKC", char)
        char = compatible if len(compatible) == 1 else char
        char = char.lower() if len(char.lower()) == 1 else char
        category = unicodedata.category(char)
        if category[0] in "LMN":
            word += char
            continue
        tokens += [word] if word else []
        word = ""
        if category[0] != "Z" and category not in ("Cc", "Cs"):
            tokens.append(char)
    assert list(TOKENIZER.tokens(text)) == tokens + ([word] if word else [])


@given(st.text(st.characters(max_codepoint=127), max_size=200))
def test_quick_ascii_way_is_the_table_way(text: str) -> None:
    assert list(TOKENIZER.tokens(text)) == text.translate(TOKENIZER._rewrite).split()


@pytest.mark.parametrize("unit", ["stop it, you IDIOT! ", "naïve café – "])
def test_long_text_gives_the_same_tokens_as_its_parts(unit: str) -> None:
    assert list(TOKENIZER.tokens(unit * 900)) == list(TOKENIZER.tokens(unit)) * 900


def test_saved_tokenizer_is_equal_and_carries_its_own_unicode_rule() -> None:
    text = TOKENIZER.to_json()
    loaded = Tokenizer.from_json(text)
    assert loaded == TOKENIZER
    # A server with another Unicode version follows the file, not its interpreter: with the
    # capital sharp s unknown to the file, it stays as it is.
    document = json.loads(text)
    at = document["fold_from"].index("ẞ")
    for name in ("fold_from", "fold_to"):
        document[name] = document[name][:at] + document[name][at + 1 :]
    older = Tokenizer.from_json(json.dumps(document))
    assert list(TOKENIZER.tokens("ẞ")) == ["ß"]
    assert list(older.tokens("ẞ")) == ["ẞ"]


def test_vocabulary_is_by_frequency_and_does_not_depend_on_order() -> None:
    assert TOKENIZER.vocabulary[:4] == (*SPECIAL_TOKENS, "you")
    shuffled = TEXTS[:]
    random.Random(1).shuffle(shuffled)
    assert build_tokenizer(shuffled, max_vocab=100, max_len=12) == TOKENIZER
    assert len(build_tokenizer(TEXTS, max_vocab=5, max_len=12).vocabulary) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "the tokenizer file is not readable"),
        ("{}", "the tokenizer file is not readable"),
        (TOKENIZER.to_json().replace('"format_version":2', '"format_version":9'), "is 9"),
        (TOKENIZER.to_json().replace('"[PAD]",', ""), "the vocabulary starts with"),
    ],
)
def test_damaged_file_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        Tokenizer.from_json(text)
    assert "\n" not in str(error.value)


def test_module_needs_nothing_but_the_standard_library() -> None:
    """It runs inside the server, beside its copy of contract.py."""
    source = Path(tokenizer_module.__file__).read_text("utf-8")
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) - {"__future__"} == {"contract"}
