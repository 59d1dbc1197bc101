"""`GET /openapi.json`: what the application takes and gives, as an OpenAPI 3.1 document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.app import moderation, perspective_messages
from serve.app.score import ScoreRequest
from serve.app.settings import (
    ANALYZE_PATH,
    HEALTH_PATH,
    MODERATION_PATH,
    OPENAPI_PATH,
    SCORE_PATH,
    SUGGEST_PATH,
    AppSettings,
)

_STRING, _NUMBER, _BOOLEAN = ({"type": kind} for kind in ("string", "number", "boolean"))
_TEXTS = {"type": "array", "items": _STRING, "minItems": 1}
_ERRORS = {
    "400": "the request cannot be used as it is, and says which part",
    "401": "the key is missing or unknown, where keys are asked for",
    "413": "the body is too large",
    "429": "too many requests of this key, or connections of this address",
    "503": "overloaded, or no server is ready; see Retry-After",
}


def routes(settings: AppSettings) -> list[Route]:
    """The endpoint."""
    document = msgspec.json.encode(openapi(settings))

    async def answer(_: Request) -> Response:
        return Response(document, media_type="application/json")

    return [Route(OPENAPI_PATH, answer, methods=["GET"])]


def openapi(settings: AppSettings) -> dict[str, Any]:
    """The document."""
    asked, schemas = msgspec.json.schema_components(
        [
            moderation.Request,
            perspective_messages.AnalyzeRequest,
            perspective_messages.SuggestRequest,
            ScoreRequest,
        ],
        ref_template="#/components/schemas/{name}",
    )
    scored = _object(
        probability=_one_or_several(_NUMBER),
        attributes=_one_or_several(_map(_NUMBER)),
        model_version=_STRING,
        flagged=_one_or_several(_BOOLEAN),
        threshold=_NUMBER,
    )
    bodies = {"anyOf": [asked[3], _STRING, _TEXTS]}
    paths = {
        SCORE_PATH: {
            "post": _operation("Score a comment, or several", scored, bodies),
        },
        MODERATION_PATH: {
            "post": _operation("OpenAI's moderation request", _moderated(), asked[0]),
        },
        ANALYZE_PATH: {
            "post": _operation("Perspective's request for a score", _analyzed(), asked[1]),
        },
        SUGGEST_PATH: {
            "post": _operation("Perspective's correction of a score", {"type": "object"}, asked[2]),
        },
        HEALTH_PATH: {"get": _operation("200 when a comment is scored", _object(status=_STRING))},
    }
    if settings.get_score:
        query = {"name": "text", "in": "query", "required": True, "schema": _STRING}
        typed = _operation("Score a comment", scored)
        paths[SCORE_PATH]["get"] = typed | {"parameters": [query]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "toxicity-serving", "version": version("toxicity-serving")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "query", "name": "key"},
            },
        },
    }


def _operation(summary: str, answer: Any, body: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "the answer", "content": _json(answer)},
            **{status: {"description": words} for status, words in _ERRORS.items()},
        },
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": _json(body)}
    return found


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(**members: Any) -> dict[str, Any]:
    return {"type": "object", "properties": members}


def _one_or_several(kind: Any) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "array", "items": kind}]}


def _map(values: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


def _moderated() -> dict[str, Any]:
    result = _object(
        flagged=_BOOLEAN,
        categories=_map(_BOOLEAN),
        category_scores=_map(_NUMBER),
        category_applied_input_types=_map({"type": "array", "items": _STRING}),
    )
    return _object(id=_STRING, model=_STRING, results={"type": "array", "items": result})


def _analyzed() -> dict[str, Any]:
    score = _object(value=_NUMBER, type=_STRING)
    span = _object(begin={"type": "integer"}, end={"type": "integer"}, score=score)
    scores = _object(summaryScore=score, spanScores={"type": "array", "items": span})
    languages = {"type": "array", "items": _STRING}
    return _object(
        attributeScores=_map(scores),
        languages=languages,
        detectedLanguages=languages,
        clientToken=_STRING,
    )
