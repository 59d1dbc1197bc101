"""What a request may be, as rules of haproxy: each bound of `contract`, its status and one line.

`serve.balancer` puts them together, in the order in which they stand here. A rule that names a
condition (`infer`, `large`) needs the function that defines it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import contract
from contract import PUBLIC_MODEL
from serve.app import settings as app
from serve.refusals import NO_SERVER, api_rules, refuse, refuse_grpc

_MODEL_PATH = rf"/v2/models/{PUBLIC_MODEL}(/versions/[0-9]+)?"
INFER = rf"^{_MODEL_PATH}/(infer|generate|generate_stream)$"
_GENERATE = "/generate(_stream)?$"
BINARY_HEADER = "inference-header-content-length"
"""Length of the JSON before the tensors, of `infer` alone; 0 says that the body is a text."""
_READ = rf"^(/v2/?|/v2/health/live|{_MODEL_PATH}(/stats|/config)?|/v2/models/stats)$"
_READY = rf"^(/v2/health/ready|{_MODEL_PATH}/ready)$"
APP_POST = f"^({app.SCORE_PATH}|{app.MODERATION_PATH}|{app.ANALYZE_PATH}|{app.SUGGEST_PATH})$"
_APP_READ = f"^({app.SCORE_PATH}|{app.HEALTH_PATH}|{app.OPENAPI_PATH})$".replace(".", r"\.")
_APP_PAGES = rf"^{app.PAGE_PATH}(/|$)"
"""Of the application (serve/app): what scores, what is read, and its pages, which are both."""
_PAGE_FILES = rf"^{app.PAGE_PATH}(/(static/(vendor/)?[A-Za-z]+(\.[A-Za-z]+)+)?)?$"
"""The page without a comment or a score in it: it asks for the key, and links may lead to it."""
_BY_ADDRESS = r"^(localhost|([0-9]{1,3}\.){3}[0-9]{1,3}|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$"
"""A Host that is no name: nobody else can make it lead to this machine."""
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
_ARRIVED = f"http-request set-header {contract.ARRIVAL_HEADER} %[date(0,us)]"
_FREE_BYTES, _FREE_OPENINGS = 4096, 32
"""Up to here a body may be anything: it costs little, and the server says better what is wrong. It
reads lists in each other by calls in each other, and a thread keeps the stack that it once used:
4,096 lists took 8 MB of each thread for good. So brackets, in strings or not, are counted first."""
_OPENINGS = rf"^(?:[^\[{{]*+[\[{{]){{{_FREE_OPENINGS + 1}}}"
_SIZE_WORDS = (
    "Inference-Header-Content-Length is not one number, expected the length of the JSON; send it"
)
GRPC_OPEN = (
    "ModelConfig",
    "ModelInfer",
    "ModelMetadata",
    "ModelReady",
    "ModelStatistics",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
)
_GRPC_SERVICE = "/inference.GRPCInferenceService/"


# --- HTTP ----------------------------------------------------------------------------------
def connection_rules() -> list[str]:
    """How many connections an address may have open; what is far above is closed unheard."""
    limit = contract.MAX_ADDRESS_CONNECTIONS
    return [
        "tcp-request connection track-sc0 src table addresses",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {2 * limit} }}",
        *api_rules(),
        refuse(
            429,
            f"more than {limit} connections of this address are open; use fewer",
            f"{{ sc0_conn_cur gt {limit} }}",
            close=True,
        ),
    ]


def header_rules() -> list[str]:
    """What headers may be, whatever they ask for."""
    return [
        refuse(
            431,
            f"the headers have more than {contract.MAX_HEADER_BYTES} bytes; send fewer",
            f"{{ req.hdrs,length gt {contract.MAX_HEADER_BYTES} }}",
            close=True,
        ),
        refuse(
            400,
            "the headers have control characters; send text",
            f"{{ req.hdrs -m reg '{_CONTROL_CHARACTERS}' }}",
            close=True,
        ),
        refuse(
            400,
            "the version of HTTP is unknown; send HTTP/1.1",
            "!{ req.ver 1.0 1.1 }",
            close=True,
        ),
        refuse(  # RFC 9110, 4.2.1: its host may not be empty
            400,
            "the address is of another scheme or has no host; send the path alone",
            "{ url -m reg -i '^[a-z][a-z0-9+.-]*:' } !{ url -m reg -i '^https?://[^/]' }",
            close=True,
        ),
        refuse(
            400,
            "the request has no Host, expected one; send it",
            "!HTTP_1.0 !{ req.fhdr_cnt(host) eq 1 }",
            close=True,
        ),
    ]


def _page_rules() -> list[str]:
    """Which requests are for a file of the page: defines the condition `page_file`."""
    return [
        f"acl page_path path -m reg {_PAGE_FILES}",
        "http-request set-var(txn.page) int(1) if page_path { method GET HEAD }",
        "acl page_file var(txn.page) -m found",
    ]


def origin_rules(allowed: Sequence[str], scheme: str) -> list[str]:
    """Refuse web pages of elsewhere: a plain POST needs no preflight.

    The door's own page may ask from whatever address it was opened at: its Origin is the Host of
    the request. That proves it where the Host is an address or a certificate stands for its name;
    any other name could be one of somebody else that leads here (DNS rebinding). Links and the
    address bar may lead to the page's files from anywhere. Defines `page_file`.
    """
    words = "requests of this web page are not allowed; see --allow-origin"
    proven = "" if scheme == "https" else " by_address"
    return [
        *_page_rules(),
        f"acl by_address req.hdr(host) -m reg -i {_BY_ADDRESS}",
        f"http-request set-var-fmt(txn.own) {scheme}://%[req.hdr(host),lower]",
        "acl of_host req.hdr(origin),lower,strcmp(txn.own) eq 0",
        f"http-request set-var(txn.own_origin) int(1) if of_host{proven}",
        f"acl own_origin req.hdr(origin) -i {' '.join(allowed)}",
        "acl own_origin var(txn.own_origin) -m found",
        refuse(403, words, "{ req.hdr_cnt(origin) gt 1 }", close=True),
        refuse(403, words, "{ req.hdr(origin) -m found } !own_origin", close=True),
        refuse(
            403,
            words,
            "{ req.hdr(sec-fetch-site) -i cross-site same-site } !own_origin !page_file",
            close=True,
        ),
    ]


def key_rules(keys_map: Path) -> list[str]:
    """Know the client by its key, whose name is then in the variable `txn.key`.

    The page's files are open without one.
    """
    return [
        *_named_by_key(keys_map),
        *google_key_rules(keys_map),
        refuse(
            401,
            "the key is missing or unknown; send Authorization: Bearer KEY",
            "!{ var(txn.key) -m found } !page_file",
            close=True,
        ),
    ]


def _named_by_key(keys_map: Path) -> list[str]:
    return [
        "http-request set-var(txn.key) req.hdr(authorization),"
        rf"regsub('^[Bb]earer\ +',''),sha2(256),hex,lower,map({keys_map})",
        "http-request del-header authorization",
    ]


def google_key_rules(keys_map: Path) -> list[str]:
    """Also know the client by its key as Perspective's clients send it; the key goes no further."""
    known = rf"sha2(256),hex,lower,map({keys_map})"
    condition = f"{{ path_beg {app.PERSPECTIVE_PATHS} }}"
    unknown = "!{ var(txn.key) -m found }"
    return [
        f"http-request set-var(txn.key) url_param(key),{known} if {condition} {unknown}",
        f"http-request set-var(txn.key) req.hdr(x-goog-api-key),{known} if {condition} {unknown}",
        "http-request del-header x-goog-api-key",
    ]


