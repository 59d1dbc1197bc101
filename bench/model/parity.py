"""Live server against PyTorch on the same comments, as raw text: `make parity`.

    python -m bench.model.parity --comments test.csv.gz --count 1000

One request a comment over HTTP, then all of them again over gRPC in full batches. Prints a table
and writes `parity.json`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

import contract
from bench.report.result import (
    LOAD,
    SERVER,
    Bars,
    ResultOptions,
    at_most,
    begin,
    document,
    report,
)
from bench.report.tables import aligned
from bench.serving.servers import artifact_of, find_server
from bench.traffic.comments import AUTO, COMMENTS_HELP, load_pool
from console.options import run
from contract import DECISION_THRESHOLD, HOST, BadInput
from export.gates.parity import reference_logits
from export.scorer import LongText
from serve.client import Protocol, score_comments
from storage.files import sha256_of
from train.artifacts import WEIGHTS_FILE, load_checkpoint
from train.methods.qat import int8_reference
from train.validation import probability_of


@dataclass(frozen=True)
class ParityConfig(ResultOptions):
    """Flags of `python -m bench.model.parity`."""

    checkpoint: Path = Field(
        Path("runs/model"), description="folder that `make train` wrote", json_schema_extra=SERVER
    )
    comments: str = Field(AUTO, description=COMMENTS_HELP, json_schema_extra=LOAD)
    count: int = Field(1000, ge=1, description="comments to compare", json_schema_extra=LOAD)
    run_dir: Path = Field(
        Path("runs/serve"), description="run folder of the server", json_schema_extra=SERVER
    )


def main() -> None:
    config = begin(ParityConfig, "bench.model.parity", "Server against PyTorch.")
    server = find_server(config.run_dir)
    artifact = artifact_of(server)
    if artifact["checkpoint_sha256"] != sha256_of(config.checkpoint / WEIGHTS_FILE):
        raise BadInput(
            f"the server's version {artifact['version']} was not exported from "
            f"{config.checkpoint}, expected that checkpoint; run `make export serve`"
        )
    pool = load_pool(config.comments, size=config.count)
    checkpoint = load_checkpoint(config.checkpoint)
    int8 = artifact["precision"] == "int8"
    model = int8_reference(checkpoint) if int8 else checkpoint.model
    long_text = LongText.of_artifact(artifact)
    reference = reference_logits(model, pool.texts, checkpoint.tokenizer, long_text)
    http_url = f"{HOST}:{server.http_port}"
    protocol: Protocol = "grpc" if server.grpc_port else "http"
    port = server.grpc_port or server.http_port
    alone = np.concatenate([score_comments([t], url=http_url).logit for t in pool.texts])
    batched = score_comments(pool.texts, protocol=protocol, url=f"{HOST}:{port}").logit
    measured = compare(reference, alone, batched)
    found = document(
        "parity",
        config,
        comments=pool.to_json(),
        artifact=artifact,
        measured=measured,
        bars=bars(measured, len(pool.texts), artifact["precision"]),
    )
    print(f"{len(pool.texts)} comments from {pool.name}, {artifact['precision']} against PyTorch")
    lines = [[name.replace("_", " "), f"{value:.3g}"] for name, value in measured.items()]
    report(config, found, aligned(lines))


def compare(reference: np.ndarray, alone: np.ndarray, batched: np.ndarray) -> dict[str, float]:
    """Differences of served logits, float32 [n], from PyTorch's, and between the two ways."""
    probabilities = [probability_of(logits) for logits in (reference, alone)]
    decided = [p >= DECISION_THRESHOLD for p in probabilities]
    return {
        "max_probability_difference": float(np.abs(probabilities[0] - probabilities[1]).max()),
        "max_logit_difference": float(np.abs(reference - alone).max()),
        "mean_logit_difference": float(np.abs(reference - alone).mean()),
        "flipped_decisions": int((decided[0] != decided[1]).sum()),
        "max_difference_alone_to_batched": float(np.abs(alone - batched).max()),
    }


def bars(measured: dict[str, float], count: int, precision: str) -> Bars:
    """The artifact's bounds for `precision`, as bars."""
    logit, flipped, invariance = {
        "fp32": (contract.FP32_LOGIT_ATOL, 0.0, contract.FP32_INVARIANCE_ATOL),
        "fp16": (
            contract.FP16_LOGIT_ATOL,
            contract.FP16_FLIPPED_SHARE,
            contract.FP16_INVARIANCE_ATOL,
        ),
        "int8": (
            contract.INT8_LOGIT_ATOL,
            contract.INT8_FLIPPED_SHARE,
            contract.INT8_INVARIANCE_ATOL,
        ),
    }[precision]
    bound = {
        "max_logit_difference": logit,
        "flipped_decisions": int(flipped * count),
        "max_difference_alone_to_batched": invariance,
    }
    return {name: at_most(measured[name], bar, digits=9) for name, bar in bound.items()}


if __name__ == "__main__":
    run(main)
