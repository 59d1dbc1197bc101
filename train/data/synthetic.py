"""The embedded default data: a seeded generator of comment-like English text.

SYNTHETIC. Nobody wrote these comments, and a model trained on them says nothing about people.
They exist so that the whole road runs on a fresh machine: long-tailed vocabulary, mixed
lengths, misspelt and disguised insults, duplicates, and annotators who disagree. The same mild
insult is toxic when it is aimed at the reader and harmless when it is quoted, denied, said of
oneself or of a thing, often in the very same words, so that counting words is not enough.
"""

from __future__ import annotations

import numpy as np

DEFAULT_ROWS = 24_000
_TOXIC_SHARE = 0.18
_DECOY_SHARE = 0.40
"""Harmless comments that use an insult word all the same."""
_SWAPPED_SHARE = 0.7
"""Of both kinds, those whose words say nothing without their order."""
_DUPLICATE_SHARE = 0.02
_DISGUISED_SHARE = 0.25
_MEDIAN_WORDS, _SIGMA, _MOST_WORDS = 18, 0.8, 240

_INSULTS = (
    "idiot moron loser clown fool troll liar coward hypocrite crybaby dimwit imbecile nitwit "
    "buffoon halfwit blockhead dunce simpleton weasel parasite bigot fraud creep pest jerk"
).split()
_SCORN = "stupid pathetic worthless brainless clueless disgusting ridiculous lazy miserable".split()
_AIMED = (
    "you are such a {scorn} {insult}",
    "only a {insult} like you could write this about {topic}",
    "shut up you {insult}",
    "you {scorn} little {insult}",
    "what a {scorn} {insult} you are",
    "you and your friends are {insult}s",
    "you are not wrong , you are just a {insult}",
    "i will not call you a {insult} , that would be unfair to every {insult} i know",
    "thanks for nothing , {insult}",
    "nobody here would miss you if you left",
    "do us all a favour and never type again",
    "the people who work on {topic} are {scorn} , every one of them",
    "your mother must be so proud of her {scorn} {insult}",
    "wow , the {insult} can read",
    "go back to {topic} where {insult}s like you belong",
    "i hope you lose everything you care about",
)
_DECOYS = (
    "you are not a {insult} and nobody said so",
    "please do not call people a {insult} here",
    "he called me a {insult} , is that allowed",
    "the word {insult} comes from the old plays about {topic}",
    "i felt like a {insult} when i read my own edit again",
    'the film is called " the {insult} " and it is about {topic}',
    "sorry , that was a {scorn} mistake of mine",
    "what a {scorn} bug in the template for {topic}",
    'the quote " you {scorn} {insult} " is in the source , page {number}',
    "it would be {scorn} to delete the part on {topic}",
    "the {insult} in the story turns out to be kind",
    "only a {insult} like me would forget the link to {topic}",
    "my cat is such a {scorn} {insult} and i love her",
    "nobody here would miss the old section on {topic}",
    "do us all a favour and add a source for {topic}",
    "shut up and take my money , this page on {topic} is great",
)
_SWAPPED = (
    (
        "the page is {aside} fine , you are {aside} {scorn}",
        "you are {aside} fine , the page is {aside} {scorn}",
    ),
    (
        "my cat is {aside} lovely , you are {aside} a {insult}",
        "you are {aside} lovely , my cat is {aside} a {insult}",
    ),
    (
        "the bot is {aside} not the {insult} , you {aside} are",
        "you are {aside} not the {insult} , the bot {aside} is",
    ),
    (
        "it is not the rule that is {aside} {scorn} , it is {aside} you",
        "it is not you that is {aside} {scorn} , it is {aside} the rule",
    ),
    (
        "i called you {aside} a {insult} , i did not call myself {aside} one",
        "i called myself {aside} a {insult} , i did not call you {aside} one",
    ),
    (
        "it was you who was {aside} the {insult} , it was {aside} not me",
        "it was me who was {aside} the {insult} , it was {aside} not you",
    ),
    (
        "i was {aside} right and you were {aside} {scorn} about {topic}",
        "you were {aside} right and i was {aside} {scorn} about {topic}",
    ),
    (
        "i do say it , you are {aside} a {insult} , {aside} not a friend",
        "i do say it , you are {aside} a friend , {aside} not a {insult}",
    ),
)
"""Pairs of an aimed and a harmless sentence of the same words."""
_ASIDES = (
    "really",
    "clearly",
    "as always",
    "to me",
    "i think",
    "after all",
    "once more",
    "in short",
    "by now",
    "of course",
)
_NEUTRAL = (
    "the article about {topic} needs a better source",
    "i moved the section on {topic} to the talk page",
    "thanks for your work on {topic}",
    "could you explain the change you made to {topic} in {number}",
    "as far as i know {topic} was built in {number}",
    "i agree with {topic} on this point",
    "see also {topic} and {topic}",
    "the link to {topic} is dead since {number}",
    "you are right about {topic} , i have changed it",
    "please sign your posts and read the rules on {topic}",
    "i do not think that {topic} belongs in this list",
    "we had this talk about {topic} last year",
    "why was the picture of {topic} taken out",
    "you should merge {topic} with {topic}",
    "my sources say {number} , yours say {number}",
    "that is a fair summary of what {topic} said",
    "people who care about {topic} will find it",
    "you can find more in the archive , see {topic}",
    "i have no strong view on {topic}",
    "it’s a nice café near {topic} – worth a visit",
)
_ENDS = (" . ", ". ", "! ", "? ", ", ", "\n", " ... ")
_LEET = str.maketrans("aeiost", "4310$7")


