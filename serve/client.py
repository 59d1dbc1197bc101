"""A small typed client of the public model, over HTTP or gRPC through `tritonclient`.

scores = score_comments(["you are kind", "..."], protocol="grpc")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from contract import (
    GRPC_PORT,
    HOST,
    HTTP_PORT,
    LOGIT,
    MAX_BATCH_SIZE,
    MAX_COMMENT_BYTES,
    MODEL_VERSION,
    PROBABILITY,
    PUBLIC_MODEL,
    TEXT,
    BadInput,
    ToxicityError,
)

Protocol = Literal["http", "grpc"]
DEFAULT_URL = {"http": f"{HOST}:{HTTP_PORT}", "grpc": f"{HOST}:{GRPC_PORT}"}
_CLIENT = {"http": tritonclient.http, "grpc": tritonclient.grpc}
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Scores:
    """Answers in the order of the comments."""

    probability: NDArray[np.float32]
    """float32 [B]."""
    logit: NDArray[np.float32]
    """float32 [B]."""
    model_version: list[str]
    """B version numbers: a reload may fall between two requests."""


def score_comments(
    texts: Sequence[str], *, protocol: Protocol = "http", url: str | None = None
) -> Scores:
    """Scores of any number of comments, MAX_BATCH_SIZE a request.

    Raises BadInput for what cannot be sent or is refused as it is, ToxicityError when the
    server is not there, is overloaded or fails.
    """
    url = url or DEFAULT_URL[protocol]
    encoded = [_encode(row, text) for row, text in enumerate(texts)]
    answers = []
    try:
        with connect(protocol, url) as client:
            for at in range(0, len(encoded), MAX_BATCH_SIZE):
                answers.append(infer(client, protocol, encoded[at : at + MAX_BATCH_SIZE]))
    except InferenceServerException as error:
        raise _explained(error, url) from error
    except (OSError, HTTPException) as error:  # the latter when it ends in the middle
        raise _unreachable(url, str(error)) from error
    return Scores(
        probability=_joined(answers, PROBABILITY, np.float32),
        logit=_joined(answers, LOGIT, np.float32),
        model_version=[raw.decode() for raw in _joined(answers, MODEL_VERSION, np.object_)],
    )


def infer(client: Any, protocol: Protocol, encoded: Sequence[bytes]) -> Any:
    """Send one request of B encoded comments; Triton's answer holds [B, 1] tensors.

    Raises InferenceServerException with the server's own words.
    """
    text_B1 = np.array(encoded, np.object_).reshape(-1, 1)
    tensor = _CLIENT[protocol].InferInput(TEXT, list(text_B1.shape), "BYTES")
    tensor.set_data_from_numpy(text_B1)
    return client.infer(PUBLIC_MODEL, [tensor])


def connect(protocol: Protocol, url: str) -> Any:
    """A client for `infer`, which keeps its connection; use it in a `with` block, in one thread."""
    if protocol == "grpc":
        return tritonclient.grpc.InferenceServerClient(url)
    return tritonclient.http.InferenceServerClient(
        url, connection_timeout=_TIMEOUT_S, network_timeout=_TIMEOUT_S
    )


def _encode(row: int, text: str) -> bytes:
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"comment {row} holds a lone surrogate at character {error.start}, expected text "
            "that UTF-8 can encode; decode it with the right encoding first"
        ) from error
    if len(encoded) > MAX_COMMENT_BYTES:
        raise BadInput(
            f"comment {row} is {len(encoded)} bytes long, expected at most {MAX_COMMENT_BYTES}; "
            "cut it before sending"
        )
    return encoded


def _joined(answers: list[Any], name: str, dtype: Any) -> NDArray[Any]:
    parts = [answer.as_numpy(name).reshape(-1) for answer in answers]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _explained(error: InferenceServerException, url: str) -> ToxicityError:
    reason = (error.message() or "no reason given").splitlines()[0]
    status = str(error.status() or "")
    if status.endswith("UNAVAILABLE") and "overloaded" not in reason:
        return _unreachable(url, reason)
    kind = BadInput if status in ("400", "StatusCode.INVALID_ARGUMENT") else ToxicityError
    return kind(f"the server at {url} refused: {reason}")


def _unreachable(url: str, reason: str) -> ToxicityError:
    return BadInput(f"no server answers at {url} ({reason}); start one with `make serve`")
