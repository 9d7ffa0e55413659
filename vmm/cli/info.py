"""``vmm info``: what this host is and can do."""

import click

from vmm.cli.command import Printing
from vmm.cli.output.console import console, print_lines
from vmm.cli.output.errors import NothingRan
from vmm.cli.output.printing import put
from vmm.cli.output.unfinished import Early, note_printed
from vmm.cli.running.host import look_at_host, require_usable
from vmm.host.hostinfo import host_facts
from vmm.report import json
from vmm.report.info import host_report


class _Info(Printing):
    """The command, which tells of the host even if its kernel cannot be probed."""

    def early_document(self, early: Early) -> dict[str, object]:
        facts = {"usable": False, "host": host_facts(), "features": None}
        return {**super().early_document(early), **facts}


@click.command(cls=_Info)
@click.option("--json", "as_json", is_flag=True, help="Print it all as JSON.")
@click.pass_context
def info(ctx: click.Context, as_json: bool) -> None:
    """Say whether scenarios can run here, and what the kernel offers."""
    host = look_at_host()
    if host.trouble is not None:
        require_usable(host)
    usable = not host.info.obstacle
    features = host.features if usable else None
    if as_json:
        put(json.host_text(host.info, features))
        note_printed()
    else:
        print_lines(console(), host_report(host.info, features))
    ctx.exit(0 if usable else NothingRan.exit_code)
