"""Masked-word pre-training on the training split's own texts, before the labels are learned.

    python -m train --pretrain-epochs 2

A share of the words is hidden and guessed from the rest (Devlin et al. 2019, section 3.1), which
costs no label. The vocabulary has no [MASK]: [UNK] stands for a hidden word, which trains its
embedding too. The head is the token embedding itself (tied), with a bias a token, and is dropped;
embeddings and blocks are what the classifier starts from.

Guessing among all 30,000 tokens would cost more than the encoder. The softmax is over the batch's
own masked tokens, exactly, and a uniform sample that stands for all others, each sampled logit
raised by the log of how many it stands for, so that the sum it is divided by is right on average.

The progress lies in `<out>.partial/pretrain`; an interrupted run goes on as training does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from contract import UNK_ID
from train import artifacts
from train.config import TrainConfig
from train.data.batches import Batch, CommentIds, training_batches
from train.methods.cls_only import embed
from train.model import ToxicityEncoder
from train.optimizer import make_optimizer, prepare_step, update
from train.terminal import Printer, StopRequest

MASKED_SHARE = 0.15
_SHOWN_AS_UNK, _SHOWN_AS_ANOTHER = 0.8, 0.1
"""Of the masked words; the rest stays as it is, so that every state must know its word."""
SAMPLED = 2048
"""Tokens drawn for the softmax of a step, beside the batch's own."""
_FIRST_EPOCH = 1_000
"""Number of the first epoch, so that its order of comments is none of the training's."""
FOLDER = "pretrain"
RESULT = "pretrained.json"


