"""Ours beside other ways to serve the same weights, at one objective: `make bench-peers`.

    python -m bench.serving.peers --p99-ms 50 --seconds 10 --steps 4

FastAPI and LitServe run PyTorch (bench/serving/peer_app.py); Triton runs the plain traced graph,
padded to the batch, in FP32 and in dynamic INT8; the last row is the published version. Each in
turn gets a process a core and the same comments over HTTP from the same generator. A peer whose
package is not installed is skipped, loudly. Prints a table and writes `peers.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.report.result import SERVER, Bars, at_least, begin, document, report
from bench.serving.capacity import CapacityConfig, Rung, search, served, table
from bench.serving.peer_scorer import INFER_PATH
from bench.serving.servers import free_ports
from bench.traffic.comments import load_pool
from bench.traffic.counters import process_counters
from console.options import run
from contract import HOST, LOGIT, TEXT, ToxicityError
from export.graph.qdq import write_dynamic
from export.model_config import Tuning
from export.repository import verify
from serve.process import spawn, started_s, wait_or_kill
from serve.triton import Server

_ALL = Tuning(os.cpu_count() or 1)
_READY_S = 90.0
_OURS = Rung("ours: published version", tuning=_ALL)


@dataclass(frozen=True)
class PeersConfig(CapacityConfig):
    """Flags of `python -m bench.serving.peers`."""

    checkpoint: Path = Field(
        Path("runs/model"),
        description="weights of the published version",
        json_schema_extra=SERVER,
    )


def main() -> None:
    config = begin(PeersConfig, "bench.serving.peers", "Compare ways to serve.")
    verify(config.repository)
    pool = load_pool(config.comments)
    print(pool.summary(), flush=True)
    rows = []
    for framework, words in (("fastapi", "FastAPI + PyTorch"), ("litserve", "LitServe + PyTorch")):
        if find_spec(framework) is None:
            print(f"{words}: skipped, {framework} is not installed", flush=True)
            continue
        with peer(config.out, config.checkpoint, framework) as server:
            rows.append(search(config, Rung(words, tuning=_ALL), server, process_counters))
    with tempfile.TemporaryDirectory() as folder:
        dynamic = Path(folder) / "dynamic.onnx"
        write_dynamic(config.traced, dynamic)
        for words, traced in (("FP32", config.traced), ("dynamic INT8", dynamic)):
            rung = Rung(f"Triton, traced {words}", "traced", tuning=_ALL)
            with served(replace(config, traced=traced), rung) as server:
                rows.append(search(config, rung, server))
    with served(config, _OURS) as server:
        rows.append(search(config, _OURS, server))
    found = document(
        "peers",
        config,
        objective={"p99_ms": config.p99_ms, "errors": 0},
        comments=pool.to_json(),
        peers=rows,
        bars=bars(rows),
    )
    report(config, found, table(rows))


@contextlib.contextmanager
def peer(out: Path, checkpoint: Path, framework: str) -> Iterator[Server]:
    """A PyTorch server that answers, killed at the end. Raises ToxicityError if it never does."""
    (port,) = free_ports(1)
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{framework}.log"
    command = [sys.executable, "-m", "bench.serving.peer_app", framework]
    command += ["--checkpoint", str(checkpoint), "--port", str(port)]
    process = spawn(command, {**os.environ, "OMP_NUM_THREADS": "1"}, log)
    try:
        _wait_until_it_answers(process, port, log)
        yield Server(
            pid=process.pid,
            started_s=started_s(process.pid),
            repository=str(checkpoint),
            http_port=port,
            grpc_port=port,
            metrics_port=port,
        )
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        wait_or_kill(family, 5)


def _wait_until_it_answers(process: psutil.Process, port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(OSError):
            ask(port, ["a kind answer"])
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    raise ToxicityError(f"{log.stem} did not answer within {_READY_S:.0f} s; see {log}")


def ask(port: int, texts: list[str]) -> list[float]:
    """Logits of one JSON request; OSError when nothing answers it."""
    tensor = {"name": TEXT, "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    request = urllib.request.Request(
        f"http://{HOST}:{port}{INFER_PATH}",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_READY_S) as answer:
        outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    return [float(value) for value in outputs[LOGIT]]


def bars(rows: list[dict[str, Any]]) -> Bars:
    """Ours, the last row, at four times the best of the others; none where no other has a rate."""
    *peers, ours = (row["capacity_rps"] for row in rows)
    best = max(peers, default=0)
    return {"ours_over_best_peer": at_least(ours / best, 4, 2)} if best else {}


if __name__ == "__main__":
    run(main)
