"""Where a graph really runs, from ONNX Runtime's own profile; `python -m export` calls it.

A graph that loads and answers well may still run a Linear layer in float, or send half of its
nodes to the CPU with copies in between: ONNX Runtime decides that when it loads the file, and
says so only in the profile of a run and in the model that it optimised. The gates here read both.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from export.gates.parity import Finding
from export.graph.one_layer import QUERY
from export.session import node_runs, open_session, profile_into, session_options

_INTEGER_MATMULS = {"MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_EIGHT_BITS = {TensorProto.INT8, TensorProto.UINT8}


@dataclass(frozen=True)
class OperatorTime:
    """Nodes of one operator on one provider, and their time in microseconds a run."""

    op: str
    provider: str
    nodes: int
    us: float


@dataclass(frozen=True)
class Placement:
    """What ran where, the slowest operator first."""

    rows: list[OperatorTime]
    integer_linears: list[str]
    """Names of the nodes that multiply by an 8-bit weight in integers."""
    float_linears: list[str]
    """Names of the nodes that multiply by a weight in floating point, the head left out."""

    @property
    def operators(self) -> int:
        """Nodes that ran, after ONNX Runtime's own fusions."""
        return sum(row.nodes for row in self.rows)

    @property
    def us(self) -> float:
        """Time of all of them for the batch that was run, microseconds."""
        return sum(row.us for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"operators": self.operators, "us": self.us, **asdict(self)}

    def __str__(self) -> str:
        """One line; the report has all."""
        nodes: Counter[str] = Counter()
        for row in self.rows:
            nodes[row.provider] += row.nodes
        placed = ", ".join(f"{count} nodes on {provider}" for provider, count in nodes.items())
        linears = f"{len(self.integer_linears)} in integers, {len(self.float_linears)} in float"
        return f"{placed}, {self.us:.0f} us a batch; Linear layers: {linears}"


def placement_of(path: Path, feeds: Mapping[str, np.ndarray], device: str = "cpu") -> Placement:
    """Load `path` on `device` as it is served, run the batch `feeds` twice, read the profile.

    `feeds` is each input's value by name. The times are of the second run, and a profiled run's:
    their shares count, a rate is measured without the profiler (`export.gates.rates`). Raises
    BadInput when the device's provider is missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = profile_into(session_options(), Path(scratch))
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the optimised file is for this CPU only
        session = open_session(path, device, options=options)
        for _ in range(2):
            session.run(None, feeds)
        runs = node_runs(session)
        graph = onnx.load(options.optimized_model_filepath).graph
    ran: dict[tuple[str, str], dict[str, float]] = {}  # last time of every node
    for run in runs:
        ran.setdefault((run.op, run.provider), {})[run.name] = run.us
    rows = [OperatorTime(*key, len(nodes), sum(nodes.values())) for key, nodes in ran.items()]
    names = {name for nodes in ran.values() for name in nodes}
    linears = [node for node in _linears(graph) if node.name in names]
    return Placement(
        rows=sorted(rows, key=lambda row: -row.us),
        integer_linears=[node.name for node in linears if _is_integer(node)],
        float_linears=[node.name for node in linears if not _is_integer(node)],
    )


def _is_integer(node: onnx.NodeProto) -> bool:
    return node.op_type in _INTEGER_MATMULS


def _linears(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Matmuls by a constant weight, in 8 bits or in float.

    The head, of width 1, is none, nor are the scores of a constant query
    (`export.graph.one_layer`).
    """
    weights = {
        tensor.name: tensor.data_type
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and 1 not in tensor.dims and not tensor.name.endswith(QUERY)
    }
    for node in graph.node:
        types = {weights[name] for name in node.input if name in weights}
        matmul = "MatMul" in node.op_type or "Gemm" in node.op_type
        for attribute in node.attribute:  # the branches of an If
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _linears(attribute.g)
        if types & (_EIGHT_BITS if _is_integer(node) else _FLOATS) and matmul:
            yield node


# --- Gates -------------------------------------------------------------------------------
def layers_in_float(placement: Placement, layers: int) -> Finding:
    """Linear layers of an INT8 artifact that did not run as an integer matmul; `layers` in all."""
    running, left = len(placement.integer_linears), placement.float_linears
    return Finding(
        "int8_layers_in_float",
        max(layers - running, len(left)),
        0,
        f"{running} integer matmuls ran, of {layers}" + (f"; in float: {left[0]}" if left else ""),
    )


def off_the_gpu(form: str, placement: Placement) -> list[Finding]:
    """Nodes of a GPU artifact on another provider, and copies between host and device.

    No operator is excused: the packed form has none whose shape or input comes from the host.
    """
    away = [
        row
        for row in placement.rows
        if row.provider != "CUDAExecutionProvider" and not row.op.startswith("Memcpy")
    ]
    copies = [row for row in placement.rows if row.op.startswith("Memcpy")]
    return [
        Finding(
            f"{form}_{gate}",
            sum(row.nodes for row in rows),
            0,
            ", ".join(f"{row.nodes} {row.op} on {row.provider}" for row in rows[:3]) or "none",
        )
        for gate, rows in {"nodes_off_gpu": away, "host_copies": copies}.items()
    ]
