"""Asking a Prometheus that runs."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

from contract import BadInput

_TIMEOUT_S = 30


def ask_prometheus(
    prometheus: str, endpoint: str, expression: str, **more: float
) -> list[dict[str, Any]]:
    """The series that an expression finds, as `endpoint` of /api/v1 gives them.

    Raises BadInput where nobody answers, or not with a result.
    """
    url = f"{prometheus}/api/v1/{endpoint}"
    address = f"{url}?{urllib.parse.urlencode({'query': expression, **more})}"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            return list(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        raise BadInput(
            f"{url} answers {expression} with status {error.code}, expected 200; give the address "
            "of Prometheus with --prometheus"
        ) from error
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise BadInput(
            f"{url} does not answer ({error}), expected Prometheus; give its address with "
            "--prometheus"
        ) from error
