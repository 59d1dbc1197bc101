"""The door of `make serve`: haproxy before the servers, from a generated configuration.

All that a request may be is bounded here, before a server sees it; the bounds are those of
`contract`, and each has its own status and one line. What is not on the list of open paths is
refused, so a server's control plane cannot be reached. `serve.door` starts and stops it; the file
that it wrote last is haproxy.cfg in the run folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import string
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import contract
from contract import HOST, PUBLIC_MODEL, BadInput, ToxicityError
from serve.keys import Key

NAME = "haproxy"
CONFIG_FILE = "haproxy.cfg"
HTTP_BACKEND, GRPC_BACKEND = "http_replicas", "grpc_server"
_SBIN = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian puts haproxy, and the PATH of a plain user does not look."""
_TIMEOUT_S = 60
_READY_COMMENT = "thank you for your work"
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "MALLOC_ARENA_MAX": "2"}
"""Of its process. A buffer holds the largest body, and each is a mapping of its own that goes back
to the system when the request is over. glibc would else raise the threshold with the first that is
freed, and keep the most that was ever needed: 250 MiB under attack (mallopt(3))."""
_FRONT_BYTES = 64 << 10
"""Of a buffer beside the largest body: the headers, and what haproxy keeps free to rewrite them."""


@dataclass(frozen=True)
class Replica:
    """A server behind the door, by the paths of its sockets."""

    name: str
    http_socket: str
    metrics_socket: str
    grpc_socket: str | None = None


@dataclass(frozen=True)
class Door:
    """What the configuration is made of."""

    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    replicas: Sequence[Replica]
    waiting_socket: str
    """Where haproxy makes requests wait for a replica that starts anew."""
    grpc: Replica | None = None
    stop_timeout_s: int = 30
    certificate: Path | None = None
    """PEM file with the certificates and the private key."""
    keys: Sequence[Key] = ()
    keys_file: Path | None = None
    """Map that `keys.write_map` wrote: sha256 of a key -> its name."""
    origins: Sequence[str] = ()
    """Web pages' origins that may ask, beside the door's own."""


# --- The configuration -------------------------------------------------------------------
_GLOBAL = string.Template("""\
global
    maxconn $connections
    hard-stop-after ${stop_timeout_s}s
    # A request is held whole before a server sees its first byte, so a buffer holds one.
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
    balance leastconn
    http-reuse always
    # Scoring is a pure function: a request that no answer came to is sent again, to another
    # replica. Where none is left it goes to the waiting room, whose answer is to do so again.
    retries $retries
    option redispatch 1
    retry-on conn-failure empty-response junk-response $again
$errors
""")
"""Keywords as in the haproxy 2.6 configuration manual."""

_BACKEND = string.Template("""
backend $name
    # Ready is what scores: the check is a request like any other.
    option httpchk
    http-check send meth POST uri /v2/models/$model/infer ver HTTP/1.1 hdr Host localhost \
hdr Content-Type application/json body '$body'
    http-check expect status 200
    default-server inter 500ms fastinter 100ms downinter 100ms fall 2 rise 1 \
observe layer4 error-limit 1 on-error mark-down
    # What release $release calls its own failure though the request cannot be read.
    http-response wait-for-body time 1s if { status 500 }
    http-response set-status 400 if { status 500 } { res.body -m reg $clients_fault }
$servers
    server waiting unix@$waiting backup
    http-response set-status 503 if { status $again }

frontend waiting
    mode tcp
    bind unix@$waiting mode 600
    tcp-request inspect-delay ${waiting_ms}ms
    tcp-request content accept if WAIT_END
    default_backend waited

backend waited
    mode tcp
    server waited unix@$waited

frontend waited
    bind unix@$waited mode 600
    http-request return status $again content-type application/json string '$no_server' \
hdr Connection close
""")
_WAITING_S, _WAIT_FOR_REPLICA_S = 0.25, 5
"""A request that finds no replica waits so long before it is sent again, and in all."""
_AGAIN = 425
"""Status by which haproxy knows that it is to send it again; no server gives it."""
_NO_SERVER = "no server is ready; try again"
_RELEASE = "24.10"
_CLIENTS_FAULT = (
    "(failed to parse|JSON|unexpected|Unable to parse|invalid|must be|expected|Unexpected|"
    "attempt to)"
)
_METRICS = string.Template("""
frontend metrics
    bind $host:$metrics_port
    http-request return status 405 content-type application/json string '$read_only' \
if !{ method GET HEAD }
    http-request use-service prometheus-exporter if { path /balancer/metrics }
    http-request return status 404 content-type application/json string '$elsewhere' \
if !{ path $paths }
$uses
""")

