"""Several sources of labelled comments in one training, each with a meaning of its own labels.

python -m train --sources sources.yaml          # see docs/data.md
python -m train --data a.csv.gz b.parquet       # each file is a source, with today's defaults

- name: wiki
  path: jigsaw.csv.gz             # beside the sources file
  weight: 1.0                     # what a comment counts in the loss
- name: tweets
  path: tweets.csv
  label-column: class
  meaning: classes
  label-map: {0: 1, 1: 0.8, 2: 0}
  share: 0.2                      # of the examples of an epoch
  licence: MIT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from contract import LABEL_THRESHOLD, BadInput
from train.data import stored_texts
from train.data.labels import DROP
from train.data.load import FLAGS, Comments, load_comments

ALL = "all"
"""Of every source; none is named so."""
Meaning = Literal["binary", "probability", "words", "classes"]
_YAML_SUFFIXES = (".yaml", ".yml")
_KEYED = ("words", "classes")
_COUNTS = ("rows", "dropped_no_text", "dropped_no_label", "dropped_by_label_map", "kept")


class CommentSource(BaseModel):
    """One entry of a sources file; its keys have hyphens, as the flags do."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    path: str = Field(min_length=1)
    """A file, `hub:OWNER/NAME[:SPLIT]` or `synthetic[:ROWS]`, as `load_comments` takes it."""
    text_column: str | None = None
    label_column: str | None = None
    meaning: Meaning = "binary"
    """binary: learned as toxic from `threshold` on. probability: a number in [0, 1], learned as it
    is. words, classes: what `label_map` says of each, learned as it is."""
    label_map: dict[str | int | float | bool, float | Literal["drop"]] = Field({})
    threshold: float = Field(LABEL_THRESHOLD, gt=0, le=1)
    """From which on a comment counts as toxic where it is judged, and with `binary` is learned."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """What each of its comments counts in the loss."""
    share: float | None = Field(None, gt=0, le=1)
    """Its part of the examples of an epoch; None leaves it to `train.methods.sampling`."""
    licence: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> CommentSource:
        if self.name == ALL:
            raise ValueError(f"the name {ALL} stands for all sources, expected another")
        if self.meaning in _KEYED and not self.label_map:
            raise ValueError(f"meaning is {self.meaning}, expected a label-map with it")
        if self.meaning == "probability" and self.label_map:
            raise ValueError("meaning is probability, expected words or classes with a label-map")
        for label, number in self.label_map.items():
            if isinstance(label, bool):
                raise ValueError(
                    f"label-map has a plain {str(label).lower()} (yes and no are such, too), "
                    "expected a word in quotes"
                )
            if not isinstance(number, str) and not 0 <= number <= 1:
                raise ValueError(f"label-map has {number:g}, expected 0 to 1, or {DROP}")
        return self

    @property
    def soft(self) -> bool:
        """Whether its numbers are learned as they are, not as two classes."""
        return self.meaning != "binary"

    def label_entries(self) -> list[str]:
        """`label_map` as the flag --label-map has it."""
        return [f"{label}={number}" for label, number in self.label_map.items()]

    def to_json(self) -> dict[str, Any]:
        """Every key, as a sources file has them."""
        return self.model_dump(mode="json", by_alias=True)


Sources = tuple[CommentSource, ...]


def is_sources_file(name: str) -> bool:
    """Whether the name is of a file that lists sources, not of comments."""
    return name.lower().endswith(_YAML_SUFFIXES)


def read_sources(path: Path) -> Sources:
    """Entries of a sources file, their paths from its folder on.

    Raises BadInput for a file that is missing, is no YAML list of sources, or names one twice.
    """
    want = "a YAML list of sources, each with a name and a path"
    if not path.is_file():
        raise BadInput(f"no file at {path}, expected {want}; name another")
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8, expected {want}; convert it") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise BadInput(f"{path} is no YAML{where}, expected {want}; see docs/data.md") from error
    if not isinstance(found, list) or not found:
        got = "empty" if not found else f"a {type(found).__name__}"
        raise BadInput(f"{path} is {got}, expected {want}; see docs/data.md")
    sources = sources_of(found, str(path))
    return tuple(
        s.model_copy(update={"path": str(path.parent / s.path)}) if _is_file(s.path) else s
        for s in sources
    )


def sources_of(entries: Sequence[Any], where: str) -> Sources:
    """Sources from plain objects. Raises BadInput that says `where` they stand."""
    try:
        sources = tuple(TypeAdapter(list[CommentSource]).validate_python(list(entries)))
    except ValidationError as error:
        raise BadInput(_explained(error.errors()[0], entries, where)) from error
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{where} names {twice[0]!r} twice, expected each source once; rename one")
    given = [source.share for source in sources if source.share is not None]
    total, rest = sum(given), len(given) < len(sources)
    if total > 1 + 1e-9 or (rest and total >= 1) or (not rest and total < 1 - 1e-6):
        wanted = "less than 1, for the others to have a part" if rest else "1"
        raise BadInput(f"{where} gives shares that sum to {total:g}, expected {wanted}; change one")
    return sources


def _explained(first: Mapping[str, Any], entries: Sequence[Any], where: str) -> str:
    number, *keys = first["loc"]
    entry = entries[number]
    name = entry.get("name", number + 1) if isinstance(entry, dict) else number + 1
    what = f"{where}, source {name!r}" + (f": {keys[0]}" if keys else "")
    reason = first["msg"].removeprefix("Value error, ")
    known = ", ".join(field.replace("_", "-") for field in CommentSource.model_fields)
    if first["type"] == "extra_forbidden":
        return f"{what} is no key, expected some of {known}; mend it or leave it out"
    if first["type"] == "missing":
        return f"{what} is missing, expected a value; add it"
    if not keys or keys[0] not in known:
        return f"{what}: {reason}; mend it"
    return f"{what} is {first['input']!r}: {reason}; mend it"


def _is_file(path: str) -> bool:
    return not path.startswith(("hub:", "synthetic"))


def given_sources(
    data: Sequence[str],
    file: Path | None,
    *,
    text_column: str | None,
    label_column: str | None,
    label_map: Sequence[str],
) -> tuple[Sources, str]:
    """Sources of --sources `file`, else of --data, and the sources file that they stand in.

    Those of --data are named by their files, without the suffix. None for one plain file: it is
    loaded by `load_comments`.
    """
    if file is None and len(data) == 1 and is_sources_file(data[0]):
        file = Path(data[0])
    if file is not None:
        return read_sources(file), str(file)
    if len(data) == 1:
        return (), ""
    if twice := [path for path in data if data.count(path) > 1]:
        raise BadInput(f"--data names {twice[0]} twice, expected each once; leave one out")
    names: list[str] = []
    for path in data:
        plain = path.split(":")[0] if path.startswith("synthetic") else path
        plain = Path(plain.removeprefix("hub:").partition(":")[0]).name.split(".")[0]
        stem = (
            "".join(c if c.isascii() and c.isalnum() else "-" for c in plain).strip("-") or "data"
        )
        same = [name for name in names if name == stem or name.startswith(f"{stem}-")]
        names.append(f"{stem}-{len(same) + 1}" if same or stem == ALL else stem)
    shared: dict[str, Any] = {"text-column": text_column, "label-column": label_column}
    if label_map:
        pairs = ((label, to.strip().lower()) for label, _, to in map(_entry, label_map))
        shared["label-map"] = {label: to if to == DROP else float(to) for label, to in pairs}
    entries = [{"name": n, "path": p, **shared} for n, p in zip(names, data, strict=True)]
    return sources_of(entries, "--data"), ""


def _entry(entry: str) -> tuple[str, str, str]:
    return entry.rpartition("=")


# --- Comments --------------------------------------------------------------------------------
def load_source(source: CommentSource, where: str = "", attributes: Sequence[str] = ()) -> Comments:
    """Comments of one source, of one class too. Raises BadInput as `load_comments` does.

    `attributes` are those that it has a column of.
    `where` is the sources file, for errors; "" where its columns are flags.
    """
    return load_comments(
        source.path,
        text_column=source.text_column,
        label_column=source.label_column,
        label_map=source.label_entries(),
        both_classes=False,
        flags=f"{where}, {source.name}: " if where else FLAGS,
        threshold=source.threshold,
        attributes=attributes,
    )


def load_all(sources: Sources, where: str = "", attributes: Sequence[str] = ()) -> Comments:
    """Comments of all `sources`, in their order, with `Comments.origin`.

    Raises BadInput as `load_comments` does, and where there is but one class.
    """
    parts = [load_source(source, where, attributes) for source in sources]
    origin = np.repeat(np.arange(len(parts)), [len(part.texts) for part in parts])
    each = [
        {**part.source, **source.to_json(), "path": source.path, "name": source.name}
        for source, part in zip(sources, parts, strict=True)
    ]
    names = list(dict.fromkeys(name for part in parts for name in part.identities))

    def joined(name: str, shares: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        unknown = (np.full(len(part.texts), np.nan, np.float32) for part in parts)
        return np.concatenate(
            [own.get(name, nan) for own, nan in zip(shares, unknown, strict=True)]
        )

    labels = np.concatenate([part.labels for part in parts])
    if len(np.unique(labels)) < 2:
        raise BadInput(
            f"{where or '--data'} has {len(labels):,} usable comments, {int(labels.sum())} of them "
            "toxic, expected both classes; check the labels of each source"
        )
    about = {
        "name": " + ".join(source.name for source in sources),
        "kind": "sources",
        "synthetic": any(part.source["synthetic"] for part in parts),
        "label_map": sorted({entry for part in parts for entry in part.source["label_map"]}),
        **{name: sum(part.source[name] for part in parts) for name in _COUNTS},
        "positives": int(labels.sum()),
        "identities": names,
        "identities_of_words": [],
        "sources": each,
    }
    return replace(
        parts[0],
        texts=stored_texts.joined(*(part.texts for part in parts)),
        rows=np.concatenate([part.rows for part in parts]),
        labels=labels,
        targets=np.concatenate([part.targets for part in parts]),
        identities={name: joined(name, [p.identities for p in parts]) for name in names},
        attributes={
            name: joined(name, [p.attributes for p in parts])
            for name in attributes
            if any(name in part.attributes for part in parts)
        },
        source=about,
        origin=origin,
    )


def learned_targets(comments: Comments, sources: Sources) -> np.ndarray:
    """float32 [n]: what the loss compares with, by the meaning of each source's labels."""
    if comments.origin is None:
        return comments.labels
    soft = np.array([source.soft for source in sources])[comments.origin]
    return np.where(soft, comments.targets, comments.labels)


def without(sources: Sources, name: str) -> tuple[Sources, CommentSource]:
    """The other sources, and the one of that name. Raises BadInput where either is missing."""
    held = [source for source in sources if source.name == name]
    if not held or len(sources) < 2:
        known = ", ".join(source.name for source in sources) or "none, as there is one plain file"
        wanted = f"one of several sources ({known})"
        raise BadInput(f"--hold-out-source is {name!r}, expected {wanted}; name another")
    # The rest shares what it had a part of.
    rest = [source for source in sources if source.name != name]
    given = sum(source.share or 0.0 for source in rest)
    if all(source.share is not None for source in rest):
        rest = [s.model_copy(update={"share": (s.share or 0.0) / given}) for s in rest]
    return tuple(rest), held[0]