def key_rate_rules(name: str, requests_per_s: int, table: str) -> list[str]:
    """Of a key's own backends: its rate, counted in the table over ten seconds."""
    return [
        f"http-request track-sc2 int(1) table {table}",
        refuse(
            429,
            f"the key {name} has more than {requests_per_s} requests a second; send fewer",
            f"{{ sc2_http_req_rate({table}) gt {10 * requests_per_s} }}",
        ),
    ]


def path_rules(servers: Sequence[str]) -> list[str]:
    """Which paths are open, and with which method; ready is one of `servers` (backend/name)."""
    return [
        f"acl infer path -m reg {INFER}",
        f"acl read path -m reg {_READ}",
        f"acl ready path -m reg {_READY}",
        *app_paths(),
        f"acl control path -m reg {_CONTROL}",
        f"acl control path -m reg {_MODEL_CONTROL}",
        refuse(403, "this is not open on this port; see docs/security.md", "control !read"),
        *ready_rules(servers),
        refuse(404, "there is nothing at this path", "!infer !read !app"),
        refuse(405, "a score is asked for with POST", "infer !{ method POST }"),
        refuse(405, "a score is asked for with POST", "app_post !app_read !{ method POST }"),
        refuse(405, "this is read with GET", "read !{ method GET HEAD }"),
        refuse(405, "this is read with GET", "app_read !app_post !{ method GET HEAD }"),
        refuse(405, "this takes GET and POST", "app !{ method GET HEAD POST }"),
        "http-request set-var(txn.body) int(1) if infer",
        "http-request set-var(txn.body) int(1) if app { method POST }",
        "acl takes_body var(txn.body) -m found",
    ]


