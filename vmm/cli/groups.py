"""`CommandsByName`: a group of commands whose modules are imported when they are used."""

import difflib
import importlib
from collections.abc import Mapping

import click


class CommandsByName(click.Group):
    """A group whose help shows ``by_name``; a misspelt name is answered with the closest ones."""

    by_name: Mapping[str, str]
    """Each command and its help line."""

    module: str
    """Prefix of a command's module, which holds the command under its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.by_name:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"{self.module}{cmd_name}"), cmd_name
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.by_name, n=3, cutoff=0.5)
            if not close or args[0] in self.by_name:
                raise
            message = error.message.partition(" Did you mean")[0]
            raise click.UsageError(f"{message} The closest: {', '.join(close)}.", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.by_name.items()))
