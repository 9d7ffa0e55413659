"""``vmm run``: run one scenario and judge it."""

import shlex
from pathlib import Path

import click

from vmm.cli.errors import usable
from vmm.cli.files import allow_large, scenario_from
from vmm.cli.host import exit_status, look_at_host, require_usable
from vmm.cli.output import console, print_lines, width_of
from vmm.report import terminal
from vmm.scenario.demand import Limits


@click.command()
@click.argument("scenario", metavar="SCENARIO.json")
@click.option(
    "--history",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Write what happens to this file, while it happens.",
)
@click.option("--require-run", is_flag=True, help="Fail (status 1) if nothing could run.")
@allow_large
@click.pass_context
def run(
    ctx: click.Context, scenario: str, history: Path | None, require_run: bool, limits: Limits
) -> None:
    """Run one scenario, from a file or by name, and judge it."""
    chosen = scenario_from(scenario, limits)
    if history is not None:
        with usable(history):
            history.open("a").close()
    host = look_at_host()
    require_usable(host, require_run)

    from vmm.cli.execution import execute
    from vmm.cli.journal import Journal

    journal = None if history is None else Journal(history)
    result = execute((chosen,), host, lambda _: None, lambda _: None, journal)
    to = console()
    again = f"vmm run {shlex.quote(scenario)}"
    for checked in result.checked:
        print_lines(to, terminal.single(checked, again, width_of(to)))
    print_lines(to, terminal.remarks(result, width_of(to)))
    ctx.exit(exit_status(result.status, require_run))
