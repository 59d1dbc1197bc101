"""The messages of the Perspective Comment Analyzer API, v1alpha1: what is asked, and errors.

Names are accepted in camelCase and in snake_case, as Google's APIs do; null is as if left out.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from serve.app.refusals import Refusal

MAX_TOKEN = 1024
"""Longest `clientToken` and `sessionId`, which only come back."""


class Text(msgspec.Struct):
    """A comment, or one of its context."""

    text: str | None = None
    type: str | None = None


class Context(msgspec.Struct):
    """What the comment answers; it is not read."""

    entries: list[Text] | None = None
    articleAndParentComment: dict[str, Any] | None = None  # noqa: N815


class Parameters(msgspec.Struct, rename="camel"):
    """How an attribute is asked for."""

    score_type: str | None = None
    score_threshold: float | None = None


class Common(msgspec.Struct, rename="camel"):
    """What both requests have."""

    comment: Text | None = None
    context: Context | None = None
    languages: list[str] | None = None
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None


class AnalyzeRequest(Common, rename="camel"):
    """`AnalyzeCommentRequest`. Nothing is ever stored, whatever `doNotStore` says."""

    requested_attributes: dict[str, Parameters | None] | None = None
    span_annotations: bool | None = None
    do_not_store: bool | None = None


class Score(msgspec.Struct):
    """A score and its type."""

    value: float | None = None
    type: str | None = None


class SuggestedScores(msgspec.Struct, rename="camel"):
    """What somebody says an attribute's score should be."""

    summary_score: Score | None = None


class SuggestRequest(Common, rename="camel"):
    """`SuggestCommentScoreRequest`."""

    attribute_scores: dict[str, SuggestedScores | None] | None = None


_Kind = TypeVar("_Kind", AnalyzeRequest, SuggestRequest)
_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (AnalyzeRequest, SuggestRequest)
}
_SNAKE = re.compile(rb'"[a-z]++(?:_[a-z]++)++"\s*+:')


def decoded(kind: type[_Kind], body: bytes) -> _Kind:
    """A body as a request. Raises Refusal as that API does."""
    try:
        request: _Kind = (
            msgspec.convert(_camel(msgspec.json.decode(body)), kind)
            if _SNAKE.search(body)
            else _decoders[kind].decode(body)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        words = str(error) if isinstance(error, msgspec.ValidationError) else "expected one object"
        raise Refusal(400, f"Invalid JSON payload received. {words}") from error
    for name in ("client_token", "session_id", "community_id"):
        if len(getattr(request, name) or "") > MAX_TOKEN:
            raise Refusal(400, f"{name} has more than {MAX_TOKEN} characters")
    return request


def _camel(value: Any) -> Any:
    """The same with the names of all members in camelCase; attributes' names have capitals."""
    if isinstance(value, list):
        return [_camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {_camel_name(name): _camel(one) for name, one in value.items()}


def _camel_name(name: str) -> str:
    if not name.islower():
        return name
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
