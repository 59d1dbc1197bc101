"""Command lines made from the frozen config dataclass of a stage.

A flag is a field: its name, default and help text are declared once, in the dataclass, and
pydantic checks its value. Every command ends through `run`, so that an error is one line on stderr
and an exit status, never a traceback; TOXICITY_TRACEBACK=1 shows where an unexpected one came from.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import select
import signal
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from contract import BadInput, ToxicityError
from storage.system_errors import explained

Config = TypeVar("Config")
TRACEBACK = "TOXICITY_TRACEBACK"
"""Environment variable: when it is set, an unexpected error shows its traceback, too."""
_MOST_REASON = 300


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # "-1=drop" is a value, as "-1" is.
        self._negative_number_matcher = re.compile(r"-(\d+|\d*\.\d+)(=\S+)?$")

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
    if hint in (bool, bool | None):
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


# --- How a command ends ------------------------------------------------------------------
def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit.

    Status 0; an error's own after its one line; 2 after a line that names the path and the remedy
    for what the system refused (no room, no leave, a folder in place of a file); 1 for anything
    unexpected; 130 on Ctrl-C. When nobody reads what it prints, it ends as other tools do: silent,
    by SIGPIPE.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that is no text, an alphabet that lacks a sign
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    status: Any = 0
    failed: Exception | None = None
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:
        _say("interrupted; nothing was half-written")
        status = 130
    except Exception as error:
        failed = error
    unwritten = _flush_failed()
    fault = failed or unwritten
    if isinstance(fault, BrokenPipeError) and _nobody_reads():
        _end_by_sigpipe()
    if unwritten:  # Python would try again at its end, and complain in words of its own
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    if fault:
        status = _tell(fault)
    sys.exit(status)


def _flush_failed() -> OSError | None:
    """What keeps the last of the output from being written, if anything does."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _nobody_reads() -> bool:
    """Whether a pipe that this command prints into is closed at its other end."""
    poll = select.poll()
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(ValueError):  # closed
                poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _end_by_sigpipe() -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(128 + signal.SIGPIPE)  # where the signal is blocked


def _tell(error: Exception) -> int:
    """Print the error's one line; the exit status."""
    if isinstance(error, ToxicityError):
        _say(f"error: {error}")
        return error.exit_status
    if isinstance(error, OSError) and (words := explained(error)):
        _say(f"error: {words}")
        return 2
    _say(unexpected(error))
    return 1


def unexpected(error: Exception) -> str:
    """One line for an error that nobody foresaw; its traceback is printed where it is wanted."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", _MOST_REASON, placeholder=" ...")
    return f"internal error: {reason.rstrip(' :')}; run again with {TRACEBACK}=1 to see where"


def _say(line: str) -> None:
    """Print on stderr, as one line whatever is in it."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    with contextlib.suppress(OSError):  # nobody reads that either
        print(shown, file=sys.stderr, flush=True)