class MaskedWordModel(nn.Module):
    """The encoder with the head that guesses hidden words; shares the encoder's parameters."""

    def __init__(self, encoder: ToxicityEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.config.d_model)
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, masked_BL: Tensor, words_M: Tensor
    ) -> Tensor:
        """Mean cross-entropy in nats, over a sampled softmax while training.

        Args:
            input_ids: int64 [B, L], the masked words replaced.
            attention_mask: int64 [B, L].
            masked_BL: bool [B, L], M of them true.
            words_M: int64 [M], the words that stood there.
        """
        x_BLD = embed(self.encoder, input_ids)
        padding_BL = attention_mask == 0
        for block in self.encoder.blocks:
            x_BLD = block(x_BLD, padding_BL)
        guess_MD = self.norm(x_BLD[masked_BL])
        candidates_C, raised_C, place_M = self._candidates(words_M)
        table_CD = self.encoder.token_embedding(candidates_C)
        logits_MC = functional.linear(guess_MD, table_CD, self.bias[candidates_C] + raised_C)
        return functional.cross_entropy(logits_MC, place_M)

    def _candidates(self, words_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the softmax, what their logits are raised by, the words' places in them."""
        size = len(self.bias)
        own, place_M = torch.unique(words_M, return_inverse=True)
        others = torch.ones(size, dtype=torch.bool, device=words_M.device)
        others[own] = False
        rest = others.nonzero().squeeze(1)
        drawn = rest
        if self.training and len(rest) > SAMPLED:
            drawn = rest[torch.randint(len(rest), (SAMPLED,), device=rest.device)]
        raised = torch.zeros(len(own) + len(drawn), device=words_M.device)
        raised[len(own) :] = math.log(len(rest) / max(1, len(drawn)))
        return torch.cat([own, drawn]), raised, place_M


def hide_words(
    input_ids: Tensor, attention_mask: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids with words hidden, bool [B, L] of the masked, and the int64 [M] words that they were.

    [CLS], padding and words that are [UNK] already are never masked.
    """
    words = (attention_mask != 0) & (input_ids != UNK_ID)
    words[:, 0] = False
    masked = words & (torch.rand(input_ids.shape) < MASKED_SHARE)
    fate = torch.rand(input_ids.shape)
    shown = torch.where(masked & (fate < _SHOWN_AS_UNK), UNK_ID, input_ids)
    another = masked & (fate >= _SHOWN_AS_UNK) & (fate < _SHOWN_AS_UNK + _SHOWN_AS_ANOTHER)
    shown = torch.where(another, torch.randint(vocab_size, input_ids.shape), shown)
    return shown, masked, input_ids[masked]


def pretrain(
    model: ToxicityEncoder,
    ids: CommentIds,
    rows: np.ndarray,
    config: TrainConfig,
    work: Path,
    identity: dict[str, Any],
    autocast: Callable[[], torch.autocast],
    stop: StopRequest,
    say: Printer,
) -> dict[str, Any]:
    """Pre-train `model` in place on `rows` (int64 [n]), or load what an earlier call finished.

    Returns what metrics.json says of it. Raises KeyboardInterrupt, progress saved, at the first
    step after `stop` was requested.
    """
    remedy, folder = "start over with --restart", work / FOLDER
    if (folder / RESULT).exists():
        weights = artifacts.load_tensors(folder / artifacts.WEIGHTS_FILE, remedy)
        model.load_state_dict(weights)
        return dict(artifacts.read_json(folder / RESULT, remedy)["result"])
    guesser = MaskedWordModel(model).to(next(model.parameters()).device)
    optimizer = make_optimizer(guesser, config)
    steps_per_epoch = math.ceil(len(rows) / config.batch_size)
    total = steps_per_epoch * config.pretrain_epochs
    progress = artifacts.load_progress(folder, guesser, optimizer) or {
        "identity": identity,
        **{"step": 0, "losses": [], "seconds": 0.0, "tokens": 0},
    }
    say(f"pre-training on {len(rows):,} comments, from step {progress['step']:,} of {total:,}")
    advance = say.progress_bar(total, progress["step"])
    guesser.train()
    while progress["step"] < total:
        epoch, done = divmod(progress["step"], steps_per_epoch)
        order = {"batch_size": config.batch_size, "seed": config.seed, "start": done}
        for batch in training_batches(ids, rows, epoch=_FIRST_EPOCH + epoch, **order):
            # Other draws than the same step of the training has.
            prepare_step(optimizer, config, progress["step"], total, -1 - progress["step"])
            _step(guesser, optimizer, config, batch, autocast, progress)
            mean = float(np.mean(progress["losses"] or [math.nan]))
            advance(progress["step"], f"masked-word loss {mean:.4f}")
            stopping = stop.requested
            if stopping or progress["step"] % config.checkpoint_steps == 0:
                artifacts.save_progress(folder, guesser, optimizer, progress)
            if stopping:
                say(f"saved after step {progress['step']:,} of the pre-training; run it again")
                raise KeyboardInterrupt
    artifacts.save_weights(folder, model)
    result = {
        "epochs": config.pretrain_epochs,
        "loss": round(float(np.mean(progress["losses"])), 4),
        "seconds": round(progress["seconds"], 1),
        "real_tokens_per_second": round(progress["tokens"] / max(progress["seconds"], 1e-9)),
    }
    artifacts.write_json(folder / RESULT, {"identity": identity, "result": result})
    artifacts.clear_progress(folder)
    return result


def _step(
    guesser: MaskedWordModel,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    batch: Batch,
    autocast: Callable[[], torch.autocast],
    progress: dict[str, Any],
) -> None:
    """Hide words of `batch`, learn to guess them, count it in `progress`."""
    began = time.monotonic()
    shown, masked, words = hide_words(batch.input_ids, batch.attention_mask, len(guesser.bias))
    if len(words):
        parts = (shown, batch.attention_mask, masked, words)
        with autocast():
            loss = guesser(*(part.to(guesser.bias.device) for part in parts))
        update(optimizer, guesser, loss, config)
        progress["losses"] = [*progress["losses"][-99:], loss.item()]
    progress["step"] += 1
    progress["tokens"] += int(batch.attention_mask.sum())
    progress["seconds"] += time.monotonic() - began
