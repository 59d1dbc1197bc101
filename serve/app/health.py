"""`GET /app/health`: 200 when a comment is really scored by way of this application, else 503."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from contract import MODEL_VERSION
from serve import probe
from serve.app.services import Services
from serve.app.settings import HEALTH_PATH


def routes(services: Services) -> list[Route]:
    """The endpoint; haproxy asks it, too."""

    async def health(_: Request) -> JSONResponse:
        found = await services.scorer.probe(probe.COMMENT)
        return JSONResponse({"status": "scores", MODEL_VERSION: found.version})

    return [Route(HEALTH_PATH, health, methods=["GET"])]
