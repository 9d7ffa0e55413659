"""``vmm check``: run the curated scenarios and judge them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from vmm.cli.errors import usable
from vmm.cli.fleet_option import dask_option
from vmm.cli.formats import Outputs, Wanted, format_option, outputs, wanted_formats
from vmm.cli.host import NOT_ASKED, Host, look_at_host, patience_option, remarks_on
from vmm.cli.output import LiveProgress, console, print_lines
from vmm.cli.required import Command, require_run_option
from vmm.cli.said import OutputLost, say
from vmm.cli.selection import complete_names, complete_tags, curated, select
from vmm.cli.whitebox import debug_info_option, looking, white_box_option
from vmm.host.hostinfo import host_facts
from vmm.report import terminal
from vmm.report.kselftest import kselftest_status
from vmm.scenario.features import Features
from vmm.scenario.history import INTERRUPTED
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run

if TYPE_CHECKING:
    from vmm.execution.executor import LookAt

_FEW_SLOTS = Features(nr_memslots=509)
"""Scenarios are called the same on every kernel, and a table of few slots is soon made."""


@click.command(cls=Command)
@click.argument("patterns", nargs=-1, metavar="[NAME-PATTERN]...", shell_complete=complete_names)
@click.option(
    "--tag", metavar="TAG", help="Only scenarios with this tag.", shell_complete=complete_tags
)
@click.option("--all", "everything", is_flag=True, help="Slow scenarios, too.")
@click.option("--list", "only_list", is_flag=True, help="List names and whys; run nothing.")
@format_option
@click.option("--json", "json_file", metavar="FILE", help="Write the whole result (-: to stdout).")
@click.option("--html", "html_file", metavar="FILE", help="Write the whole result as a page.")
@click.option(
    "--journal",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep histories: of what does not pass, and on disk, of what runs.",
)
@click.option(
    "--histories",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all histories, for `vmm compare` with another kernel's.",
)
@white_box_option
@debug_info_option
@patience_option
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Run so many scenarios side by side, where they allow it (usually 2).",
)
@click.option("--kselftest", is_flag=True, help="Exit as a selftest of the kernel does.")
@require_run_option
@click.option(
    "--max-differences",
    type=click.IntRange(1),
    default=20,
    metavar="N",
    help="End when N scenarios differ by one cause (usually 20).",
)
@dask_option
@click.option("-v", "--verbose", is_flag=True, help="Tell of every scenario that did not pass.")
@click.pass_context
def check(
    ctx: click.Context,
    patterns: tuple[str, ...],
    tag: str | None,
    everything: bool,
    only_list: bool,
    formats: tuple[Wanted, ...],
    json_file: str | None,
    html_file: str | None,
    journal: Path | None,
    histories: Path | None,
    white_box: bool,
    debug_info: Path | None,
    patience: float,
    jobs: int | None,
    kselftest: bool,
    required: int,
    max_differences: int,
    dask: str | None,
    verbose: bool,
) -> None:
    """Run the curated scenarios on this kernel and judge them.

    A NAME-PATTERN is a name, or a pattern such as 'move-*'. Without any, nor a tag, everything runs
    that is not tagged as slow.

    After a crash of the host, `vmm judge DIR/under-way.jsonl` says which operation was under way.
    To be sure of that costs half a millisecond an operation.
    """
    if only_list:
        listed = select(curated(_FEW_SLOTS), patterns, tag, True)
        print_lines(console(), terminal.listing(listed))
        return
    if dask is not None:
        from vmm.cli.fleet import check_on

        listed = select(curated(_FEW_SLOTS), patterns, tag, everything)
        ctx.exit(check_on(dask, [scenario.name for scenario in listed], json_file))
    chosen = wanted_formats(formats, json_file, html_file)
    lost: OutputLost | None = None
    with (
        looking(white_box, debug_info) as look_at,
        outputs(chosen, verbose) as told,
        _written(histories) as file,
    ):
        execution = _Wanted(told, journal, file, patience, jobs, max_differences, look_at)
        try:
            run = _looked_and_ran(patterns, tag, everything, execution)
        except OutputLost as error:
            lost, run = error, _nothing(Host(host_facts()), early=error.message)
        run = replace(run, required=required)
        try:
            told.reporter.end(run)
        except OutputLost as error:
            lost = error
    if lost is not None:
        raise lost
    for line in remarks_on(run):
        say(line)
    ctx.exit(kselftest_status(run) if kselftest else run.exit_status)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """How scenarios are to be run, and where it is told."""

    told: Outputs
    folder: Path | None
    histories: IO[bytes] | None
    patience: float
    jobs: int | None
    max_differences: int
    look_at: "LookAt | None"


def _nothing(host: Host, early: str = "") -> Run:
    """Return a run of nothing: on a host that cannot be used, or because it ended before."""
    return Run((), host.features, host.info, obstacle=host.why_not, early=early)


def _looked_and_ran(
    patterns: tuple[str, ...], tag: str | None, everything: bool, wanted: _Wanted
) -> Run:
    """Look at the host, choose scenarios, and run them, as far as host and kernel let us."""
    begin = wanted.told.reporter.begin
    try:
        host = look_at_host(wanted.patience)
        scenarios = select(curated(host.features), patterns, tag, everything)
    except KeyboardInterrupt:
        host = Host(host_facts())
        begin((), host.info)
        return _nothing(host, early=INTERRUPTED)
    if host.trouble is not None:
        begin((host.trouble.scenario,), host.info)
        wanted.told.reporter.done(host.trouble)
        left = tuple(scenario.name for scenario in scenarios)
        return Run((host.trouble,), host.features, host.info, not_run=left, early=NOT_ASKED)
    if host.why_not:
        begin((), host.info)
        return _nothing(host)
    begin(scenarios, host.info)
    return _run(scenarios, host, wanted)


def _written(histories: Path | None) -> AbstractContextManager[IO[bytes] | None]:
    if histories is None:
        return nullcontext(None)
    with usable(histories):
        return histories.open("wb", buffering=0)


def _run(scenarios: tuple[Scenario, ...], host: Host, wanted: _Wanted) -> Run:
    from vmm.cli.execution import execute
    from vmm.cli.journal import journal_in

    told = wanted.told
    bar = LiveProgress(told.to, len(scenarios))
    with journal_in(wanted.folder, wanted.histories) as journal, bar:

        def done(checked: Checked) -> None:
            if checked.verdict.status is Status.SKIPPED:
                bar.advance()
            told.reporter.done(checked)

        def begin(scenario: Scenario) -> None:
            bar.begin(scenario.name)

        return execute(
            scenarios,
            host,
            begin,
            done,
            journal,
            wanted.patience,
            wanted.jobs,
            wanted.max_differences,
            wanted.look_at,
        )
