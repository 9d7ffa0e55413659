"""``--timeout`` of the commands that boot machines."""

import click

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=3600,
    show_default=True,
    metavar="S",
    help="End a machine if it takes longer: inconclusive.",
)
