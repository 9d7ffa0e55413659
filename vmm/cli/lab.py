"""``vmm lab``: run commands on other kernels, in machines of their own."""

import importlib

import click

from vmm.cli.misspelt import resolved

COMMANDS = {
    "run": "Boot a kernel and run one of our commands on it.",
    "matrix": "Run the curated scenarios on several kernels, with each of their MMUs.",
    "diff": "Run the same scenarios, curated and random, on two kernels, and say where they part.",
    "symbols": "Fetch the debug information of one of Debian's kernels, for --white-box.",
    "doctor": "Say what the lab needs that this host lacks, and how to install it.",
}
"""Each command and its help line; ``vmm.cli.lab_NAME`` holds it as ``NAME``."""


class LabCommands(click.Group):
    """Imports a command's module when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"vmm.cli.lab_{cmd_name}"), cmd_name
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return resolved(super().resolve_command, ctx, args, COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LabCommands)
def lab() -> None:
    """Run commands on other kernels, in machines of their own."""
