"""What gives the new scores: a published version, a scorer a core, or a running server."""

from __future__ import annotations

import contextlib
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract import ONNX_FILE, TOKENIZER_FILE
from core.binding import NativeTokenizer, probability
from export.repository import verify, version_folder
from export.scorer import LongText
from migrate.config import MigrateConfig
from migrate.log import LogChunk
from serve.client import Protocol, score_comments
from serve.offline.config import default_processes
from serve.offline.worker import open_scorer


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk with its new scores."""

    chunk: LogChunk
    probability: np.ndarray
    """float64 [n], each the float32 that a server answers."""
    versions: tuple[str, ...]
    """Versions that answered."""


@dataclass(frozen=True)
class NewModel:
    """The model that takes over."""

    about: dict[str, Any]
    """What names it beyond doubt; JSON."""
    score: Callable[[Iterable[LogChunk]], Iterator[ScoredChunk]]
    """In the order of the chunks, a few of which are held."""
    is_cut: Callable[[str], bool] | None
    """Whether the model does not read all of a text; None where a server does not say."""


@contextlib.contextmanager
def new_model(config: MigrateConfig) -> Iterator[NewModel]:
    """Open what `config` names. Raises BadInput for a version that is missing or damaged."""
    if config.url is not None:
        yield _server(config.url)
        return
    artifact = verify(config.repository, config.version)
    folder = version_folder(config.repository, artifact["version"])
    count = default_processes(artifact["device"])
    scorers: queue.Queue[Any] = queue.Queue()
    for _ in range(count):
        scorers.put(open_scorer(folder))
    version = str(artifact["version"])

    def score_one(chunk: LogChunk) -> ScoredChunk:
        scorer = scorers.get()
        try:
            found = probability(scorer.score(chunk.texts).logit)
        finally:
            scorers.put(scorer)
        return ScoredChunk(chunk, found.astype(np.float64), (version,))

    with ThreadPoolExecutor(count) as pool:
        yield NewModel(
            about={
                "repository": os.fspath(config.repository),
                "version": artifact["version"],
                "precision": artifact["precision"],
                "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
            },
            score=lambda chunks: _in_order(pool, score_one, chunks, count + 1),
            is_cut=_cut_rule(artifact, folder),
        )


def _in_order(
    pool: ThreadPoolExecutor,
    score_one: Callable[[LogChunk], ScoredChunk],
    chunks: Iterable[LogChunk],
    most: int,
) -> Iterator[ScoredChunk]:
    waiting: deque[Future[ScoredChunk]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(score_one, chunk))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _cut_rule(artifact: dict[str, Any], folder: Path) -> Callable[[str], bool]:
    tokenizer = NativeTokenizer((folder / TOKENIZER_FILE).read_text("utf-8"))
    long_text = LongText.of_artifact(artifact)
    most = artifact["max_len"] + (long_text.windows - 1) * long_text.stride

    def is_cut(text: str) -> bool:
        # An id takes a byte or more, so a short text need not be read again.
        return 4 * len(text) >= most and tokenizer.encode(text, most)[1]

    return is_cut


def _server(url: str) -> NewModel:
    protocol: Protocol = "grpc" if url.startswith("grpc://") else "http"
    address = url.partition("://")[2].rstrip("/") if "://" in url else url

    def score(chunks: Iterable[LogChunk]) -> Iterator[ScoredChunk]:
        for chunk in chunks:
            found = score_comments(chunk.texts, protocol=protocol, url=address)
            versions = tuple(dict.fromkeys(found.model_version))
            yield ScoredChunk(chunk, found.probability.astype(np.float64), versions)

    asked = score_comments([""], protocol=protocol, url=address).model_version[0]
    return NewModel({"url": url, "version": int(asked)}, score, None)
