"""``vmm run``: run one scenario and judge it."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from vmm.cli.input.files import STDIN, allow_large, scenario_from
from vmm.cli.options.paths import FilePath
from vmm.cli.options.required import require_run_option
from vmm.cli.options.selection import complete_names_or_files
from vmm.cli.options.whitebox import debug_info_option, looking, white_box_option
from vmm.cli.output.formats import (
    Reporting,
    Requested,
    Wanted,
    outputs,
    reporting,
)
from vmm.cli.output.printing import say
from vmm.cli.output.writing import made, spare
from vmm.cli.running.host import (
    look_at_host,
    nothing_can_run,
    patience_option,
    remarks_on,
    require_usable,
)
from vmm.report.text import single_report
from vmm.scenario.demand import Limits
from vmm.verdict.result import Checked, Run


@click.command(cls=Reporting, histories=("history",))
@click.argument("scenario", metavar="SCENARIO.json|NAME|-", shell_complete=complete_names_or_files)
@click.option(
    "--history",
    type=FilePath(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Write what happens to this file, while it happens.",
)
@reporting
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
    requested: Requested,
    white_box: bool | None,
    debug_info: Path | None,
    patience: float,
    required: int,
    limits: Limits,
) -> None:
    """Run one scenario, from a file or by name, and judge it.

    "-" reads the scenario from standard input, as `vmm show` prints one.
    """
    wanted = requested.everything(history)
    if scenario != STDIN:
        named = () if history is None else (str(history),)
        spare([Path(scenario)], (*(each.file for each in wanted), *named))
    chosen = scenario_from(scenario, limits)
    if history is not None:
        ctx.with_resource(made(history))
    host = look_at_host(patience)
    vain = nothing_can_run(host, (chosen,))
    if vain is not None:
        _written(replace(vain, required=required), wanted)
    require_usable(host, required)

    from vmm.cli.running.carrying import Orders
    from vmm.cli.running.execution import execute
    from vmm.cli.running.history_files import HistoryFiles

    files = None if history is None else HistoryFiles(history)
    again = "" if scenario == STDIN else f"vmm run {shlex.quote(scenario)}"
    with (
        looking(white_box, debug_info),
        outputs(wanted, partial(single_report, detail=requested.detail)) as reports,
    ):

        def done(checked: Checked) -> None:
            reports.reporter.done(replace(checked, again=again))

        reports.reporter.begin((chosen,), host.info)
        orders = Orders((chosen,), host, patience=patience)
        result = execute(orders, done, files, with_steps=reports.show_steps)
        checked = tuple(replace(each, again=again) for each in result.checked)
        result = replace(result, checked=checked, required=required)
        reports.reporter.end(result)
    for line in remarks_on(result):
        say(line)
    ctx.exit(result.exit_status)


def _written(run: Run, wanted: Sequence[Wanted]) -> None:
    """Write a run in which the scenario did not begin to the requested files."""
    documents = [each for each in wanted if each != Wanted("text")]
    with outputs(documents, single_report) as reports:
        reports.reporter.begin([each.scenario for each in run.checked], run.host)
        for each in run.checked:
            reports.reporter.done(each)
        reports.reporter.end(run)
