"""The same checkpoint as people serve one with PyTorch; `bench.serving.peers` starts it.

    python -m bench.serving.peer_app fastapi --checkpoint runs/model --port 8300

Both take and give the JSON of the served model, so that one load generator sends to all. One
thread of PyTorch a process and a process a core, as the served model has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.serving.peer_scorer import CHECKPOINT, INFER_PATH, TorchScorer, answer, texts_of
from console.options import parse_config, run
from contract import HOST

_BATCH, _WINDOW_S = 32, 0.005
"""LitServe's batch: at most so many requests, and the longest wait for more."""
_START_S = 60
"""uvicorn ends a worker that is silent for so long: 5 s, its default, are over before PyTorch is
imported on a busy machine, again and again."""


@dataclass(frozen=True)
class PeerConfig:
    """Flags of `python -m bench.serving.peer_app`."""

    framework: Literal["fastapi", "litserve"] = Field(description="fastapi or litserve")
    checkpoint: Path = Field(Path("runs/model"), description="folder that `make train` wrote")
    port: int = Field(8300, ge=1, le=65535, description="port of HTTP requests")


def fastapi_app() -> Any:
    """One request at a time in each process; uvicorn calls this in each."""
    from fastapi import Body, FastAPI

    scorer = TorchScorer(Path(os.environ[CHECKPOINT]))
    app = FastAPI()

    @app.post(INFER_PATH)
    async def infer(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return answer(scorer.score(texts_of(body)))

    return app


def _serve_fastapi(config: PeerConfig) -> None:
    import uvicorn

    os.environ[CHECKPOINT] = str(config.checkpoint)
    uvicorn.run(
        "bench.serving.peer_app:fastapi_app",
        factory=True,
        host=HOST,
        port=config.port,
        workers=os.cpu_count(),
        timeout_worker_healthcheck=_START_S,
        log_level="warning",
    )


def _serve_litserve(config: PeerConfig) -> None:
    import litserve

    from bench.serving.peer_litserve import Api

    os.environ[CHECKPOINT] = str(config.checkpoint)
    api = Api(max_batch_size=_BATCH, batch_timeout=_WINDOW_S, api_path=INFER_PATH)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=os.cpu_count())
    server.run(host=HOST, port=config.port, log_level="warning", generate_client_file=False)


def main() -> None:
    config = parse_config(
        PeerConfig,
        None,
        prog="python -m bench.serving.peer_app",
        description="Serve a checkpoint with PyTorch.",
        positional="framework",
    )
    {"fastapi": _serve_fastapi, "litserve": _serve_litserve}[config.framework](config)


if __name__ == "__main__":
    run(main)
