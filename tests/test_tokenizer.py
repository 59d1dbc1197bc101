"""The one text -> ids rule: written expectations, properties, and its plain reference in Python."""

from __future__ import annotations

import functools
import json
import random
import re
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traffic.comments import REAL_COMMENTS
from contract import CLS_ID, SPECIAL_TOKENS, UNK_ID, BadInput
from core.binding import NativeTokenizer
from tests.compare_tokenizers import (
    VARIANTS,
    compare,
    differences,
    generated,
    read_comments,
    real_comments,
    varied,
)
from tests.reference_tokenizer import ReferenceTokenizer
from train.data import lookalikes
from train.data.tokenizer import Respelling, Tokenizer, build_tokenizer, oov_rates

TEXTS = ["you are a wonderful person !", "you are an idiot", "don't be an idiot , you"] * 3
TOKENIZER = build_tokenizer(TEXTS, max_vocab=100, max_len=12)
WORDS = "you are an idiot stupid shit asshole fuck ass as is a this the of and wonderful".split()
ENGLISH = list(dict.fromkeys([*"abcdefghijklmnopqrstuvwxyz*!$@.,1", *WORDS]))
RESPELLING = Tokenizer(SPECIAL_TOKENS + tuple(ENGLISH), 64, respelling=Respelling())
UNKNOWN_TO_IT = Tokenizer(RESPELLING.vocabulary, RESPELLING.max_len)
EVASIVE_TEXT = st.lists(st.sampled_from([*ENGLISH, " ", " ", "  ", "\n", "\u200b", "é", "ß", "4"]))
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
        ("İstanbul ΣΩΣ", ["istanbul", "oωo"]),  # no context: every sigma folds alike
        ("e\u0301te\u0301 été", ["ete", "ete"]),  # a stroke over a letter is not seen as one
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("😀😀 ok", ["😀", "😀", "ok"]),
        ("a\x00b\x7fc", ["a", "b", "c"]),
        ("½ ①", ["½", "1"]),
        ("[CLS] [PAD]", ["[", "cls", "]", "[", "pad", "]"]),
    ],
)
def test_rule(text: str, tokens: list[str]) -> None:
    assert list(TOKENIZER.tokens(text)) == tokens


@pytest.mark.parametrize(
    "text",
    [
        "іdіоt",  # Cyrillic
        "ΙDΙΟΤ",  # Greek capitals
        "ídïõt",
        "ıdıøŧ",  # dotless, with strokes
        "ɪᴅɪᴏᴛ",  # small capitals
        "i\u0336d\u0336i\u0336o\u0336t\u0336",  # a stroke through each letter
        "\U0001f178\U0001f173\U0001f178\U0001f17e\U0001f183",  # in black squares
        "\U0001f1ee\U0001f1e9\U0001f1ee\U0001f1f4\U0001f1f9",  # of flags
        "i\u034fd\ufe0fi\U000e0100ot",  # marks that cannot be seen
        "𝔦𝔡𝔦𝔬𝔱",
    ],
)
def test_letters_are_read_as_what_they_show(text: str) -> None:
    assert list(TOKENIZER.tokens(text)) == ["idiot"]


@pytest.mark.parametrize("blank", ["\u3164", "\u2800", "\u115f", "\uffa0"])
def test_a_filler_is_a_space(blank: str) -> None:
    assert list(TOKENIZER.tokens(f"an{blank}idiot")) == ["an", "idiot"]


def test_letters_of_other_scripts_are_unicodes_confusables() -> None:
    confusables = pytest.importorskip("confusable_homoglyphs.confusables").confusables_data
    pairs = [(char, other["c"]) for char, others in confusables.items() for other in others]
    table = json.loads(lookalikes._TABLE.read_text("utf-8"))["letters"]
    assert lookalikes.of_confusables(pairs) == table


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
        folded = compatible if len(compatible) == 1 else char
        folded = folded.lower() if len(folded.lower()) == 1 else folded
        if ord(folded) in lookalikes.VANISHING:
            continue
        if not folded.isascii():
            shown = lookalikes.shown()
            folded = shown.get(char) or shown.get(folded) or folded
        char = folded
        category = unicodedata.category(char)
        if category[0] in "LMN":
            word += char
            continue
        tokens += [word] if word else []
        word = ""
        if category[0] != "Z" and category not in ("Cc", "Cs"):
            tokens.append(char)
    assert list(TOKENIZER.tokens(text)) == tokens + ([word] if word else [])


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
        (TOKENIZER.to_json().replace('"you",', '"you","you",'), "has a token twice"),
    ],
)
def test_damaged_file_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        Tokenizer.from_json(text)
    assert "\n" not in str(error.value)


