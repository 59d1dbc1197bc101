"""`POST /v1/moderations`: what clients of OpenAI's moderation endpoint send and read.

    {"input": "you are kind"}             ->  one result
    {"input": ["...", "..."]}             ->  one each
    {"input": [{"type": "text", "text": "..."}, ...]}  ->  one: they are the parts of one input

The served model has one category, `toxicity`, which that API has not. Those that it has and the
model has not are there, as clients require, and say so in that API's own way: false, 0, and no type
of input that they were applied to.
"""

from __future__ import annotations

import msgspec

from contract import PUBLIC_MODEL
from serve.app.decisions import Versions
from serve.app.http import REQUEST_ID, Endpoint, Scope
from serve.app.refusals import Refusal
from serve.app.scorer import BatchingScorer

CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
    *("illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual"),
    *("sexual/minors", "violence", "violence/graphic"),
)
"""Those of that API; the model has none of them."""


class TextPart(msgspec.Struct):
    """A part of one input; only text is read."""

    type: str
    text: str | None = None


class Request(msgspec.Struct):
    """What is asked; `model` may be any name, for the answer says which model it was."""

    input: str | list[str | TextPart]
    model: str | None = None


_decoder = msgspec.json.Decoder(Request)


def _members(value: str) -> str:
    return "".join(f'"{name}":{value},' for name in CATEGORIES)


_RESULT = (
    f'{{"flagged":%s,"categories":{{{_members("false")}"{PUBLIC_MODEL}":%s}},'
    f'"category_scores":{{{_members("0.0")}"{PUBLIC_MODEL}":%r}},'
    f'"category_applied_input_types":{{{_members("[]")}"{PUBLIC_MODEL}":["text"]}}}}'
)
_ANSWER = f'{{"id":"modr-%s","model":"{PUBLIC_MODEL}-%s","results":[%s]}}'
_BOOL = ("false", "true")


def moderation_endpoint(scorer: BatchingScorer, versions: Versions) -> Endpoint:
    """What answers `POST /v1/moderations`."""

    async def moderate(body: bytes, scope: Scope) -> bytes:
        asked = _asked(body).input
        if isinstance(asked, str):
            found = await scorer.score([asked])
            values = found.probability
        elif all(isinstance(one, TextPart) for one in asked):
            found = await scorer.score([_text_of(one) for one in asked])
            values = (max(found.probability),)
        else:
            found = await scorer.score([_text_of(one) for one in asked])
            values = found.probability
        threshold = versions.of(found.version).threshold
        results = []
        for value in values:
            flagged = _BOOL[value >= threshold]
            results.append(_RESULT % (flagged, flagged, value))
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
