"""The configurations of the two haproxy processes that stand before the servers.

`front` has the ports. A buffer of haproxy holds a whole request, so that nothing reaches a server
before all of it was judged, and one that no answer came to can be sent again: for that haproxy
copies a buffer whole, whatever is in it. With buffers for the largest body this took 500 us a
request (`perf`: memmove). So the front's buffers hold bodies up to LARGE_BODY_BYTES, and hand
larger ones on, unread, to `large`, a process of its own whose buffers hold the largest. It also has
gRPC, whose messages do not say beforehand how long they are. What is slow or costly to read there
is nobody else's wait.

`serve.door` writes and checks the files and starts the processes; the rules are
`serve.request_rules` and `serve.overload_rules`. Keywords as in the haproxy 2.6 configuration
manual.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import contract
from contract import HOST
from serve import app_backend, canary_backend, metrics_door, overload_rules, probe, traces
from serve import request_rules as rules
from serve.app import settings as app
from serve.app_backend import APP_BACKEND
from serve.keys import Key
from serve.metrics_door import section as _section
from serve.refusals import NO_SERVER, instead, own_errors, quoted

HTTP_BACKEND, LARGE_BACKEND, GRPC_BACKEND = "http_replicas", "large", "grpc_server"
INNER = "inner"
_TIMEOUT_S = 60
_FRONT_BYTES = 16 << 10
"""Of a buffer beside the largest body: the headers, and what haproxy keeps free to rewrite them."""
_WAITING_S, _WAIT_FOR_REPLICA_S = 0.25, 5
"""A request that finds no replica waits so long before it is sent again, and in all."""
_CHECK_S = 2
_AGAIN = 425
"""Status by which haproxy knows that it is to send it again; no server gives it."""
_RELEASE = "24.10"
_CLIENTS_FAULT = (
    "(failed to parse|JSON|unexpected|Unable to parse|invalid|must be|expected|Unexpected|"
    "attempt to)"
)


@dataclass(frozen=True)
class Replica:
    """A server behind the door, by the paths of its sockets."""

    name: str
    http_socket: str
    metrics_socket: str
    grpc_socket: str | None = None


@dataclass(frozen=True)
class Door:
    """What the configurations are made of."""

    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    replicas: Sequence[Replica]
    front_folder: Path
    large_folder: Path
    """Of each process, for its sockets; they are short and plain."""
    app_socket: str
    """Of the application (serve/app)."""
    grpc: Replica | None = None
    stop_timeout_s: int = 30
    certificate: Path | None = None
    """PEM file with the certificates and the private key."""
    keys: Sequence[Key] = ()
    keys_file: Path | None = None
    """Map that `keys.write_map` wrote: sha256 of a key -> its name."""
    origins: Sequence[str] = ()
    """Web pages' origins that may ask, beside the door's own."""
    metrics_address: str = HOST
    canary: canary_backend.CanaryRoute | None = None


# --- The two configurations --------------------------------------------------------------
def front(door: Door) -> str:
    """Of the process that has the ports of HTTP and of the metrics."""
    text = _head(door, contract.LARGE_BODY_BYTES)
    text += _section("frontend http", _http(door))
    text += _section(f"frontend {INNER}", _inner(door))
    text += _replicas(door, door.front_folder)
    text += _app(door, door.front_folder)
    text += _section(f"backend {LARGE_BACKEND}", _to_large(door))
    for key in door.keys:
        text += _of_key(door, key)
    for table in ("addresses", "large_bodies"):
        text += _section(f"backend {table}", [_ADDRESSES])
    return text + _metrics(door)


def large(door: Door) -> str:
    """Of the process that holds what the front's buffers do not, and calls over gRPC."""
    text = _head(door, contract.MAX_REQUEST_BYTES)
    text += _section(
        "frontend http",
        [
            f"bind unix@{large_socket(door.large_folder)} mode 600",
            *rules.app_paths(),
            rules.whole_body("app"),
            *rules.body_rules("!app"),
            *canary_backend.draw(door.canary, HTTP_BACKEND, "!app"),
            f"use_backend {APP_BACKEND} if app",
            f"default_backend {HTTP_BACKEND}",
        ],
    )
    text += _replicas(door, door.large_folder)
    text += _app(door, door.large_folder)
    text += _section(
        "frontend metrics",
        [
            f"bind unix@{metrics_socket(door.large_folder)} mode 600",
            "http-request use-service prometheus-exporter",
        ],
    )
    return text + (_grpc(door, door.grpc) if door.grpc else "")


def large_socket(folder: Path) -> Path:
    """Where the process of large bodies listens for the front."""
    return folder / "large.sock"


def inner_socket(folder: Path) -> Path:
    """Where the front takes the application's requests for the servers."""
    return folder / "inner.sock"


def metrics_socket(folder: Path) -> Path:
    """Where a process tells its own metrics."""
    return folder / "balancer.sock"