def _reference(tokenizer: Tokenizer) -> ReferenceTokenizer:
    return ReferenceTokenizer.from_json(tokenizer.to_json())


def _words(text: str, tokenizer: Tokenizer = RESPELLING) -> str:
    ids = tokenizer.encode(text)
    assert _reference(tokenizer).encode(text) == ids
    return " ".join(tokenizer.vocabulary[i] for i in ids[1:])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("F*CK 1d10t sh1t stuuupid", "fuck idiot shit stupid"),
        ("you are an i d i o t!", "you are an idiot !"),
        ("y o u a r e a n i d i o t", "you are an idiot"),
        ("$h1t!! a$$hole @ss", "shit ! ! asshole ass"),
        ("asss thhhis", "ass this"),  # two of a letter before one
        ("f\u200bu*k ｆ*ck", "fuck fuck"),
        ("f@ck", "fuck"),  # a mark may stand for any letter, too
        ("sutpid idoit si", "stupid idiot [UNK]"),
        ("idiotidiot assassassassass", "idiot idiot ass ass ass ass"),  # at most four
        ("a*b", "a * b"),
        ("**idiot**", "* * idiot * *"),
        ("this is a b", "this is a b"),
        ("x q z", "x q z"),  # no known words
        ("4 1 1 a", "[UNK] 1 1 a"),
        ("naïve*", "[UNK] *"),
        ("qwertz", "[UNK]"),
    ],
)
def test_disguised_words_are_read_as_known_ones(text: str, words: str) -> None:
    assert _words(text) == words


@given(st.lists(st.sampled_from([w for w in ENGLISH if len(w) > 1])))
def test_known_words_keep_their_ids(words: list[str]) -> None:
    text = " ".join(words)
    assert RESPELLING.encode(text) == UNKNOWN_TO_IT.encode(text)


@given(ANY_TEXT | EVASIVE_TEXT.map("".join))
def test_ids_without_respelling_are_those_of_the_tokens(text: str) -> None:
    id_of = {token: i for i, token in enumerate(UNKNOWN_TO_IT.vocabulary)}
    ids = [CLS_ID, *(id_of.get(token, UNK_ID) for token in UNKNOWN_TO_IT.tokens(text))]
    most = UNKNOWN_TO_IT.max_len
    assert UNKNOWN_TO_IT.encode_and_cut(text) == (ids[:most], len(ids) > most)


@given(EVASIVE_TEXT.map("".join), st.integers(1, 8))
def test_a_cut_changes_no_id_before_it(text: str, max_len: int) -> None:
    for tokenizer in (RESPELLING, _with_phrases()):
        whole, _ = replace(tokenizer, max_len=10_000).encode_and_cut(text)
        short, cut = replace(tokenizer, max_len=max_len).encode_and_cut(text)
        assert short == whole[:max_len]
        assert cut == (len(whole) > max_len)


@functools.cache
def _pair(name: str, max_len: int) -> tuple[Tokenizer, ReferenceTokenizer]:
    subjects = {"plain": UNKNOWN_TO_IT, "respelling": RESPELLING, "phrases": _with_phrases()}
    subject = replace(subjects[name], max_len=max_len)
    return subject, _reference(subject)


ANY_POINT = st.text(st.characters(), max_size=60)
"""Lone surrogates, too: text that never was UTF-8."""


@pytest.mark.parametrize("name", ["plain", "respelling", "phrases"])
@given(ANY_TEXT | ANY_POINT | EVASIVE_TEXT.map("".join), st.integers(1, 80))
def test_ids_are_those_of_the_reference(name: str, text: str, max_len: int) -> None:
    subject, reference = _pair(name, max_len)
    assert subject.encode_and_cut(text) == reference.encode_and_cut(text)
    assert subject.tokens(text) == list(reference.tokens(text))


@given(ANY_POINT | EVASIVE_TEXT.map("".join), st.integers(1, 8), st.integers(0, 80))
def test_windows_read_on_by_the_same_rule(text: str, max_len: int, more: int) -> None:
    subject, reference = _pair("respelling", max_len)
    expected = reference.encode_and_cut(text, max_len + more)
    assert subject.native.encode(text, max_len + more) == expected


# Words that steps c and d read, with one character changed, doubled, dropped or put in.
NEAR_WORDS = st.builds(
    lambda word, at, put, cut: word[: at % len(word)] + put + word[at % len(word) + cut :],
    st.sampled_from([a + b for a in ("", *WORDS) for b in WORDS]),
    st.integers(0, 30),
    st.sampled_from(["", "a", "e", "s", "0", "1", "3", "5", "7", "ss", "iii", "*", "!", "é", "Z"]),
    st.integers(0, 2),
)


