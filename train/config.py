"""Every choice of a training run, in one frozen dataclass; saved beside the weights it made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from contract import MAX_LEN
from train.data.labels import parse_label_map
from train.model import Attention, ModelConfig, check_heads

Embeddings = Literal["random", "cooccurrence", "spelling"]

WRITTEN_BEFORE = {
    **{"respell": False, "phrases": 0},
    **{"identity_balance": 0.0, "identity_insertion": 0.0},
    "label_map": [],
}
"""What a run did whose config.json is older than these fields."""


@dataclass(frozen=True)
class TrainConfig:
    """Flags of `python -m train`."""

    data: str = Field(
        "synthetic",
        description="labelled comments: 'synthetic', 'synthetic:ROWS', a .csv, .csv.gz, .zip or "
        ".parquet file, or 'hub:OWNER/NAME[:SPLIT]'",
    )
    test_data: str | None = Field(
        None, description="a second labelled file: evaluated, never split or trained on"
    )
    text_column: str | None = Field(None, description="column of the comment, if not a known name")
    label_column: str | None = Field(None, description="column of the label, if not a known name")
    label_map: tuple[str, ...] = Field(
        (),
        description="what labels mean that are no numbers in [0, 1], as in toxic=1 non-toxic=0: "
        "VALUE=NUMBER, or VALUE=drop to leave its rows out",
    )
    out: Path = Field(Path("runs/model"), description="folder of the finished run")
    qat: Path | None = Field(
        None,
        description="finished run to fine-tune for INT8; its data, split and shape become the "
        "defaults, with 1 epoch, lr 2e-5, fp32, its own embeddings and out runs/qat",
    )
    distill: tuple[Path, ...] = Field(
        (),
        description="finished runs whose probabilities to learn instead of the labels; the "
        "first's data, split and tokenizer become the defaults, with out runs/student",
    )
    ngram_teacher: float = Field(
        0.0,
        ge=0,
        description="a regression on character n-grams teaches beside the runs of --distill and "
        "counts as so many; 1 with --distill, see train/methods/ngrams.py",
    )
    unlabelled: Path | None = Field(
        None, description="more comments for --distill, in a file that needs no labels"
    )
    augment: int = Field(
        0,
        ge=0,
        description="passages of each training comment, some words replaced, for the teachers of "
        "--distill to score; see train/methods/augment.py",
    )
    fractions: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="shares of the training, validation and test split"
    )
    seed: int = Field(0, ge=0, description="seed of the split, the weights and the batches")
    max_vocab: int = Field(30_000, ge=4, description="tokens kept, special ones included")
    respell: bool = Field(
        True, description="read a disguised word, as in sh1t or i d i o t, as known ones"
    )
    phrases: int = Field(
        0, ge=0, description="of the tokens kept, so many are frequent pairs of words"
    )
    max_len: int = Field(
        256, ge=2, le=MAX_LEN, description="longest comment in tokens, [CLS] included"
    )
    d_model: int = Field(192, ge=1, description="width of the residual stream")
    n_layers: int = Field(4, ge=1, description="encoder blocks")
    n_heads: int = Field(4, ge=1, description="attention heads; divides d_model")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over d_model")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability")
    attention: Attention = Field(
        "softmax",
        description="linear: its cost grows with a comment's length, not with the square",
    )
    embeddings: Embeddings = Field(
        "spelling",
        description="what token embeddings start from: noise, the words near them, or those and "
        "the words spelled alike; see train/methods/embeddings.py",
    )
    pretrain_epochs: int = Field(
        0,
        ge=0,
        description="passes of masked-word pre-training first; see train/methods/pretrain.py",
    )
    epochs: int = Field(2, ge=1, description="passes over the training split, at most")
    batch_size: int = Field(128, ge=1, description="comments a step and device")
    lr: float = Field(3e-4, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    warmup_share: float = Field(
        0.06, ge=0, lt=1, description="share of the steps with a rising learning rate"
    )
    soft_targets: bool = Field(
        False, description="learn the share of annotators who said toxic instead of 0 or 1"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="how far targets are drawn to one half"
    )
    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the words that training shows as [UNK]"
    )
    identity_balance: float = Field(
        0.0,
        ge=0,
        description="weigh comments until identity terms tell nothing; 1 is the formula's own "
        "strength, see train/methods/debias.py",
    )
    identity_insertion: float = Field(
        0.0, ge=0, le=1, description="share of the harmless comments shown with an identity term"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay a step of the average of the weights that is validated and saved; "
        "0 saves the weights themselves",
    )
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    patience: int = Field(2, ge=1, description="epochs without a better validation AUROC to stop")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast on a GPU that has it, else fp32"
    )
    compile: bool = Field(
        False, description="torch.compile the model; needs a C++ compiler on a CPU"
    )
    pretokenize: bool = Field(
        False, description="tokenize once, store the ids on disk and memory-map them"
    )
    checkpoint_steps: int = Field(200, ge=1, description="steps between two saves of the progress")
    restart: bool = Field(False, description="drop an interrupted run instead of resuming it")

    @model_validator(mode="after")
    def _labels_are_known(self) -> TrainConfig:
        parse_label_map(self.label_map)
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TrainConfig:
        check_heads(self.d_model, self.n_heads)
        return self

    @model_validator(mode="after")
    def _qat_is_fp32_and_elsewhere(self) -> TrainConfig:
        if self.qat and self.precision != "fp32":
            raise ValueError(f"--precision is {self.precision}, expected fp32 with --qat")
        if self.qat and self.qat.resolve() == self.out.resolve():
            raise ValueError(f"--out is {self.out}, expected another folder than --qat")
        if self.qat and self.attention != "softmax":
            raise ValueError(f"--attention is {self.attention}, expected softmax with --qat")
        if self.qat and self.pretrain_epochs:
            raise ValueError(f"--pretrain-epochs is {self.pretrain_epochs}, expected 0 with --qat")
        if self.qat and self.embeddings != "random":
            raise ValueError(f"--embeddings is {self.embeddings}, expected random with --qat")
        if self.qat and self.compile:
            raise ValueError("--compile is given, expected --no-compile with --qat")
        return self

    @model_validator(mode="after")
    def _distills_one_way(self) -> TrainConfig:
        if self.distill and self.qat:
            raise ValueError(f"--distill is {self.distill[0]}, expected none with --qat")
        folders = [folder.resolve() for folder in self.distill]
        if self.out.resolve() in folders:
            raise ValueError(f"--out is {self.out}, expected another folder than --distill")
        if len(set(folders)) < len(folders):
            raise ValueError("--distill names a run twice, expected each once")
        if self.distill and self.soft_targets:
            raise ValueError("--soft-targets is given, expected --no-soft-targets with --distill")
        if self.distill and self.label_smoothing:
            raise ValueError(
                f"--label-smoothing is {self.label_smoothing}, expected 0 with --distill"
            )
        if self.distill and self.identity_balance:  # it is in its teacher's probabilities
            raise ValueError(
                f"--identity-balance is {self.identity_balance}, expected 0 with --distill"
            )
        if self.ngram_teacher and not self.distill:
            raise ValueError(
                f"--ngram-teacher is {self.ngram_teacher}, expected --distill beside it"
            )
        if self.augment and not self.distill:
            raise ValueError(f"--augment is {self.augment}, expected --distill beside it")
        if self.unlabelled and not self.distill:
            raise ValueError(f"--unlabelled is {self.unlabelled}, expected --distill beside it")
        return self

    def encoder_config(self, vocab_size: int) -> ModelConfig:
        """The part that fixes the shapes of the weights."""
        names = {field.name for field in dataclasses.fields(ModelConfig)} - {"vocab_size"}
        return ModelConfig(vocab_size=vocab_size, **{name: getattr(self, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON, paths as they were given."""
        fields = dataclasses.asdict(self)
        fields["distill"] = [str(folder) for folder in self.distill]
        fields["label_map"] = list(self.label_map)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}
