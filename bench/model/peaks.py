"""What this machine can do, measured in the run that is compared with it: peaks, time by operator.

Used by `bench.model.encoder`, on the CPUs that its process is pinned to.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from bench.serving.contenders import Feed
from contract import ATTENTION_MASK, INPUT_IDS, LOGIT, OPSET
from export.session import node_runs, open_session, profile_into, session_options
from train.methods.qat import WEIGHT_LIMIT

PEAK_SHAPE = (4096, 768, 768)
"""M, K, N of the matmul: large enough that nothing but the kernel counts."""
_TRIES = 7


def peak_gops(kind: Literal["int8", "fp32"], threads: int) -> float:
    """Best rate of a large matmul by a constant weight in ONNX Runtime, in 1e9 operations/s.

    int8 is U8 x S8 to S32 (MatMulInteger) with weights of seven bits, as in the serving graph. A
    multiplication and an addition are two operations.
    """
    m, k, n = PEAK_SHAPE
    rng = np.random.default_rng(0)
    a: np.ndarray
    b: np.ndarray
    if kind == "int8":
        a = rng.integers(0, 256, (m, k)).astype(np.uint8)
        b = rng.integers(-WEIGHT_LIMIT, WEIGHT_LIMIT + 1, (k, n)).astype(np.int8)
        op, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
    else:
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        op, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(op, ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", types[0], [m, k])],
        [helper.make_tensor_value_info("y", types[1], [m, n])],
        [numpy_helper.from_array(b, "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    session = open_session(proto.SerializeToString(), options=session_options(threads))
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        session.run(["y"], {"a": a})
        seconds.append(time.perf_counter() - began)
    return 2 * m * k * n / min(seconds) / 1e9


def profile_by_op(path: Path, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    """Time by operator type in one pass of a graph on one thread, the longest first.

    `share` is of the time in all nodes; what ONNX Runtime spends between them is not in it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(path, options=profile_into(session_options(), Path(scratch)))
        session.run([LOGIT], _named(feeds[0]))  # the first run allocates
        began = time.perf_counter()
        for feed in feeds:
            session.run([LOGIT], _named(feed))
        seconds = time.perf_counter() - began
        nodes = node_runs(session)
    runs = 1 + len(feeds)
    first = len(nodes) // runs  # every run has the same nodes
    spent: Counter[str] = Counter()
    for node in nodes[first:]:
        spent[node.op] += round(node.us)
    calls = Counter(node.op for node in nodes[:first])
    total = spent.total()
    rows = [
        {"op": op, "nodes": calls[op], "us": us, "share": round(us / total, 4)}
        for op, us in spent.most_common()
    ]
    between = round(1e6 * seconds) - total
    return [*rows, {"op": "(between nodes)", "nodes": 0, "us": between, "share": None}]


def _named(feed: Feed) -> dict[str, np.ndarray]:
    return dict(zip((INPUT_IDS, ATTENTION_MASK), feed, strict=True))
