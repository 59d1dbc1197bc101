"""The application as a backend of haproxy: its check, its bound, what is not sent again.

Keywords as in the haproxy 2.6 configuration manual.
"""

from __future__ import annotations

import string
from pathlib import Path

from serve.app import settings as app
from serve.refusals import NO_SERVER, error, instead

APP_BACKEND = "app"
_MOST_REQUESTS, _QUEUE = 512, "250ms"
"""Requests in the application, and how long more of them wait before it counts as overloaded."""
_RULES = (
    f"timeout queue {_QUEUE}",
    # A correction that was written must not be written again.
    f"http-request disable-l7-retry if {{ path {app.SUGGEST_PATH} }}",
    f"{error(503, app.OVERLOADED, kind='overloaded')} hdr Retry-After 1",
)
_BOUND = f"maxconn {_MOST_REQUESTS} observe layer4 error-limit 1 on-error mark-down"
_SECTION = string.Template("""
backend $name
    # Ready is what scores, here too.
    option httpchk
    http-check send meth GET uri $health ver HTTP/1.1 hdr Host localhost
    http-check expect status 200
    $rules
    server $name unix@$socket check inter 1s fastinter 100ms downinter 100ms fall 3 rise 1 $bound
    server waiting unix@$waiting backup
    $instead
""")


def section(socket: str, *, waiting: Path, again: int) -> str:
    """The backend; `waiting` is where a request waits while the application starts anew."""
    return _SECTION.substitute(
        name=APP_BACKEND,
        health=app.HEALTH_PATH,
        rules="\n    ".join(_RULES),
        socket=socket,
        bound=_BOUND,
        waiting=waiting,
        instead=instead(again, 503, NO_SERVER),
    )


def of_key(socket: str) -> list[str]:
    """Lines of a client's own backend, so that the metrics name it."""
    track = f"track {APP_BACKEND}/{APP_BACKEND}"
    return [*_RULES, f"server {APP_BACKEND} unix@{socket} {track} {_BOUND}"]
