"""Hostile bodies: nesting, many of a thing, tensors, texts, binary tensors, generate, mutations."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from typing import Any

from bench.hostile.draws import (
    GENERATE_PATH,
    MODEL_PATH,
    Draw,
    Header,
    generate_body,
    infer_body,
    single,
    tensor,
    uncertain,
)
from bench.hostile.exchange import Exchange
from bench.traffic.bodies import HEADER_LENGTH, packed
from contract import (
    LOGIT,
    MAX_COMMENT_BYTES,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_COMMENTS,
    MODEL_VERSION,
    PROBABILITY,
    TEXT,
)
from serve.probe import INFER_PATH

_MARK = b"@"
_LEAST_LARGE = 20_000


def _large(draw: Draw, share: float, most: int = MAX_REQUEST_BYTES) -> int:
    """A size in bytes, small but for a share: megabytes cost all sides milliseconds."""
    if draw.likely(share):
        return draw.size(_LEAST_LARGE, most)
    return draw.size(1, _LEAST_LARGE)


# --- Structure -----------------------------------------------------------------------------
def nesting(draw: Draw) -> Exchange:
    """Lists and objects in each other, anywhere in a request, ended or not."""
    opening, closing = draw.one(
        *((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"), (b"[[],", b"]"), (b'{"a":[', b"]}"))
    )
    depth = max(1, _large(draw, 0.05, MAX_REQUEST_BYTES - 500) // (len(opening) + len(closing)))
    core = draw.one(b'"x"', b"", b"1", b"{}")
    inner = opening * depth + core + closing * draw.one(depth, depth, depth - 1, 0, depth + 1)
    places: tuple[Any, ...] = (
        *(infer_body(["@"]), infer_body(["x"], parameters={"a": "@"}), infer_body(["x"], id="@")),
        *(infer_body(["x"], outputs=["@"]), b'"@"', generate_body("@"), infer_body(["x"], a="@")),
        infer_body(["x"], outputs=[{"name": LOGIT, "parameters": {"a": "@"}}]),
        json.dumps({"inputs": [tensor(["x"], shape=["@"])]}).encode(),
        json.dumps({"inputs": [tensor(["x"], parameters={"a": "@"})]}).encode(),
    )
    body = draw.one(*places).replace(b'"@"', inner)
    path = draw.one(INFER_PATH, INFER_PATH, GENERATE_PATH)
    return single("nesting", draw.post(body, path=path, headers=_binary_header(draw, body)))


def _binary_header(draw: Draw, body: bytes) -> list[Header]:
    """The header of the binary form now and then: with it other rules hold."""
    if draw.likely(0.85):
        return []
    size = draw.one(len(body), len(body) // 2, 0, 2)
    return [(HEADER_LENGTH, str(size))]


def quadratic(draw: Draw) -> Exchange:
    """Many parameters, inputs, outputs, dimensions, digits and members of one name."""
    name, unit = draw.one(
        *(
            ("parameters", b'"p%d":1'),
            ("parameters", b'"p":%d'),
            ("inputs", b""),
            ("a", b'"%d":{}'),
        ),
        *(
            ("outputs", b'{"name":"probability","a":%d}'),
            ("shape", b"%d"),
            ("members", b'"m%d":[]'),
        ),
        *(("duplicates", b'"inputs":[%d]'), ("digits", b"%d"), ("escapes", b"\\u%04x")),
        ("tensor", b'"p%d":1'),
    )
    count = max(1, _large(draw, 0.05, MAX_REQUEST_BYTES - 2000) // max(16, len(unit) + 6))
    many = b",".join(unit % (n % 10**4) for n in range(count)) if unit else b""
    if name in ("parameters", "a"):
        body = infer_body(["x"])[:-1] + b',"%s":{%s}}' % (name.encode(), many)
    elif name == "inputs":
        one = json.dumps(tensor(["x"])).encode()
        body = b'{"inputs":[%s]}' % b",".join([one] * max(1, count // 6))
    elif name == "outputs":
        body = infer_body(["x"])[:-1] + b',"outputs":[%s]}' % many
    elif name == "shape":
        body = infer_body(["x"]).replace(b"[1, 1]", b"[%s]" % many)
    elif name == "digits":
        body = infer_body(["x"]).replace(b"[1, 1]", b"[1" + b"0" * count + b",1]")
    elif name == "escapes":
        text = b"".join(b"\\u%04x" % (0x20 + n % 0xD000) for n in range(count))
        body = infer_body(["@"]).replace(_MARK, text)
    elif name == "tensor":
        body = json.dumps({"inputs": [tensor(["x"], parameters={})]}).encode()
        body = body.replace(b"{}", b"{%s}" % many)
    elif name == "duplicates":
        body = b"{%s,%s" % (many, infer_body(["x"])[1:])
    else:
        body = b"{%s,%s" % (many, infer_body(["x"])[1:])
    return single("quadratic", draw.post(body, headers=_binary_header(draw, body)))


def tensors(draw: Draw) -> Exchange:
    """Types, shapes, names and members that are not the model's."""
    texts = [draw.text() for _ in range(draw.one(1, 1, 2, 3))]
    odd: tuple[Any, ...] = (
        *(None, True, 0, -1, 1.5, 10**30, "", "x", [], {}, [None], [1], ["x"], {"a": 1}, [[]]),
        *([1], [1, 1], [2, 1], [1, 2], [0, 1], [-1, 1], [257, 1], [2**62, 4], [1, 1, 1], ["1", 1]),
        *([1.0, 1], "BYTES", "FP32", "INT64", "bytes", LOGIT, PROBABILITY, [["x"]], [["x", "y"]]),
    )
    document: dict[str, Any] = {"inputs": [tensor(texts)]}
    for _ in range(draw.one(1, 1, 1, 2)):
        target = draw.one(document, document["inputs"][0] if document.get("inputs") else document)
        keys = ("name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id", "x")
        key = draw.one(*keys)
        if key in target and draw.likely(0.2):
            del target[key]
        elif isinstance(target, dict):
            target[key] = draw.one(*odd)
        if not isinstance(document.get("inputs"), list) or not document["inputs"]:
            break
        if not isinstance(document["inputs"][0], dict):
            break
    if draw.likely(0.3):
        document["outputs"] = [
            {"name": draw.one(LOGIT, PROBABILITY, MODEL_VERSION, "x"), "parameters": parameters}
            for parameters in draw.one(*_OUTPUT_PARAMETERS)
        ]
    if draw.likely(0.1):
        document["parameters"] = draw.one(*_OUTPUT_PARAMETERS)[0]
    body = json.dumps(document).encode()
    return single("tensors", draw.post(body, headers=_binary_header(draw, body)))