_MODEL_PATH = rf"/v2/models/{PUBLIC_MODEL}(/versions/[0-9]+)?"
_INFER = rf"^{_MODEL_PATH}/(infer|generate|generate_stream)$"
_READ = rf"^(/v2/?|/v2/health/live|{_MODEL_PATH}|{_MODEL_PATH}/stats|/v2/models/stats)$"
_READY = rf"^(/v2/health/ready|{_MODEL_PATH}/ready)$"
_CONTROL = r"^/v2/(repository|systemsharedmemory|cudasharedmemory|trace|logging)(/|$)"
_MODEL_CONTROL = r"^/v2/models/.*/(config|trace/setting)$"
_CONTROL_CHARACTERS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
"""What no header may hold (RFC 9110, 5.5), but for the tab; haproxy 2.6 passes them on."""
_CRASHES = "classification"
"""Parameter of an output. Release 24.10 ends when it stands beside an output of strings."""
_CRASHES_KEY = (
    '"'
    + "".join(rf"(?:{c}|\\u00{c.encode().hex()[0]}(?i:{c.encode().hex()[1]}))" for c in _CRASHES)
) + '"'
"""As a member of JSON, whatever is escaped of it."""
_CRASHES_PROTOBUF = (
    f"0A({len(_CRASHES):02X}|{len(_CRASHES) + 128:02X}(80)*00){_CRASHES.encode().hex().upper()}"
)
"""As the key of a map in a gRPC message, its length in one byte or more, in hexadecimal digits: a
pattern sees a body only up to its first NUL."""
_MEMBERS = 15  # beside the first of an object or a list of tensors
_BODY_PATTERN = (
    r"(?(DEFINE)(?<s>\"(?>[^\"\\]++|\\.)*+\")(?<v>(?&s)|[-+.\w]++)(?<w>[ \t\r\n]*+)"
    rf"(?<k>(?!{_CRASHES_KEY})(?&s)(?&w):(?&w))(?<c>(?&w),(?&w))"
    rf"(?<p>\{{(?&w)(?:(?&k)(?&v)(?:(?&c)(?&k)(?&v)){{0,{_MEMBERS}}}+)?+(?&w)\}})"
    r"(?<a>\[(?&w)(?:(?&v)(?:(?&c)(?&v))*+)?+(?&w)\])"
    r"(?<e>(?&v)|(?&a))(?<n>\[(?&w)(?:(?&e)(?:(?&c)(?&e))*+)?+(?&w)\])"
    r"(?<f>(?&k)(?:(?&v)|(?&p)|(?&n)))"
    rf"(?<t>\{{(?&w)(?:(?&f)(?:(?&c)(?&f)){{0,{_MEMBERS}}}+)?+(?&w)\}})"
    rf"(?<l>\[(?&w)(?&t)(?:(?&c)(?&t)){{0,{_MEMBERS}}}+(?&w)\])"
    r"(?<m>(?&k)(?:(?&v)|(?&p)|(?&l)|(?&n))))"
    rf"^(?&w)\{{(?&w)(?&m)(?:(?&c)(?&m)){{0,{_MEMBERS}}}+(?&w)\}}"
)
"""A request as KServe's v2 protocol and Triton's generate extension write it: one object of
scalars, flat parameters, lists of tensors, and tensors of scalars, flat parameters and lists;
none of its members is what ends the server.
Release 24.10 needs a second for 500,000 nested lists and more than a minute for 90,000 parameters,
in a megabyte each. Possessive throughout, so it takes linear time. The syntax is PCRE2's."""
_SHAPE_WORDS = (
    f"the body is not JSON of at most {_MEMBERS + 1} members and tensors an object or list, "
    "expected an inference request of the KServe v2 protocol; send fewer, nested as it says"
)
_FREE_BYTES = 4096
"""Up to here a body may be anything: it costs little, and the server says better what is wrong."""
_SIZE_WORDS = (
    "Inference-Header-Content-Length is not one number, expected the length of the JSON; send it"
)
GRPC_OPEN = (
    "ModelInfer",
    "ModelMetadata",
    "ModelReady",
    "ModelStatistics",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
)
_GRPC_SERVICE = "/inference.GRPCInferenceService/"


