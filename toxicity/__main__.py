"""`toxicity COMMAND`: from comments to a measured server, one command line for all of it.

    toxicity train --data comments.csv.gz
    toxicity bench load --users 16
    toxicity completion bash >> ~/.bashrc

A command's module is imported when it runs, so that `toxicity --help` answers at once. Each is what
`python -m` of its module does; its flags are its config's fields (console/options.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
from click import shell_completion

from console.ending import run
from contract import BadInput
from toxicity.commands import BENCH, COMMANDS, Entry

if TYPE_CHECKING:
    from console.options import Invocation

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some takes a tenth of a start
PROG = "toxicity"
COMPLETE = "_TOXICITY_COMPLETE"
"""Environment variable that a shell's completion sets."""


class _Lazy(click.Command):
    """A command whose module reads its own command line."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(
            name,
            help=entry.summary,
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
        self.entry = entry

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if extra.get("resilient_parsing"):  # a shell asks for completions
            return self._real(info_name or "").make_context(info_name, args, parent, **extra)
        context = click.Context(self, parent, info_name)
        context.obj = args
        return context

    def _real(self, prog: str) -> click.Command:
        from console.options import command_of

        module, _, name = self.entry.config.partition(":")
        config = getattr(import_module(module), name)
        invocation = _invocation(self.entry, prog, [])
        return command_of(config, invocation, self.entry.summary, self.entry.positional)

    def invoke(self, ctx: click.Context) -> None:
        from console.options import invoked

        entry, argv = self.entry.chosen(ctx.obj)
        sys.argv = [ctx.command_path, *argv]
        with invoked(_invocation(entry, ctx.command_path, argv)):
            import_module(entry.module).main()


def _invocation(entry: Entry, prog: str, argv: list[str]) -> Invocation:
    from console.options import Invocation

    summary = f"{entry.summary[0].upper()}{entry.summary[1:]}."
    return Invocation(prog, argv, entry.fixed, entry.defaults, entry.flags, summary)


class _Commands(click.Group):
    """Commands under headings, none of them imported."""

    def __init__(self, name: str, headings: Mapping[str, Mapping[str, Entry]], words: str) -> None:
        super().__init__(name, help=words, context_settings={"max_content_width": 100})
        self.headings = headings
        for entries in headings.values():
            for command, entry in entries.items():
                self.add_command(_Lazy(command, entry))

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        named = {name for entries in self.headings.values() for name in entries}
        others = [name for name in self.commands if name not in named]
        for heading, names in [*self.headings.items(), ("More", others)]:
            if names:
                with formatter.section(heading):
                    formatter.write_dl([(name, self._summary(name)) for name in names])

    def _summary(self, name: str) -> str:
        return self.commands[name].get_short_help_str(limit=200)


def command_line() -> click.Group:
    """All of it."""
    top = _Commands(
        PROG, COMMANDS, "From labelled comments to a measured server of their toxicity."
    )
    top.add_command(_Commands("bench", BENCH, "loads, comparisons and attacks; see `bench --help`"))
    top.add_command(_completion)
    top.params.append(_version)
    return top


@click.command("completion", help="print what makes a shell complete these commands")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def _completion(shell: str) -> None:
    complete = shell_completion.get_completion_class(shell)
    assert complete is not None  # the three that click knows
    click.echo(complete(command_line(), {}, PROG, COMPLETE).source())


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"toxicity {version('toxicity-serving')}")
        ctx.exit()


_version = click.Option(
    ["--version"],
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)


def main() -> None:
    """Console script `toxicity`."""
    run(_main)


def _main() -> None:
    top = command_line()
    if instruction := os.environ.get(COMPLETE):
        sys.exit(shell_completion.shell_complete(top, {}, PROG, COMPLETE, instruction))
    try:
        # Not top.main(): Ctrl-C, closed pipes and system errors end as `run` has it.
        with top.make_context(PROG, sys.argv[1:]) as context:
            top.invoke(context)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        prog = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else PROG
        words = " ".join(error.format_message().split())
        raise BadInput(f"{prog}: {words}; see {prog} --help") from error


if __name__ == "__main__":
    main()
