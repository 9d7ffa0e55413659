"""``vmm judge``: judge a recorded history again."""

import shlex
from pathlib import Path

import click

from vmm.cli.files import history_from
from vmm.cli.output import console, print_lines, width_of
from vmm.report import terminal
from vmm.verdict.result import judged


@click.command()
@click.argument("history", metavar="FILE.jsonl", type=click.Path(path_type=Path))
@click.pass_context
def judge(ctx: click.Context, history: Path) -> None:
    """Judge a recorded history again, without a kernel.

    A history that was cut off is judged as far as it goes, and is inconclusive.
    """
    checked = judged(history_from(history))
    to = console()
    again = f"vmm judge {shlex.quote(str(history))}"
    print_lines(to, terminal.single(checked, again, width_of(to)))
    ctx.exit(checked.verdict.status.exit_status)
