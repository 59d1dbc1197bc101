"""A recipe: stages of training in one small TOML file, read and checked before anything runs.

A table is a stage. `command` says which of COMMANDS it runs; `after` names stages that it only
waits for; `threads` (default 1) is how many it computes with, which may decide the last bits of its
result. Every other name is a flag of the command. In a value "@name" is the folder that the stage
`name` made ("@name/file" what lies in it), and "{data}" the recipe's own setting of that name; what
stands for an empty setting is left out. Before the tables, `about` is a line of text, and `base`
another recipe: its stages are there too, and a table of the same name changes or adds flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import graphlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import BadInput
from export.config import ExportConfig
from quality.card.__main__ import CardConfig
from quality.config import QualityConfig
from train.config import TrainConfig

_FOLDER = Path(__file__).parent
_BEFORE = ("about", "base")
"""What stands before the stages."""
_OWN = ("command", "after", "threads")
_SETTING = re.compile(r"\{([a-z-]+)\}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_MOST_THREADS = 256


@dataclass(frozen=True)
class Command:
    """What a stage can run."""

    module: str
    config: type
    sources: tuple[str, ...]
    """Packages whose code decides its result."""


_EVALUATION = ("storage", "core", "train", "export", "quality")
COMMANDS = {
    "train": Command("train", TrainConfig, ("storage", "core", "train")),
    "export": Command("export", ExportConfig, ("storage", "core", "train", "export")),
    "eval": Command("quality", QualityConfig, _EVALUATION),
    "card": Command("quality.card", CardConfig, _EVALUATION),
}


@dataclass(frozen=True)
class Stage:
    """One command of a recipe."""

    name: str
    command: Command
    flags: Mapping[str, Any]
    needs: tuple[str, ...]
    """Stages that must be done before."""
    threads: int

    def arguments(self, settings: Mapping[str, str], made: Mapping[str, str]) -> list[str]:
        """The command line without --out; `made` has the folder of each stage by its name."""
        found: list[str] = []
        for flag, value in self.flags.items():
            if isinstance(value, bool):
                found.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            words = [_filled(v, settings, made) for v in _values(value)]
            if words := [word for word in words if word]:
                found += [f"--{flag}", *words]
        return found


@dataclass(frozen=True)
class Recipe:
    """Stages, each after those that it needs."""

    name: str
    about: str
    texts: tuple[str, ...]
    """Of the file, of the one that it is based on, and so on."""
    stages: tuple[Stage, ...]


def names() -> list[str]:
    """The recipes that come with this repository."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name_or_path: str, settings: Mapping[str, str]) -> Recipe:
    """Read a recipe, by its name or the path of a file, and check all that can be checked.

    Raises BadInput with one line for a file that is no recipe: unknown commands, flags, stages or
    settings, and stages that wait for each other.
    """
    path = _path(name_or_path)
    files = _with_bases(path)
    about = next((file.about for file in files if file.about), "")
    tables: dict[str, dict[str, Any]] = {}
    for file in reversed(files):
        for name, table in file.tables.items():
            tables[name] = {**tables.get(name, {}), **table}
    if not tables:
        raise BadInput(f"{path} has no stage, expected one or more; recipes/best.toml is a recipe")
    stages = {name: _stage(path, name, table, tables, settings) for name, table in tables.items()}
    try:
        order = graphlib.TopologicalSorter({s.name: s.needs for s in stages.values()})
        ordered = tuple(stages[name] for name in order.static_order())
    except graphlib.CycleError as error:
        raise BadInput(
            f"the stages {', '.join(error.args[1])} of {path} wait for each other, expected an "
            "order; leave one @ or `after` out"
        ) from error
    return Recipe(path.stem, about, tuple(file.text for file in files), ordered)


@dataclass(frozen=True)
class _RecipeFile:
    """What stands in one file, not yet checked."""

    text: str
    about: str
    base: str
    tables: Mapping[str, Mapping[str, Any]]


def _with_bases(path: Path) -> list[_RecipeFile]:
    """The file, the one that it is based on, that one's base, and so on."""
    files, seen = [_read(path)], [path]
    while base := files[-1].base:
        seen.append(_path(base, beside=seen[-1].parent))
        if any(seen[-1].samefile(earlier) for earlier in seen[:-1]):
            raise BadInput(
                f"{', '.join(map(str, seen))}: each is based on the next, expected an end; leave "
                "one `base` out"
            )
        files.append(_read(seen[-1]))
    return files


