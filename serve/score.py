"""Score comments with the running server: `score "some text"`.

score "you are kind" "you are not"       # several comments
score --protocol grpc --json - < lines   # one comment a line
score -- - --json                        # behind "--" everything is a comment
score --file comments.csv.gz             # all rows of a file, without a server: serve/score_file.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

from pydantic import Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import (
    ATTRIBUTES,
    DECISION_THRESHOLD,
    FLAGGED,
    LOGIT,
    MODEL_VERSION,
    PROBABILITY,
    TEXT,
    THRESHOLD,
    BadInput,
)
from serve.client import Protocol, score_comments, served_threshold

_INPUT: JsonDict = {"group": "Comments"}
_SERVER: JsonDict = {"group": "Server"}
_OUTPUT: JsonDict = {"group": "What is printed"}


@dataclass(frozen=True)
class ScoreConfig:
    """Flags of `score`."""

    texts: tuple[str, ...] = Field(
        description="comments; a single '-' reads them from stdin, unless it is behind '--'",
        json_schema_extra=_INPUT,
    )
    protocol: Protocol = Field(
        "http", description="how to talk to the server", json_schema_extra=_SERVER
    )
    url: str | None = Field(
        None, description="HOST:PORT, if not the one of `make serve`", json_schema_extra=_SERVER
    )
    attributes: bool = Field(
        False,
        description="also print the probability of each attribute, where the model has any; "
        "--json has them anyway",
        json_schema_extra=_OUTPUT,
    )
    json: bool = Field(
        False, description="one JSON object a comment instead of a table", json_schema_extra=_OUTPUT
    )


def main() -> None:
    """Console script `score`."""
    run(_main)


def _main() -> None:
    flags = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if any(flag == "--file" or flag.startswith("--file=") for flag in flags):
        from serve import score_file  # which imports all that a repository is checked with

        score_file.main(sys.argv[1:])
        return
    config = parse_config(
        ScoreConfig,
        None,
        prog="score",
        description="Toxicity of comments, from the running server; `score --file FILE` scores the "
        "rows of a file without one (`score --file FILE --help`).",
        positional="texts",
    )
    texts = config.texts
    if texts == ("-",) and "-" in flags:
        texts = tuple(_lines(sys.stdin.buffer))
    scores = score_comments(texts, protocol=config.protocol, url=config.url)
    thresholds = {
        version: served_threshold(version, protocol=config.protocol, url=config.url)
        for version in dict.fromkeys(scores.model_version) or ("",)
    }
    if config.attributes and texts and not scores.attributes[0]:
        raise BadInput(
            f"version {scores.model_version[0]} has no attributes, expected some with "
            "--attributes; publish a model that was trained with them, or leave the flag out"
        )
    names = list(scores.attributes[0]) if config.attributes and texts else []
    if not config.json:
        print("  ".join((PROBABILITY, f"{LOGIT:>9}", "version", FLAGGED, *names, TEXT)))
    for row, text in enumerate(texts):
        probability, logit = float(scores.probability[row]), float(scores.logit[row])
        version = scores.model_version[row]
        at = _decided_from(thresholds[version])
        if config.json:
            answer: dict[str, Any] = {PROBABILITY: probability, LOGIT: logit}
            if scores.attributes[row]:
                answer[ATTRIBUTES] = scores.attributes[row]
            answer |= {MODEL_VERSION: version, TEXT: text}
            answer |= {FLAGGED: probability >= at, THRESHOLD: at}
            print(json.dumps(answer, ensure_ascii=False))
        else:
            own = scores.attributes[row]
            others = [f"{own.get(name, math.nan):{len(name)}.4f}" for name in names]
            flagged = f"{'yes' if probability >= at else 'no':<{len(FLAGGED)}}"
            shown = f"{probability:{len(PROBABILITY)}.4f}", f"{logit:9.4f}", f"{version:>7}"
            print("  ".join((*shown, flagged, *others, text)))
    if not config.json:
        for version, threshold in thresholds.items():
            of = f"version {version}: " if len(thresholds) > 1 else ""
            print(f"{of}{from_where(threshold)}", file=sys.stderr)
        lowest = min(map(_decided_from, thresholds.values()))
        if words := none_toxic(scores.probability, lowest):
            print(words, file=sys.stderr)


def _decided_from(threshold: float | None) -> float:
    return DECISION_THRESHOLD if threshold is None else threshold


def from_where(threshold: float | None) -> str:
    """From which probability on a comment is flagged, and who says so."""
    if threshold is not None:
        return f"flagged from {threshold:g} on, the threshold of the version"
    return f"flagged from {DECISION_THRESHOLD:g} on, for the version states no threshold of its own"


def none_toxic(probabilities: Iterable[float], threshold: float = DECISION_THRESHOLD) -> str | None:
    """What to say when of several comments none counts as toxic; None otherwise."""
    values = [float(value) for value in probabilities]
    if len(values) < 2 or max(values) >= threshold:
        return None
    return (
        f"none of the {len(values)} comments reaches {threshold:g}, from where one counts as "
        f"toxic; the highest is {max(values):.4f}, and `toxicity thresholds` shows other thresholds"
    )


def _lines(file: IO[bytes]) -> Iterator[str]:
    """By line feeds alone, and a return before one, as `score --file` reads lines.

    Bytes that are not UTF-8 become lone surrogates, which the client then names.
    """
    for line in file:
        text = line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line
        yield text.decode("utf-8", "surrogateescape")


if __name__ == "__main__":
    main()
