"""``vmm lab symbols``: fetch the debug information of one of Debian's kernels."""

import click

from vmm.cli.command import Command
from vmm.cli.lab.machines import in_one_line, say
from vmm.cli.output.printing import put
from vmm.lab.debian import RELEASES
from vmm.lab.symbols import fetch_symbols


@click.command(cls=Command)
@click.argument("kernel", type=click.Choice(list(RELEASES)))
def symbols(kernel: str) -> None:
    """Fetch the debug information of one of Debian's kernels, for --white-box.

    Only debian-5.10 needs it: later ones know their own types. The package takes 800 MB, of which
    one file is kept.
    """
    with in_one_line():
        put(f"{fetch_symbols(kernel, say)}\n")
