"""Write the model card: `toxicity card`, or `python -m quality.card`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import ONNX_FILE, BadInput
from export.repository import current, verify
from export.rethreshold import published_thresholds
from quality.card.page import page
from quality.card.words import card
from storage.files import read_json, write_atomically


@dataclass(frozen=True)
class CardConfig:
    """Flags of `python -m quality.card`."""

    evaluation: Path = Field(
        Path("runs/eval/evaluation.json"), description="what `toxicity eval` wrote of this version"
    )
    repository: Path = Field(
        Path("model_repository"), description="model repository whose current version it is of"
    )
    name: str = Field("Toxicity classifier", description="title of the card")
    data_licence: str = Field(
        "not stated", description="licence of the training comments and their labels"
    )
    label_policy: str = Field(
        "not stated; the labels are those of the training file",
        description="what counts as toxic in the training labels, and who said so",
    )
    contact: str = Field("not stated", description="whom to write to")
    out: Path = Field(Path("runs/card"), description="folder of the card, Markdown and HTML")


def main() -> None:
    config = parse_config(
        CardConfig, None, prog="python -m quality.card", description="Write the model card."
    )
    manifest = verify(config.repository, current(config.repository))
    document = read_json(config.evaluation, "run `toxicity eval` of the repository first")
    models = document.get("models")
    names = [
        name
        for name, about in (models.items() if isinstance(models, dict) else ())
        if about.get("onnx_sha256") == manifest["files"][ONNX_FILE]["sha256"]
    ]
    if not names:
        raise BadInput(
            f"{config.evaluation} has no figures of version {manifest['version']} of "
            f"{config.repository}, expected an evaluation of it; run `toxicity eval --models "
            f"{config.repository}`"
        )
    told = {
        "name": config.name,
        "data_licence": config.data_licence,
        "label_policy": config.label_policy,
        "contact": config.contact,
    }
    thresholds = published_thresholds(config.repository, manifest["version"])
    text = card(manifest, document, names[0], told, thresholds)
    write_atomically(config.out / "card.md", text)
    write_atomically(config.out / "card.html", page(text, config.name))
    print(f"wrote {config.out / 'card.md'} and {config.out / 'card.html'}")


if __name__ == "__main__":
    run(main)
