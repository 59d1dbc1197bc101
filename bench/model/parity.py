"""Live server against PyTorch on the same comments, as raw text: `make parity`.

    python -m bench.model.parity --comments test.csv.gz --count 1000

One request a comment over HTTP, then all of them again over gRPC in full batches. Prints a table
and, as its last line, one JSON document. Exit status 1 when a bar does not hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

import contract
from bench.run import artifact_of, find_server, hardware, report_broken_bars
from bench.traffic.comments import default_source, load_pool
from console.options import parse_config, run
from contract import DECISION_THRESHOLD, HOST, BadInput
from export.gates.parity import reference_logits
from export.scorer import LongText
from serve.client import Protocol, score_comments
from train.artifacts import WEIGHTS_FILE, load_checkpoint, sha256_of
from train.methods.qat import int8_reference
from train.validation import probability_of


@dataclass(frozen=True)
class ParityConfig:
    """Flags of `python -m bench.model.parity`."""

    checkpoint: Path = Field(Path("runs/model"), description="folder that `make train` wrote")
    comments: str = Field(default_source(), description="a labelled file, or 'synthetic'")
    count: int = Field(1000, ge=1, description="comments to compare")
    run_dir: Path = Field(Path("runs/serve"), description="run folder of the server")


def main() -> None:
    config = parse_config(
        ParityConfig,
        None,
        prog="python -m bench.model.parity",
        description="Server against PyTorch.",
    )
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
    document = {
        "bench": "parity",
        "comments": pool.to_json(),
        "artifact": artifact,
        "hardware": hardware(),
        "measured": measured,
        "bars": bars(measured, len(pool.texts), artifact["precision"]),
    }
    print(f"{len(pool.texts)} comments from {pool.name}, {artifact['precision']} against PyTorch")
    for name, value in measured.items():
        print(f"{name:<32} {value:.3g}")
    print(json.dumps(document))
    report_broken_bars(document)


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


def bars(measured: dict[str, float], count: int, precision: str) -> dict[str, dict[str, Any]]:
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
    return {
        name: {"value": measured[name], "bar": bar, "holds": measured[name] <= bar}
        for name, bar in bound.items()
    }


if __name__ == "__main__":
    run(main)
