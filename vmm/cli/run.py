"""``vmm run``: run one scenario and judge it."""

import shlex
from dataclasses import replace
from pathlib import Path

import click

from vmm.cli.errors import usable
from vmm.cli.files import allow_large, scenario_from
from vmm.cli.host import look_at_host, patience_option, remarks_on, require_usable
from vmm.cli.output import console, print_lines, width_of
from vmm.cli.required import Command, require_run_option
from vmm.cli.said import say
from vmm.cli.whitebox import debug_info_option, looking, white_box_option
from vmm.report import terminal
from vmm.scenario.demand import Limits


@click.command(cls=Command)
@click.argument("scenario", metavar="SCENARIO.json")
@click.option(
    "--history",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Write what happens to this file, while it happens.",
)
@white_box_option
@debug_info_option
@patience_option
@require_run_option
@allow_large
@click.pass_context
def run(
    ctx: click.Context,
    scenario: str,
    history: Path | None,
    white_box: bool,
    debug_info: Path | None,
    patience: float,
    required: int,
    limits: Limits,
) -> None:
    """Run one scenario, from a file or by name, and judge it."""
    chosen = scenario_from(scenario, limits)
    if history is not None:
        with usable(history):
            history.open("a").close()
    host = look_at_host(patience)
    require_usable(host, required)

    from vmm.cli.execution import execute
    from vmm.cli.journal import Journal

    journal = None if history is None else Journal(history)
    with looking(white_box, debug_info) as look_at:
        result = execute(
            (chosen,),
            host,
            lambda _: None,
            lambda _: None,
            journal,
            patience,
            look_at=look_at,
        )
    result = replace(result, required=required)
    to = console()
    again = f"vmm run {shlex.quote(scenario)}"
    for checked in result.checked:
        print_lines(to, terminal.single(checked, again, width_of(to)))
    print_lines(to, terminal.remarks(result, width_of(to)))
    for line in remarks_on(result):
        say(line)
    ctx.exit(result.exit_status)
