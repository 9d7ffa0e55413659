"""``--dask``: in a module of its own, so that commands need not import the fleet."""

import click

dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Use the hosts of this Dask scheduler, such as tcp://HOST:8786.",
)
