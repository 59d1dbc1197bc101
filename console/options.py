"""Command lines made from the frozen config dataclass of a stage.

A flag is a field: its name, default and help text are declared once, in the dataclass; click reads
the command line and pydantic checks the values, so there is one set of rules. Every flag can be an
environment variable, TOXICITY_<COMMAND>_<FLAG>. What a field's `json_schema_extra` may say:

    group     heading of the help that the flag stands under
    default   words for a default that depends on the machine
    example   a value to copy

Every command ends through `console.ending.run`, which is here, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from console.ending import TRACEBACK, run, unexpected
from contract import BadInput

__all__ = ["TRACEBACK", "Invocation", "invoked", "make_config", "parse_config", "run", "unexpected"]

Config = TypeVar("Config")
DefaultsFrom = Mapping[str, Callable[[Any], dict[str, Any]]]
PREFIX = "TOXICITY"
"""First word of every environment variable."""
JSON_HELP = "print the document as the last line"
RESAMPLES_HELP = "samples of the bootstrap that intervals come from"
"""What flags of several commands say."""
_OPTIONS = "Options"
_WIDTH = 100
_NEAR = 0.75
"""Likeness from which on a name may be what was meant."""
_NEGATIVE = re.compile(r"-(\d+|\d*\.\d+)(=\S+)?")
"""A value, not a flag: "-1=drop" is one, as "-1" is."""
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


@dataclasses.dataclass(frozen=True)
class Invocation:
    """One command of `toxicity`, for the `parse_config` that its module calls."""

    prog: str
    """As the user calls it, such as "toxicity train"."""
    argv: Sequence[str]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values of fields that are no flags of this command."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Defaults that are not the config's own."""
    flags: tuple[str, ...] = ()
    """Fields that are; empty for all."""
    summary: str = ""
    """In place of the description that the module gives."""


_invocation: ContextVar[Invocation | None] = ContextVar("invocation", default=None)


@contextlib.contextmanager
def invoked(invocation: Invocation) -> Iterator[None]:
    """Within it, `parse_config` without an argv reads the command line of `invocation`."""
    token = _invocation.set(invocation)
    try:
        yield
    finally:
        _invocation.reset(token)


def parse_config(
    config_class: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    positional: str | None = None,
    defaults_from: DefaultsFrom | None = None,
) -> Config:
    """Config of one stage from the command line and the environment.

    `positional` names a field that is given without a flag. `defaults_from` names fields,
    each with a function of what is given there (text, or a list of it) to other fields' defaults.
    Raises BadInput that names the flag, its value and what was expected; `--help` prints and
    exits with 0.
    """
    given_argv = sys.argv[1:] if argv is None else list(argv)
    found = _invocation.get()
    if found is None or (argv is not None and list(argv) != list(found.argv)):
        found = Invocation(prog, given_argv)
    command = command_of(config_class, found, found.summary or description, positional)
    given = {**found.fixed, **_read(command, found)}
    defaults = dict(found.defaults)
    for name, defaults_of in (defaults_from or {}).items():
        if value := given.get(name, defaults.get(name)):
            defaults |= defaults_of(value)
    return make_config(config_class, {**defaults, **given})


def command_of(
    config_class: type, invocation: Invocation, description: str, positional: str | None = None
) -> click.Command:
    """The command line of a config dataclass, as click has it."""
    return _Command(
        name=invocation.prog,
        params=parameters(config_class, positional, invocation),
        help=description,
        context_settings={"max_content_width": _WIDTH},
    )


def _read(command: click.Command, invocation: Invocation) -> dict[str, Any]:
    """What the command line and the environment give, by field."""
    prefix = env_prefix(invocation.prog)
    try:
        context = command.make_context(
            invocation.prog, list(invocation.argv), auto_envvar_prefix=prefix
        )
        _refuse_unknown_variables(context, prefix)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        raise refused(error, invocation.prog) from error
    with context:
        names = [name for name in context.params if context.get_parameter_source(name) in _GIVEN]
        return {name: context.params[name] for name in names}


