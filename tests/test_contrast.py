"""Sentences by rules: what they are, and that no test is among them.

What a student is told of them: tests/test_distill.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import yaml

from quality.checklist.suite import load_suite
from train.methods import contrast

ROOT = Path(__file__).parent.parent
CHECKLIST = ROOT / "quality" / "checklist"
AROUND = ["thank you for your long and careful work on the article about old stone bridges"]


def bare(text: str) -> str:
    """Letters alone."""
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold()))


def test_the_same_seed_gives_the_same_sentences_of_both_kinds() -> None:
    texts, probabilities = contrast.sentences(2000, AROUND, seed=3)
    again, same = contrast.sentences(2000, AROUND, seed=3)
    other, _ = contrast.sentences(2000, AROUND, seed=4)
    assert texts == again and (probabilities == same).all() and texts != other
    assert len(set(texts)) == len(texts) == len(probabilities) > 1500
    assert set(probabilities.tolist()) == {
        np.float32(contrast.TOXIC),
        np.float32(contrast.HARMLESS),
    }
    assert 0.4 < (probabilities > 0.5).mean() < 0.6
    assert not any("{" in text or "}" in text for text in texts)
    within = sum("stone bridges" in text or "thank you for" in text for text in texts)
    assert 0.1 < within / len(texts) < 0.4
    assert contrast.sentences(0, AROUND, seed=3)[0] == []


def test_every_list_and_kind_is_used() -> None:
    rules = contrast.read_rules()
    templates = [
        one for kind in (rules.toxic, rules.harmless) for all_of in kind.values() for one in all_of
    ]
    slots = {slot for template in templates for slot in re.findall(r"\{(\w+)\}", template)}
    assert slots == set(rules.words)
    assert len(set(map(bare, templates))) == len(templates)
    for word, also in (
        ("should be", "{group} should be {harmed}"),
        ("deserve", "deserve the same"),
    ):
        both = [
            any(word in one for all_of in kind.values() for one in all_of)
            for kind in (rules.toxic, rules.harmless)
        ]
        assert all(both), f"{word} tells the kind; {also}"


def test_no_sentence_of_the_checklist_is_learned() -> None:
    """Nor a template of it, nor a group that is held out there."""
    texts, _ = contrast.sentences(20_000, [], seed=0)
    tested = {bare(text) for one in load_suite() for case in one.cases for text in case}
    assert not tested & set(map(bare, texts))
    rules = contrast.read_rules()
    written = "\n".join(path.read_text("utf-8") for path in CHECKLIST.glob("*.yaml"))
    forms = {bare(re.sub(r"\{\w+\}", "", line)) for line in written.splitlines()}
    for kind in (rules.toxic, rules.harmless):
        for templates in kind.values():
            for one in templates:
                skeleton = bare(re.sub(r"\{\w+\}", "", one))
                assert len(skeleton.split()) < 4 or skeleton not in forms, one
    lists = yaml.safe_load((CHECKLIST / "lists.yaml").read_text("utf-8"))
    held_out = {
        bare(w) for name, words in lists.items() if name.endswith("held_out") for w in words
    }
    learned = {bare(str(word)) for words in rules.words.values() for word in words}
    assert held_out and not held_out & learned
