"""``vmm lab doctor``: say what the lab needs that this host lacks."""

import click

from vmm.cli.command import Command
from vmm.cli.lab.machines import in_one_line
from vmm.cli.output.errors import NothingRan
from vmm.cli.output.printing import tell
from vmm.lab.doctor import Requirement, remedy, requirements


@click.command(cls=Command)
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Say what the lab needs that this host lacks, and how to install it.

    The exit status is 4 if no kernel could be booted at all.
    """
    found: list[Requirement] = []
    with in_one_line():
        for each in requirements():
            tell(f"{'LACKS' if each.lack else 'ok':6} {each.what}: {each.lack or each.purpose}")
            found.append(each)
    if command := remedy(found):
        tell(f"All that is missing, at once: {command}")
    if any(each.lack and each.is_vital for each in found):
        ctx.exit(NothingRan.exit_code)