def env_prefix(prog: str) -> str:
    """First part of its environment variables: TOXICITY_TRAIN for `toxicity train`."""
    words = re.findall(r"[A-Za-z0-9]+", prog.removeprefix("python -m ").removeprefix("toxicity "))
    return "_".join([PREFIX, *words]).upper()


def refused(error: click.ClickException, prog: str) -> BadInput:
    """A mistake on a command line as this project words it, on one line."""
    words = error.format_message()
    if isinstance(error, click.NoSuchOption):  # click's own bound calls --lr near to --colour
        near = difflib.get_close_matches(error.option_name, error.possibilities or (), 1, _NEAR)
        words = error.message + (f" Did you mean {near[0]!r}?" if near else "")
    return BadInput(f"{prog}: {' '.join(words.split()).rstrip('.')}; see {prog} --help")


def _refuse_unknown_variables(context: click.Context, prefix: str) -> None:
    """A mistyped name would silently do nothing."""
    names = [str(parameter.name).upper() for parameter in context.command.params]
    for variable in sorted(os.environ):
        name = variable.removeprefix(f"{prefix}_")
        if name == variable or name in names:
            continue
        if near := difflib.get_close_matches(name, names, 1, _NEAR):
            raise click.UsageError(
                f"the environment variable {variable} is no flag. Did you mean "
                f"'{prefix}_{near[0]}'?"
            )


def make_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Config from values by field name. Raises BadInput that names the first bad one."""
    fields = sorted(field.name for field in dataclasses.fields(config_class))  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - set(fields)):
        near = difflib.get_close_matches(unknown[0], fields, 1, _NEAR)
        raise BadInput(
            f"{unknown[0]!r} is no setting of {config_class.__name__}, expected "
            f"{repr(near[0]) if near else 'one of ' + ', '.join(fields)}; mend it or leave it out"
        )
    try:
        return TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise BadInput(f"{reason}; set another value") from error
        name = str(first["loc"][0])
        flag = "--" + name.replace("_", "-")
        if first["type"] == "missing":
            raise BadInput(f"{flag} is missing, expected a value; give {flag}") from error
        got = values.get(name, first["input"])
        raise BadInput(f"{flag} is {got!r}: {reason}; set another value") from error


# --- Flags from fields -------------------------------------------------------------------
def parameters(
    config_class: type, positional: str | None, invocation: Invocation
) -> list[click.Parameter]:
    """Of the fields of a config dataclass that `invocation` leaves to the command line."""
    hints = typing.get_type_hints(config_class, include_extras=False)
    found: list[click.Parameter] = []
    for field in dataclasses.fields(config_class):
        offered = not invocation.flags or field.name in invocation.flags
        if offered and field.name not in invocation.fixed:
            default = invocation.defaults.get(field.name, _default(field))
            found.append(_parameter(field, hints[field.name], default, field.name == positional))
    return found


def _default(field: Any) -> Any:
    """Of a field; ... for one that must be given."""
    default = field.default.default if isinstance(field.default, FieldInfo) else field.default
    missing = default is PydanticUndefined or default is dataclasses.MISSING
    return ... if missing else default


def _parameter(field: Any, hint: Any, default: Any, positional: bool) -> click.Parameter:
    info = field.default if isinstance(field.default, FieldInfo) else FieldInfo()
    required = default is ...
    hint, several = _bare(hint), typing.get_origin(_bare(hint)) is tuple
    metavar = field.name.split("_")[-1].upper()
    kind = _kind(hint)
    if positional:
        return _Argument(
            [field.name],
            type=kind,
            nargs=-1 if several else 1,
            required=required,
            metavar=None if isinstance(kind, click.Choice) else metavar + "..." * several,
            text=info.description or "",
        )
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    flag = "--" + field.name.replace("_", "-")
    is_flag = hint is bool
    return _Option(
        [f"{flag}/--no-{flag[2:]}" if is_flag else flag],
        type=click.BOOL if is_flag else kind,
        is_flag=is_flag,
        **({} if required else {"default": None}),  # click takes one that is given for a value
        multiple=several,
        required=required,
        metavar=None if is_flag or isinstance(kind, click.Choice) else metavar + "..." * several,
        help=_help(info.description, extra),
        group=str(extra.get("group", _OPTIONS)),
        shown=str(extra["default"]) if "default" in extra else _shown(default, required),
    )


def _bare(hint: Any) -> Any:
    """The type that is not None of "X | None"."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [one for one in typing.get_args(hint) if one is not type(None)]
        if len(others) == 1:
            return others[0]
    return hint


