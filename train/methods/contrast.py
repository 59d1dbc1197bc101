"""Sentences with labels of their own, by rules, for a student: `--contrast`.

    python -m train --distill runs/model --contrast 4000 --d-model 64 --n-layers 1

What labelled comments hold seldom no teacher knows: that "I will stab you" is a threat without an
insult, that "keep them out of our town" is aimed at people, and that the same words can be a
report, a quotation, a denial or an idiom. Templates (contrast.yaml) give pairs of both kinds from
the same words, each kind as often; and an insult is put among the words of a harmless comment,
which makes it toxic, or a harmless sentence, which does not. They are few beside the comments,
and of people's words they say nothing: what they gain and cost is in docs/classifier.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

_RULES = Path(__file__).with_suffix(".yaml")
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_INSERTED = 0.2
"""Share of the sentences that stand among the words of a harmless comment."""
_INSERTS = {"toxic": "insult-of-somebody", "harmless": "who-somebody-is"}
_PASSAGE = (20, 80)
"""Words of the comment around them."""
_STREAM = 2
"""Of the seed: the numbers drawn here are none of the split's, the batches' or the passages'."""
TOXIC, HARMLESS = 0.95, 0.03
"""Probabilities that a student learns: a rule is no annotator, and may err."""


@dataclass(frozen=True)
class Rules:
    """contrast.yaml."""

    words: Mapping[str, Sequence[str]]
    toxic: Mapping[str, Sequence[str]]
    harmless: Mapping[str, Sequence[str]]


def read_rules() -> Rules:
    """The templates and their lists."""
    return Rules(**yaml.safe_load(_RULES.read_text("utf-8")))


def sentences(
    count: int, harmless_comments: Sequence[str], *, seed: int
) -> tuple[list[str], np.ndarray]:
    """Up to `count` sentences, none twice, and their probabilities, float32 [n].

    Some stand in `harmless_comments`. The same comments and seed give the same sentences.
    """
    rules, rng = read_rules(), np.random.default_rng((seed, _STREAM))
    found: dict[str, float] = {}
    for number in range(count):
        kind, target = (("toxic", TOXIC), ("harmless", HARMLESS))[number % 2]
        shown: Mapping[str, Sequence[str]] = getattr(rules, kind)
        inserted = len(harmless_comments) > 0 and rng.random() < _INSERTED
        name = _INSERTS[kind] if inserted else list(shown)[rng.integers(len(shown))]
        text = _filled(str(rng.choice(shown[name])), rules.words, rng)
        if inserted:
            text = _among(text, harmless_comments[rng.integers(len(harmless_comments))], rng)
        found.setdefault(text, target)
    return list(found), np.fromiter(found.values(), np.float32, len(found))


def _filled(template: str, words: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    """Its slots filled; as people write: a capital at the beginning or not, a stop or not."""
    text = _SLOT.sub(lambda slot: str(rng.choice(words[slot[1]])), template)
    text = _ARTICLE.sub(r"\1n ", text)
    if template[0] == "{" and rng.random() < 0.7:
        text = text[0].upper() + text[1:]
    form = rng.random()
    if form < 0.15:
        return text.lower()
    if form < 0.2:
        return text.upper()
    return text.rstrip(".") if form < 0.4 else text


def _among(sentence: str, comment: str, rng: np.random.Generator) -> str:
    """The sentence between the words of a passage of the comment."""
    words = comment.split()
    length = min(len(words), int(rng.integers(*_PASSAGE)))
    start = int(rng.integers(len(words) - length + 1))
    at = start + int(rng.integers(length + 1))
    return " ".join([*words[start:at], sentence, *words[at : start + length]])
