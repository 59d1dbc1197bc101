"""Static INT8 for the Linear layers of a traced graph.

Activations U8 per tensor, weights S8 per output channel, ranges from training comments. The
scales are constants of the file, so a score cannot depend on the batch; dynamic quantization
takes them from the whole batch and changes a score with its batch-mates.

Weights keep to [-64, 64] (`reduce_range`). On x86 without VNNI the U8 x S8 kernels add two
products in 16 bits and saturate: 2 * 255 * 127 > 32767, but 2 * 255 * 64 < 32767. With seven
bits the integer results are exact, hence the same, on every CPU.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from contract import ATTENTION_MASK, INPUT_IDS
from train.artifacts import write_atomically


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


def quantize(fp32: Path, int8: Path, calibration: Iterable[np.ndarray]) -> int:
    """Write the INT8 form of `fp32` to `int8` and return how many Linear layers it quantized.

    `calibration` gives the ids (int [L], [CLS] first) of training comments.
    """
    nodes = linear_nodes(fp32)
    logging.getLogger().addFilter(_drop_preprocessing_advice)
    try:
        with tempfile.TemporaryDirectory(dir=int8.parent) as scratch:
            made = Path(scratch) / int8.name
            quantize_static(
                fp32,
                made,
                _OneByOne(calibration),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
            write_atomically(int8, made.read_bytes())
    finally:
        logging.getLogger().removeFilter(_drop_preprocessing_advice)
    return len(nodes)


def _drop_preprocessing_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