def render(door: Door) -> str:
    """Text of the configuration."""
    text = _GLOBAL.substitute(
        connections=contract.MAX_CONNECTIONS,
        stop_timeout_s=door.stop_timeout_s,
        buffer_bytes=contract.MAX_REQUEST_BYTES + _FRONT_BYTES,
        headers=contract.MAX_HEADERS,
        timeout_s=_TIMEOUT_S,
        header_s=contract.HEADER_TIMEOUT_S,
        idle_s=contract.IDLE_TIMEOUT_S,
        errors="\n".join(_errors()),
        retries=round(_WAIT_FOR_REPLICA_S / _WAITING_S),
        again=_AGAIN,
    )
    text += "\n".join(["frontend http", *(f"    {line}" for line in _http_rules(door))]) + "\n"
    text += _backend(door.replicas, door.waiting_socket)
    for key in door.keys:
        tracked = [
            f"    server {one.name} unix@{one.http_socket} track {HTTP_BACKEND}/{one.name} "
            "on-error mark-down observe layer4 error-limit 1"
            for one in door.replicas
        ]
        tracked.append(f"    server waiting unix@{door.waiting_socket} backup")
        tracked.append(f"    http-response set-status 503 if {{ status {_AGAIN} }}")
        text += (
            "\n".join([f"\nbackend {_key_backend(key.name)}", *_key_rules(key), *tracked]) + "\n"
        )
    text += "\nbackend addresses\n    stick-table type ipv6 size 100k expire 5m store conn_cur\n"
    text += "\nbackend large_bodies\n    stick-table type ipv6 size 100k expire 5m store conn_cur\n"
    text += _metrics(door)
    if door.grpc:
        text += _grpc(door)
    return text


def _refuse(status: int, words: str, condition: str, *, close: bool = False) -> str:
    """A rule that answers with a status and one line, as a server does."""
    body = json.dumps({"error": words})
    hangup = " hdr Connection close" if close else ""
    return (
        f"http-request return status {status} content-type application/json "
        f"string '{body}'{hangup} if {condition}"
    )


def _errors() -> list[str]:
    """Haproxy's own answers, likewise."""
    words = {
        400: "the request is not HTTP, or has more than "
        f"{contract.MAX_HEADERS} headers; send it otherwise",
        408: f"the request took longer than {contract.HEADER_TIMEOUT_S} s (headers) or "
        f"{contract.BODY_TIMEOUT_S} s (body) to arrive; send it faster",
        500: "the balancer failed; try again",
        502: f"no server answered within {_WAIT_FOR_REPLICA_S} s; try again",
        503: _NO_SERVER,
        504: f"no answer within {_TIMEOUT_S} s; try again",
    }
    return [
        f"    http-error status {status} content-type application/json "
        f"string '{json.dumps({'error': text})}'"
        for status, text in words.items()
    ]


