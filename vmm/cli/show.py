"""``vmm show``: print a curated scenario as JSON."""

import click

from vmm.cli.command import Command
from vmm.cli.options.selection import complete_names, curated, named
from vmm.cli.output.printing import put
from vmm.scenario.codec import scenario_text


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_names)
def show(name: str) -> None:
    """Print a curated scenario as JSON, to be edited and run."""
    put(scenario_text(named(curated(), name)))
