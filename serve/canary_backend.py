"""The second version in haproxy's configuration: who is answered by it, and what is compared.

A share of the scoring requests is drawn at random. Where the canary answers them, `use-server`
sends them to it, whose weight of 0 keeps all others away; when it is down or ends, they go to the
others as if it had never been. Of each drawn request the text and the answer go to the mirror
(serve/mirror.py) as a line of haproxy's log, in a datagram of a socket that only the user can open:
haproxy waits for no reader of its log and drops what the socket does not take at once, so what the
mirror does costs no caller anything.

Keywords as in the haproxy 2.6 configuration manual.
"""

from __future__ import annotations

from dataclasses import dataclass

from contract import ATTRIBUTES, PUBLIC_MODEL
from serve.probe import INFER_PATH
from serve.request_rules import BINARY_HEADER

SERVER = "canary"
"""Of haproxy, in each backend of the servers."""
STABLE_HEADER = "toxicity-stable"
"""By which the application asks for the current version: parts of one answer are of one version."""
MONITOR_HEADER = "toxicity-monitor"
"""Of what the monitor asks, which the current version answers: it is no traffic to judge by."""
LINE_BYTES, _MOST_BODY_BYTES, _MOST_ANSWER_BYTES = 65_535, 24_000, 12_000
"""Of a line, which holds a request and its answer, each a third longer in base64."""
LINE_WORD = "drawn"
"""First word of a line; what haproxy says of itself begins otherwise."""
_DRAWN, _TAPPED = "{ var(txn.drawn) -m found }", "{ var(txn.tap_body) -m found }"
_STEPS = 1_000_000
_OUTPUTS = r'"outputs"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*\{'
"""Of a request that names what it asks for; any other asks for all that a version has."""


@dataclass(frozen=True)
class CanaryRoute:
    """What haproxy is told of the second version."""

    version: int
    http_socket: str
    metrics_socket: str
    mirror_socket: str
    """Where the mirror takes lines."""
    mirror_http_socket: str
    """Where it tells what it found."""
    share: float
    shadow: bool
    same_attributes: bool
    """Whether both versions have the same ones."""


def draw(route: CanaryRoute | None, backend: str, condition: str) -> list[str]:
    """Rules of a frontend that holds bodies whole: draw requests where the condition is true.

    Only the path that names no version is drawn: whoever asks for a version gets that one. Where
    the versions' attributes differ, who asks for them is answered by the current one.
    """
    if route is None:
        return []
    others = "" if route.same_attributes else f" {_without_attributes(route)}"
    return [
        f"http-request set-var(txn.drawn) int(1) if {condition} {{ path {INFER_PATH} }} "
        f"{{ rand({_STEPS}) lt {round(_STEPS * route.share)} }} "
        f"!{{ req.hdr({STABLE_HEADER}) -m found }} !{{ req.hdr({MONITOR_HEADER}) -m found }} "
        f"{{ srv_is_up({backend}/{SERVER}) }}{others}",
    ]


def _without_attributes(route: CanaryRoute) -> str:
    """Condition of requests that do not ask for attributes; a shadow may have any other."""
    named = f"{{ req.body -m reg '{_OUTPUTS}' }} !{{ req.fhdr({BINARY_HEADER}) -m reg ^0+$ }}"
    asked = f"""!{{ req.body -m sub '"{ATTRIBUTES}"' }}"""
    escaped = rf"!{{ req.body -m reg '{_OUTPUTS}[^]]*\\' }}"  # it may be spelled otherwise
    return " ".join([*([] if route.shadow else [named]), asked, escaped])


def tap_log(route: CanaryRoute | None) -> list[str]:
    """Lines of a frontend, before its rules: where lines go, and that there are none of others."""
    if route is None:
        return []
    fields = (
        f"{LINE_WORD} %s %ST",
        *(f"%[var(txn.tap_{name})]" for name in ("took", "length", "answer_length")),
        *(f"%[var(txn.tap_{name})]" for name in ("body", "answer")),
    )
    return [
        f"log unix@{route.mirror_socket} len {LINE_BYTES} format raw local0",
        f'log-format "{" ".join(fields)}"',
        "option dontlognull",
        "http-request set-log-level silent",
    ]


def tap(route: CanaryRoute | None) -> list[str]:
    """Rules of a frontend, behind `draw`: keep the text of a drawn request, and its answer."""
    if route is None:
        return []
    short, known = f"{{ req.body_size le {_MOST_BODY_BYTES} }}", _TAPPED
    return [
        f"http-request set-var(txn.tap_since) date(0,us) if {_DRAWN}",
        f"http-request set-var(txn.tap_length) req.fhdr({BINARY_HEADER}) if {_DRAWN}",
        f"http-request set-var(txn.tap_body) req.body,base64 if {_DRAWN} {short}",
        f"http-request set-log-level info if {_DRAWN}",
        f"http-response wait-for-body time 1s if {known}",
        f"http-response set-var(txn.tap_took) date(0,us),sub(txn.tap_since) if {_DRAWN}",
        f"http-response set-var(txn.tap_answer_length) res.fhdr({BINARY_HEADER}) if {known}",
        f"http-response set-var(txn.tap_answer) res.body,base64 if {known} "
        f"{{ res.body_size le {_MOST_ANSWER_BYTES} }}",
    ]


def server(route: CanaryRoute | None, track: str = "") -> list[str]:
    """Lines of a backend of the servers; with `track` the state is that of backend/server."""
    if route is None:
        return []
    checked = f"track {track} on-error mark-down observe layer4 error-limit 1" if track else "check"
    # Who was answered by it can read by what it decides.
    config = f"/v2/models/{PUBLIC_MODEL}/versions/{route.version}/config"
    use = [f"use-server {SERVER} if {condition}" for condition in (_DRAWN, f"{{ path {config} }}")]
    return [
        *([] if route.shadow else use),
        f"server {SERVER} unix@{route.http_socket} weight 0 {checked}",
    ]


def metrics(route: CanaryRoute | None) -> dict[str, str]:
    """Name -> socket of what else is open on the port of the metrics, under /<name>/."""
    if route is None:
        return {}
    return {"canary": route.metrics_socket, "mirror": route.mirror_http_socket}