def _http_rules(door: Door) -> list[str]:
    tls = f" ssl crt {_quoted(str(door.certificate))} alpn http/1.1" if door.certificate else ""
    limit = contract.MAX_ADDRESS_CONNECTIONS
    most = contract.MAX_REQUEST_BYTES
    return [
        f"bind {door.address}:{door.http_port}{tls}",
        # HTTP/2 would hold a hundred bodies a connection: 100 MB by ten connections, measured.
        "option disable-h2-upgrade",
        f"acl infer path -m reg {_INFER}",
        f"acl read path -m reg {_READ}",
        f"acl ready path -m reg {_READY}",
        f"acl control path -m reg {_CONTROL}",
        f"acl control path -m reg {_MODEL_CONTROL}",
        "acl has_length req.hdr(content-length) -m found",
        "acl body_sent req.hdr(content-length),add(0) -m int gt 0",
        "acl body_sent req.hdr(transfer-encoding) -m found",
        # --- The connection ---
        "tcp-request connection track-sc0 src table addresses",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {2 * limit} }}",
        _refuse(
            429,
            f"more than {limit} connections of this address are open; use fewer",
            f"{{ sc0_conn_cur gt {limit} }}",
            close=True,
        ),
        # --- The headers ---
        _refuse(
            431,
            f"the headers have more than {contract.MAX_HEADER_BYTES} bytes; send fewer",
            f"{{ req.hdrs,length gt {contract.MAX_HEADER_BYTES} }}",
            close=True,
        ),
        _refuse(
            400,
            "the headers have control characters; send text",
            f"{{ req.hdrs -m reg '{_CONTROL_CHARACTERS}' }}",
            close=True,
        ),
        _refuse(
            400,
            "the version of HTTP is unknown; send HTTP/1.1",
            "!{ req.ver 1.0 1.1 }",
            close=True,
        ),
        _refuse(
            400,
            "the request has no Host, expected one; send it",
            "!HTTP_1.0 !{ req.fhdr_cnt(host) eq 1 }",
            close=True,
        ),
        *_origin_rules(door),
        *_key_check(door),
        _refuse(403, "this is not open on this port; see docs/security.md", "control"),
        *(
            f"http-request return status 200 if ready {{ srv_is_up({HTTP_BACKEND}/{one.name}) }}"
            for one in door.replicas
        ),
        _refuse(503, _NO_SERVER, "ready"),
        _refuse(404, "there is nothing at this path", "!infer !read"),
        _refuse(405, "a score is asked for with POST", "infer !{ method POST }"),
        _refuse(405, "this is read with GET", "read !{ method GET HEAD }"),
        _refuse(400, "a GET has no body; send it without", "read body_sent", close=True),
        # --- The body ---
        _refuse(
            415,
            "the body is compressed, expected it as it is; send it without Content-Encoding",
            # Any value of any line: the server obeys the first line, whatever the others say.
            "infer { req.hdr(content-encoding) -m reg -i '^(?!identity$)' }",
            close=True,
        ),
        _refuse(
            411,
            "the body comes in chunks or without a length; send it with Content-Length",
            "infer { req.hdr(transfer-encoding) -m found }",
            close=True,
        ),
        _refuse(
            411,
            "the body has no length; send it with Content-Length",
            "infer !has_length",
            close=True,
        ),
        _refuse(400, "the body is empty, expected a comment; send one", "infer !body_sent"),
        _refuse(
            413,
            f"the body has more than {most} bytes; send fewer comments in a request",
            f"infer {{ req.hdr(content-length),add(0) -m int gt {most} }}",
            close=True,
        ),
        "acl large req.hdr(content-length),add(0) -m int gt " + str(contract.LARGE_BODY_BYTES),
        "http-request track-sc1 src table large_bodies if infer large",
        _refuse(
            429,
            f"more than {contract.MAX_ADDRESS_LARGE_BODIES} bodies above "
            f"{contract.LARGE_BODY_BYTES} bytes come from this address; send them one by one",
            f"infer large {{ sc1_conn_cur gt {contract.MAX_ADDRESS_LARGE_BODIES} }}",
            close=True,
        ),
        f"http-request wait-for-body time {contract.BODY_TIMEOUT_S}s if infer",
        f"acl free req.body_size le {_FREE_BYTES}",
        "acl binary req.hdr(inference-header-content-length) -m found",
        "acl one_size req.fhdr_cnt(inference-header-content-length) eq 1",
        "acl one_size_digits req.fhdr(inference-header-content-length) -m reg ^[0-9]{1,9}$",
        "acl raw req.fhdr(inference-header-content-length) -m reg ^0+$",
        # The server takes what is no number for 0, and the first of two.
        _refuse(400, _SIZE_WORDS, "infer binary !one_size"),
        _refuse(400, _SIZE_WORDS, "infer binary !one_size_digits"),
        f"acl shaped req.body -m reg '{_BODY_PATTERN}(?&w)$'",
        f"acl shaped_header req.body -m reg '{_BODY_PATTERN}'",
        _refuse(400, _SHAPE_WORDS, "infer !free !binary !shaped"),
        _refuse(400, _SHAPE_WORDS, "infer binary !raw !shaped_header"),
        _refuse(
            400,
            f"{_CRASHES} is not open; leave it out",
            f"infer !binary {{ req.body -m reg '{_CRASHES_KEY}[ \\t\\r\\n]*:' }}",
        ),
        "http-request del-header content-encoding if infer",
        *(
            f"use_backend {_key_backend(key.name)} if {{ var(txn.key) -m str {key.name} }}"
            for key in door.keys
        ),
        f"default_backend {HTTP_BACKEND}",
    ]


