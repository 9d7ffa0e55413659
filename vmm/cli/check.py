"""``vmm check``: run the curated scenarios and judge them."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

import click

from vmm.cli.errors import usable
from vmm.cli.formats import Outputs, Wanted, format_option, outputs, wanted_formats
from vmm.cli.host import Host, exit_status, look_at_host, require_usable
from vmm.cli.output import LiveProgress, console, print_lines
from vmm.cli.selection import complete_names, complete_tags, curated, select
from vmm.report import terminal
from vmm.report.kselftest import kselftest_status
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run

_FEW_SLOTS = Features(nr_memslots=509)
"""Scenarios are called the same on every kernel, and a table of few slots is soon made."""


@click.command()
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
@click.option(
    "--patience",
    type=click.FloatRange(min=1),
    default=1,
    envvar="VMM_PATIENCE",
    metavar="FACTOR",
    help="Let a scenario take FACTOR times as long, on an emulated machine.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Run so many scenarios side by side, where they allow it (usually 2).",
)
@click.option("--kselftest", is_flag=True, help="Exit as a selftest of the kernel does.")
@click.option("--require-run", is_flag=True, help="Fail (status 1) if nothing could run.")
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
    patience: float,
    jobs: int | None,
    kselftest: bool,
    require_run: bool,
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
    host = look_at_host()
    scenarios = select(curated(host.features), patterns, tag, everything)
    chosen = wanted_formats(formats, json_file, html_file)
    require_usable(host, require_run)
    with outputs(chosen) as told, _written(histories) as file:
        told.reporter.begin(scenarios, host.info)
        run = _run(scenarios, host, told, journal, file, patience, jobs)
        told.reporter.end(run)
    if kselftest:
        ctx.exit(kselftest_status(run))
    ctx.exit(exit_status(run.status, require_run))


def _written(histories: Path | None) -> AbstractContextManager[IO[bytes] | None]:
    if histories is None:
        return nullcontext(None)
    with usable(histories):
        return histories.open("wb")


def _run(
    scenarios: tuple[Scenario, ...],
    host: Host,
    told: Outputs,
    folder: Path | None,
    histories: IO[bytes] | None,
    patience: float,
    jobs: int | None,
) -> Run:
    from vmm.cli.execution import execute
    from vmm.cli.journal import journal_in

    with journal_in(folder, histories) as journal, LiveProgress(told.to, len(scenarios)) as bar:

        def done(checked: Checked) -> None:
            if checked.verdict.status is Status.SKIPPED:
                bar.advance()
            told.reporter.done(checked)

        def begin(scenario: Scenario) -> None:
            bar.begin(scenario.name)

        return execute(scenarios, host, begin, done, journal, patience, jobs)
