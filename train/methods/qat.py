"""Quantization-aware fine-tuning of a finished checkpoint: where the INT8 form loses quality.

    python -m train --qat runs/model --out runs/qat
    python -m export --checkpoint runs/qat

Training goes on for a short while with the rounding of the INT8 serving graph in the forward
pass, so that the weights learn to live with it (Jacob et al. 2018, section 3). Activations are U8
per tensor, weights S8 per output channel within [-WEIGHT_LIMIT, WEIGHT_LIMIT], at exactly the
points and layers that `export.graph.build` quantizes; the gradient passes through the rounding
as if it were not there and stops where a value is clipped (straight-through estimator).

The activation ranges come from the float model over training comments, once, before the first
step, and never move: before that step the fake-quantized model *is* post-training quantization
(PTQ). The run saves the float weights as always, and the ranges in `config.json`, from which the
export takes them instead of calibrating.

Graph and fake-quantized model round alike, yet their logits are not identical: floats summed in
another order differ by 1e-7, which moves an activation at the border of two steps by a whole
step, and each layer passes that on. The fake-quantized model does so against itself: a full-size
model of random weights differs by up to 0.02 between a comment alone and in a batch of 32, and
from the INT8 graph by 0.007 in the mean, where quantization as such costs 0.047.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from console.options import make_config
from contract import DECISION_THRESHOLD, BadInput
from train.artifacts import CONFIG_FILE, Checkpoint, load_checkpoint, read_json
from train.config import WRITTEN_BEFORE, TrainConfig
from train.data.batches import CommentIds
from train.methods.distill import identity_balance_of
from train.model import Block, ModelConfig, ToxicityEncoder
from train.validation import logits_of, probability_of

Ranges = Mapping[str, tuple[float, float]]
"""Name of a point in the encoder -> least and greatest activation there."""

WEIGHT_LIMIT = 64
"""Seven bits. On x86 without VNNI the U8 x S8 kernels add two products in 16 bits and saturate:
2 * 255 * 127 > 32767, but 2 * 255 * 64 < 32767. So the integer sums are exact, hence the same,
on every CPU."""
CALIBRATION_COMMENTS = 512
RANGE_STEPS = 64
"""Ends that a range may have between a power of two and the next."""
_LAST_BITS = 1e-3
"""Of a step: what kernels of two processors may differ by."""
_POINTS = ("qkv", "projection", "mlp_in", "mlp_out")
"""Inputs of a block's Linear layers, named for the layer that reads them."""
_SCHEDULE = {
    **{"epochs": 1, "lr": 2e-5, "precision": "fp32", "out": "runs/qat"},
    "embeddings": "random",  # that is, as the checkpoint has them
}
"""Defaults of a fine-tuning: a tenth of a training's learning rate or less. bf16 has too few
digits to hold eight exact bits and a scale."""
_CARRIED = (
    *("data", "text_column", "label_column", "label_map", "soft_labels"),
    *("sources", "hold_out_source", "near_duplicates"),
    *("identity_balance", "identity_insertion"),
)
"""What a fine-tuning does as the training did, unless a flag says otherwise."""
_FIXED = (
    *("fractions", "seed", "max_vocab", "respell", "phrases"),
    *("max_len", "d_model", "n_layers", "n_heads", "mlp_ratio", "dropout", "attributes"),
)
"""What a checkpoint fixes: its split, its tokenizer and its shape."""


# --- Start from a checkpoint ----------------------------------------------------------------
def defaults_of(folder: Path) -> dict[str, Any]:
    """TrainConfig fields with --qat `folder`: its data, split and shape, and a short schedule.

    Raises BadInput when there is no checkpoint.
    """
    remedy = "run `make train` to write a checkpoint"
    recorded = {"train": {}, **read_json(folder / CONFIG_FILE, remedy)}
    balance = {"identity_balance": identity_balance_of(recorded)}
    trained = WRITTEN_BEFORE | recorded["train"] | balance
    missing = {*_CARRIED, *_FIXED} - trained.keys()
    if missing:
        raise BadInput(f"{folder / CONFIG_FILE} has no {min(missing)} of its training; {remedy}")
    return {**{name: trained[name] for name in (*_CARRIED, *_FIXED)}, **_SCHEDULE}


