"""`POST /score`: the request that a person can type.

{"text": "you are kind"}  ->  {"probability": 0.01, "model_version": "1"}
{"text": ["...", "..."]}, or just ["...", "..."]  ->  {"probability": [0.01, 0.9], ...}
{"text": "...", "decide": true}  ->  the same with {"flagged": false, "threshold": 0.62}

"decide" asks for the decision by the threshold of the version that answered, "threshold": 0.8 for
that by a threshold of the client's own.

A version with attributes adds "attributes": {"insult": 0.02, ...}, or a list of such.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec

from contract import ATTRIBUTES, FLAGGED, MODEL_VERSION, PROBABILITY, THRESHOLD
from serve.app.decisions import Versions
from serve.app.http import Endpoint, Scope
from serve.app.refusals import Refusal
from serve.app.scorer import BatchingScorer

_Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ScoreRequest(msgspec.Struct, omit_defaults=True):
    """What is asked, where it is more than a comment or a list of them."""

    text: str | list[str]
    decide: bool = False
    threshold: _Threshold | None = None


_decoder = msgspec.json.Decoder(ScoreRequest | list[str] | str)
_EXPECTED = (
    'the body is not {"text": "..."}, {"text": ["...", ...]} or ["...", ...], perhaps with '
    '"decide": true or "threshold": a number from 0 to 1'
)


def score_endpoint(scorer: BatchingScorer, versions: Versions) -> Endpoint:
    """What answers `POST /score`."""

    async def score(body: bytes, scope: Scope) -> dict[str, Any]:
        del scope
        try:
            asked = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, _EXPECTED) from error
        if not isinstance(asked, ScoreRequest):
            return await answer(scorer, asked)
        found = await answer(scorer, asked.text)
        if asked.decide or asked.threshold is not None:
            _decide(found, asked.threshold, versions)
        return found

    return score


def _decide(found: dict[str, Any], asked: float | None, versions: Versions) -> None:
    """Add the decision to an answer, by the asked threshold or by that of its version."""
    threshold = versions.of(found[MODEL_VERSION]).threshold if asked is None else asked
    scores = found[PROBABILITY]
    single = isinstance(scores, float)
    found[FLAGGED] = scores >= threshold if single else [score >= threshold for score in scores]
    found[THRESHOLD] = threshold


def typed_endpoint(scorer: BatchingScorer, *, on: bool) -> Endpoint:
    """What answers `GET /score?text=`, where that is on."""

    async def score(body: bytes, scope: Scope) -> dict[str, Any]:
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


async def answer(scorer: BatchingScorer, text: str | Sequence[str]) -> dict[str, Any]:
    """The document for one comment, or for several. Raises Refusal."""
    single = isinstance(text, str)
    found = await scorer.score([text] if isinstance(text, str) else text)
    probability = found.probability[0] if single else found.probability
    document: dict[str, object] = {PROBABILITY: probability}
    if found.names:
        every = [dict(zip(found.names, row, strict=True)) for row in found.attributes]
        document[ATTRIBUTES] = every[0] if single else every
    return document | {MODEL_VERSION: found.version}
