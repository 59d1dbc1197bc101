"""`/v1alpha1/comments:analyze` and `comments:suggestscore`, as Perspective's clients send them.

The served model has TOXICITY, and those of NAMES that it was trained with. The score of a span is
that of its sentence alone; where no spans are asked for, there is one, the whole comment, as there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contract import PUBLIC_MODEL
from serve.app import markup
from serve.app.decisions import Versions
from serve.app.http import Endpoint, Scope
from serve.app.kserve import ServedScores
from serve.app.labels import LabelFile
from serve.app.perspective_messages import (
    AnalyzeRequest,
    Parameters,
    SuggestRequest,
    Text,
    decoded,
)
from serve.app.refusals import Refusal
from serve.app.scorer import BatchingScorer
from serve.app.sentences import sentences

ATTRIBUTE = PUBLIC_MODEL.upper()
NAMES = (
    *("SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT"),
    *("SEXUALLY_EXPLICIT", "OBSCENE"),
)
"""Other attributes of that API; the model's own of the same name in lower case is each of them."""
_PROBABILITY = "PROBABILITY"
_TYPES = (None, "", "SCORE_TYPE_UNSPECIFIED", _PROBABILITY)
_TEXT_TYPES = (None, "", "TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT")


@dataclass(frozen=True)
class _Comment:
    """What is scored, and where it stands in what was sent."""

    text: str
    spans: Sequence[tuple[int, int]]
    """Of `text`, in characters."""
    origins: Sequence[int] | None
    """Of each character, where it is not its own place."""
    sent: str


def analyze_endpoint(scorer: BatchingScorer, versions: Versions) -> Endpoint:
    """What answers `comments:analyze`."""

    async def analyze(body: bytes, scope: Scope) -> dict[str, Any]:
        del scope
        asked = decoded(AnalyzeRequest, body)
        parameters = _parameters(asked, versions)
        comment = _comment(asked.comment, spans=bool(asked.span_annotations))
        texts = [comment.text, *(comment.text[begin:end] for begin, end in comment.spans)]
        found = await scorer.score(texts)
        known = versions.of(found.version).languages
        languages = asked.languages or known
        _refuse_languages(languages, known)
        document: dict[str, Any] = {}
        by_name = _by_name(found)
        _refuse_attributes(parameters, list(by_name))  # an update may have come between
        scores = {
            name: own
            for name, how in parameters.items()
            if (own := _scores(comment, by_name[name], how.score_threshold))
        }
        if scores:
            document["attributeScores"] = scores
        document |= {"languages": languages, "detectedLanguages": []}
        if asked.client_token:
            document["clientToken"] = asked.client_token
        return document

    return analyze


def suggest_endpoint(labels: LabelFile | None) -> Endpoint:
    """What answers `comments:suggestscore`: a correction goes to the label file, if any."""

    async def suggest(body: bytes, scope: Scope) -> dict[str, Any]:
        del scope
        asked = decoded(SuggestRequest, body)
        comment = _comment(asked.comment, spans=False)
        value = _suggested(asked)
        if labels is None:
            raise Refusal(
                403,
                "no file of labels is set, so nothing that is suggested is kept; start the server "
                "with --labels FILE",
            )
        await asyncio.to_thread(labels.append, comment.text, value)
        answer: dict[str, Any] = {"detectedLanguages": []}
        if asked.languages:
            answer["requestedLanguages"] = asked.languages
        if asked.client_token:
            answer["clientToken"] = asked.client_token
        return answer

    return suggest


# --- What is asked -------------------------------------------------------------------------
def _parameters(asked: AnalyzeRequest, versions: Versions) -> dict[str, Parameters]:
    """How each attribute is asked for. Raises Refusal for unknown ones, and for none."""
    attributes = asked.requested_attributes
    if not attributes:
        raise Refusal(400, f"requestedAttributes is empty, expected {ATTRIBUTE}")
    if attributes.keys() != {ATTRIBUTE}:
        _refuse_attributes(attributes, [ATTRIBUTE, *_named(versions.current().attributes)])
    parameters = {name: how or Parameters() for name, how in attributes.items()}
    for name, how in parameters.items():
        if how.score_type not in _TYPES:
            raise Refusal(400, f"scoreType of {name} is not {_PROBABILITY}, the only one there is")
    return parameters


