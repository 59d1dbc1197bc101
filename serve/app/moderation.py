"""`POST /v1/moderations`: what clients of OpenAI's moderation endpoint send and read.

    {"input": "you are kind"}             ->  one result
    {"input": ["...", "..."]}             ->  one each
    {"input": [{"type": "text", "text": "..."}, ...]}  ->  one: they are the parts of one input

The served model has one category, `toxicity`, which that API has not, and those of JUDGED whose
attribute it was trained with. The others of that API are there, as clients require, and say so in
that API's own way: false, 0, and no type of input that they were applied to.
"""

from __future__ import annotations

import functools

import msgspec

from contract import PUBLIC_MODEL
from serve.app.decisions import Decisions, Versions
from serve.app.http import REQUEST_ID, Endpoint, Scope
from serve.app.kserve import ServedScores
from serve.app.refusals import Refusal
from serve.app.scorer import BatchingScorer

CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
    *("illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual"),
    *("sexual/minors", "violence", "violence/graphic"),
)
"""Those of that API."""
JUDGED = {
    "harassment": "insult",
    "harassment/threatening": "threat",
    "hate": "identity_attack",
}
"""Attribute that a category is, where the model has it; docs/compatible.md says why these."""


class TextPart(msgspec.Struct):
    """A part of one input; only text is read."""

    type: str
    text: str | None = None


class Request(msgspec.Struct):
    """What is asked; `model` may be any name, for the answer says which model it was."""

    input: str | list[str | TextPart]
    model: str | None = None


_decoder = msgspec.json.Decoder(Request)
_APPLIED = '["text"]'


def _judged(names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Categories that a model with these attributes judges, and which of them each is."""
    known = {name: at for at, name in enumerate(names)}
    pairs = ((category, known.get(JUDGED.get(category, ""))) for category in CATEGORIES)
    return [(category, at) for category, at in pairs if at is not None]


@functools.lru_cache(maxsize=8)
def _result(names: tuple[str, ...]) -> str:
    """Of one input, to be filled in: flagged, the categories judged, their scores."""
    judged = [category for category, _ in _judged(names)]

    def members(value: str, of_judged: str) -> str:
        return "".join(f'"{name}":{of_judged if name in judged else value},' for name in CATEGORIES)

    return (
        f'{{"flagged":%s,"categories":{{{members("false", "%s")}"{PUBLIC_MODEL}":%s}},'
        f'"category_scores":{{{members("0.0", "%r")}"{PUBLIC_MODEL}":%r}},'
        f'"category_applied_input_types":{{{members("[]", _APPLIED)}"{PUBLIC_MODEL}":{_APPLIED}}}}}'
    )


def _filled(found: ServedScores, decisions: Decisions) -> list[str]:
    """A result of each input. It is flagged where any category is."""
    template, judged = _result(found.names), _judged(found.names)
    if not judged:
        flags = [_BOOL[value >= decisions.threshold] for value in found.probability]
        return [
            template % (flag, flag, value)
            for flag, value in zip(flags, found.probability, strict=True)
        ]
    least = [decisions.threshold_of(found.names[at]) for _, at in judged]
    results = []
    for value, row in zip(found.probability, found.attributes, strict=True):
        own = [row[at] for _, at in judged]
        said = [one >= bound for one, bound in zip(own, least, strict=True)]
        said.append(value >= decisions.threshold)
        results.append(template % (_BOOL[any(said)], *(_BOOL[one] for one in said), *own, value))
    return results


_ANSWER = f'{{"id":"modr-%s","model":"{PUBLIC_MODEL}-%s","results":[%s]}}'
_BOOL = ("false", "true")


def moderation_endpoint(scorer: BatchingScorer, versions: Versions) -> Endpoint:
    """What answers `POST /v1/moderations`."""

    async def moderate(body: bytes, scope: Scope) -> bytes:
        asked = _asked(body).input
        if isinstance(asked, str):
            found = await scorer.score([asked])
        elif all(isinstance(one, TextPart) for one in asked):
            found = (await scorer.score([_text_of(one) for one in asked])).worst()
        else:
            found = await scorer.score([_text_of(one) for one in asked])
        results = _filled(found, versions.of(found.version))
        identity = scope[REQUEST_ID].decode()
        return (_ANSWER % (identity, found.version, ",".join(results))).encode()

    return moderate


def _asked(body: bytes) -> Request:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        missing = "missing required field `input`" in str(error)
        raise Refusal(
            400,
            'the body is not JSON like {"input": "..."} or {"input": ["...", ...]}',
            parameter="input",
            kind="missing_required_parameter" if missing else "",
        ) from error


def _text_of(one: str | TextPart) -> str:
    if isinstance(one, str):
        return one
    if one.type != "text" or one.text is None:
        raise Refusal(
            400,
            "a part of the input is no text, expected text: no image is read",
            parameter="input",
        )
    return one.text
