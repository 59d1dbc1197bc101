"""Bodies of requests as bytes, cheap to make: a generator must not spend its time on encoding.

The JSON and the binary form of the served model (KServe v2), of the comments that
`bench.traffic.arrivals.comment` names by number.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from bench.traffic import arrivals
from contract import TEXT

Payload = Literal["json", "binary"]
HEADER_LENGTH = "Inference-Header-Content-Length"
_JSON_BYTES = 256
"""Length of the JSON before binary tensors, filled up with spaces, so that every request has the
same headers."""


class EncodedComments:
    """The comments of a pool, encoded once; those of a later pass are put together from parts."""

    def __init__(self, texts: Sequence[str], payload: Payload) -> None:
        self.payload = payload
        encode = _escaped if payload == "json" else str.encode
        self._whole = [encode(text) for text in texts]
        parts = [arrivals.spliced(text) for text in texts]
        self._first = [encode(first) for first, _ in parts]
        self._kept = [encode(kept) for _, kept in parts]

    def __len__(self) -> int:
        return len(self._whole)

    def item(self, number: int, hot: int, first_pass: int) -> bytes:
        """What `arrivals.comment` gives for the same arguments, encoded."""
        pool = len(self._whole)
        if number < hot:
            return self._whole[number]
        passes, row = divmod(number - hot, pool - hot)
        passes += first_pass
        if passes % pool == 0:
            return self._whole[hot + row]
        first, kept = self._first[(row + passes) % pool], self._kept[hot + row]
        return first + b" " + kept if first and kept else first or kept

    def body(self, items: Sequence[bytes]) -> bytes:
        """HTTP body that sends these items of `item`; `headers` go with it."""
        if self.payload == "json":
            data = b'", "'.join(items)
            return b'{"inputs": [{%s, "data": ["%s"]}]}' % (_tensor(len(items)), data)
        raw = packed(items)
        head = (
            b'{"inputs": [{%s, "parameters": {"binary_data_size": %d}}], '
            b'"parameters": {"binary_data_output": true}}'
        ) % (_tensor(len(items)), len(raw))
        return head.ljust(_JSON_BYTES) + raw

    @property
    def headers(self) -> dict[str, str]:
        if self.payload == "json":
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(_JSON_BYTES)}


def packed(items: Iterable[bytes]) -> bytes:
    """KServe v2 binary tensor: each BYTES item after its length, 4 bytes little-endian."""
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


@functools.cache
def _tensor(comments: int) -> bytes:
    tensor: dict[str, Any] = {"name": TEXT, "shape": [comments, 1], "datatype": "BYTES"}
    return json.dumps(tensor)[1:-1].encode()


def _escaped(text: str) -> bytes:
    """Inside of a JSON string: what is escaped in two parts is escaped in one."""
    return json.dumps(text)[1:-1].encode()
