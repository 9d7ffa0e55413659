"""``vmm lab``: run commands on other kernels, in machines of their own."""

import click

from vmm.cli.groups import CommandsByName

COMMANDS = {
    "run": "Boot a kernel and run one of our commands on it.",
    "matrix": "Run the curated scenarios on several kernels, with each of their MMUs.",
    "diff": "Run the same scenarios, curated and random, on two kernels; say where they differ.",
    "symbols": "Fetch the debug information of one of Debian's kernels, for --white-box.",
    "doctor": "Say what the lab needs that this host lacks, and how to install it.",
}
"""Each command and its help line; `vmm.cli.lab.NAME` holds it as ``NAME``."""


class LabCommands(CommandsByName):
    """The commands of the lab."""

    by_name = COMMANDS
    module = "vmm.cli.lab."


@click.group(cls=LabCommands)
def lab() -> None:
    """Run commands on other kernels, in machines of their own."""
