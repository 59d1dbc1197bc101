"""Command lines made from the frozen config dataclass of a stage.

A flag is a field: its name, default and help text are declared once, in the dataclass, and
pydantic checks its value. Every command ends through `run`, so that an error which the user
is meant to read is one line on stderr and an exit status, never a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from contract import BadInput, ToxicityError

Config = TypeVar("Config")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}; see {self.prog} --help")


def parse_config(
    config_class: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    positional: str | None = None,
    defaults_from: Mapping[str, Callable[[Any], dict[str, Any]]] | None = None,
) -> Config:
    """Config of one stage from the command line.

    `positional` names a field that is given without a flag. `defaults_from` names fields,
    each with a function of what is given there (text, or a list of it) to other fields' defaults.
    Raises BadInput that names the flag, its value and what was expected; `--help` prints and
    exits with 0.
    """
    parser = _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config_class, include_extras=False)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        _add_argument(parser, field, hints[field.name], positional=field.name == positional)
    values = vars(parser.parse_args(argv))
    for name, defaults_of in (defaults_from or {}).items():
        if values[name]:
            parser.set_defaults(**defaults_of(values[name]))
            values = vars(parser.parse_args(argv))
    given = {k: v for k, v in values.items() if v is not None}
    return make_config(config_class, given)


def _add_argument(
    parser: argparse.ArgumentParser, field: Any, hint: Any, *, positional: bool
) -> None:
    default = field.default
    text = None
    if isinstance(default, FieldInfo):
        text, default = default.description, default.default
    options: dict[str, Any] = {"help": (text or "").replace("%", "%%") or None}
    if positional:
        if typing.get_origin(hint) is tuple:
            options["nargs"] = "+"
        parser.add_argument(field.name, **options)
        return
    # Values stay strings: pydantic converts and checks them, so there is one set of rules.
    options["default"] = default if default is not dataclasses.MISSING else None
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(hint) is tuple:
        options["nargs"] = "+"
    elif typing.get_origin(hint) is typing.Literal:
        options["choices"] = typing.get_args(hint)
    if options.get("action") is None and "choices" not in options:
        options["metavar"] = field.name.split("_")[-1].upper()
    parser.add_argument("--" + field.name.replace("_", "-"), **options)


def make_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Config from values by field name. Raises BadInput that names the first bad one."""
    try:
        return TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise BadInput(f"{reason}; set another value") from error
        name = str(first["loc"][0])
        flag = "--" + name.replace("_", "-")
        got = values.get(name, first["input"])
        raise BadInput(f"{flag} is {got!r}: {reason}; set another value") from error


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0, the error's own status with its one line, or 130 on Ctrl-C."""
    try:
        main()
    except ToxicityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("interrupted; nothing was half-written", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