# --- What both have ----------------------------------------------------------------------
_HEAD = string.Template("""\
global
    maxconn $connections
    hard-stop-after ${stop_timeout_s}s
    tune.bufsize $buffer_bytes
    tune.http.maxhdr $headers
    ssl-default-bind-options ssl-min-ver TLSv1.2

defaults
    mode http
    timeout connect 250ms
    timeout client ${timeout_s}s
    timeout server ${timeout_s}s
    timeout http-request ${header_s}s
    timeout http-keep-alive ${idle_s}s
    timeout queue 5s
    # A check waits its turn like any request; two without an answer tell of a server that hangs.
    timeout check ${check_s}s
    balance leastconn
    http-reuse always
    # Scoring is a pure function: a request that no answer came to is sent again, to another
    # replica. Where none is left it goes to the waiting room, whose answer is to do so again.
    retries $retries
    option redispatch 1
    retry-on conn-failure empty-response junk-response $again
$errors
""")


def _head(door: Door, body_bytes: int) -> str:
    errors = own_errors(answer_s=_TIMEOUT_S, no_answer_s=_WAIT_FOR_REPLICA_S)
    return _HEAD.substitute(
        connections=contract.MAX_CONNECTIONS,
        stop_timeout_s=door.stop_timeout_s,
        buffer_bytes=body_bytes + _FRONT_BYTES,
        headers=contract.MAX_HEADERS,
        timeout_s=_TIMEOUT_S,
        header_s=contract.HEADER_TIMEOUT_S,
        idle_s=contract.IDLE_TIMEOUT_S,
        check_s=_CHECK_S,
        errors="\n".join(f"    {line}" for line in errors),
        retries=round(_WAIT_FOR_REPLICA_S / _WAITING_S),
        again=_AGAIN,
    )


_REPLICAS = string.Template("""
backend $name
    # Ready is what scores: the check is a request like any other, of a comment that is not in the
    # server's cache. What refuses it because it has too much to do is no dead server.
    option httpchk
    http-check send meth POST uri $path ver HTTP/1.1 hdr Host localhost \
hdr Content-Type application/json body-lf '$body'
    http-check expect rstring $works
    default-server inter 500ms fastinter 100ms downinter 100ms fall 2 rise 1 \
observe layer4 error-limit 1 on-error mark-down
    $noted
    # What release $release calls its own failure though the request cannot be read.
    http-response wait-for-body time 1s if { status 500 }
    http-response set-status 400 if { status 500 } { res.body -m reg $clients_fault }
$servers
    server waiting unix@$waiting backup
    $instead

frontend waiting
    mode tcp
    bind unix@$waiting mode 600
    tcp-request inspect-delay ${waiting_ms}ms
    tcp-request content accept if WAIT_END
    default_backend waited

backend waited
    mode tcp
    server waited unix@$waiting.waited

frontend waited
    bind unix@$waiting.waited mode 600
    http-request return status $again content-type application/json string '$no_server' \
hdr Connection close
""")


def _replicas(door: Door, folder: Path) -> str:
    """The servers, and the room where a request waits for one that starts anew."""
    servers = [f"server {one.name} unix@{one.http_socket} check" for one in door.replicas]
    servers += canary_backend.server(door.canary)
    return _REPLICAS.substitute(
        name=HTTP_BACKEND,
        path=probe.INFER_PATH,
        body=json.dumps(probe.request(contract.LOGIT, text=f"{contract.CHECK_COMMENT} %[date]")),
        waiting=_waiting_socket(folder),
        waiting_ms=round(1000 * _WAITING_S),
        again=_AGAIN,
        works=quoted(probe.WORKS),
        noted="\n    ".join(overload_rules.refusals_noted(len(door.replicas))),
        no_server=json.dumps({"error": NO_SERVER}),
        release=_RELEASE,
        instead=instead(_AGAIN, 503, NO_SERVER),
        clients_fault=f"'{_CLIENTS_FAULT}'",
        servers="\n".join(f"    {line}" for line in servers),
    )


def _waiting_socket(folder: Path) -> Path:
    return folder / "waiting.sock"


