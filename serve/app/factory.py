"""The application: `create_app(settings)` gives an ASGI application.

The endpoints of scoring are looked up by method and path and are plain ASGI; all else is
Starlette's, whose routes come from the modules beside this one that have `routes(services)`.
A page adds such a module (or package) and one line in `create_app`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from serve.app import health
from serve.app.http import JsonEndpoint, Receive, Scope, Send
from serve.app.refusals import Refusal, plain
from serve.app.score import score_endpoint
from serve.app.scorer import Scorer
from serve.app.services import Services
from serve.app.settings import AppSettings


@dataclass(frozen=True)
class App:
    """The ASGI application."""

    endpoints: Mapping[tuple[str, str], JsonEndpoint]
    """By method and path."""
    rest: Starlette
    services: Services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            endpoint = self.endpoints.get((scope["method"], scope["path"]))
            if endpoint:
                await endpoint(scope, receive, send)
                return
        await self.rest(scope, receive, send)


def create_app(settings: AppSettings) -> App:
    """An application for one event loop, which `uvicorn` runs."""
    services = Services(settings, Scorer(settings.servers, settings.large))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        services.scorer.close()

    rest = Starlette(
        routes=[*health.routes(services)],
        lifespan=lifespan,
        exception_handlers={Refusal: _refuse, HTTPException: _refuse_http},
    )
    endpoints = {("POST", "/score"): JsonEndpoint(score_endpoint(services.scorer), plain)}
    return App(endpoints, rest, services)


async def _refuse(_: Request, error: Any) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(plain(error), error.status, headers)


async def _refuse_http(_: Request, error: Any) -> JSONResponse:
    words = {404: "there is nothing at this path", 405: "this path takes another method"}
    document = {"error": words.get(error.status_code, str(error.detail))}
    return JSONResponse(document, error.status_code, error.headers)
