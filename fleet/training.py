"""Time and cost of a training on more comments, from the speed of one that was finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract import BadInput
from fleet.config import PlanConfig
from fleet.measured import Figure
from storage.files import read_json

_REMEDY = "train with `toxicity train`, or name another run with --train-run"


@dataclass(frozen=True)
class Projection:
    """Of one training; memory, validation and the reading of the comments are not in it."""

    rows: int
    epochs: int
    hours: float
    core_hours: float | None
    """None where the number of cores is not given."""
    cost: float | None
    assumptions: dict[str, Figure]


def hours_of(rows: float, tokens: float, epochs: float, rate: float) -> float:
    """Hours of `epochs` over `rows` comments of `tokens` each, at `rate` tokens a second."""
    return rows * tokens * epochs / rate / 3600


def project(config: PlanConfig) -> Projection:
    """Hours of `config.train_rows` comments: rows x tokens a row x epochs / tokens a second.

    Raises BadInput when the training's files are missing or lack a figure.
    """
    assert config.train_rows is not None
    rate, tokens, epochs, shape = _speed_of(config.train_run)
    run = f"{config.train_run.name}/metrics.json, {shape}"
    if config.train_tokens:
        tokens = Figure(config.train_tokens, "tokens", "--train-tokens")
    epochs_of = Figure(config.train_epochs or epochs, "epochs", f"{run}; of its config.json")
    if config.train_epochs:
        epochs_of = Figure(config.train_epochs, "epochs", "--train-epochs")
    hours = hours_of(config.train_rows, tokens.value, epochs_of.value, rate)
    cores, price = config.train_cores, config.price_per_core_hour
    core_hours = None if cores is None else cores * hours
    found = {
        "tokens a second": Figure(rate, "tokens", f"{run}; assumed: the same with more comments"),
        "mean tokens a comment": tokens,
        "epochs": epochs_of,
    }
    if cores:
        found["cores"] = Figure(cores, "cores", "--train-cores; of the machine that trained")
    if price:
        found["price of a core"] = Figure(price, "an hour", "--price-per-core-hour")
    return Projection(
        rows=config.train_rows,
        epochs=int(epochs_of.value),
        hours=hours,
        core_hours=core_hours,
        cost=None if core_hours is None or price is None else core_hours * price,
        assumptions=found,
    )


def _speed_of(run: Path) -> tuple[float, Figure, int, str]:
    """Tokens a second, mean tokens a comment, epochs, and words for the model's shape."""
    metrics = read_json(run / "metrics.json", _REMEDY)
    config = read_json(run / "config.json", _REMEDY)
    split = read_json(run / "split.json", _REMEDY)
    try:
        rate = float(metrics["real_tokens_per_second"])
        read = split["train"]
        rows = int(read if isinstance(read, int) else len(read))
        tokens = rate * float(metrics["training_seconds"]) / (rows * len(metrics["history"]))
        model, trained = config["model"], config["train"]
        shape = f"{model['d_model']} x {model['n_layers']}, on {config['device']}"
        source = f"{run.name}/metrics.json, of the comments of {config['data']['name']}"
        if rate <= 0 or tokens <= 0:
            raise ValueError("a speed above 0")
        return rate, Figure(tokens, "tokens", source), int(trained["epochs"]), shape
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BadInput(f"{run} lacks {error}, expected a finished training; {_REMEDY}") from error