def _origin_rules(door: Door) -> list[str]:
    """Refuse web pages of elsewhere here: a plain POST needs no preflight."""
    scheme = "https" if door.certificate else "http"
    hosts = {door.address, HOST, "localhost"}
    own = [f"{scheme}://{host}:{door.http_port}" for host in sorted(hosts)]
    allowed = " ".join([*own, *door.origins])
    words = "requests of this web page are not allowed; see --allow-origin"
    return [
        f"acl own_origin req.hdr(origin) -i {allowed}",
        _refuse(403, words, "{ req.hdr_cnt(origin) gt 1 }", close=True),
        _refuse(403, words, "{ req.hdr(origin) -m found } !own_origin", close=True),
        _refuse(
            403,
            words,
            "{ req.hdr(sec-fetch-site) -i cross-site same-site } !own_origin",
            close=True,
        ),
    ]


def _key_check(door: Door) -> list[str]:
    if not door.keys:
        return []
    return [
        "http-request set-var(txn.key) req.hdr(authorization),"
        r"regsub('^[Bb]earer\ +',''),sha2(256),hex,lower,map(" + str(door.keys_file) + ")",
        "http-request del-header authorization",
        _refuse(
            401,
            "the key is missing or unknown; send Authorization: Bearer KEY",
            "!{ var(txn.key) -m found }",
            close=True,
        ),
    ]


def _key_rules(key: Key) -> list[str]:
    rules = ["    stick-table type integer size 10 expire 1m store http_req_rate(10s)"]
    if key.requests_per_s:
        most = 10 * key.requests_per_s
        rules += [
            "    http-request track-sc2 int(1)",
            "    "
            + _refuse(
                429,
                f"the key {key.name} has more than {key.requests_per_s} requests a second; send "
                "fewer",
                f"{{ sc2_http_req_rate gt {most} }}",
            ),
        ]
    return rules


def _key_backend(name: str) -> str:
    return f"key_{name}"


def _backend(replicas: Sequence[Replica], waiting: str) -> str:
    tensor = {
        "name": contract.TEXT,
        "datatype": "BYTES",
        "shape": [1, 1],
        "data": [_READY_COMMENT],
    }
    wanted = [{"name": contract.LOGIT}]
    return _BACKEND.substitute(
        name=HTTP_BACKEND,
        model=PUBLIC_MODEL,
        body=json.dumps({"inputs": [tensor], "outputs": wanted}),
        waiting=waiting,
        waited=f"{waiting}.waited",
        waiting_ms=round(1000 * _WAITING_S),
        again=_AGAIN,
        no_server=json.dumps({"error": _NO_SERVER}),
        release=_RELEASE,
        clients_fault=f"'{_CLIENTS_FAULT}'",
        servers="\n".join(
            f"    server {one.name} unix@{one.http_socket} check" for one in replicas
        ),
    )


def _metrics(door: Door) -> str:
    every = [*door.replicas, *([door.grpc] if door.grpc else [])]
    paths = {f"/{one.name}/metrics": one for one in every}
    if len(every) == 1:
        paths["/metrics"] = every[0]
    uses = [
        f"    use_backend metrics_{one.name} if {{ path {path} }}" for path, one in paths.items()
    ]
    there = ["/balancer/metrics", *paths]
    text = _METRICS.substitute(
        host=HOST,
        metrics_port=door.metrics_port,
        read_only=json.dumps({"error": "metrics are read with GET"}),
        paths=" ".join(paths),
        uses="\n".join(uses),
        elsewhere=json.dumps({"error": f"metrics are at {', '.join(there)}"}),
    )
    for one in every:
        text += (
            f"\nbackend metrics_{one.name}\n"
            "    http-request set-path /metrics\n"
            f"    server {one.name} unix@{one.metrics_socket}\n"
        )
    return text


