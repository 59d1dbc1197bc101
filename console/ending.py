"""How a command ends: `run` calls its main function and exits.

An error is one line on stderr and an exit status, never a traceback; TOXICITY_TRACEBACK=1 shows
where an unexpected one came from. Light to import, so that `toxicity --help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from contract import ToxicityError
from storage.system_errors import explained

TRACEBACK = "TOXICITY_TRACEBACK"
"""Environment variable: when it is set, an unexpected error shows its traceback, too."""
_MOST_REASON = 300


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
        status = tell(fault)
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


def tell(error: Exception) -> int:
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
