"""Trace the PyTorch encoder to one ONNX file with dynamic batch and length."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from contract import ATTENTION_MASK, ATTRIBUTES, CLS_ID, INPUT_IDS, LOGIT, OPSET
from storage.files import write_atomically
from train.model import ToxicityEncoder


class _GraphOutputs(nn.Module):
    """The encoder with the outputs that a graph with attributes has."""

    def __init__(self, encoder: ToxicityEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B] of toxicity and [B, A] of the attributes."""
        cls_BD = self.encoder.cls_state(input_ids, attention_mask)
        return self.encoder.head(cls_BD).squeeze(-1), self.encoder.attribute_head(cls_BD)


def trace(model: ToxicityEncoder, path: Path) -> None:
    """Write `model` as ONNX: INPUT_IDS and ATTENTION_MASK int64 [B, L] to LOGIT float32 [B].

    With attributes also to ATTRIBUTES float32 [B, A].

    `model` is on the CPU in eval mode. The file holds its weights (no external data).
    """
    # An example of batch 1 or length 1 would silently make that axis static.
    length = min(7, model.config.max_len)
    input_ids = torch.full((3, length), CLS_ID, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    axes = {
        0: torch.export.Dim("batch", min=1, max=65_536),
        1: torch.export.Dim("length", min=1, max=model.config.max_len),
    }
    with_attributes = bool(model.config.attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _GraphOutputs(model) if with_attributes else model,
            (input_ids, attention_mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_IDS, ATTENTION_MASK],
            output_names=[LOGIT, ATTRIBUTES] if with_attributes else [LOGIT],
            dynamic_shapes={INPUT_IDS: axes, ATTENTION_MASK: axes},
            verbose=False,
        )
    assert program is not None  # None only when asked to write the file itself
    proto = program.model_proto
    # Traces of where each node came from in this machine's files: of no use to a server.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    write_atomically(path, proto.SerializeToString())