@given(st.lists(NEAR_WORDS, max_size=12), st.sampled_from([" ", " ", "-", "!", "[", "\x7f", "ß"]))
def test_words_near_known_ones_are_read_as_the_reference_does(
    words: list[str], between: str
) -> None:
    subject, reference = _pair("respelling", 64)
    text = between.join(words)
    assert subject.encode(text) == reference.encode(text)


@pytest.mark.parametrize("max_len", [2, 4])
def test_phrases_of_one_chunk_are_merged_before_the_cut(max_len: int) -> None:
    words = ("idiot", "the", "#", "idiot idiot")
    tokenizer = Tokenizer(SPECIAL_TOKENS + words, max_len, respelling=Respelling())
    text = "idiotidiot#idiotidiot#idiotidiot the"
    phrase, mark = 6, 5
    expected = [CLS_ID, phrase, mark, phrase][:max_len], True
    assert tokenizer.encode_and_cut(text) == expected
    assert _reference(tokenizer).encode_and_cut(text) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"deleted": [104]},  # "h"
        {"fold_from": "é", "fold_to": "A"},
        {"fold_from": "é", "fold_to": "\0"},
        {"space": [[101, 101]]},
        {"vocabulary": [*SPECIAL_TOKENS, "\ud800"]},
    ],
    ids=str,
)
def test_a_rule_that_no_unicode_version_has_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as error:
        Tokenizer.from_json(json.dumps(json.loads(RESPELLING.to_json()) | changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-2],
        lambda text: text + "]",
        lambda text: text.replace('"max_len":64', '"max_len":0'),
        lambda text: text.replace('"max_len":64', '"max_len":1e99'),
        lambda text: text.replace('"max_len":64', '"max_len":' + "[" * 100_000),
        lambda text: text.replace('"word":[[', '"word":[["a",'),
        lambda text: text.replace('"word":[[', '"word":[[9,3],['),
        lambda text: text.replace('"word":[[', '"word":[[0,99999999],['),
        lambda text: text.replace('"fold_from":"', '"fold_from":"\U0010ffff\U0010fffe'),
        lambda text: text.replace('"vocabulary":[', '"vocabulary":["\\ud800",'),
        lambda text: text.replace('"vocabulary":[', '"vocabulary":[7,'),
        lambda text: text.replace('"space":', '"spice":'),
    ],
)  # fmt: skip
def test_the_core_itself_refuses_a_damaged_file(damage: Callable[[str], str]) -> None:
    text = RESPELLING.to_json()
    damaged = damage(text)
    assert damaged != text
    with pytest.raises(BadInput) as error:
        NativeTokenizer(damaged)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"pieces": 0},
        {"pieces": None},
        {"readings": ["ab"]},
        {"readings": []},
        {"readings": ["A" * 9]},
        {"mask": ""},
        {"mask": "é"},
        {"lookalikes": "é" * 9},
    ],
    ids=str,
)
def test_a_respelling_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    document = json.loads(RESPELLING.to_json())
    document["respelling"] |= changes
    with pytest.raises(BadInput, match=r"the tokenizer's respelling|pieces"):
        Tokenizer.from_json(json.dumps(document))


@functools.cache
def _of_real_comments() -> tuple[Tokenizer, ReferenceTokenizer]:
    texts = read_comments(REAL_COMMENTS)[:3_000]
    tokenizer = build_tokenizer(
        texts, max_vocab=5_000, max_len=256, respelling=Respelling(), phrases=500
    )
    return tokenizer, _reference(tokenizer)


@pytest.mark.skipif(not real_comments(), reason="no real comments are beside this checkout")
@pytest.mark.parametrize("path", real_comments(), ids=lambda path: path.name)
def test_real_comments_are_read_as_the_reference_does(path: Path) -> None:
    """Some of each file; tests.compare_tokenizers reads all."""
    texts = read_comments(path)
    rng = random.Random(0)
    tokenizer, reference = _of_real_comments()
    some = rng.sample(texts, min(len(texts), 700))
    assert differences(tokenizer.native, reference, some, rng) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_generated_texts_are_read_as_the_reference_does(variant: str) -> None:
    text = json.dumps(varied(json.loads(RESPELLING.to_json()), variant))
    native, reference = NativeTokenizer(text), ReferenceTokenizer.from_json(text)
    rng = random.Random(1)
    assert differences(native, reference, generated(rng, ENGLISH, 2_000), rng) == []
    # A rule that reads otherwise is noticed.
    other = NativeTokenizer(
        json.dumps(json.loads(text) | {"vocabulary": ["[PAD]", "[UNK]", "[CLS]"]})
    )
    assert len(differences(other, reference, generated(rng, ENGLISH, 200), rng)) > 100