def ready_rules(servers: Sequence[str]) -> list[str]:
    """Answer what `ready` is true of: 200 while one of `servers` (backend/name) is up, else 503."""
    return [
        *(f"http-request return status 200 if ready {{ srv_is_up({one}) }}" for one in servers),
        refuse(503, NO_SERVER, "ready"),
    ]


def app_paths() -> list[str]:
    """Which paths are the application's: defines the condition `app`."""
    return [
        f"acl app_post path -m reg {APP_POST}",
        f"acl app_read path -m reg {_APP_READ}",
        *(f"acl app path -m reg {pattern}" for pattern in (APP_POST, _APP_READ, _APP_PAGES)),
    ]


def length_rules() -> list[str]:
    """How a body may be sent and how long it may be. Defines the condition `large`."""
    most, limit = contract.MAX_REQUEST_BYTES, contract.MAX_ADDRESS_LARGE_BODIES
    return [
        "acl has_length req.hdr(content-length) -m found",
        "acl body_sent req.hdr(content-length),add(0) -m int gt 0",
        "acl body_sent req.hdr(transfer-encoding) -m found",
        f"acl large req.hdr(content-length),add(0) -m int gt {contract.LARGE_BODY_BYTES}",
        refuse(400, "a GET has no body; send it without", "!takes_body body_sent", close=True),
        refuse(
            415,
            "the body is compressed, expected it as it is; send it without Content-Encoding",
            # Any value of any line: the server obeys the first line, whatever the others say.
            "takes_body { req.hdr(content-encoding) -m reg -i '^(?!identity$)' }",
            close=True,
        ),
        refuse(
            411,
            "the body comes in chunks or without a length; send it with Content-Length",
            "takes_body { req.hdr(transfer-encoding) -m found }",
            close=True,
        ),
        refuse(
            411,
            "the body has no length; send it with Content-Length",
            "takes_body !has_length",
            close=True,
        ),
        refuse(400, "the body is empty, expected a comment; send one", "takes_body !body_sent"),
        refuse(
            413,
            f"the body has more than {most} bytes; send fewer comments in a request",
            f"takes_body {{ req.hdr(content-length),add(0) -m int gt {most} }}",
            close=True,
        ),
        "http-request del-header content-encoding if takes_body",
        "http-request track-sc1 src table large_bodies if takes_body large",
        refuse(
            429,
            f"more than {limit} bodies above {contract.LARGE_BODY_BYTES} bytes come from this "
            "address; send them one by one",
            f"takes_body large {{ sc1_conn_cur gt {limit} }}",
            close=True,
        ),
    ]


