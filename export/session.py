"""ONNX Runtime sessions in Python: the options that a graph is served with, and its profile.

The server's own sessions are opened in core/src/onnx.cpp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from contract import BadInput


@dataclass(frozen=True)
class NodeRun:
    """One run of one node, after ONNX Runtime's fusions."""

    name: str
    op: str
    provider: str
    us: float
    """Microseconds in the node's kernel."""


def session_options(threads: int = 1, *, file_order: bool = True) -> ort.SessionOptions:
    """Options of a session: `threads` for the operators, one operator at a time.

    `file_order` runs the nodes in the file's own order, as the serving graph wants it, group by
    group: 1.05 of the default's speed for a single comment.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if file_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return options


def open_session(
    model: Path | bytes,
    device: str = "cpu",
    device_id: int = 0,
    options: ort.SessionOptions | None = None,
) -> Any:
    """ONNX Runtime session on `device`, "cpu" or "cuda" (GPU number `device_id`).

    `model` is a file or its bytes; the `options` are those of `session_options`, one thread, if no
    others are given. Raises BadInput when the device's provider is missing: ONNX Runtime would go
    on without it.
    """
    options = options or session_options()
    provider, settings = "CPUExecutionProvider", {}
    if device == "cuda":
        # TensorFloat-32 would round float32 matmuls to ten bits behind the gates' back.
        provider, settings = "CUDAExecutionProvider", {"device_id": device_id, "use_tf32": 0}
    session: Any = None
    if provider in ort.get_available_providers():
        session = ort.InferenceSession(model, options, providers=[(provider, settings)])
    if session is None or provider not in session.get_providers():  # its libraries do not load
        raise BadInput(
            f"ONNX Runtime {ort.__version__} is without {provider}, expected it for a {device} "
            "artifact; install onnxruntime-gpu with its CUDA libraries, or export with --device cpu"
        )
    return session


def profile_into(options: ort.SessionOptions, folder: Path) -> ort.SessionOptions:
    """The same options, with a profile that `node_runs` reads; it lies in `folder`."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    return options


def node_runs(session: Any) -> list[NodeRun]:
    """End the session's profile: every run of every node, in order."""
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    suffix = "_kernel_time"
    return [
        NodeRun(
            event["name"].removesuffix(suffix),
            event["args"]["op_name"],
            event["args"]["provider"],
            event["dur"],
        )
        for event in events
        if event["cat"] == "Node" and event["name"].endswith(suffix)
    ]