_OUTPUT_PARAMETERS: tuple[list[dict[str, Any]], ...] = (
    [{}],
    [{}, {}],
    *([{"binary_data": True}], [{"classification": 1}], [{"classification": -1}]),
    *([{"binary_data": "x"}], [{"shared_memory_region": "x", "shared_memory_byte_size": 8}]),
    *([{"classification": 10**9}], [{"binary_data_output": True}], [{"sequence_id": 1}]),
    *([{"timeout": 1}], [{"timeout": -1}], [{"priority": 10**18}], [{"sequence_start": True}]),
    *([{"triton_final": 1}], [{"max_tokens": 1e308}], [{"priority": -1}], [{"x": None}]),
)


# --- Texts ---------------------------------------------------------------------------------
_BROKEN = (
    *(
        b"\xff",
        b"\xc3",
        b"\xe4\xb8",
        b"\xf0\x9f\x98",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
    ),
    *(b"\x80", b"\\ud800", b"\\udfff", b"\\ud83d\\ud83d", b"\\ude00\\ud83d", b"\\u0000", b"\0"),
    *(b"\x1f", b"\\x41", b"\\u12", b"\\", b'"', b"\n", b"\\u00e9", b"\\ud83d\\ude00", b"\x7f"),
)
_COSTLY = (
    *("a ", "a", "\u0301", "a\u0301", "\u4e2d", "\U0001f600", "\u200d", "!", "\u00df", "\ufb03"),
    *("w0rd ", "f.u.c.k ", "\u0130", "\u1e9e", "\ufdfa", "\u0085", "\u3000", "\u202e", "1"),
    *("\U00010ffff"[:1], "\uac00", "\u1100\u1161\u11a8", "((((", "a-", "@x ", "http://a.b/ "),
)


