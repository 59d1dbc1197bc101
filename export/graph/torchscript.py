"""TorchScript form of a checkpoint, for those who serve it: `python -m export --torchscript`.

The encoder is compiled from its source (`torch.jit.script`), not traced: a trace records the one
path through nn.MultiheadAttention that its example took. The file is float32 and takes and gives
what the traced ONNX graph does, at any batch and length.

A TorchScript file is a zip archive of code and pickled data. We write one and read back only what
we just wrote, for its gate; never load one that you do not trust. PyTorch 2.13 calls torch.jit
deprecated in favour of torch.export; that one warning is silenced here and nothing else.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from export.gates.parity import Runner
from storage.files import write_atomically
from train.model import ToxicityEncoder

TORCHSCRIPT_FILE = "model.torchscript.pt"


def write_torchscript(model: ToxicityEncoder, path: Path) -> None:
    """Write `model`, on the CPU in eval mode: (INPUT_IDS, ATTENTION_MASK int64 [B, L]) -> [B]."""
    buffer = io.BytesIO()
    with _deprecation_silenced():
        torch.jit.save(torch.jit.script(model), buffer)
    write_atomically(path, buffer.getvalue())


def torchscript_runner(path: Path) -> Runner:
    """Run a file that `write_torchscript` just wrote; loading one executes what it holds."""
    with _deprecation_silenced():
        model = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return np.asarray(logits.numpy())

    return run


@contextmanager
def _deprecation_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning
        )
        yield
