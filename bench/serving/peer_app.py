"""The same checkpoint as people serve one with PyTorch; `bench.serving.peers` starts it.

    python -m bench.serving.peer_app fastapi --checkpoint runs/model --port 8300

Both take and give the JSON of the served model, so that one load generator sends to all. One
thread of PyTorch a process and a process a core, as the served model has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import HOST, LOGIT, MODEL_VERSION, PROBABILITY, PUBLIC_MODEL
from export.gates.parity import Comment, run_batch, torch_runner
from train.artifacts import load_checkpoint
from train.validation import probability_of

INFER_PATH = f"/v2/models/{PUBLIC_MODEL}/infer"
CHECKPOINT = "TOXICITY_CHECKPOINT"
"""Environment variable that tells uvicorn's worker processes what to load."""
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


class TorchScorer:
    """PyTorch in eager mode on one thread."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        checkpoint = load_checkpoint(folder)
        self._tokenizer, self._run = checkpoint.tokenizer, torch_runner(checkpoint.model)

    def score(self, texts: list[str]) -> np.ndarray:
        """Logits float32 [n], all in one batch padded to the longest."""
        return run_batch(self._run, [Comment("", self._tokenizer.encode(text)) for text in texts])


def texts_of(body: dict[str, Any]) -> list[str]:
    texts = body["inputs"][0]["data"]
    assert isinstance(texts, list)
    return texts


def answer(logit_B: np.ndarray) -> dict[str, Any]:
    values = {
        PROBABILITY: ("FP32", probability_of(logit_B).tolist()),
        LOGIT: ("FP32", logit_B.tolist()),
        MODEL_VERSION: ("BYTES", ["1"] * len(logit_B)),
    }
    shape = [len(logit_B), 1]
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, data) in values.items()
    ]
    return {"model_name": PUBLIC_MODEL, "model_version": "1", "outputs": outputs}


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
