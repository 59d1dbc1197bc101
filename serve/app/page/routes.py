"""Routes of the page: static files with a strict policy, and JSON beside them.

    GET  /ui/                  the page
    GET  /ui/static/...        its style, scripts and the library that reads CSV
    GET  /ui/api/about         the version that serves, its thresholds, the published versions
    GET  /ui/api/live          what the servers and haproxy count
    GET  /ui/api/monitor       what a monitor of these servers found last
    POST /ui/api/read          {"text": "..."} -> how the comment was read
    POST /ui/api/compare       {"text": [...], "version": 2} -> scores of another version

Every answer has the headers of _HEADERS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from contract import MODEL_VERSION, PROBABILITY
from serve.app.http import JsonEndpoint, Receive, Scope, Send
from serve.app.page.live import Live
from serve.app.page.monitored import Monitored
from serve.app.page.other_versions import OtherVersions
from serve.app.page.reading import Readers
from serve.app.refusals import Refusal, plain
from serve.app.services import Services
from serve.app.settings import PAGE_PATH

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
Body = TypeVar("Body")


class _Text(msgspec.Struct):
    text: str


class _Compared(msgspec.Struct):
    text: list[str]
    version: int


def routes(services: Services) -> list[BaseRoute]:
    """All of them, under PAGE_PATH."""
    static = _static_files()
    readers = Readers(services.settings.views)
    others = OtherVersions(services.settings.repository, services.settings.public_key)
    live = Live(services.settings, services.scorer.recent)
    monitored = Monitored(services.settings)

    async def to_page(_: Request) -> Response:
        return RedirectResponse(f"{PAGE_PATH}/")

    async def about(_: bytes, __: Scope) -> dict[str, Any]:
        found = await services.scorer.probe()
        return {
            MODEL_VERSION: found.version,
            "thresholds": services.versions.of(found.version).thresholds,
            "versions": await others.listed(),
        }

    async def counted(_: bytes, __: Scope) -> dict[str, Any]:
        return await live.document()

    async def monitor(_: bytes, __: Scope) -> dict[str, Any]:
        return await monitored.document()

    async def read(body: bytes, _: Scope) -> dict[str, Any]:
        asked = _decoded(body, _Text, '{"text": "..."}')
        found = await services.scorer.probe()  # which version serves
        return await readers.read(found.version, asked.text)

    async def compare(body: bytes, _: Scope) -> dict[str, Any]:
        asked = _decoded(body, _Compared, '{"text": ["..."], "version": 1}')
        probability = await others.score(asked.version, asked.text)
        return {PROBABILITY: probability, MODEL_VERSION: str(asked.version)}

    return [
        Route(PAGE_PATH, to_page),
        Mount(
            PAGE_PATH,
            routes=[
                Route("/", _of_file(static["index.html"])),
                *(
                    Route(f"/static/{name}", _of_file(file))
                    for name, file in static.items()
                    if name != "index.html"
                ),
                Route("/api/about", JsonEndpoint(about, plain), methods=["GET"]),
                Route("/api/live", JsonEndpoint(counted, plain), methods=["GET"]),
                Route("/api/monitor", JsonEndpoint(monitor, plain), methods=["GET"]),
                Route("/api/read", JsonEndpoint(read, plain), methods=["POST"]),
                Route("/api/compare", JsonEndpoint(compare, plain), methods=["POST"]),
            ],
            middleware=[Middleware(_WithHeaders)],
        ),
    ]


class _WithHeaders:
    """Adds _HEADERS to every answer."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, sending)


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _static_files() -> dict[str, _File]:
    """Content of each file by its name; they are few and small, so they are kept."""
    found: dict[str, _File] = {}
    root = files("serve.app.page") / "static"
    for prefix, folder in (("", root), ("vendor/", root / "vendor")):
        for file in folder.iterdir():
            if file.is_file():
                content = file.read_bytes()
                kind = _KINDS.get(PurePath(file.name).suffix, "text/plain")
                etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
                found[prefix + file.name] = _File(content, kind, etag)
    return found


def _of_file(file: _File) -> Callable[[Request], Awaitable[Response]]:
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}  # asked for again after an update

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return answer


def _decoded(body: bytes, kind: type[Body], form: str) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not {form}; send it so") from error