def whole_body(condition: str) -> str:
    """A rule that holds a body whole where the condition is true."""
    return f"http-request wait-for-body time {contract.BODY_TIMEOUT_S}s if {condition}"


def taken_whole(condition: str) -> list[str]:
    """Hold a body whole where the condition is true, and tell the server when it was there."""
    return [whole_body(condition), f"{_ARRIVED} if {condition}"]


def body_rules(condition: str) -> list[str]:
    """Hold a body whole where the condition is true, and refuse what its form may not be."""
    return [
        *taken_whole(condition),
        f"acl costly req.body_size gt {_FREE_BYTES}",
        f"acl costly req.body -m reg '{_OPENINGS}'",
        f"acl binary req.hdr({BINARY_HEADER}) -m found",
        f"acl one_size req.fhdr_cnt({BINARY_HEADER}) eq 1",
        f"acl one_size_digits req.fhdr({BINARY_HEADER}) -m reg ^[0-9]{{1,9}}$",
        f"acl raw req.fhdr({BINARY_HEADER}) -m reg ^0+$",
        f"acl shaped req.body -m reg '{_BODY_PATTERN}(?&w)$'",
        f"acl shaped_header req.body -m reg '{_BODY_PATTERN}'",
        # The server takes what is no number for 0, and the first of two.
        refuse(400, _SIZE_WORDS, f"{condition} binary !one_size"),
        refuse(400, _SIZE_WORDS, f"{condition} binary !one_size_digits"),
        # There it is not read: the body is JSON, whatever it says.
        f"http-request del-header {BINARY_HEADER} if {condition} {{ path -m reg {_GENERATE} }}",
        refuse(400, _SHAPE_WORDS, f"{condition} costly !binary !shaped"),
        refuse(400, _SHAPE_WORDS, f"{condition} binary !raw !shaped_header"),
        refuse(
            400,
            f"{_CRASHES} is not open; leave it out",
            f"{condition} !binary {{ req.body -m reg '{_CRASHES_KEY}[ \\t\\r\\n]*:' }}",
        ),
    ]


# --- gRPC ----------------------------------------------------------------------------------
def grpc_rules(keys_map: Path | None) -> list[str]:
    """What a call over gRPC may be; its message is not read but for what ends the server."""
    paths = " ".join(_GRPC_SERVICE + name for name in GRPC_OPEN)
    most, half = contract.MAX_REQUEST_BYTES, contract.MAX_REQUEST_BYTES // 2
    words = "the key is missing or unknown; send authorization"
    keys = [
        *(_named_by_key(keys_map) if keys_map else []),
        *([refuse_grpc(16, words, "!{ var(txn.key) -m found }")] if keys_map else []),
    ]
    return [
        "tcp-request connection track-sc0 src table addresses",
        "tcp-request connection reject if "
        f"{{ sc0_conn_cur gt {contract.MAX_ADDRESS_CONNECTIONS} }}",
        *keys,
        refuse_grpc(7, "this is not open on this port", f"!{{ path {paths} }}"),
        f"http-request wait-for-body time {contract.BODY_TIMEOUT_S}s",
        _ARRIVED,
        refuse_grpc(
            8,
            f"the message has more than {most} bytes; send fewer comments",
            f"{{ req.body_size gt {most} }}",
        ),
        refuse_grpc(
            12,
            "the message is compressed, expected it as it is",
            "{ req.hdr(grpc-encoding) -m reg -i '^(?!identity$)' }",
        ),
        *(
            refuse_grpc(
                3,
                f"{_CRASHES} is not open; leave it out",
                # Half of the body: of more, the digits would not fit into a buffer.
                f"{{ req.body,bytes({at},{half + 100}),hex -m reg {_CRASHES_PROTOBUF} }}",
            )
            for at in (0, half)
        ),
    ]
