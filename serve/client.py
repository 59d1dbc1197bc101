"""A small typed client of the public model, over HTTP or gRPC through `tritonclient`.

scores = score_comments(["you are kind", "..."], protocol="grpc")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from contract import (
    ATTRIBUTES,
    GRPC_PORT,
    HOST,
    HTTP_PORT,
    LOGIT,
    MAX_BATCH_SIZE,
    MAX_COMMENT_BYTES,
    MAX_REQUEST_BYTES,
    MODEL_VERSION,
    PROBABILITY,
    PUBLIC_MODEL,
    TEXT,
    THRESHOLD,
    BadInput,
    ToxicityError,
)

Protocol = Literal["http", "grpc"]
DEFAULT_URL = {"http": f"{HOST}:{HTTP_PORT}", "grpc": f"{HOST}:{GRPC_PORT}"}
_CLIENT = {"http": tritonclient.http, "grpc": tritonclient.grpc}
_TIMEOUT_S = 60.0
_ADDRESS = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_LENGTH_BYTES = 4
"""Before each comment of a binary tensor."""


@dataclass(frozen=True)
class ServerScores:
    """Answers in the order of the comments."""

    probability: NDArray[np.float32]
    """float32 [B]."""
    logit: NDArray[np.float32]
    """float32 [B]."""
    model_version: list[str]
    """B version numbers: a reload may fall between two requests."""
    attributes: list[dict[str, float]]
    """Probability by attribute, B of them; empty ones from a version that has no attributes."""


def score_comments(
    texts: Sequence[str],
    *,
    protocol: Protocol = "http",
    url: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> ServerScores:
    """Scores of any number of comments, in as many requests as they need, each with `headers`.

    Raises BadInput for what cannot be sent or is refused as it is, ToxicityError when the
    server is not there, is overloaded or fails.
    """
    url = _checked(DEFAULT_URL[protocol] if url is None else url)
    encoded = [_encode(row, text) for row, text in enumerate(texts)]
    answers, attributes = [], list[dict[str, float]]()
    try:
        with connect(protocol, url) as client:
            for batch in requests_of(encoded):
                answers.append(infer(client, protocol, batch, headers))
                for name in (PROBABILITY, LOGIT, MODEL_VERSION):
                    if answers[-1].get_output(name) is None:
                        raise LookupError(name)
                attributes += _attributes(answers[-1], protocol)
    except InferenceServerException as error:
        raise _explained(error, url) from error
    except (OSError, HTTPException) as error:  # the latter when it ends in the middle
        raise _unreachable(url, str(error)) from error
    except (ValueError, LookupError, TypeError) as error:
        raise _another(url) from error
    return ServerScores(
        probability=_joined(answers, PROBABILITY, np.float32),
        logit=_joined(answers, LOGIT, np.float32),
        model_version=[raw.decode() for raw in _joined(answers, MODEL_VERSION, np.object_)],
        attributes=attributes,
    )


def served_threshold(
    version: str = "", *, protocol: Protocol = "http", url: str | None = None
) -> float | None:
    """Probability from which a served version flags a comment; None where it does not say.

    The current version by default, and for one that is gone. None is that of an older version, or
    of a server that does not tell its configuration. Raises as `score_comments` does when the
    server is not there.
    """
    url = _checked(DEFAULT_URL[protocol] if url is None else url)
    try:
        with connect(protocol, url) as client:
            if protocol == "grpc":
                found = client.get_model_config(PUBLIC_MODEL, version, as_json=True)["config"]
            else:
                found = client.get_model_config(PUBLIC_MODEL, version)
        return float(found["parameters"][THRESHOLD]["string_value"])
    except InferenceServerException:
        return served_threshold(protocol=protocol, url=url) if version else None
    except (LookupError, ValueError, TypeError):
        return None
    except (OSError, HTTPException) as error:
        raise _unreachable(url, str(error)) from error


def _attributes(answer: Any, protocol: Protocol) -> list[dict[str, float]]:
    """Of each comment of an answer, whose parameter names the tensor's columns."""
    values = answer.as_numpy(ATTRIBUTES)
    if values is None:
        return [{}] * len(answer.as_numpy(PROBABILITY))
    if protocol == "grpc":
        said = answer.get_response().parameters[ATTRIBUTES].string_param
    else:
        said = answer.get_response()["parameters"][ATTRIBUTES]
    names = said.split(",")
    return [dict(zip(names, map(float, row), strict=True)) for row in values]


def requests_of(encoded: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Encoded comments cut into requests that a server takes: MAX_BATCH_SIZE comments at most.

    And at most half of MAX_REQUEST_BYTES, which leaves room for the rest of a body; a single
    comment may be larger.
    """
    batch: list[bytes] = []
    size = 0
    for raw in encoded:
        own = _LENGTH_BYTES + len(raw)
        if batch and (len(batch) == MAX_BATCH_SIZE or size + own > MAX_REQUEST_BYTES // 2):
            yield batch
            batch, size = [], 0
        batch.append(raw)
        size += own
    if batch:
        yield batch


def infer(
    client: Any,
    protocol: Protocol,
    encoded: Sequence[bytes],
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Send one request of B encoded comments; Triton's answer holds [B, 1] tensors.

    Raises InferenceServerException with the server's own words.
    """
    text_B1 = np.array(encoded, np.object_).reshape(-1, 1)
    tensor = _CLIENT[protocol].InferInput(TEXT, list(text_B1.shape), "BYTES")
    tensor.set_data_from_numpy(text_B1)
    return client.infer(PUBLIC_MODEL, [tensor], headers=headers)


def connect(protocol: Protocol, url: str) -> Any:
    """A client for `infer`, which keeps its connection; use it in a `with` block, in one thread."""
    if protocol == "grpc":
        return tritonclient.grpc.InferenceServerClient(url)
    return tritonclient.http.InferenceServerClient(
        url, connection_timeout=_TIMEOUT_S, network_timeout=_TIMEOUT_S
    )


def _checked(url: str) -> str:
    """`url` when it is HOST:PORT, which the client's libraries do not check. Raises BadInput."""
    found = _ADDRESS.fullmatch(url)
    if not found or not 1 <= int(found[2]) <= 65535 or not all(found[1].split(".")):
        raise BadInput(
            f"the server's address is {url!r}, expected HOST:PORT with a port from 1 to 65535, as "
            f"in {DEFAULT_URL['http']}; set another"
        )
    return url


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


def _another(url: str) -> ToxicityError:
    return BadInput(
        f"what answers at {url} is no such server, expected that of `make serve`; set another"
    )


def _unreachable(url: str, reason: str) -> ToxicityError:
    return BadInput(f"no server answers at {url} ({reason}); start one with `make serve`")
