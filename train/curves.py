"""Loss and metric curves of a training run as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from console.figures import finish, panels, save, whole_numbers


def plot_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss beside AUROC, F1, precision and recall by epoch."""
    epochs = [entry["epoch"] for entry in history]
    figure, (left, right) = panels(1, 2, (11, 4))
    left.plot(epochs, [entry["train_loss"] for entry in history], "o-", label="training (weighted)")
    left.plot(epochs, [entry["loss"] for entry in history], "o-", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy, nats", title="Loss")
    for name in ("auroc", "f1", "precision", "recall"):
        right.plot(epochs, [entry[name] for entry in history], "o-", label=name)
    right.set(xlabel="epoch", title="Validation")
    for axes in (left, right):
        finish(axes)
        whole_numbers(axes, epochs)
    save(figure, path)