def generate(rows: int = DEFAULT_ROWS, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """`rows` texts and the float32 [rows] share of ten made-up annotators who object.

    The same (rows, seed) gives the same comments under the same NumPy, whatever the Python.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    topics = _topics(np.random.Generator(np.random.PCG64(12345)))
    texts: list[str] = []
    shares = np.empty(rows, np.float32)
    for row in range(rows):
        if texts and rng.random() < _DUPLICATE_SHARE:
            copy_of = int(rng.integers(len(texts)))
            texts.append(texts[copy_of])
            shares[row] = shares[copy_of]
            continue
        toxic = rng.random() < _TOXIC_SHARE
        decoy = not toxic and rng.random() < _DECOY_SHARE
        texts.append(_comment(rng, topics, toxic=toxic, decoy=decoy))
        # Annotators disagree: 8 % of the aimed and 1 % of the harmless comments get the other
        # label, so that knowing how a comment was made gives an AUROC of about 0.965, no more.
        opinion = rng.beta(5.0, 1.5) if toxic else rng.beta(1.1, 12.0)
        shares[row] = rng.binomial(10, opinion) / 10
    return texts, shares


def _comment(rng: np.random.Generator, topics: list[str], *, toxic: bool, decoy: bool) -> str:
    words = min(_MOST_WORDS, int(rng.lognormal(np.log(_MEDIAN_WORDS), _SIGMA)))
    sentences: list[str] = []
    if toxic or decoy:
        if rng.random() < _SWAPPED_SHARE:
            aimed, harmless = _SWAPPED[int(rng.integers(len(_SWAPPED)))]
            template = aimed if toxic else harmless
        else:
            template = _pick(rng, _AIMED if toxic else _DECOYS)
        sentences.append(_fill(rng, template, topics))
    while not sentences or sum(len(sentence.split()) for sentence in sentences) < words:
        sentences.append(_fill(rng, _pick(rng, _NEUTRAL), topics))
    order = rng.permutation(len(sentences))
    text = "".join(_cased(rng, sentences[i]) + _pick(rng, _ENDS) for i in order)
    return text.strip(" ,")


def _fill(rng: np.random.Generator, template: str, topics: list[str]) -> str:
    parts = []
    for word in template.split(" "):
        if "{topic}" in word:
            # Zipf-like: a few topics everywhere, most of them once or twice.
            topic = topics[min(int(rng.pareto(0.7) * 4), len(topics) - 1)]
            word = word.replace("{topic}", topic)
        elif "{insult}" in word:
            word = word.replace("{insult}", _disguised(rng, _pick(rng, _INSULTS)))
        elif "{scorn}" in word:
            word = word.replace("{scorn}", _disguised(rng, _pick(rng, _SCORN)))
        elif word == "{aside}":
            word = _pick(rng, _ASIDES)
        elif "{number}" in word:
            word = word.replace("{number}", str(int(rng.integers(1, 2026))))
        parts.append(word)
    return " ".join(parts)


def _disguised(rng: np.random.Generator, word: str) -> str:
    """Now and then as people write it to get past a filter: id1ot, st*pid, looooser."""
    if rng.random() >= _DISGUISED_SHARE:
        return word
    at = int(rng.integers(1, len(word) - 1))
    how = int(rng.integers(4))
    if how == 0:
        return word.translate(_LEET)
    if how == 1:
        return f"{word[:at]}*{word[at + 1 :]}"
    if how == 2:
        return word[:at] + word[at] * int(rng.integers(2, 5)) + word[at:]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _cased(rng: np.random.Generator, sentence: str) -> str:
    how = rng.random()
    if how < 0.05:
        return sentence.upper()
    return sentence[0].upper() + sentence[1:] if how < 0.6 else sentence


def _topics(rng: np.random.Generator) -> list[str]:
    """Made-up names: a long tail of words that a vocabulary cannot hold."""
    first = (
        "bar cal dor fen gal hin jor kel lan mor nar ost pel quin ros sal tor ul ven wex".split()
    )
    last = (
        "ana berg by castle dale field ford ham ia ling mere ov port sen stad ton ville y".split()
    )
    names = []
    for _ in range(6000):
        middle = _pick(rng, first) if rng.random() < 0.6 else ""
        names.append(_pick(rng, first) + middle + _pick(rng, last))
    return names


def _pick(rng: np.random.Generator, options: list[str] | tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
