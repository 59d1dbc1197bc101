"""The graph that is served: the traced one's weights and tensors, laid out for speed.

`python -m export` builds it beside the traced graph, which stays the reference. Here are the three
forms and their files; their nodes come from the modules beside this one:

- `layout`: padding is dropped on entry, so that every Linear, LayerNorm and GELU runs on real
  tokens only, in one matrix [T, D]. The rows of the batch are sorted by length, and attention runs
  in groups of fixed width (`groups`): a comment is always padded to the width of its own length's
  group, whoever shares the batch, and its padding repeats its own last token. So no number of one
  comment ever meets a number of another, except as rows of one matmul.
- `softmax_attention`, `linear_attention`: the blocks. The last one runs for the [CLS] rows only.
- `one_layer`: an encoder of one layer with softmax has no use for the groups.
- `encoder`: a whole model; a cascade has two of them in one graph.
- `packed`: the form for the CUDA provider, without sorting and groups.
- `calibrate`: the ranges of the INT8 form: activations U8 per tensor, weights S8 per output channel
  within [-64, 64] (why: see `train.methods.qat.WEIGHT_LIMIT`), biases and the head in float.

Two interfaces share all of it: dense, INPUT_IDS and ATTENTION_MASK [B, L]; and ragged, the ids of
all comments one after the other with ACCUMULATED_COUNTS, which Triton's ragged batching feeds
(docs/user_guide/ragged_batching.md).

Dimension letters in all of them: B comments, T tokens of the batch, D width, H heads, C = D / H,
n comments of one group, W its width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from export.graph.calibrate import calibrate_model
from export.graph.encoder import Servable, outputs_of, serving_graph
from export.graph.nodes import Graph, model_proto
from export.graph.packed import packed_graph
from storage.files import write_atomically
from train.methods.qat import Ranges
from train.model import ToxicityEncoder


def build(model: Servable, path: Path, groups: Sequence[int], ragged: Path | None = None) -> None:
    """Write the FP32 form: INPUT_IDS, ATTENTION_MASK int64 [B, L] to LOGIT float32 [B].

    With attributes also to ATTRIBUTES float32 [B, A].

    `model` is on the CPU in eval mode; `groups` is what `groups.groups_for` gave. `ragged` is where
    the ragged interface goes too: INPUT_IDS int64 [T], ACCUMULATED_COUNTS int32 [B] to the same.
    """
    _write_interfaces(partial(serving_graph, model, groups), outputs_of(model), path, ragged)


def build_packed(
    model: ToxicityEncoder, path: Path, precision: str, ragged: Path | None = None
) -> None:
    """Write the form for the CUDA provider in "fp16" or "fp32"; interfaces as in `build`.

    It uses contrib operators that exist for CUDA only. FP16: weights and activations float16, the
    head and the logit float32; softmax and LayerNorm sum in float32 inside their kernels.
    """
    dtype = {"fp16": np.float16, "fp32": np.float32}[precision]
    _write_interfaces(partial(packed_graph, model, dtype), outputs_of(model), path, ragged)


def build_int8(
    model: Servable,
    path: Path,
    groups: Sequence[int],
    calibration: Iterable[np.ndarray],
    ragged: Path | None = None,
    *,
    ranges: Ranges | None = None,
) -> None:
    """Write the INT8 form. `calibration` gives the ids (int [L], [CLS] first) of comments.

    It is not read when the activation `ranges` are known already, as after `train.methods.qat`.
    """
    ranges = ranges or calibrate_model(model, groups, calibration)
    graph_of = partial(serving_graph, model, groups, ranges)
    _write_interfaces(graph_of, outputs_of(model), path, ragged)


def _write_interfaces(
    graph_of: Callable[..., Graph],
    outputs: Mapping[str, Sequence[int | str]],
    dense: Path,
    ragged: Path | None,
) -> None:
    for path in (dense, ragged):
        if path is not None:
            proto = model_proto(graph_of(ragged=path is ragged), outputs)
            onnx.checker.check_model(proto)
            write_atomically(path, proto.SerializeToString())
