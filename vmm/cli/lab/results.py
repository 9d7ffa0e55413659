"""The result files of a command in a lab machine, for when the machine leaves none."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import click

from vmm.cli.command import Command
from vmm.cli.output.unfinished import STDOUT


class Inside(Command):
    """A command that runs another one in a machine, as its ``words`` say."""

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Guard the result files of the other command: see `vmm.cli.output.unfinished`."""
        return _never_stale(ctx.params.get("words") or ())


def _never_stale(words: Sequence[str]) -> AbstractContextManager[object]:
    """Return the guard of a command's result files.

    Standard output is left out: only the machine writes to it.
    """
    from vmm.cli.main import main

    name, *arguments = words or ("",)
    with click.Context(main, info_name="vmm") as ctx:
        command = main.get_command(ctx, name)
        if not isinstance(command, Command):
            return nullcontext()
        try:
            inside = command.make_context(name, arguments, ctx, resilient_parsing=True)
        except click.ClickException:
            return nullcontext()  # The command itself will say what is wrong.
        for option in ("json_file", "html_file"):
            if inside.params.get(option) == STDOUT:
                inside.params[option] = None
        formats = inside.params.get("formats") or ()
        inside.params["formats"] = tuple(each for each in formats if each.file != STDOUT)
        return command.never_stale(inside)
