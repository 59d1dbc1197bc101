"""What every family of hostile requests is drawn with: chance by a seed, comments, and messages."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.hostile.exchange import BRIEF_S, Exchange
from contract import HOST, PUBLIC_MODEL, TEXT
from serve.probe import INFER_PATH

MODEL_PATH = f"/v2/models/{PUBLIC_MODEL}"
GENERATE_PATH = f"{MODEL_PATH}/generate"
Header = tuple[str, str]


@dataclass
class Draw:
    """Chance, and what it chooses from."""

    rng: random.Random
    port: int
    texts: Sequence[str]

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.random() * len(choices))]

    def likely(self, share: float) -> bool:
        return self.rng.random() < share

    def size(self, least: int, most: int) -> int:
        """Log-uniform: as many of ten as of a thousand times as much."""
        return int(math.exp(self.rng.uniform(math.log(least), math.log(most + 1))))

    def text(self) -> str:
        return self.one(*self.texts)

    def noise(self, count: int) -> bytes:
        return self.rng.randbytes(count)

    # --- Messages ------------------------------------------------------------------------
    def head(
        self, method: str, path: str, headers: Sequence[Header] = (), version: str = "HTTP/1.1"
    ) -> bytes:
        """Up to and with the empty line; what is beyond Latin-1 goes as UTF-8."""
        lines = [f"{method} {path} {version}", f"Host: {HOST}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return encoded("\r\n".join([*lines, "", ""]))

    def post(self, body: bytes, *, path: str = INFER_PATH, headers: Sequence[Header] = ()) -> bytes:
        """A POST with the right length."""
        head = self.head("POST", path, [*headers, ("Content-Length", str(len(body)))])
        return head + body

    def legal(self) -> bytes:
        """A request for a score that is right in every way."""
        kind = self.rng.random()
        if kind < 0.8:
            return self.post(infer_body([self.text() for _ in range(self.one(1, 1, 1, 2, 5))]))
        return self.post(generate_body(self.text()), path=GENERATE_PATH)


def encoded(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def tensor(texts: Sequence[Any], **changed: Any) -> dict[str, Any]:
    """An input of these comments."""
    right = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}
    return {**right, **changed}


def infer_body(texts: Sequence[Any], **more: Any) -> bytes:
    return json.dumps({"inputs": [tensor(texts)], **more}).encode()


def generate_body(text: Any, **more: Any) -> bytes:
    return json.dumps({TEXT: text, **more}).encode()


def single(family: str, message: bytes, **more: Any) -> Exchange:
    """An exchange of one complete message."""
    return Exchange(family, [(0.0, message)], bodiless=message.startswith(b"HEAD "), **more)


def uncertain(family: str, message: bytes, **more: Any) -> Exchange:
    """One after which the door may wait for more, or find several requests in it."""
    settings: dict[str, Any] = {"expected": None, "patience_s": BRIEF_S, "fresh": True}
    return single(family, message, **{**settings, **more})


Make = Callable[[Draw], Exchange]
