"""The functional tests of a classifier: the suite itself, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from contract import BadInput
from quality import checklist
from quality.checklist import judge, suite
from quality.models import Model


def test_the_suite_has_enough_capabilities_and_sentences() -> None:
    found = checklist.load_suite()
    sentences = {text for one in found for case in one.cases for text in case}
    assert len(found) >= 30
    assert len(sentences) >= 3000
    assert {one.kind for one in found} == {suite.TOXIC, suite.HARMLESS, *suite.KINDS}
    assert min(len(one.cases) for one in found) >= 16
    for text in sentences:
        assert not set(text) & set("{}<>"), text
        assert " a a" not in f" {text}".lower().replace(" a a lot", ""), text


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("leet", "1d107"),
        ("spaced", "i d i o t"),
        ("asterisk", "id*ot"),
        ("homoglyph", "іdіоt"),
        ("invisible", "i\u200bd\u200bi\u200bo\u200bt"),
        ("fullwidth", "ｉｄｉｏｔ"),
        ("mathematical", "𝐢𝐝𝐢𝐨𝐭"),
        ("accented", "ídíót"),
        ("capitals", "IDIOT"),
    ],
)
def test_a_change_is_to_the_marked_words_alone(change: str, changed: str) -> None:
    sentence = suite._sentence("You <{x}>, you.", {"x": "idiot"}, suite.CHANGES[change])
    assert sentence == f"You {changed}, you."


def test_the_article_and_the_capital_follow_the_word() -> None:
    assert suite._sentence("{x} is a {y}.", {"x": "she", "y": "idiot"}, str) == "She is an idiot."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- [", "cannot be read"),
        ("name: x", "holds a dict, expected a list"),
        ("- {says: x}", "without `name` or `says`"),
        ("- {name: a, says: x, expect: rude, templates: [x]}", "is of kind 'rude'"),
        ("- {name: a, says: x, kind: sideways, pairs: [[x, y]]}", "is of kind 'sideways'"),
        ("- {name: a, says: x, expect: toxic, change: rot13, templates: [x]}", "no change 'rot13'"),
        (
            "- {name: a, says: x, expect: toxic, templates: ['{y}']}",
            "no list {y}, expected one of w",
        ),
        (
            "- &a {name: a, says: x, expect: toxic, templates: [x]}\n- *a",
            "two capabilities 'a'",
        ),
    ],
)
def test_a_wrong_suite_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text("w: [x]", "utf-8")
    (tmp_path / "own.yaml").write_text(text, "utf-8")
    with pytest.raises(BadInput, match=words) as refused:
        suite.load_suite(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "logits", "holds"),
    [
        ("toxic", [[0.0], [-0.1]], [True, False]),
        ("harmless", [[0.0], [-0.1]], [False, True]),
        ("invariance", [[-1.0, -9.0], [1.0, -1.0]], [True, False]),
        ("higher", [[0.0, 0.1], [0.0, 0.0]], [True, False]),
        ("lower", [[0.0, -0.1], [0.0, 0.0]], [True, False]),
        ("not-higher", [[0.0, 0.2], [0.0, 0.3]], [True, False]),
        ("not-lower", [[0.0, -0.2], [0.0, -0.3]], [True, False]),
    ],
)
def test_what_is_right(kind: str, logits: Sequence[Sequence[float]], holds: list[bool]) -> None:
    assert judge.right(kind, np.array(logits), 0.0).tolist() == holds


def model(name: str, logit: float) -> Model:
    return Model(name, "made", {}, lambda texts: np.full(len(texts), logit, np.float32))


def test_shares_intervals_and_examples_of_models_that_flag_all_and_nothing() -> None:
    found = checklist.checked([model("all", 3.0), model("nothing", -3.0)])
    insult = found["capabilities"]["direct-insult"]["models"]
    assert insult["all"]["passed"] == 1.0
    assert insult["all"]["low"] < 1.0 == insult["all"]["high"]
    assert insult["nothing"]["passed"] == 0.0
    assert len(insult["nothing"]["wrong"]) == 3
    assert found["capabilities"]["emoji-added"]["models"]["all"]["passed"] == 1.0
    assert found["capabilities"]["insult-added"]["models"]["all"]["passed"] == 0.0
    judged = checklist.bars(found, "nothing")
    assert not judged["checklist_lowest"]["holds"]
    assert judged["checklist_mean"]["value"] == found["mean"]["nothing"] < 0.8
    rows = checklist.rows(found)
    assert rows[-1]["capability"] == "mean"
    assert {"capability", "wanted", "cases", "all", "nothing"} == set(rows[0])
    wrong = checklist.sentences_wrong(found, "nothing")
    assert {"capability", "wanted", "sentence"} == set(wrong[0])
