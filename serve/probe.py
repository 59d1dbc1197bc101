"""What tells that a server scores: one request, and how its answer and its metadata are read."""

from __future__ import annotations

import math
import time
from typing import Any

from contract import CHECK_COMMENT, LOGIT, PUBLIC_MODEL, TEXT

INFER_PATH = f"/v2/models/{PUBLIC_MODEL}/infer"
METADATA_PATH = f"/v2/models/{PUBLIC_MODEL}"
OVERLOADED = "overloaded: "
"""What a server's refusal begins with when more waits than it can score."""
WORKS = rf'("outputs": ?\[|"error": ?"{OVERLOADED})'
"""Pattern of the answer to a `request` that `works` is true of."""


def fresh() -> str:
    """A comment that is in no cache, so that it is really scored, and that no metric counts."""
    return f"{CHECK_COMMENT} {time.time_ns()}"


def request(*outputs: str, text: str = CHECK_COMMENT) -> dict[str, Any]:
    """A comment as a body of JSON that asks for these outputs; for all when none is named."""
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    wanted = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    return {"inputs": [tensor], **wanted}


def scored(answer: Any) -> bool:
    """Whether the answer has a logit."""
    try:
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return math.isfinite(outputs[LOGIT][0])
    except (LookupError, TypeError):
        return False


def works(status: int, answer: Any) -> bool:
    """Whether it scored, or would have but for all that waits: an overloaded server is no dead one.

    Who took it for one would start it anew, or send its requests to the others, until none is left.
    """
    if status == 503:
        return isinstance(answer, dict) and str(answer.get("error")).startswith(OVERLOADED)
    return status == 200 and scored(answer)


def newest_version(metadata: Any) -> int | None:
    """Newest version that the model's metadata names, if any."""
    try:
        return max(map(int, metadata["versions"]), default=None)
    except (LookupError, TypeError, ValueError):
        return None
