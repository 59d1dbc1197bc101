"""`POST /score`: the request that a person can type.

{"text": "you are kind"}  ->  {"probability": 0.01, "model_version": "1"}
{"text": ["...", "..."]}, or just ["...", "..."]  ->  {"probability": [0.01, 0.9], ...}

A version with attributes adds "attributes": {"insult": 0.02, ...}, or a list of such.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs

import msgspec

from contract import ATTRIBUTES, MODEL_VERSION, PROBABILITY
from serve.app.http import Endpoint, Scope
from serve.app.refusals import Refusal
from serve.app.scorer import BatchingScorer


class _Request(msgspec.Struct):
    text: str | list[str]


_decoder = msgspec.json.Decoder(_Request | list[str] | str)


def score_endpoint(scorer: BatchingScorer) -> Endpoint:
    """What answers `POST /score`."""

    async def score(body: bytes, scope: Scope) -> dict[str, object]:
        del scope
        try:
            asked = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(
                400, 'the body is not {"text": "..."}, {"text": ["...", ...]} or ["...", ...]'
            ) from error
        text = asked.text if isinstance(asked, _Request) else asked
        return await answer(scorer, text)

    return score


def typed_endpoint(scorer: BatchingScorer, *, on: bool) -> Endpoint:
    """What answers `GET /score?text=`, where that is on."""

    async def score(body: bytes, scope: Scope) -> dict[str, object]:
        del body
        if not on:
            raise Refusal(
                405,
                "GET /score is off, for addresses with comments in them end up in logs; POST, or "
                "start the server with --get-score",
            )
        try:
            query = parse_qs(scope["query_string"].decode("ascii"), True, True, errors="strict")
        except (ValueError, UnicodeDecodeError) as error:
            raise Refusal(400, "the query is not text=..., percent-encoded UTF-8") from error
        texts = query.get("text", [])
        if len(texts) != 1:
            raise Refusal(400, f"the query has {len(texts)} texts, expected one; send ?text=...")
        return await answer(scorer, texts[0])

    return score


async def answer(scorer: BatchingScorer, text: str | Sequence[str]) -> dict[str, object]:
    """The document for one comment, or for several. Raises Refusal."""
    single = isinstance(text, str)
    found = await scorer.score([text] if isinstance(text, str) else text)
    probability = found.probability[0] if single else found.probability
    document: dict[str, object] = {PROBABILITY: probability}
    if found.names:
        every = [dict(zip(found.names, row, strict=True)) for row in found.attributes]
        document[ATTRIBUTES] = every[0] if single else every
    return document | {MODEL_VERSION: found.version}