def test_comparison_counts_every_text(tmp_path: Path) -> None:
    path, comments = tmp_path / "tokenizer.json", tmp_path / "comments.csv"
    path.write_text(RESPELLING.to_json(), "utf-8")
    comments.write_text('text,label\n"f*ck, i d i o t",1\n,0\n', "utf-8")
    document = compare(path, [comments], 30, seed=5, workers=1)
    assert document["compared"] == 32
    assert document["comments"] == {"comments.csv": 2}
    assert document["differences"] == 0
    with pytest.raises(BadInput, match="no file at"):
        compare(path, [tmp_path / "none.csv"], 1, seed=5)
    with pytest.raises(BadInput, match="no file at"):
        compare(tmp_path / "none.json", [], 1, seed=5)
    comments.write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(BadInput, match="has no column of"):
        compare(path, [comments], 1, seed=5)


@given(st.lists(EVASIVE_TEXT.map("".join), max_size=8))
def test_ids_do_not_depend_on_what_was_read_before(texts: list[str]) -> None:
    expected = [replace(RESPELLING).encode(text) for text in texts]
    reader = replace(RESPELLING)
    assert [reader.encode(text) for text in reversed(texts)] == expected[::-1]


def test_threads_share_a_tokenizer() -> None:
    texts = [f"sh1t{i} f*ck{i} stuuupid idiot" for i in range(500)]
    expected = [RESPELLING.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: [RESPELLING.encode(text) for text in texts], range(8)):
            assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"sh1t{i}q" for i in range(30_000)),
        "&".join(f"sh1t{i}q" for i in range(30_000)),
        "f*c" * 80_000,
        "a b c d " * 30_000,
        "\x00 " * 100_000 + "sh1t",
    ],
    ids=["words", "one chunk", "one word", "spelled out", "nothing"],
)
def test_hostile_text_is_read_no_further_than_it_counts(text: str) -> None:
    subject, reference = _pair("respelling", 64)
    assert subject.encode_and_cut(text) == reference.encode_and_cut(text)


def test_file_of_version_1_gives_the_same_ids() -> None:
    document = json.loads(UNKNOWN_TO_IT.to_json())
    assert document.pop("respelling") is None
    document["format_version"] = 1
    loaded = Tokenizer.from_json(json.dumps(document))
    assert loaded == UNKNOWN_TO_IT
    assert _words("f*ck sh1t i d i", loaded) == "f * [UNK] [UNK] i d i"
    assert Tokenizer.from_json(RESPELLING.to_json()) == RESPELLING


def test_the_file_decides_how_words_are_read() -> None:
    document = json.loads(RESPELLING.to_json())
    document["respelling"] |= {"lookalikes": "9", "readings": ["h"], "mask": "#"}
    other = Tokenizer.from_json(json.dumps(document))
    assert _words("s9it sh1t f#ck", other) == "shit [UNK] fuck"


def _with_phrases() -> Tokenizer:
    return replace(RESPELLING, vocabulary=(*RESPELLING.vocabulary, "you are", "are an"))


def test_phrases_are_frequent_pairs_of_words() -> None:
    tokenizer = build_tokenizer(TEXTS, max_vocab=12, max_len=12, phrases=2)
    assert tokenizer.vocabulary[-2:] == ("an idiot", "you are")  # "! you" is no pair of words
    assert len(tokenizer.vocabulary) == 12
    assert _words("you are an idiot , you", tokenizer) == "you are an idiot , you"
    assert len(tokenizer.encode("you are an idiot , you")) == 5
    apart = build_tokenizer(TEXTS, max_vocab=12, max_len=12, phrases=2, unmerged=["idiot"])
    assert "you are" in apart.vocabulary
    assert "an idiot" not in apart.vocabulary
    # From the left: "are an" finds its first word taken.
    assert _words("you are an", _with_phrases()).split() == ["you", "are", "an"]
    assert len(_with_phrases().encode("you are an are an")) == 4


def test_oov_rates_before_and_after() -> None:
    rates = oov_rates(["sh1t sh1t qwertz you"], RESPELLING)
    assert rates == {"before": 0.75, "after": 0.25}
    assert oov_rates([], RESPELLING) == {"before": 0, "after": 0}
