"""INT8 forms of the traced graph by ONNX Runtime's own tools: rivals in `bench.encoder`.

Both quantize the Linear layers only: activations U8 per tensor, weights S8 per output channel.
None of them is published: `export.serving_graph` writes the INT8 form that is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from contract import ATTENTION_MASK, INPUT_IDS


class _OneByOne(CalibrationDataReader):
    """Feeds each comment alone, so that padding never widens a range."""

    def __init__(self, comments: Iterable[np.ndarray]) -> None:
        self._comments: Iterator[np.ndarray] = iter(comments)

    def get_next(self) -> dict[str, np.ndarray] | None:
        ids = next(self._comments, None)
        if ids is None:
            return None
        input_ids = np.asarray(ids, dtype=np.int64)[None]
        return {INPUT_IDS: input_ids, ATTENTION_MASK: np.ones_like(input_ids)}


def linear_nodes(path: Path) -> list[str]:
    """Names of the nodes that are the encoder's Linear layers: constant weight, width over 1.

    Attention's own matmuls have no constant operand. The head (width 1) stays in float: it is
    192 multiplications a comment and carries the logit.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shape = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and 1 not in shape.get(node.input[1], [1])
    ]


def quantize_traced(
    fp32: Path, static: Path, dynamic: Path, calibration: Iterable[np.ndarray]
) -> None:
    """Write the static (QDQ) and the dynamic INT8 form of the traced graph `fp32`.

    `calibration` gives the ids (int [L], [CLS] first) of comments that fix the static ranges.
    Dynamic quantization takes them from the whole batch: a score changes with its batch-mates.
    """
    only: dict[str, Any] = {"nodes_to_quantize": linear_nodes(fp32), "per_channel": True}
    logging.getLogger().addFilter(_drop_preprocessing_advice)
    try:
        quantize_dynamic(fp32, dynamic, weight_type=QuantType.QInt8, **only)
        quantize_static(
            fp32,
            static,
            _OneByOne(calibration),
            quant_format=QuantFormat.QDQ,
            reduce_range=True,  # seven bits, as in `train.qat.WEIGHT_LIMIT`
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            **only,
        )
    finally:
        logging.getLogger().removeFilter(_drop_preprocessing_advice)


def _drop_preprocessing_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