def _grpc(door: Door) -> str:
    assert door.grpc and door.grpc.grpc_socket
    paths = " ".join(_GRPC_SERVICE + name for name in GRPC_OPEN)
    tls = f" ssl crt {_quoted(str(door.certificate))} alpn h2" if door.certificate else " proto h2"
    half = contract.MAX_REQUEST_BYTES // 2
    rules = [
        f"bind {door.address}:{door.grpc_port}{tls}",
        "tcp-request connection track-sc0 src table addresses",
        "tcp-request connection reject if "
        f"{{ sc0_conn_cur gt {contract.MAX_ADDRESS_CONNECTIONS} }}",
        *_key_check_grpc(door),
        _refuse_grpc(7, "this is not open on this port", f"!{{ path {paths} }}"),
        f"http-request wait-for-body time {contract.BODY_TIMEOUT_S}s",
        _refuse_grpc(
            8,
            f"the message has more than {contract.MAX_REQUEST_BYTES} bytes; send fewer comments",
            f"{{ req.body_size gt {contract.MAX_REQUEST_BYTES} }}",
        ),
        _refuse_grpc(
            12,
            "the message is compressed, expected it as it is",
            "{ req.hdr(grpc-encoding) -m reg -i '^(?!identity$)' }",
        ),
        *(
            _refuse_grpc(
                3,
                f"{_CRASHES} is not open; leave it out",
                # Half of the body: of more, the digits would not fit into a buffer.
                f"{{ req.body,bytes({at},{half + 100}),hex -m reg {_CRASHES_PROTOBUF} }}",
            )
            for at in (0, half)
        ),
        f"default_backend {GRPC_BACKEND}",
    ]
    lines = ["\nfrontend grpc", *(f"    {rule}" for rule in rules)]
    lines += [
        f"\nbackend {GRPC_BACKEND}",
        "    retry-on conn-failure empty-response",
        f"    server {door.grpc.name} unix@{door.grpc.grpc_socket} proto h2",
    ]
    return "\n".join(lines) + "\n"


def _refuse_grpc(status: int, words: str, condition: str) -> str:
    """An answer without a message: a status of gRPC's own in the headers (PROTOCOL-HTTP2.md)."""
    return (
        "http-request return status 200 hdr content-type application/grpc "
        f"hdr grpc-status {status} hdr grpc-message {_quoted(words)} if {condition}"
    )


def _key_check_grpc(door: Door) -> list[str]:
    rules = _key_check(door)
    if rules:
        rules[-1] = _refuse_grpc(
            16, "the key is missing or unknown; send authorization", "!{ var(txn.key) -m found }"
        )
    return rules


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- The program -------------------------------------------------------------------------
def found() -> str | None:
    """Path of haproxy, if it is installed."""
    return shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def executable() -> str:
    """`found`. Raises BadInput where there is none."""
    path = found()
    if path is None:
        raise BadInput(
            "haproxy is not installed, expected it as the door; run `apt-get install haproxy`, or "
            "serve one server on 127.0.0.1 without --replicas, --grpc, --tls-certificate and --keys"
        )
    return path


def check(path: Path) -> None:
    """Raise ToxicityError when haproxy itself refuses the configuration at `path`."""
    done = subprocess.run(
        [executable(), "-c", "-f", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "[ALERT]" in line]
        why = lines[0].split("parsing ", 1)[-1] if lines else done.stderr.strip()
        raise ToxicityError(f"haproxy refuses its configuration: {why}; report this")


def states(metrics_port: int) -> dict[str, str]:
    """Replica -> what haproxy makes of it ("UP", "DOWN", ...); empty when it does not answer."""
    try:
        with urllib.request.urlopen(
            f"http://{HOST}:{metrics_port}/balancer/metrics", timeout=5
        ) as answer:
            text = str(answer.read(), "utf-8")
    except OSError:
        return {}
    line = rf'^haproxy_server_status{{proxy="{HTTP_BACKEND}",server="(.*)",state="(.*)"}} 1$'
    found = dict(re.findall(line, text, re.MULTILINE))
    found.pop("waiting", None)
    return found
