"""``--timeout`` of the commands that boot machines."""

import click

from vmm.cli.options.finite import FiniteRange

timeout_option = click.option(
    "--timeout",
    type=FiniteRange(min=1),
    default=3600,
    show_default=True,
    metavar="S",
    help="End a machine if it takes longer: inconclusive.",
)