def _named(attributes: Sequence[str]) -> list[str]:
    """The model's attributes that this API has too, by its names for them."""
    return [name.upper() for name in attributes if name.upper() in NAMES]


def _by_name(found: ServedScores) -> dict[str, Sequence[float]]:
    """Scores of all texts, by this API's names."""
    columns = zip(found.names, zip(*found.attributes, strict=True), strict=True)
    others = {name.upper(): own for name, own in columns if name.upper() in NAMES}
    return {ATTRIBUTE: found.probability, **others}


def _refuse_attributes(asked: Any, known: Sequence[str]) -> None:
    unknown = sorted(set(asked) - set(known))
    if unknown:
        name = unknown[0] if unknown[0].isidentifier() and len(unknown[0]) < 64 else "that"
        has = f"{ATTRIBUTE} only" if len(known) == 1 else ", ".join(known)
        raise Refusal(400, f"Unknown requested attribute: {name}; the served model has {has}")


def _comment(given: Text | None, *, spans: bool) -> _Comment:
    text = (given and given.text) or ""
    origins: Sequence[int] | None = None
    sent = text
    if given and given.type == "HTML":
        seen = markup.visible(text)
        text, origins = seen.text, seen.origins
    elif given and given.type not in _TEXT_TYPES:
        raise Refusal(400, "comment.type is not PLAIN_TEXT or HTML")
    if not text.strip():
        raise Refusal(400, "Comment must be non-empty.", kind="COMMENT_EMPTY")
    found = sentences(text) if spans else []
    return _Comment(text, found, origins, sent)


def _suggested(asked: SuggestRequest) -> float:
    scores = asked.attribute_scores or {}
    _refuse_attributes(scores, [ATTRIBUTE])  # the file of labels has one column
    suggested = scores.get(ATTRIBUTE)
    value = suggested.summary_score.value if suggested and suggested.summary_score else None
    if value is None or not 0 <= value <= 1:
        raise Refusal(400, f"attributeScores.{ATTRIBUTE}.summaryScore.value is not from 0 to 1")
    return value


def _refuse_languages(asked: Sequence[str], known: Sequence[str]) -> None:
    """Refuse languages that the version's manifest does not name, if it names any."""
    for language in asked if known else ():
        if language.partition("-")[0].lower() not in known:
            name = language if len(language) <= 16 and language.isprintable() else "that"
            raise Refusal(
                400,
                f"Attribute {ATTRIBUTE} does not support request languages: {name}",
                kind="LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
                details={
                    "languageNotSupportedByAttributeError": {
                        "detectedLanguages": [name],
                        "attribute": ATTRIBUTE,
                    }
                },
            )


# --- What is answered ------------------------------------------------------------------------
def _scores(
    comment: _Comment, values: Sequence[float], threshold: float | None
) -> dict[str, Any] | None:
    """Scores of the attribute that are at least the threshold; None when there is none."""
    least = float("-inf") if threshold is None else threshold
    spans = comment.spans or [(0, len(comment.text))]
    places = _utf16_places(comment, spans)
    scored = zip(places, values[1:] or values, strict=True)
    kept = [
        {"begin": begin, "end": end, "score": _score(value)}
        for (begin, end), value in scored
        if value >= least
    ]
    found: dict[str, Any] = {"spanScores": kept} if kept else {}
    if values[0] >= least:
        found["summaryScore"] = _score(values[0])
    return found or None


def _score(value: float) -> dict[str, Any]:
    return {"value": value, "type": _PROBABILITY}


def _utf16_places(comment: _Comment, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans as that API counts them: in UTF-16 code units of what was sent, the end exclusive."""
    marks = [mark for span in spans for mark in span]
    if comment.origins is not None:
        marks = [comment.origins[mark] for mark in marks]
    if not comment.sent.isascii():
        units, at, counted = [], 0, 0
        for mark in marks:  # they grow
            counted += (mark - at) + sum(c > "\uffff" for c in comment.sent[at:mark])
            at = mark
            units.append(counted)
        marks = units
    return list(zip(marks[::2], marks[1::2], strict=True))
