"""Loss and metric curves of a training run as a PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from train.artifacts import write_atomically


def plot_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss beside AUROC, F1, precision and recall by epoch."""
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry["train_loss"] for entry in history], "o-", label="training (weighted)")
    left.plot(epochs, [entry["loss"] for entry in history], "o-", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy, nats", title="Loss")
    for name in ("auroc", "f1", "precision", "recall"):
        right.plot(epochs, [entry[name] for entry in history], "o-", label=name)
    right.set(xlabel="epoch", title="Validation")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