# --- HTTP --------------------------------------------------------------------------------
def _http(door: Door) -> list[str]:
    tls = f" ssl crt {quoted(str(door.certificate))} alpn http/1.1" if door.certificate else ""
    scheme = "https" if door.certificate else "http"
    hosts = sorted({door.address, HOST, "localhost"})
    own = [f"{scheme}://{host}:{door.http_port}" for host in hosts]
    return [
        f"bind {door.address}:{door.http_port}{tls}",
        # HTTP/2 would hold a hundred bodies a connection: 100 MB by ten connections, measured.
        "option disable-h2-upgrade",
        *canary_backend.tap_log(door.canary),
        *rules.connection_rules(),
        traces.sampled_alone(),
        traces.began(),
        f"http-request del-header {canary_backend.STABLE_HEADER}",  # for those within
        *rules.header_rules(),
        *rules.origin_rules([*own, *door.origins], scheme),
        *(rules.key_rules(door.keys_file) if door.keys and door.keys_file else []),
        # The application has no use for a key, nor for what else Perspective's clients put there.
        f"http-request set-uri %[path] if {{ path_beg {app.PERSPECTIVE_PATHS} }}",
        *rules.path_rules([f"{HTTP_BACKEND}/{one.name}" for one in door.replicas]),
        *rules.length_rules(),
        *overload_rules.rules([HTTP_BACKEND, *(_key_backend(key) for key in door.keys)]),
        *rules.body_rules("infer !large"),
        *canary_backend.draw(door.canary, HTTP_BACKEND, "infer !large"),
        *canary_backend.tap(door.canary),
        rules.whole_body("app takes_body !large"),
        *(
            f"use_backend {_key_backend(key)}{suffix} if "
            f"{{ var(txn.key) -m str {key.name} }}{condition}"
            for key in door.keys
            for suffix, condition in (
                ("_large", " takes_body large"),
                (f"_{APP_BACKEND}", " app"),
                ("", ""),
            )
        ),
        f"use_backend {LARGE_BACKEND} if takes_body large",
        f"use_backend {APP_BACKEND} if app",
        f"default_backend {HTTP_BACKEND}",
    ]


def _inner(door: Door) -> list[str]:
    """For the application alone; what it asks was judged when it came."""
    return [
        f"bind unix@{inner_socket(door.front_folder)} mode 600",
        *canary_backend.tap_log(door.canary),
        *rules.taken_whole("TRUE"),
        *canary_backend.draw(door.canary, HTTP_BACKEND, "TRUE"),
        *canary_backend.tap(door.canary),
        f"default_backend {HTTP_BACKEND}",
    ]


def _app(door: Door, folder: Path) -> str:
    return app_backend.section(door.app_socket, waiting=_waiting_socket(folder), again=_AGAIN)


_ADDRESSES = "stick-table type ipv6 size 100k expire 5m store conn_cur"


def _to_large(door: Door) -> list[str]:
    return [
        # What is on its way cannot be sent again, so no connection is used that may just end.
        "http-reuse never",
        "option http-server-close",
        "retry-on conn-failure",
        "no option redispatch",  # there is no other; else it would not wait between two tries
        f"server large unix@{large_socket(door.large_folder)} maxconn {contract.MAX_LARGE_BODIES}",
    ]


def _key_backend(key: Key) -> str:
    return f"key_{key.name}"


def _of_key(door: Door, key: Key) -> str:
    """A client's own two backends, so that the metrics name it; its rate is that of both."""
    name = _key_backend(key)
    rate = rules.key_rate_rules(key.name, key.requests_per_s, name) if key.requests_per_s else []
    servers = [
        f"server {one.name} unix@{one.http_socket} track {HTTP_BACKEND}/{one.name} "
        "on-error mark-down observe layer4 error-limit 1"
        for one in door.replicas
    ]
    servers += canary_backend.server(door.canary, f"{HTTP_BACKEND}/{canary_backend.SERVER}")
    own = [
        "stick-table type integer size 10 expire 1m store http_req_rate(10s)",
        *rate,
        *overload_rules.refusals_noted(len(door.replicas)),
        *servers,
        f"server waiting unix@{_waiting_socket(door.front_folder)} backup",
        instead(_AGAIN, 503, NO_SERVER),
    ]
    to_app = [*rate, *app_backend.of_key(door.app_socket), *own[-2:]]
    return (
        _section(f"backend {name}", own)
        + _section(f"backend {name}_{APP_BACKEND}", to_app)
        + _section(f"backend {name}_large", [*rate, *_to_large(door)])
    )


# --- Metrics -----------------------------------------------------------------------------
def _metrics(door: Door) -> str:
    every = [*door.replicas, *([door.grpc] if door.grpc else [])]
    return metrics_door.sections(
        [
            f"{door.metrics_address}:{door.metrics_port}",
            f"unix@{metrics_socket(door.front_folder)}",
        ],
        {one.name: one.metrics_socket for one in every},
        str(metrics_socket(door.large_folder)),
        beside=canary_backend.metrics(door.canary),
        ready=[f"{HTTP_BACKEND}/{one.name}" for one in door.replicas],
    )


# --- gRPC --------------------------------------------------------------------------------
def _grpc(door: Door, server: Replica) -> str:
    tls = f" ssl crt {quoted(str(door.certificate))} alpn h2" if door.certificate else " proto h2"
    lines = [
        f"bind {door.address}:{door.grpc_port}{tls}",
        *rules.grpc_rules(door.keys_file if door.keys else None),
        traces.sampled_alone(),
        f"default_backend {GRPC_BACKEND}",
    ]
    to_server = [
        # To send a call again its buffer would be copied whole, and the calls on a connection of
        # a server that ended are lost all the same.
        "retry-on conn-failure",
        f"server {server.name} unix@{server.grpc_socket} proto h2",
    ]
    return (
        _section("frontend grpc", lines)
        + _section(f"backend {GRPC_BACKEND}", to_server)
        + _section("backend addresses", [_ADDRESSES])
    )