def _kind(hint: Any) -> click.ParamType:
    """For help and completion; values stay strings, as pydantic converts and checks them."""
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice(typing.get_args(hint))
    element = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    if isinstance(element, type) and issubclass(element, Path):
        return click.Path(readable=False)
    return click.STRING


def _help(description: str | None, extra: Mapping[str, Any]) -> str | None:
    if "example" in extra:
        return f"{description or ''}, such as {extra['example']}".lstrip(", ")
    return description


def _shown(default: Any, required: bool) -> str:
    """A default for people; empty when there is none, or only one of this machine."""
    if required or default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return "" if math.isinf(default) else f"{default:g}"
    if isinstance(default, tuple):
        return " ".join(_shown(one, False) for one in default)
    text = str(default)
    return "" if Path(text).is_absolute() or ".." in Path(text).parts else text


class _Argument(click.Argument):
    """A value without a flag, explained like one with it."""

    def __init__(self, *args: Any, text: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.text = text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.text


class _Option(click.Option):
    """A flag that knows its heading and how its default is shown."""

    def __init__(self, *args: Any, group: str, shown: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.group = group
        self.shown = shown

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        return {**extra, "default": self.shown} if self.shown else extra

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Several values are words, quoted as in a shell."""
        value = self.resolve_envvar_value(ctx)
        return shlex.split(value) if self.multiple and value else value


class _Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        one_each = args if ctx.resilient_parsing else self._one_value_a_flag(args)
        return super().parse_args(ctx, one_each)

    def _one_value_a_flag(self, args: list[str]) -> list[str]:
        """`--models a b` as `--models=a --models=b`, positional values last, behind `--`."""
        options = [option for option in self.params if isinstance(option, click.Option)]
        by_flag = {flag: option for option in options for flag in option.opts}
        flags: list[str] = []
        free: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            option = by_flag.get(word)
            if word == "--":
                free += rest
                break
            if "=" in word and word.partition("=")[0] in by_flag:  # whatever the value has in it
                flags.append(word)
                continue
            if option is None or option.is_flag:
                (free if _is_value(word) else flags).append(word)
                continue
            values: list[str] = []
            while rest and _is_value(rest[0]) and (option.multiple or not values):
                values.append(rest.pop(0))
            if not values:
                got = f"{rest[0]} behind it" if rest else "nothing behind it"
                raise click.UsageError(f"{word} has {got}, expected a value")
            flags += [f"{word}={value}" for value in values]
        return [*flags, "--", *free] if free else flags

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                group = parameter.group if isinstance(parameter, _Option) else _OPTIONS
                groups.setdefault(group, []).append(record)
        for name, records in groups.items():
            with formatter.section(name[0].upper() + name[1:]):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The environment variables, in one sentence."""
        for option in self.params:
            if isinstance(option, _Option):
                variable = f"{ctx.auto_envvar_prefix}_{option.name}".upper()
                formatter.write_paragraph()
                formatter.write_text(
                    f"Every flag can be an environment variable, as {option.opts[0]} is {variable}."
                )
                return


def _is_value(word: str) -> bool:
    return not word.startswith("-") or word == "-" or " " in word or bool(_NEGATIVE.fullmatch(word))
