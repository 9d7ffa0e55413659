"""``--dask``: an option that costs nothing where it is not given."""

import click

dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Use the hosts of this Dask scheduler, such as tcp://HOST:8786.",
)
