"""Why an answer of the served model counts as failed, for `bench/load.py`."""

from __future__ import annotations

import itertools
import json
import re
import struct
from typing import Any

from contract import MODEL_VERSION, PROBABILITY

SHOWN_CHARS = 200
"""Of an error text: enough to say why, short enough for Locust's table of errors."""
_RIGHT = tuple(
    re.compile(rb'"name": ?"%s"[^{}]*"data": ?\[%s\]' % (name.encode(), value))
    for name, value in (
        (PROBABILITY, rb"(?:0(?:\.\d+)?|1(?:\.0+)?|\d(?:\.\d+)?[eE]-\d+)"),
        (MODEL_VERSION, rb'"\d+"'),
    )
)
"""Both are in the answer to one comment, if it is right; another is read in full."""


def http_fault(response: Any) -> str | None:
    """Why a `RawAnswer` of `bench.traffic.sockets` counts as failed, or None."""
    content = response.content or b""
    if response.status_code == 200 and all(right.search(content) for right in _RIGHT):
        return None
    if response.status_code != 200:
        body = (response.content or b"").decode("utf-8", "replace")
        return f"{response.status_code}: {body or response.error}"[:SHOWN_CHARS]
    try:
        length = getattr(response, "header_length", None)
        outputs = json.loads(response.content[:length])["outputs"]
        if length is None:
            data = {output["name"]: output["data"] for output in outputs}
            return _fault(
                [float(p) for p in data[PROBABILITY]], list(map(str, data[MODEL_VERSION]))
            )
        sizes = [output["parameters"]["binary_data_size"] for output in outputs]
        ends = list(itertools.accumulate(sizes, initial=length))
        names = [output["name"] for output in outputs]
        parts = [response.content[a:b] for a, b in itertools.pairwise(ends)]
        return _raw_fault(dict(zip(names, parts, strict=True)))
    except (ValueError, TypeError, LookupError, struct.error) as error:
        return f"the answer cannot be read: {error!r}"[:SHOWN_CHARS]


def grpc_fault(answer: Any) -> str | None:
    """Why a ModelInferResponse counts as failed, or None."""
    names = [output.name for output in answer.outputs]
    try:
        return _raw_fault(dict(zip(names, answer.raw_output_contents, strict=True)))
    except (ValueError, LookupError, struct.error) as error:
        return f"the answer cannot be read: {error!r}"[:SHOWN_CHARS]


def _raw_fault(raw: dict[str, bytes]) -> str | None:
    probabilities = [p for (p,) in struct.iter_unpack("<f", raw[PROBABILITY])]
    versions, left = [], raw[MODEL_VERSION]
    while left:
        (size,) = struct.unpack_from("<I", left)
        versions.append(left[4 : 4 + size].decode())
        left = left[4 + size :]
    return _fault(probabilities, versions)


def _fault(probabilities: list[float], versions: list[str]) -> str | None:
    if not probabilities or len(probabilities) != len(versions):
        return f"{len(probabilities)} {PROBABILITY} and {len(versions)} {MODEL_VERSION}"
    for probability, version in zip(probabilities, versions, strict=True):
        if not 0.0 <= probability <= 1.0:
            return f"{PROBABILITY} is {probability}, expected 0 to 1"
        if not version.isdecimal():
            return f"{MODEL_VERSION} is {version!r}, expected a number"
    return None
