"""The application: `create_app(settings)` gives an ASGI application.

The endpoints of scoring are looked up by method and path and are plain ASGI; all else is
Starlette's, whose routes come from the modules beside this one that have `routes(services)`.
A page adds such a module (or package) and one line in `create_app`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from serve.app import health, openapi
from serve.app.decisions import Versions
from serve.app.http import JsonEndpoint, Receive, Scope, Send, refusal_of, with_request_id
from serve.app.labels import LabelFile
from serve.app.moderation import moderation_endpoint
from serve.app.page import routes as page
from serve.app.perspective import analyze_endpoint, suggest_endpoint
from serve.app.refusals import Refusal, moderation_error, perspective_error, plain
from serve.app.score import score_endpoint, typed_endpoint
from serve.app.scorer import BatchingScorer
from serve.app.services import Services
from serve.app.settings import (
    ANALYZE_PATH,
    MODERATION_PATH,
    SCORE_PATH,
    SUGGEST_PATH,
    AppSettings,
)
from serve.app.tracing import TracedEndpoint, make_tracer


@dataclass(frozen=True)
class App:
    """The ASGI application."""

    endpoints: Mapping[tuple[str, str], JsonEndpoint | TracedEndpoint]
    """By method and path."""
    rest: Starlette
    services: Services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            endpoint = self.endpoints.get((scope["method"], scope["path"]))
            if endpoint:
                await endpoint(scope, receive, send)
                return
            send = with_request_id(scope, send)
        await self.rest(scope, receive, send)


def create_app(settings: AppSettings) -> App:
    """An application for one event loop, which `uvicorn` runs."""
    labels = LabelFile(Path(settings.labels)) if settings.labels else None
    tracer = make_tracer()
    versions = Versions(settings.views, settings.canary_views)
    scorer = BatchingScorer(
        settings.servers, settings.large, versions.has_attributes, traced=tracer is not None
    )
    services = Services(settings, scorer, versions, labels)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        services.scorer.close()
        if tracer:
            tracer.close()

    rest = Starlette(
        routes=[*health.routes(services), *openapi.routes(settings), *page.routes(services)],
        lifespan=lifespan,
        exception_handlers={Refusal: _refuse, HTTPException: _refuse_http, Exception: _fail},
    )
    endpoints = _endpoints(services)
    if tracer:
        traced = {path: TracedEndpoint(one, tracer) for path, one in endpoints.items()}
        return App(traced, rest, services)
    return App(endpoints, rest, services)


def _endpoints(services: Services) -> dict[tuple[str, str], JsonEndpoint]:
    scorer, versions = services.scorer, services.versions
    typed = typed_endpoint(scorer, on=services.settings.get_score)
    return {
        ("POST", SCORE_PATH): JsonEndpoint(score_endpoint(scorer, versions), plain),
        ("GET", SCORE_PATH): JsonEndpoint(typed, plain),
        ("POST", MODERATION_PATH): JsonEndpoint(
            moderation_endpoint(scorer, versions), moderation_error
        ),
        ("POST", ANALYZE_PATH): JsonEndpoint(analyze_endpoint(scorer, versions), perspective_error),
        ("POST", SUGGEST_PATH): JsonEndpoint(suggest_endpoint(services.labels), perspective_error),
    }


async def _refuse(_: Request, error: Any) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(plain(error), error.status, headers)


async def _fail(request: Request, error: Exception) -> JSONResponse:
    return await _refuse(request, refusal_of(error, request.scope))


async def _refuse_http(_: Request, error: Any) -> JSONResponse:
    words = {404: "there is nothing at this path", 405: "this path takes another method"}
    document = {"error": words.get(error.status_code, str(error.detail))}
    return JSONResponse(document, error.status_code, error.headers)