def load_start(config: TrainConfig) -> Checkpoint:
    """Checkpoint `config.qat`. Raises BadInput when a flag contradicts what it was trained with."""
    assert config.qat is not None
    start = load_checkpoint(config.qat)
    if (attention := start.model.config.attention) != "softmax":
        raise BadInput(
            f"{config.qat} has {attention} attention, expected softmax with --qat; export it with "
            "`python -m export`, or train one with --attention softmax"
        )
    wanted = make_config(TrainConfig, {**defaults_of(config.qat), "qat": config.qat})
    for name in _FIXED:
        given, expected = getattr(config, name), getattr(wanted, name)
        if given != expected:
            raise BadInput(
                f"--{name.replace('_', '-')} is {given}, expected {expected} as in {config.qat}; "
                "leave it out with --qat"
            )
    return start


def points(config: ModelConfig) -> list[str]:
    """Names of all points, as in the serving graph."""
    names = [f"blocks.{i}.{name}" for i in range(config.n_layers) for name in _POINTS]
    names[-len(_POINTS)] = f"blocks.{config.n_layers - 1}.query"
    return names


def ranges_of(checkpoint: Checkpoint) -> Ranges | None:
    """Activation ranges of a QAT checkpoint, None for any other. Raises BadInput if damaged."""
    quantization = checkpoint.config.get("quantization")
    if quantization is None:
        return None
    try:
        saved = quantization["activation_ranges"]
        ranges = {
            point: (float(saved[point][0]), float(saved[point][1]))
            for point in points(checkpoint.model.config)
        }
        if any(not -math.inf < low <= 0 <= high < math.inf for low, high in ranges.values()):
            raise ValueError("a range is not finite or excludes 0")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadInput(
            f"{checkpoint.folder / CONFIG_FILE}: activation_ranges are damaged ({error!r}), "
            "expected two numbers a point; run `python -m train --qat` again"
        ) from error
    return ranges


def int8_reference(checkpoint: Checkpoint) -> nn.Module:
    """PyTorch model that the INT8 form of `checkpoint` must equal, in eval mode.

    That is the fake-quantized model after QAT, because it is what was trained and validated, and
    the float model otherwise.
    """
    ranges = ranges_of(checkpoint)
    if ranges is None:
        return checkpoint.model
    return FakeQuantizedEncoder(checkpoint.model, ranges).eval()


