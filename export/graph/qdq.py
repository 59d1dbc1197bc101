"""INT8 forms of the traced graph by ONNX Runtime's own quantizer.

`python -m export --tensorrt` writes the symmetric one for the TensorRT provider, which takes S8
activations and weights with zero points of 0 only (ONNX Runtime, "TensorRT Execution Provider").
It is a file beside the report, proved against PyTorch; it is not published, for it pays for
padding and no GPU has measured it against FP16 yet. The others are rivals in `bench.model.encoder`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from contract import ATTENTION_MASK, INPUT_IDS, MAX_BATCH_SIZE
from export.gates import parity
from export.gates.parity import Comment
from export.session import open_session, session_options

TENSORRT_FILE = "tensorrt.onnx"


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


def write_qdq(
    traced: Path, path: Path, calibration: Iterable[np.ndarray], *, symmetric: bool
) -> None:
    """Quantize the Linear layers of the traced graph, weights S8 per output channel.

    `symmetric`: activations S8 about 0, eight bits of weight, for TensorRT. Otherwise U8 and seven
    bits, for a CPU (why: `train.methods.qat.WEIGHT_LIMIT`). `calibration` gives the ids (int [L],
    [CLS] first) of comments that fix the ranges.
    """
    with _Quietly():
        quantize_static(
            traced,
            path,
            _OneByOne(calibration),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=linear_nodes(traced),
            per_channel=True,
            reduce_range=not symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )


def write_dynamic(traced: Path, path: Path) -> None:
    """Dynamic INT8 of the Linear layers. Its ranges are of the whole batch: never served."""
    with _Quietly():
        quantize_dynamic(
            traced,
            path,
            nodes_to_quantize=linear_nodes(traced),
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def qdq_logits(path: Path, comments: Sequence[Comment]) -> np.ndarray:
    """float32 [n], computed as the file says: rounded, then multiplied in float.

    Without ONNX Runtime's fusions, whose S8 kernels saturate on a CPU that lacks VNNI.
    """
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(path, options=options)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return np.asarray(
            session.run(None, {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask})[0]
        )

    order = np.argsort([len(comment.ids) for comment in comments], kind="stable")
    logits = np.empty(len(comments), np.float32)
    logits[order] = parity.run_batches(run, [comments[row] for row in order], MAX_BATCH_SIZE)
    return logits


class _Quietly(logging.Filter):
    """Drops the quantizer's advice to pre-process: the traced graph has all shapes it needs."""

    def __enter__(self) -> None:
        logging.getLogger().addFilter(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()
