"""``vmm judge``: judge recorded histories again."""

import shlex
from collections import Counter
from pathlib import Path

import click

from vmm.cli.errors import Unusable
from vmm.cli.files import allow_large, histories_from
from vmm.cli.output import console, print_lines, width_of
from vmm.report import terminal
from vmm.scenario.codec import FileError
from vmm.scenario.demand import Limits
from vmm.verdict.judge import Status
from vmm.verdict.result import judged


@click.command()
@click.argument("history", metavar="FILE.jsonl|FOLDER", type=click.Path(path_type=Path))
@allow_large
@click.pass_context
def judge(ctx: click.Context, history: Path, limits: Limits) -> None:
    """Judge recorded histories again, without a kernel.

    All of a file are judged, such as `vmm check --histories` writes, or all in a folder. A history
    that was cut off is judged as far as it goes, and is inconclusive.

    Exit status 1 if one of them differs, else 2 if a file cannot be used, else 3 if one is
    inconclusive.
    """
    to = console()
    again = f"vmm judge {shlex.quote(str(history))}"
    counts: Counter[Status] = Counter()
    problem = ""
    try:
        for text in histories_from(history, limits):
            checked = judged(text.history())
            counts[checked.verdict.status] += 1
            print_lines(to, terminal.single(checked, again, width_of(to)))
    except FileError as error:
        problem = str(error)
    if counts.total() > 1:
        print_lines(to, [terminal.counts(counts)])
    statuses = {status.exit_status for status in counts}
    if problem and Status.DIFFERS.exit_status not in statuses:
        raise Unusable(problem)
    if problem:
        click.echo(f"vmm: {problem}", err=True)
    ctx.exit(next((status for status in (1, 3) if status in statuses), 0))