def texts(draw: Draw) -> Exchange:
    """Comments that are no text, the longest, and the worst for a tokenizer."""
    if draw.likely(0.5):
        text = draw.text().encode()
        at = draw.rng.randrange(len(text) + 1)
        broken = draw.one(*_BROKEN) * draw.one(1, 1, 3)
        if draw.likely(0.7):
            plain = json.dumps(draw.text()).encode()[1:-1]
            at = draw.rng.randrange(len(plain) + 1)
            body = infer_body(["@"]).replace(_MARK, plain[:at] + broken + plain[at:])
            return single("texts", draw.post(body))
        raw = packed([text[:at] + broken + text[at:]])
        return single("texts", _binary(draw, raw, 1))
    unit = draw.one(*_COSTLY)
    size = _large(draw, 0.01, MAX_COMMENT_BYTES + 10)
    text_ = unit * max(1, size // len(unit.encode()))
    body = json.dumps({"inputs": [tensor([text_])]}, ensure_ascii=draw.likely(0.3)).encode()
    return single("texts", draw.post(body))


def most(draw: Draw) -> Exchange:
    """Requests as large as they may be, and a little larger, of what costs most to read."""
    unit = draw.one(*_COSTLY)
    count = draw.one(1, 4, 16, MAX_REQUEST_COMMENTS, MAX_REQUEST_COMMENTS + 1)
    return single("most", draw.post(_most_body(unit, count)))


@functools.lru_cache(maxsize=256)
def _most_body(unit: str, count: int) -> bytes:
    room = (MAX_REQUEST_BYTES - 2000) // count - 8
    size = min(room, MAX_COMMENT_BYTES + 10) // len(unit.encode())
    document = {"inputs": [tensor([unit * max(1, size)] * count)]}
    return json.dumps(document, ensure_ascii=False).encode()


# --- Binary tensors ------------------------------------------------------------------------
def _binary(draw: Draw, raw: bytes, count: int, **changed: Any) -> bytes:
    """A request of the binary form; `changed` are sizes that it lies about."""
    one = tensor([], shape=[count, 1])
    del one["data"]
    one["parameters"] = {"binary_data_size": changed.get("size", len(raw))}
    document: dict[str, Any] = {"inputs": [one]}
    if changed.get("binary_output"):
        document["parameters"] = {"binary_data_output": True}
    head = json.dumps(document).encode()
    stated = changed.get("json_size", len(head))
    return draw.post(head + raw, headers=[(HEADER_LENGTH, str(stated))])


def binary(draw: Draw) -> Exchange:
    """Binary tensors whose header, size or inner lengths are false."""
    comments = [draw.text().encode() for _ in range(draw.one(1, 1, 2, 4))]
    raw, count = packed(comments), len(comments)
    kind = draw.rng.randrange(8)
    odd = (0, 1, -1, len(raw) + 1, len(raw) - 1, 2**31, 2**32, 2**63, 2**64, "x", 1.5, None, True)
    if kind == 0:
        message = _binary(draw, raw, count, size=draw.one(*odd))
    elif kind == 1:
        sizes = (
            0,
            1,
            -1,
            -100,
            10**6,
            2**31,
            2**32,
            2**64,
            "x",
            "",
            "5x",
            "0x10",
            "+5",
            " 7",
            "1e2",
        )
        message = _binary(draw, raw, count, json_size=draw.one(*sizes))
    elif kind == 2:
        at = 4 * draw.rng.randrange(len(raw) // 4)
        length = draw.one(0, 1, len(raw), len(raw) - 4, 2**31, 2**32 - 1, MAX_COMMENT_BYTES + 1)
        message = _binary(draw, raw[:at] + struct.pack("<I", length) + raw[at + 4 :], count)
    elif kind == 3:
        shape = draw.one(0, count + 1, count - 1, MAX_REQUEST_COMMENTS + 1, 2**40, -1)
        message = _binary(draw, raw, shape)
    elif kind == 4:
        message = _binary(draw, raw + draw.noise(draw.size(1, 100)), count, size=len(raw))
    elif kind == 5:
        message = draw.post(draw.noise(draw.size(1, 2000)), headers=[(HEADER_LENGTH, "0")])
    elif kind == 6:
        twice = [(HEADER_LENGTH, str(draw.one(0, 5, 100))) for _ in range(2)]
        message = draw.post(infer_body([draw.text()]), headers=twice)
    else:
        message = _binary(draw, raw, count, binary_output=draw.likely(0.5))
    return single("binary", message)


def generate(draw: Draw) -> Exchange:
    """The generate extension: right, and with all kinds of members."""
    odd: tuple[Any, ...] = (
        *(None, True, 5, 1.5, [], {}, [draw.text()], ["a", "b"], [["a"]], {"a": "b"}, "", 10**40),
        *("\ud800", "\0", "x" * draw.size(1, 3000), [1, "a"], [[]] * 5),
    )
    more: dict[str, Any] = {}
    for _ in range(draw.one(0, 0, 1, 2)):
        keys = ("parameters", "id", "stream", "x", LOGIT, "inputs", TEXT + " ", "text_input")
        more[draw.one(*keys)] = draw.one(*odd)
    body = generate_body(draw.text() if draw.likely(0.5) else draw.one(*odd), **more)
    if draw.likely(0.1):
        body = draw.one(
            body[:-1] + b',"%s":"b"}' % TEXT.encode(), b"{}", b"[]", body * 2, body[:-1]
        )
    path = draw.one("generate", "generate_stream", "versions/1/generate")
    return single("generate", draw.post(body, path=f"{MODEL_PATH}/{path}"))


# --- Mutations -----------------------------------------------------------------------------
_TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"-", b"1e999", b"\\u", b"\0", b"\xff"),
    *(b"\r\n", b"\r\n\r\n", b" ", b"\n", b"NaN", b"Infinity", b"/**/", b"'", b"0", b"true", b"%"),
)


