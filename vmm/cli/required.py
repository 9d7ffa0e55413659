"""``--require-run``: how many scenarios have to run."""

import click

from vmm.verdict import statuses

_OPTION = "--require-run"


class Command(click.Command):
    """A command whose option may have a number after it, or none: then it is 1.

    What follows is taken for the number only where it is one: a name may come there, too.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the option and its number to one argument."""
        joined: list[str] = []
        for arg in args:
            if joined and joined[-1] == _OPTION:
                joined[-1] = f"{_OPTION}={arg}" if arg.isdecimal() else f"{_OPTION}=1"
                if arg.isdecimal():
                    continue
            joined.append(arg)
        if joined and joined[-1] == _OPTION:
            joined[-1] = f"{_OPTION}=1"
        return super().parse_args(ctx, joined)


require_run_option = click.option(
    _OPTION,
    "required",
    type=click.IntRange(0),
    default=0,
    show_default=False,
    metavar="[N]",
    help=f"Fail (status {statuses.TOO_FEW_RAN}) if fewer than N (or 1) scenarios run.",
)
"""The option; a command of the class above gets ``required``, 0 where it is not given."""