# --- Attention with one query -----------------------------------------------------------------
def keys_folded_away(attention: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias of a query [H * D] and of the projection, for attention over tokens.

    With one query q a comment no key or value needs computing. q (Wk x + bk)' is (q Wk) x' but
    for q bk', which softmax does not see; and the weights w of softmax sum to one, so that
    sum w (Wv x + bv) is Wv (sum w x) + bv. The attention's scale is part of the query. Returns
    float32 [H * D, D], [H * D], [D, H * D], [D]; differentiable.
    """
    assert isinstance(attention, nn.MultiheadAttention)  # linear attention's keys cannot be folded
    width, heads = attention.embed_dim, attention.num_heads
    by_head = (3, heads, width // heads, width)  # [3, H, C, D]
    q, k, v = attention.in_proj_weight.double().reshape(by_head)
    q_bias, _, v_bias = attention.in_proj_bias.double().reshape(by_head[:3])
    scale = 1 / math.sqrt(width // heads)
    out = attention.out_proj.weight.double().reshape(width, heads, -1)  # [D, H, C]
    bias = torch.einsum("ohc,hc->o", out, v_bias) + attention.out_proj.bias
    return (
        torch.einsum("hcd,hce->hde", k, q * scale).reshape(-1, width).float(),
        torch.einsum("hcd,hc->hd", k, q_bias * scale).reshape(-1).float(),
        torch.einsum("ohc,hcd->ohd", out, v).reshape(width, -1).float(),
        bias.float(),
    )


# --- Fake quantization ------------------------------------------------------------------------
def scale_and_zero(least: float, greatest: float) -> tuple[float, int]:
    """Scale (a float32) and zero point of the U8 range that holds [least, greatest] and 0."""
    least, greatest = min(least, 0.0), max(greatest, 0.0)
    scale = float(np.float32(max(greatest - least, 1e-12) / 255))
    return scale, round(-least / scale)


class FakeQuantizedEncoder(nn.Module):
    """The forward pass of the INT8 serving graph in floats; shares the parameters of `encoder`.

    Without ranges it quantizes nothing, equals `encoder`, and widens in `seen` the range of each
    point. As in the graph, the last block computes [CLS] alone with `keys_folded_away`, the
    attention's scale is part of Q's weights, and GELU has its tanh form once quantized.
    """

    def __init__(self, encoder: ToxicityEncoder, ranges: Ranges | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.ranges = ranges
        self.seen: dict[str, tuple[float, float]] = {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits float32 [B]; arguments as of `ToxicityEncoder.forward`."""
        return self.encoder.head(self.cls_state(input_ids, attention_mask)).squeeze(-1)  # [B]

    def cls_state(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the heads read, [B, D]."""
        encoder = self.encoder
        position_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        x_BLD = encoder.token_embedding(input_ids) + encoder.position_embedding(position_L)
        x_BLD = encoder.dropout(x_BLD)
        attend_B11L = (attention_mask != 0)[:, None, None]
        *full, last = encoder.blocks
        for i, block in enumerate(full):
            x_BLD = self._full_block(block, f"blocks.{i}", x_BLD, attend_B11L)
        cls_B1D = self._last_block(last, f"blocks.{len(full)}", x_BLD, attend_B11L)
        return cls_B1D[:, 0]

    def _full_block(
        self, block: nn.Module, name: str, x_BLD: Tensor, attend_B11L: Tensor
    ) -> Tensor:
        assert isinstance(block, Block)
        attention = block.attention
        width, heads = attention.embed_dim, attention.num_heads
        scale_N = torch.ones(3 * width, device=x_BLD.device)
        scale_N[:width] = 1 / math.sqrt(width // heads)
        weight, bias = attention.in_proj_weight * scale_N[:, None], attention.in_proj_bias * scale_N
        qkv = self._linear(block.attention_norm(x_BLD), f"{name}.qkv", weight, bias)
        parts = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [B, H, L, C]
        context = functional.scaled_dot_product_attention(q, k, v, attn_mask=attend_B11L, scale=1.0)
        context_BLD = context.transpose(1, 2).flatten(2)
        projection = attention.out_proj.weight, attention.out_proj.bias
        return self._after_attention(block, name, x_BLD, context_BLD, *projection)

    def _last_block(
        self, block: nn.Module, name: str, x_BLD: Tensor, attend_B11L: Tensor
    ) -> Tensor:
        """Output of [CLS] alone, [B, 1, D]."""
        assert isinstance(block, Block)
        weight, bias, *projection = keys_folded_away(block.attention)
        normed_BLD = block.attention_norm(x_BLD)
        q = self._linear(normed_BLD[:, :1], f"{name}.query", weight, bias)
        q = q.reshape(len(q), 1, block.attention.num_heads, -1).transpose(1, 2)  # [B, H, 1, D]
        tokens = normed_BLD[:, None]
        context = functional.scaled_dot_product_attention(
            q, tokens, tokens, attn_mask=attend_B11L, scale=1.0
        )
        context_B1N = context.transpose(1, 2).flatten(2)
        return self._after_attention(block, name, x_BLD[:, :1], context_B1N, *projection)

    def _after_attention(
        self,
        block: Block,
        name: str,
        x: Tensor,
        context: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        into, _, out, dropout = block.mlp
        projected = self._linear(context, f"{name}.projection", weight, bias)
        x = x + block.attention_dropout(projected)
        hidden = self._linear(block.mlp_norm(x), f"{name}.mlp_in", into.weight, into.bias)
        hidden = functional.gelu(hidden, approximate="none" if self.ranges is None else "tanh")
        return x + dropout(self._linear(hidden, f"{name}.mlp_out", out.weight, out.bias))

    def _linear(self, x: Tensor, point: str, weight: Any, bias: Any) -> Tensor:
        return functional.linear(self._activation(x, point), self._weight(weight), bias)

    def _activation(self, x: Tensor, point: str) -> Tensor:
        if self.ranges is None:
            least, greatest = self.seen.get(point, (0.0, 0.0))
            self.seen[point] = min(least, float(x.min())), max(greatest, float(x.max()))
            return x
        scale, zero = scale_and_zero(*self.ranges[point])
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)

    def _weight(self, weight_NK: Tensor) -> Tensor:
        if self.ranges is None:
            return weight_NK
        scale_N = weight_NK.detach().abs().amax(dim=1).clamp_min(1e-12) / WEIGHT_LIMIT
        zero_N = torch.zeros_like(scale_N, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight_NK, scale_N, zero_N, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT
        )


def calibrate(model: ToxicityEncoder, comments: Iterable[np.ndarray]) -> Ranges:
    """Range of every point over comments (ids int [L], [CLS] first), each run alone, `widened`."""
    observer = FakeQuantizedEncoder(model, None)
    device, was_training = next(model.parameters()).device, model.training
    observer.eval()
    with torch.inference_mode():
        for ids in comments:
            input_ids = torch.as_tensor(np.asarray(ids, np.int64)[None]).to(device)
            observer(input_ids, torch.ones_like(input_ids))
    model.train(was_training)
    return {point: widened(*ends) for point, ends in observer.seen.items()}


def widened(least: float, greatest: float) -> tuple[float, float]:
    """The range with its ends on the grid of `RANGE_STEPS`, none of it lost but last bits.

    Kernels of another processor end in other last bits; the same weights give the same range.
    """
    return -_up(-least), _up(greatest)


def _up(end: float) -> float:
    """The least number of the grid that is not below `end`, or below it by last bits alone."""
    fraction, exponent = math.frexp(end)
    steps = fraction * RANGE_STEPS * 2
    nearest = round(steps)
    whole = nearest if abs(steps - nearest) < _LAST_BITS else math.ceil(steps)
    return math.ldexp(whole / (RANGE_STEPS * 2), exponent)


def calibration_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the training split that fix the ranges; the export calibrates PTQ on the same."""
    return np.random.default_rng(seed).permutation(rows)[:CALIBRATION_COMMENTS]


# --- PTQ beside QAT -----------------------------------------------------------------------------
def compare(
    start: Path,
    ranges: Ranges,
    tuned: ToxicityEncoder,
    ids: CommentIds,
    rows: np.ndarray,
    labels: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Float, PTQ and QAT on the same comments: `rows` int64 [n], 0/1 `labels` [n] of them.

    "float" is the checkpoint in `start`, "ptq" its fake-quantized form, "qat_float" the tuned
    weights in float, "qat" the tuned weights fake-quantized. Differences are of logits; each
    quantized form stands against "float", "qat" also against the float form of its own weights.
    """
    first = load_checkpoint(start).model.to(next(tuned.parameters()).device)
    logits = {
        "float": logits_of(first, ids, rows),
        "ptq": logits_of(FakeQuantizedEncoder(first, ranges), ids, rows),
        "qat_float": logits_of(tuned, ids, rows),
        "qat": logits_of(FakeQuantizedEncoder(tuned, ranges), ids, rows),
    }
    table: dict[str, dict[str, Any]] = {
        name: {"auroc": float(roc_auc_score(labels, values))} for name, values in logits.items()
    }
    for name, against in (("ptq", "float"), ("qat", "float"), ("qat", "qat_float")):
        table[name][f"against_{against}"] = difference(logits[against], logits[name])
    return table


def difference(reference: np.ndarray, candidate: np.ndarray) -> dict[str, float]:
    """Largest and mean |logit difference| and flipped decisions; both are float32 [n]."""
    gap = np.abs(reference - candidate)
    decided = [probability_of(x) >= DECISION_THRESHOLD for x in (reference, candidate)]
    return {
        "logit_max": float(gap.max()),
        "logit_mean": float(gap.mean()),
        "flipped": int((decided[0] != decided[1]).sum()),
    }


def table_lines(table: Mapping[str, Mapping[str, Any]], comments: int) -> list[str]:
    """`compare`'s table for people."""
    lines = [f"validation, {comments:,} comments      AUROC  logit difference max / mean  flipped"]
    for name, against in (
        ("float", None),
        ("ptq", "float"),
        ("qat_float", None),
        ("qat", "qat_float"),
        ("qat", "float"),
    ):
        title = f"{name} against {against}" if against else name
        line = f"{title:<30} {table[name]['auroc']:.5f}"
        if against:
            gap = table[name][f"against_{against}"]
            line += f"  {gap['logit_max']:.4f} / {gap['logit_mean']:.4f}  {gap['flipped']}"
        lines.append(line)
    return lines
