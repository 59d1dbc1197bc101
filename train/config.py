"""Every choice of a training run, in one frozen dataclass; saved beside the weights it made.

Flags of `python -m train --help`. A field's group is what help lists it under; `REFUSED` is the one
table of combinations that cannot be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from contract import MAX_LEN
from train.data.labels import parse_label_map
from train.data.sources import is_sources_file
from train.model import (
    Architecture,
    Attention,
    ModelConfig,
    check_attributes,
    check_heads,
    without_no_attributes,
)

Embeddings = Literal["random", "cooccurrence", "spelling"]

WRITTEN_BEFORE = {
    **{"respell": False, "phrases": 0},
    **{"identity_balance": 0.0, "identity_insertion": 0.0},
    **{"label_map": [], "soft_labels": False, "attributes": []},
    **{"sources": None, "hold_out_source": None, "near_duplicates": "auto"},
}
"""What a run did whose config.json is older than these fields."""


SYNTHETIC = ("synthetic",)


def _one_or_several(value: object) -> object:
    """One file may be given without a tuple."""
    return (value,) if isinstance(value, str) else value


def _flag(group: str, default: Any, description: str, **limits: Any) -> Any:
    """A field of `group`; `limits` as pydantic's Field has them."""
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


@dataclass(frozen=True)
class TrainConfig:
    """Flags of `python -m train`."""

    # --- Data
    data: Annotated[tuple[str, ...], BeforeValidator(_one_or_several)] = _flag(
        "Data",
        SYNTHETIC,
        "labelled comments: a .csv, .csv.gz, .zip, .jsonl, .jsonl.gz or .parquet file, or several, "
        "'hub:OWNER/NAME[:SPLIT]', or generated ones, 'synthetic' or 'synthetic:ROWS', as in "
        "synthetic:5000",
        min_length=1,
    )
    sources: Path | None = _flag(
        "Data",
        None,
        "YAML file of several sources, the same as --data sources.yaml: each with its own columns, "
        "meaning of labels, weight and share; see docs/data.md",
    )
    hold_out_source: str | None = _flag(
        "Data", None, "name of a source that is evaluated, never split or trained on, as in tweets"
    )
    near_duplicates: Literal["auto", "keep", "drop"] = _flag(
        "Data",
        "auto",
        "training comments that are nearly the same as one that judges the model; auto: drop with "
        "several sources, else keep",
    )
    test_data: str | None = _flag(
        "Data", None, "a second labelled file: evaluated, never split or trained on"
    )
    text_column: str | None = _flag(
        "Data", None, "column of the comment, if not a known name, as in body"
    )
    label_column: str | None = _flag(
        "Data", None, "column of the label, if not a known name, as in score"
    )
    label_map: tuple[str, ...] = _flag(
        "Data",
        (),
        "what labels mean that are no numbers in [0, 1], as in toxic=1 non-toxic=0: "
        "VALUE=NUMBER, or VALUE=drop to leave its rows out",
    )
    fractions: tuple[float, float, float] = _flag(
        "Data",
        (0.8, 0.1, 0.1),
        "shares of the training, validation and test split, as in 0.8 0.1 0.1",
    )
    pretokenize: bool = _flag(
        "Data",
        True,
        "tokenize each text once, into ids on disk that are memory-mapped; else again each time "
        "that it is read, for the same batches",
    )
    attributes: tuple[str, ...] = _flag(
        "Data",
        (),
        "columns with more to learn beside toxicity, as in insult threat: shares in [0, 1], empty "
        "where nobody said; see train/methods/attributes.py",
    )
    # --- Tokenizer
    max_vocab: int = _flag("Tokenizer", 30_000, "tokens kept, special ones included", ge=4)
    max_len: int = _flag(
        "Tokenizer", 256, "longest comment in tokens, [CLS] included", ge=2, le=MAX_LEN
    )
    respell: bool = _flag(
        "Tokenizer", True, "read a disguised word, as in sh1t or i d i o t, as known ones"
    )
    phrases: int = _flag(
        "Tokenizer", 0, "of the tokens kept, so many are frequent pairs of words, as in 3000", ge=0
    )
    # --- Model
    d_model: int = _flag(
        "Model", 64, "width of the residual stream, in numbers; larger as 96 or 192", ge=1
    )
    n_layers: int = _flag("Model", 1, "encoder blocks; larger as 2 or 4", ge=1)
    n_heads: int = _flag("Model", 4, "attention heads; divides d_model", ge=1)
    mlp_ratio: float = _flag("Model", 4.0, "hidden width of the MLP over d_model", gt=0)
    dropout: float = _flag("Model", 0.1, "dropout probability", ge=0, lt=1)
    attention: Attention = _flag(
        "Model",
        "softmax",
        "linear: its cost grows with a comment's length, not with the square",
    )
    architecture: Architecture = _flag(
        "Model",
        "transformer",
        "recurrent: a strong teacher for --distill, which is not exported; of the shape it reads "
        "--d-model and --max-len; see train/recurrent.py",
    )
    # --- Start weights
    embeddings: Embeddings = _flag(
        "Start weights",
        "spelling",
        "what token embeddings start from: noise, the words near them, or those and "
        "the words spelled alike; see train/methods/embeddings.py",
    )
    word_vectors: Path | None = _flag(
        "Start weights",
        None,
        "word vectors from other texts that token embeddings start from, too: text of GloVe or "
        "word2vec, as in glove.6B.100d.txt or vectors.txt.gz; see train/methods/word_vectors.py",
    )
    pretrain_epochs: int = _flag(
        "Start weights",
        0,
        "passes of masked-word pre-training first, as in 1; see train/methods/pretrain.py",
        ge=0,
    )
    qat: Path | None = _flag(
        "Start weights",
        None,
        "finished run to fine-tune for INT8, as in runs/model; its data, split and shape become "
        "the defaults, with 1 epoch, lr 2e-5, fp32, its own embeddings and out runs/qat",
    )
    # --- Optimization
    epochs: int = _flag("Optimization", 2, "passes over the training split, at most", ge=1)
    batch_size: int = _flag("Optimization", 64, "comments a step and device", ge=1)
    lr: float = _flag("Optimization", 1e-3, "peak learning rate of AdamW, as in 3e-4", gt=0)
    weight_decay: float = _flag("Optimization", 0.01, "weight decay of AdamW", ge=0)
    warmup_share: float = _flag(
        "Optimization", 0.06, "share of the steps with a rising learning rate", ge=0, lt=1
    )
    grad_clip: float = _flag("Optimization", 1.0, "largest norm of the gradient", gt=0)
    patience: int = _flag(
        "Optimization", 2, "epochs without a better validation AUROC to stop", ge=1
    )
    # --- Identity terms
    identity_balance: float = _flag(
        "Identity terms",
        0.0,
        "weigh comments until identity terms tell nothing, as in 1.5; 1 is the formula's own "
        "strength, see train/methods/debias.py",
        ge=0,
    )
    identity_insertion: float = _flag(
        "Identity terms",
        0.0,
        "share of the harmless comments shown with an identity term, as in 0.05",
        ge=0,
        le=1,
    )
    # --- Distillation
    soft_labels: bool = _flag(
        "Distillation",
        False,
        "the labels are another model's probabilities: learn them as they are, on their scale, "
        "instead of the two classes",
    )
    distill: tuple[Path, ...] = _flag(
        "Distillation",
        (),
        "finished runs whose probabilities to learn instead of the labels, as in runs/model; the "
        "first's data, split and tokenizer become the defaults, with out runs/student",
    )
    ngram_teacher: float = _flag(
        "Distillation",
        0.0,
        "a regression on character n-grams teaches beside the runs of --distill and "
        "counts as so many; 1 with --distill, see train/methods/ngrams.py",
        ge=0,
    )
    unlabelled: Path | None = _flag(
        "Distillation",
        None,
        "more comments for --distill, in a file that needs no labels, as in more.csv.gz",
    )
    augment: int = _flag(
        "Distillation",
        0,
        "passages of each training comment, some words replaced, for the teachers of "
        "--distill to score; see train/methods/augment.py",
        ge=0,
    )
    contrast: int = _flag(
        "Distillation",
        0,
        "sentences with labels by rules that a student of --distill learns beside the comments: "
        "threats, exclusion, denial, quotation, idioms ...; see train/methods/contrast.py",
        ge=0,
    )
    # --- Run
    out: Path = _flag("Run", Path("runs/model"), "folder of the finished run")
    seed: int = _flag("Run", 0, "seed of the split, the weights and the batches", ge=0)
    device: Literal["auto", "cpu", "cuda"] = _flag("Run", "auto", "where to train")
    precision: Literal["auto", "fp32", "bf16"] = _flag(
        "Run", "auto", "auto: bf16 autocast on a GPU that has it, else fp32"
    )
    checkpoint_steps: int = _flag("Run", 200, "steps between two saves of the progress", ge=1)
    restart: bool = _flag("Run", False, "drop an interrupted run instead of resuming it")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        parse_label_map(self.label_map)
        check_heads(self.d_model, self.n_heads)
        check_attributes(self.attributes)
        for is_so, message in REFUSED:
            if is_so(self):
                raise ValueError(message.format(c=self))
        return self

    def encoder_config(self, vocab_size: int) -> ModelConfig:
        """The part that fixes the shapes of the weights."""
        names = {field.name for field in dataclasses.fields(ModelConfig)} - {"vocab_size"}
        return ModelConfig(vocab_size=vocab_size, **{name: getattr(self, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON, paths as they were given."""
        fields = dataclasses.asdict(self)
        fields["data"] = self.data[0] if len(self.data) == 1 else list(self.data)
        fields["distill"] = [str(folder) for folder in self.distill]
        fields["label_map"] = list(self.label_map)
        fields = without_no_attributes(fields)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}


def _of_a_sources_file(config: TrainConfig) -> bool:
    return bool(config.sources) or (len(config.data) == 1 and is_sources_file(config.data[0]))


def _resolved(folders: tuple[Path, ...]) -> list[Path]:
    return [folder.resolve() for folder in folders]


REFUSED: tuple[tuple[Callable[[TrainConfig], object], str], ...] = (
    (
        lambda c: c.qat and c.precision != "fp32",
        "--precision is {c.precision}, expected fp32 with --qat",
    ),
    (
        lambda c: c.qat and c.qat.resolve() == c.out.resolve(),
        "--out is {c.out}, expected another folder than --qat",
    ),
    (
        lambda c: c.qat and c.attention != "softmax",
        "--attention is {c.attention}, expected softmax with --qat",
    ),
    (
        lambda c: c.qat and c.architecture != "transformer",
        "--architecture is {c.architecture}, expected transformer with --qat",
    ),
    (
        lambda c: c.architecture != "transformer" and c.pretrain_epochs,
        "--pretrain-epochs is {c.pretrain_epochs}, expected 0 with --architecture recurrent",
    ),
    (
        lambda c: c.architecture != "transformer" and c.attributes,
        "--attributes is given, expected none with --architecture recurrent",
    ),
    (
        lambda c: c.qat and c.pretrain_epochs,
        "--pretrain-epochs is {c.pretrain_epochs}, expected 0 with --qat",
    ),
    (
        lambda c: c.qat and c.embeddings != "random",
        "--embeddings is {c.embeddings}, expected random with --qat",
    ),
    (
        lambda c: c.word_vectors and c.embeddings == "random",
        "--word-vectors is {c.word_vectors}, expected none with --embeddings random",
    ),
    (
        lambda c: c.distill and c.qat,
        "--distill is {c.distill[0]}, expected none with --qat",
    ),
    (
        lambda c: c.out.resolve() in _resolved(c.distill),
        "--out is {c.out}, expected another folder than --distill",
    ),
    (
        lambda c: len(set(_resolved(c.distill))) < len(c.distill),
        "--distill names a run twice, expected each once",
    ),
    (
        lambda c: c.distill and c.identity_balance,  # it is in its teacher's probabilities
        "--identity-balance is {c.identity_balance}, expected 0 with --distill",
    ),
    (
        lambda c: c.distill and c.soft_labels,
        "--soft-labels is on, expected it off with --distill, whose teachers say what to learn",
    ),
    (
        lambda c: c.ngram_teacher and not c.distill,
        "--ngram-teacher is {c.ngram_teacher}, expected --distill beside it",
    ),
    (
        lambda c: c.augment and not c.distill,
        "--augment is {c.augment}, expected --distill beside it",
    ),
    (
        lambda c: c.contrast and not c.distill,
        "--contrast is {c.contrast}, expected --distill beside it",
    ),
    (
        lambda c: c.unlabelled and not c.distill,
        "--unlabelled is {c.unlabelled}, expected --distill beside it",
    ),
    (
        lambda c: c.sources and c.data != SYNTHETIC,
        "--data is {c.data[0]}, expected none with --sources, which names the files",
    ),
    (
        lambda c: _of_a_sources_file(c) and (c.text_column or c.label_column or c.label_map),
        "--text-column, --label-column or --label-map is given, expected none with a sources "
        "file, where each source has its own",
    ),
)
"""Combinations that cannot be: when, and what is said."""