def _read(path: Path) -> _RecipeFile:
    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path} is no TOML: {error}; mend it, recipes/best.toml is one") from error
    words = {name: found.pop(name, "") for name in _BEFORE}
    strange = [name for name, word in words.items() if not isinstance(word, str)]
    strange += [name for name, table in found.items() if not isinstance(table, dict)]
    if strange:
        raise BadInput(
            f"{path} has {', '.join(strange)} outside of a stage, expected tables, and as a text "
            f"{' or '.join(_BEFORE)}; mend it"
        )
    return _RecipeFile(text, **words, tables=found)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed of its trainings; a student has its teacher's."""
    stages = [
        dataclasses.replace(stage, flags={**stage.flags, "seed": seed})
        if stage.command.config is TrainConfig and "distill" not in stage.flags
        else stage
        for stage in recipe.stages
    ]
    return dataclasses.replace(recipe, stages=tuple(stages))


def _path(name_or_path: str, beside: Path = Path()) -> Path:
    if name_or_path in names():
        return _FOLDER / f"{name_or_path}.toml"
    path = beside / name_or_path
    if not path.is_file():
        raise BadInput(
            f"there is no recipe {name_or_path!r}, expected one of {', '.join(names())}, or a "
            "file; mend the name"
        )
    return path


def _stage(
    path: Path,
    name: str,
    table: Mapping[str, Any],
    others: Mapping[str, Any],
    settings: Mapping[str, str],
) -> Stage:
    where = f"stage {name} of {path}"
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{where}: its name is no folder's, expected small letters, digits and '-'; mend it"
        )
    command = COMMANDS.get(str(table.get("command")))
    if command is None:
        raise BadInput(
            f"{where}: its command is {table.get('command')!r}, expected one of "
            f"{', '.join(COMMANDS)}; mend it"
        )
    threads = table.get("threads", 1)
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise BadInput(f"{where}: threads is {threads!r}, expected 1 to {_MOST_THREADS}; mend it")
    flags = {flag: value for flag, value in table.items() if flag not in _OWN}
    _check_flags(where, command, flags)
    words = [word for value in flags.values() for word in _values(value) if isinstance(word, str)]
    needs = [word[1:].partition("/")[0] for word in words if word.startswith("@")]
    after = table.get("after", [])
    needs += after if isinstance(after, list) else [after]
    for need in needs:
        if need not in others:
            raise BadInput(
                f"{where}: there is no stage {need!r}, expected one of {', '.join(others)}; mend it"
            )
    for setting in _SETTING.findall(" ".join(words)):
        if setting not in settings:
            raise BadInput(
                f"{where}: there is no setting {{{setting}}}, expected one of "
                f"{', '.join(f'{{{known}}}' for known in settings)}; mend it"
            )
    return Stage(name, command, flags, tuple(dict.fromkeys(needs)), threads)


def _check_flags(where: str, command: Command, flags: Mapping[str, Any]) -> None:
    known = [field.name.replace("_", "-") for field in dataclasses.fields(command.config)]
    for flag, value in flags.items():
        if flag not in known or flag == "out":
            near = difflib.get_close_matches(flag, known, 1)
            hint = f", perhaps {near[0]}" if near else ""
            raise BadInput(
                f"{where}: {flag} is no flag that a recipe may give{hint}; "
                f"see `toxicity {command.module} --help`"
            )
        if not all(isinstance(word, str | int | float | bool) for word in _values(value)):
            raise BadInput(
                f"{where}: {flag} is {value!r}, expected text, numbers, or a list of them; mend it"
            )


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _filled(value: Any, settings: Mapping[str, str], made: Mapping[str, str]) -> str:
    """A value as a word of the command line; empty where it stands for an empty setting."""
    if not isinstance(value, str):
        return str(value)
    if value.startswith("@"):
        stage, slash, file = value[1:].partition("/")
        return f"{made[stage]}{slash}{file}"
    return _SETTING.sub(lambda found: settings[found[1]], value)
