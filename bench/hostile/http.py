"""Hostile requests as HTTP: paths, headers, origins, framing, sizes and encodings."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Sequence

from bench.hostile.draws import (
    GENERATE_PATH,
    MODEL_PATH,
    Draw,
    Header,
    encoded,
    infer_body,
    single,
    uncertain,
)
from bench.hostile.exchange import Exchange
from contract import HOST, MAX_HEADER_BYTES, MAX_HEADERS, MAX_REQUEST_BYTES
from serve.probe import INFER_PATH

_METHODS = (
    *("GET", "POST", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT"),
    *("PROPFIND", "post", "X", "M-SEARCH", "G\u00cbT"),
)
_OPEN = (
    *("/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", MODEL_PATH),
    *(f"{MODEL_PATH}/{path}" for path in ("ready", "stats", "versions/1", "versions/1/ready")),
    *(INFER_PATH, GENERATE_PATH, f"{GENERATE_PATH}_stream", f"{MODEL_PATH}/versions/1/infer"),
)
_CLOSED = (
    *("/v2/logging", "/v2/trace/setting", "/v2/repository/index", "/v2/repository/x/index"),
    *(f"{MODEL_PATH}/{path}" for path in ("config", "trace/setting", "versions/1/config")),
    *(f"/v2/repository/models/{m}/{v}load" for m in ("toxicity", "x") for v in ("", "un")),
    *(
        f"/v2/{kind}sharedmemory{region}/{verb}"
        for kind in ("system", "cuda")
        for region in ("", "/region/x")
        for verb in ("status", "register", "unregister")
    ),
)
_UNKNOWN = (
    *("/", "/v1/models/toxicity:predict", "/metrics", "/balancer/metrics", "/replica-1/metrics"),
    *("/v2/models", "/v2/models/", "/v2/models/other/infer", f"{MODEL_PATH}/versions/2/infer"),
    *(f"{MODEL_PATH}/versions/99999999999999999999/infer", f"{INFER_PATH}/", f"{INFER_PATH}x"),
    *("/../../etc/passwd", "/favicon.ico", "/haproxy?stats", "/.git/config", "*", "x", "?", "#"),
)


# --- Paths ---------------------------------------------------------------------------------
def paths(draw: Draw) -> Exchange:
    """Every endpoint and method, as it is and written otherwise."""
    path = draw.one(draw.one(*_OPEN), draw.one(*_CLOSED), draw.one(*_UNKNOWN))
    if draw.likely(0.5):
        path = _respelled(draw, path)
    method = draw.one(*_METHODS)
    if method in ("GET", "HEAD") or draw.likely(0.5):
        return single("paths", draw.head(method, path))
    body = infer_body([draw.text()]) if draw.likely(0.5) else b"{}"
    return single("paths", draw.head(method, path, [("Content-Length", str(len(body)))]) + body)


def _respelled(draw: Draw, path: str) -> str:
    kind = draw.rng.randrange(12)
    at = draw.rng.randrange(len(path))
    if kind == 0:
        return f"{path[:at]}%{ord(path[at]) & 0xFF:02{draw.one('x', 'X')}}{path[at + 1 :]}"
    if kind == 1:
        return path.replace("/", draw.one("//", "/./", "/x/../", "\\", "%2f", "%252f", ";/"))
    if kind == 2:
        authority = draw.one(f"{HOST}:{draw.port}", "other.example", "[::1]", "a@b", "")
        return f"{draw.one('http', 'https', 'ftp', 'HTTP')}://{authority}{path}"
    if kind == 3:
        return path + draw.one("?", "?x=1", "?" + "a" * 3000, "#", "#infer", "%00", "%0d%0aX:1")
    if kind == 4:
        return draw.one(f"{HOST}:{draw.port}", "other.example:443", "*", "http://", "//")
    if kind == 5:
        return path.upper()
    if kind == 6:
        return draw.one("/.", "/..", "/v2/..", "/%2e%2e") + path
    if kind == 7:
        return path[: at + 1] + draw.one("\u00e9", "\u4e2d", "\x7f", "\t", "\x01", "\xff", "|", '"')
    if kind == 8:
        return path + "/" + "x" * draw.size(1, 9000)
    if kind == 9:
        return path.replace("toxicity", draw.one("toxicity%00", "Toxicity", "toxicity ", "*", ".."))
    if kind == 10:
        return path + draw.one("/", "//", "/.", ";x=1", "%20", ".json")
    return path[:at] + path[at + 1 :]


# --- Headers -------------------------------------------------------------------------------
_ODD_LINES = (
    *("X Y: 1", "X\t: 1", ": 1", "X", "X:", "\tX: 1", "X: \x00", "X\x00: 1", "X: a\rb", "X: \x01"),
    *("X: a\r\n b", "X: a\r\n\tb", "Host : x", "H\u00f6st: x", "X: \u00e9\u00ff", "(x): 1", "X=1"),
    *("Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",),
    *("Connection: close", "Connection: Content-Length", "Connection: Host, close, keep-alive"),
    *("Upgrade: websocket\r\nConnection: upgrade", "TE: trailers, gzip", "Expect: 100-continue"),
    *("Expect: 100-continue, x", "Expect: 200-ok", "Accept-Encoding: gzip", "Range: bytes=0-5"),
    *("Accept-Encoding: deflate, gzip;q=0.5", "Accept-Encoding: br", "Accept: text/html"),
    *("X-Original-URL: /v2/repository/index", "X-HTTP-Method-Override: GET", "Via: 1.1 x"),
    *("X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1;host=x", "Max-Forwards: 0"),
    *("Authorization: Bearer x", "Authorization: Basic Og==", "toxicity-key: x", "Cookie: a=b"),
    *("Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x", "DNT: 1"),
    *("triton-request-id: x", "Inference-Header-Content-Length:", "Trailer: X", "Host: other"),
)
_VERSIONS = (
    *("HTTP/1.0", "HTTP/1.2", "HTTP/1.9", "HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/11", "HTTP/1"),
    *("HTTP/1.1x", "HTTP/1.11", "HTTP/1.", "HTP/1.1", "http/1.1", "HTTP/-1.1", "", " HTTP/1.1"),
    *("HTTP/1.1 ", "RTSP/1.0", "HTTP/1.1\x00"),
)


def headers(draw: Draw) -> Exchange:
    """Huge, many, malformed and contradictory ones; versions of HTTP that there are not."""
    body = infer_body([draw.text()])
    length: Header = ("Content-Length", str(len(body)))
    kind = draw.rng.randrange(6)
    if kind == 0:
        size = draw.one(100, MAX_HEADER_BYTES - 300, MAX_HEADER_BYTES, 16_000, 60_000)
        value = "x" * (size - draw.rng.randrange(100))
        return single("headers", draw.head("POST", INFER_PATH, [("X", value), length]) + body)
    if kind == 1:
        count = draw.one(30, MAX_HEADERS - 3, MAX_HEADERS - 2, MAX_HEADERS - 1, MAX_HEADERS, 100)
        more = [(draw.one("X", f"X-{n}"), "1") for n in range(count)]
        return single("headers", draw.head("POST", INFER_PATH, [*more, length]) + body)
    if kind == 2:
        version = draw.one(*_VERSIONS)
        message = draw.head("POST", INFER_PATH, [length], version) + body
        return uncertain("headers", message)
    if kind == 3:
        hosts = draw.one([], ["x", "y"], ["x", "x"], [""], ["a b"], ["x/y"], ["x:99999"], ["[::1"])
        lines = [f"POST {INFER_PATH} HTTP/1.1", *(f"Host: {host}" for host in hosts)]
        text = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        return uncertain("headers", encoded(text) + body)
    lines = [draw.one(*_ODD_LINES) for _ in range(draw.one(1, 1, 2, 3))]
    end = draw.one("\r\n", "\r\n", "\r\n", "\n")
    lines += [f"Host: {HOST}", ": ".join(length)]
    draw.rng.shuffle(lines)
    text = end.join([f"POST {INFER_PATH} HTTP/1.1", *lines, "", ""])
    return uncertain("headers", encoded(text) + body)


def origins(draw: Draw) -> Exchange:
    """Web pages: of elsewhere, of here, of both."""
    own = f"http://{HOST}:{draw.port}"
    values = (
        *(own, own.upper(), "null", "https://other.example", "", "http://localhost", own + "/"),
        *(f"{own}, https://other.example", f"https://other.example, {own}", f"{own}.other.example"),
        *(f"http://{HOST}:{draw.port}1", f"http://{HOST}", "file://", f"{own} https://o.example"),
    )
    more: list[Header] = [("Origin", draw.one(*values)) for _ in range(draw.one(0, 1, 1, 1, 2))]
    sites = ("cross-site", "same-site", "same-origin", "none", "Cross-Site", "same-origin, x", "x")
    more += [("Sec-Fetch-Site", draw.one(*sites)) for _ in range(draw.one(0, 1, 1, 2))]
    more.append(("Content-Type", draw.one("text/plain", "application/json")))
    draw.rng.shuffle(more)
    return single("origins", draw.post(infer_body([draw.text()]), headers=more))


# --- Framing -------------------------------------------------------------------------------
_CODINGS = (
    *("Transfer-Encoding: chunked", "Transfer-Encoding:chunked", "Transfer-Encoding : chunked"),
    *("Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity", "\tchunked"),
    *("Transfer-Encoding: identity, chunked", "Transfer-Encoding:\x0bchunked", "TE: chunked"),
    *("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", "Transfer-Encoding:\r\n chunked"),
    *("X: x\nTransfer-Encoding: chunked", 'Transfer-Encoding: "chunked"', "Transfer-Encoding: "),
    *(
        "Transfer-Encoding: CHUNKED",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding\n: chunked",
    ),
)
_LENGTHS = (
    *("{n}, {n}", "+{n}", "-{n}", "0x{n:x}", "{n} {n}", "{n};", " {n} ", "", "x", "{n}e0", "0{n}"),
    *("2147483648", "4294967296", "18446744073709551615", "18446744073709551616", "{n}.0"),
    *("{n}\r\nContent-Length: {n}", "{n}\r\nContent-Length: 0", "0\r\nContent-Length: {n}"),
    *("{n}, 0", "0, {n}", "\u0661", "{n}\x0b", "99999999999999999999999", "1", "{n}\r\n ", "_{n}"),
)
_SIZES = (
    *("-1", "0x5", "FFFFFFFFFFFFFFFF", "100000000", "10000000000000005", " 5", "5 ", "5;x=y", "g"),
    *("5\n", "", "00005", '5;a="b\r\n', "+5", "5;" + "x" * 2000),
)


def framing(draw: Draw) -> Exchange:
    """Contradictory lengths and chunks with another request inside (request smuggling)."""
    inner = draw.post(infer_body([draw.text()]))
    kind = draw.rng.randrange(7)
    if kind == 0:  # one of two lengths counts
        coding = draw.one(*_CODINGS)
        chunks = draw.one(
            b"0\r\n\r\n" + inner, b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner), inner
        )
        length = draw.one(len(chunks), 4, 5, 0, len(chunks) - len(inner))
        lines = [coding, f"Content-Length: {length}"]
        draw.rng.shuffle(lines)
        message = _lines(draw, *lines) + chunks
    elif kind == 1:  # a body where there is none, or before it is read
        method = draw.one("GET", "HEAD", "DELETE", "POST", "OPTIONS")
        path = draw.one(
            "/v2/health/ready", "/v2", "/nothing", "/v2/logging", MODEL_PATH, INFER_PATH
        )
        message = draw.head(method, path, [("Content-Length", str(len(inner)))]) + inner
    elif kind == 2:
        body = infer_body([draw.text()])
        length = draw.one(*_LENGTHS).format(n=len(body))
        message = _lines(draw, f"Content-Length: {length}") + body + draw.one(b"", inner)
    elif kind == 3:  # chunks as they should be, one byte each or with trailers
        body = infer_body(["x" * draw.size(1, 500)])
        step = draw.one(1, 1, 7, len(body))
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        trailers = draw.one(
            b"", b"Content-Length: 5\r\n", b"X: 1\r\n", b"x" * 9000, b"X: 1\r\n" * 90
        )
        message = (
            _lines(draw, "Transfer-Encoding: chunked") + chunks + b"0\r\n" + trailers + b"\r\n"
        )
    elif kind == 4:
        size = encoded(draw.one(*_SIZES))
        message = _lines(draw, "Transfer-Encoding: chunked") + size + b"\r\nhello\r\n0\r\n\r\n"
    elif kind == 5:
        message = draw.one(b"", b"\r\n", b"\n", b"\r\n" * 50) + inner + draw.one(b"", inner, b"\0")
    else:
        message = _lines(draw, draw.one(*_CODINGS)) + inner
    return uncertain("framing", message)


def _lines(draw: Draw, *lines: str) -> bytes:
    path = draw.one(INFER_PATH, INFER_PATH, GENERATE_PATH, "/v2/health/ready", "/nothing")
    every = [f"POST {path} HTTP/1.1", f"Host: {HOST}:{draw.port}", *lines, "", ""]
    return encoded("\r\n".join(every))


# --- Sizes ---------------------------------------------------------------------------------
def sizes(draw: Draw) -> Exchange:
    """Bodies of nothing, of one byte, about the bound, and of another size than they say."""
    kind = draw.rng.random()
    if kind < 0.2:
        body = draw.one(b"", b"{", b" ", b"0", b"\0", b"{}", b"[]", b'""', b"null")
        path = draw.one(INFER_PATH, GENERATE_PATH, f"{GENERATE_PATH}_stream")
        return single("sizes", draw.post(body, path=path))
    if kind < 0.22:  # about the bound; a megabyte costs what it costs
        body = infer_body([draw.text()])
        padded = body.ljust(MAX_REQUEST_BYTES + draw.one(-1, 0, 1))
        return single("sizes", draw.post(padded))
    body = infer_body([draw.text()])
    claimed = draw.one(
        *(len(body) + 1, len(body) - 1, len(body) + draw.size(1, 10**6), draw.size(1, len(body))),
        *(MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1, 10**9, 10**12, 0),
    )
    head = draw.head("POST", INFER_PATH, [("Content-Length", str(claimed))])
    return uncertain("sizes", head + body)


# --- Encodings -----------------------------------------------------------------------------
_NAMES = (
    *("gzip", "deflate", "br", "zstd", "compress", "x-gzip", "GZIP", "gzip, gzip", "gzip;q=1", ""),
    *("identity", "identity, gzip", "gzip, identity", "identity,identity", "identity;q=1", "x"),
    *("gzip\r\nContent-Encoding: identity", "identity\r\nContent-Encoding: gzip", "deflate, gzip"),
)


def encodings(draw: Draw) -> Exchange:
    """Compressed bodies, bombs, and bodies that only say so."""
    body = infer_body([draw.text()])
    kind = draw.rng.random()
    if kind < 0.5:
        body = draw.one(_gzip, zlib.compress, _raw_deflate)(body)
    elif kind < 0.6:
        body = _gzip(_gzip(body))
    elif kind < 0.7:
        body = bomb(draw.one(1, 1, 1, 4, 4, 300))
    elif kind < 0.8:
        body = _gzip(body)[: -draw.rng.randrange(1, 20)]
    more: list[Header] = [("Content-Encoding", draw.one(*_NAMES))]
    if draw.likely(0.1):
        more.append(("Inference-Header-Content-Length", str(draw.one(len(body), 20, 0))))
    return single("encodings", draw.post(body, headers=more))


@functools.cache
def bomb(mebibytes: int) -> bytes:
    """So much of a comment under gzip."""
    packer = zlib.compressobj(9, wbits=31)
    parts: Sequence[bytes] = [packer.compress(infer_body(["@"]).split(b"@")[0])]
    parts = [*parts, *(packer.compress(b"a" * 2**20) for _ in range(mebibytes))]
    return b"".join([*parts, packer.compress(infer_body(["@"]).split(b"@")[1]), packer.flush()])


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)  # else the clock is in it, and a seed draws other bytes


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()
