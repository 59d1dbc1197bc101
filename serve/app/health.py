"""`GET /app/health`: 200 when a comment is really scored by way of this application, else 503.

Also 200 when it is refused because too much waits: what watches must not start anew, or leave
alone, what has too much to do.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from contract import MODEL_VERSION
from serve.app.refusals import OVERLOADED_KIND, Refusal
from serve.app.services import Services
from serve.app.settings import HEALTH_PATH


def routes(services: Services) -> list[Route]:
    """The endpoint; haproxy asks it, too."""

    async def health(_: Request) -> JSONResponse:
        try:
            found = await services.scorer.probe()
        except Refusal as refusal:
            if refusal.kind != OVERLOADED_KIND:
                raise
            return JSONResponse({"status": "overloaded"})
        return JSONResponse({"status": "scores", MODEL_VERSION: found.version})

    return [Route(HEALTH_PATH, health, methods=["GET"])]
