"""A graph under construction: nodes, constants, and the points that an INT8 form quantizes.

Everything in `export.graph` writes its nodes through `Graph`; `model_proto` makes the file of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract import OPSET
from train.methods.qat import WEIGHT_LIMIT, Ranges, scale_and_zero

CONTRIB = "com.microsoft"
"""Domain of the operators that ONNX Runtime has beside the standard's."""


@dataclass
class Graph:
    """Nodes and constants so far, and the points whose activations an INT8 form quantizes."""

    ranges: Ranges | None
    dtype: Any = np.float32  # of weights and activations that are not quantized
    prefix: str = ""  # of every name made from here on
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)

    def input(self, name: str, dtype: int, *shape: str) -> str:
        """Declare an input of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, value: Any, name: str) -> str:
        """A constant of the type that weights have here."""
        return self.constant(value, self.dtype, name)

    def constant(self, value: Any, dtype: Any = np.int64, name: str = "") -> str:
        """Name of a new constant; `prefix` goes before a `name`, and a number is one."""
        name = self.prefix + (name or f"constant_{len(self.constants)}")
        self.constants[name] = numpy_helper.from_array(np.array(value, dtype, order="C"), name)
        return name

    def many(self, op: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list:
        """Names of the `count` outputs of a new node."""
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        outputs = [f"{name}_{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return outputs

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Name of the one output of a new node."""
        return self.many(op, 1, *inputs, **attributes)[0]

    def quantized(self, x: str, point: str) -> str:
        """`x` as the Linear layers read it: U8 in the INT8 form, itself otherwise."""
        self.points[self.prefix + point] = x
        if self.ranges is None:
            return x
        scale, zero = scale_and_zero(*self.ranges[self.prefix + point])
        return self(
            "QuantizeLinear",
            x,
            self.constant(scale, np.float32, f"{point}.scale"),
            self.constant(zero, np.uint8, f"{point}.zero"),
        )

    def linear(self, x: str, point: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """Linear layer, weight [N, K]; `x` comes from `quantized` at `point`."""
        if self.ranges is None:
            weight_name = self.weight(weight.T, f"{name}.weight")
            return self("Gemm", x, weight_name, self.weight(bias, f"{name}.bias"))
        scale_N = np.maximum(np.abs(weight).max(axis=1), 1e-12) / WEIGHT_LIMIT
        return self(
            "MatMulIntegerToFloat",
            x,
            self.constant(np.rint(weight / scale_N[:, None]).T, np.int8, f"{name}.weight"),
            f"{self.prefix}{point}.scale",
            self.constant(scale_N, np.float32, f"{name}.weight_scale"),
            f"{self.prefix}{point}.zero",
            "",  # the weights' zero point is 0
            self.constant(bias, np.float32, f"{name}.bias"),
            domain=CONTRIB,
        )


def array(parameter: Any) -> np.ndarray:
    """A PyTorch parameter as float32."""
    return np.asarray(parameter.detach().numpy(), np.float32)


def model_proto(g: Graph, outputs: Mapping[str, Sequence[int | str]]) -> onnx.ModelProto:
    """Model of `g` with these float outputs by name and shape."""
    declared = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in outputs.items()
    ]
    graph = helper.make_graph(g.nodes, "encoder", g.inputs, declared, list(g.constants.values()))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