def _mutated(draw: Draw, data: bytes) -> bytes:
    for _ in range(draw.one(1, 1, 1, 2, 3, 8)):
        at = draw.rng.randrange(len(data) + 1)
        end = min(len(data), at + draw.size(1, 20))
        change: Callable[[], bytes] = draw.one(
            lambda a=at, d=data: d[:a] + draw.noise(1) + d[a + 1 :],
            lambda a=at, d=data: d[:a] + draw.one(*_TOKENS) + d[a:],
            lambda a=at, e=end, d=data: d[:a] + d[e:],
            lambda a=at, e=end, d=data: d[:e] + d[a:e] + d[e:],
            lambda a=at, d=data: d[:a],
        )
        data = change()
    return data


def mutations(draw: Draw) -> Exchange:
    """Right requests cut and changed: the body under its true length, or the whole message."""
    if draw.likely(0.15):
        return uncertain("mutations", _mutated(draw, draw.legal()))
    if draw.likely(0.2):
        raw = packed([draw.text().encode()])
        head, _, body = _binary(draw, raw, 1, binary_output=True).partition(b"\r\n\r\n")
        size = head.split(HEADER_LENGTH.encode() + b": ")[1].split(b"\r\n")[0].decode()
        message = draw.post(_mutated(draw, body), headers=[(HEADER_LENGTH, size)])
        return single("mutations", message)
    if draw.likely(0.3):
        body = generate_body(draw.text(), id="7")
        return single("mutations", draw.post(_mutated(draw, body), path=GENERATE_PATH))
    outputs = [{"name": LOGIT}, {"name": MODEL_VERSION}]
    body = infer_body([draw.text()], id="7", outputs=outputs, parameters={"a": 1})
    return single("mutations", draw.post(_mutated(draw, body)))
