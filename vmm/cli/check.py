"""``vmm check``: run the curated scenarios and judge them.

They run on this host, unless the click context's ``obj`` is another `Source`.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import click

from vmm.cli.listing import show_list
from vmm.cli.options.dask import dask_option, for_hosts, not_with_dask
from vmm.cli.options.paths import FilePath
from vmm.cli.options.required import require_run_option
from vmm.cli.options.selection import curated, select, selected, selecting
from vmm.cli.options.shard import shard_option
from vmm.cli.options.whitebox import debug_info_option, looking, white_box_option
from vmm.cli.output.console import LiveProgress
from vmm.cli.output.errors import usable
from vmm.cli.output.formats import (
    Outputs,
    Reporting,
    Requested,
    Wanted,
    outputs,
    reporting,
)
from vmm.cli.output.printing import OutputLost, say
from vmm.cli.output.writing import unless_empty
from vmm.cli.running.host import Host, look_at_host, nothing_can_run, patience_option, remarks_on
from vmm.host.naming import NamedFile
from vmm.report.kselftest import kselftest_status
from vmm.report.text import text_report
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import Selection
from vmm.scenario.slots import LEAST_SLOTS
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run

_FEW_SLOTS = Features(nr_memslots=LEAST_SLOTS)
"""Scenario names are the same on every kernel, and with few slots the catalogue is made faster."""

_NOT_WITH_DASK = (
    *("journal", "failed_histories", "histories", "white_box", "debug_info"),
    *("kselftest", "required"),
)
"""Options that concern the host that scenarios run on, or a run as a whole."""

_FOR_HOSTS = ("patience", "jobs", "max_differences", "verbose", "quiet")


@click.command(cls=Reporting, histories=("histories",))
@selecting
@shard_option("what would run")
@click.option("--list", "only_list", is_flag=True, help="List what would run; run nothing.")
@reporting
@click.option(
    "--journal",
    type=FilePath(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep histories: of what does not pass and, on disk, of what is under way.",
)
@click.option(
    "--failed-histories",
    type=FilePath(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep histories of what does not pass, written when it has ended.",
)
@click.option(
    "--histories",
    type=FilePath(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all histories, for `vmm compare` with another kernel's.",
)
@click.option("--transcript", type=FilePath(path_type=Path, dir_okay=False), hidden=True)
@click.option("--claims", type=FilePath(path_type=Path, file_okay=False), hidden=True)
@click.option("--done", type=FilePath(path_type=Path, dir_okay=False), hidden=True)
@white_box_option
@debug_info_option
@patience_option
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Run N scenarios side by side, where they allow it (by default 3).",
)
@click.option("--kselftest", is_flag=True, help="Exit as a selftest of the kernel does.")
@require_run_option
@click.option(
    "--max-differences",
    type=click.IntRange(1),
    default=20,
    metavar="N",
    help="End when N scenarios differ, or have no verdict, by one cause (by default 20).",
)
@dask_option
@click.pass_context
def check(
    ctx: click.Context,
    selection: Selection,
    shard: tuple[int, int],
    only_list: bool,
    requested: Requested,
    journal: Path | None,
    failed_histories: Path | None,
    histories: Path | None,
    transcript: Path | None,
    claims: Path | None,
    done: Path | None,
    white_box: bool | None,
    debug_info: Path | None,
    patience: float,
    jobs: int | None,
    kselftest: bool,
    required: int,
    max_differences: int,
    dask: str | None,
) -> None:
    """Run the curated scenarios on this kernel and judge them.

    A NAME-PATTERN is a name, or a pattern such as 'move-*'. Without any, nor a tag, everything runs
    that is not tagged as slow.

    --list says what a run with the same options would run on this host, and what it would skip;
    with --json as JSON.

    After a crash of the host, `vmm judge DIR/under-way.jsonl` says which operation was under way.
    To be sure of that, --journal costs half a millisecond an operation; --failed-histories keeps
    what does not pass, and costs nothing.
    """
    selection = replace(selection, shard=shard)
    if only_list:
        show_list(selection, requested.of_list(), patience)
        return
    if transcript is not None:
        with looking(white_box, debug_info):
            _transcribed(transcript, (claims, done), selection, patience, jobs)
        return
    source: Source = ctx.obj or _run_on_this_host
    chosen = requested.everything(histories)
    if dask is not None:
        not_with_dask(ctx, _NOT_WITH_DASK)
        ctx.exit(_on_cluster(dask, selection, chosen, for_hosts(ctx, _FOR_HOSTS)))
    if journal is not None and failed_histories is not None:
        raise click.UsageError("--journal keeps what does not pass, too: not --failed-histories")
    lost: OutputLost | None = None
    with (
        looking(white_box, debug_info),
        outputs(chosen, partial(text_report, detail=requested.detail)) as reports,
        _written(histories) as file,
    ):
        folders = (journal, failed_histories)
        wanted = RunOptions(reports, folders, file, patience, jobs, max_differences)
        run = replace(source(selection, wanted), required=required)
        try:
            reports.reporter.end(run)
        except OutputLost as error:
            lost = error
    if lost is not None:
        raise lost
    for line in remarks_on(run):
        say(line)
    ctx.exit(kselftest_status(run) if kselftest else run.exit_status)


def _on_cluster(
    address: str, selection: Selection, chosen: tuple[Wanted, ...], options: tuple[str, ...]
) -> int:
    from vmm.cli.fleet import check_on

    names = [scenario.name for scenario in select(curated(_FEW_SLOTS), selection)]
    return check_on(address, names, chosen, options)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run scenarios, and where to report them."""

    reports: Outputs
    folders: tuple[Path | None, Path | None]
    histories: IO[bytes] | None
    patience: float
    jobs: int | None
    max_differences: int


Source = Callable[[Selection, RunOptions], Run]
"""Runs scenarios, and reports the beginning and each result."""


def _run_on_this_host(selection: Selection, wanted: RunOptions) -> Run:
    """Look at the host, choose scenarios and run them, as far as host and kernel allow."""
    host = look_at_host(wanted.patience)
    scenarios = selected(host.features, selection)
    return begun(scenarios, host, wanted) or _run(scenarios, host, wanted)


def begun(scenarios: tuple[Scenario, ...], host: Host, wanted: RunOptions) -> Run | None:
    """Report the beginning of a run, empty its history file; return the run if nothing can run."""
    begin = wanted.reports.reporter.begin
    vain = nothing_can_run(host, scenarios)
    if vain is not None:
        begin([each.scenario for each in vain.checked], host.info)
        for each in vain.checked:
            wanted.reports.reporter.done(each)
        return vain
    begin(scenarios, host.info)
    if wanted.histories is not None and stat.S_ISREG(os.fstat(wanted.histories.fileno()).st_mode):
        wanted.histories.truncate(0)
    return None


def _transcribed(
    path: Path,
    shared: tuple[Path | None, Path | None],
    selection: Selection,
    patience: float,
    jobs: int | None,
) -> None:
    """Run scenarios and write a transcript, for another process to judge.

    If it goes to standard output, it is compressed. Other machines may have a share of the
    scenarios: a folder of claims, and a file that names those that are done, say of which: see
    `vmm.cli.running.claims`.
    """
    from vmm.cli.lab.live import live
    from vmm.cli.running.carrying import Orders, carry_out
    from vmm.cli.running.claims import claiming
    from vmm.cli.running.transcript import Packed, Transcript

    host = look_at_host(patience)
    scenarios = selected(host.features, selection)
    with ExitStack() as stack:
        stack.enter_context(usable(path))
        is_line = str(path) == "-"
        file = Packed(sys.stdout.buffer) if is_line else stack.enter_context(NamedFile(path, "wb"))
        lab = stack.enter_context(live())
        transcript = Transcript(file, host, scenarios, lab)
        if host.probe_failure is None and not host.why_not:
            orders = Orders(scenarios, host, lab.begin, None, patience, jobs)
            orders = replace(orders, claim=claiming(*shared))
            transcript.close(carry_out(orders, transcript))


@contextmanager
def _written(histories: Path | None) -> Iterator[IO[bytes] | None]:
    """Yield the file of all histories; its old content stays until the run begins."""
    if histories is None:
        yield None
        return
    with unless_empty(histories):
        with usable(histories):
            stream = NamedFile(histories, "ab")
        with stream:
            yield stream


def _run(scenarios: tuple[Scenario, ...], host: Host, wanted: RunOptions) -> Run:
    from vmm.cli.lab.live import live
    from vmm.cli.running.carrying import Orders
    from vmm.cli.running.execution import execute
    from vmm.cli.running.history_files import history_files

    reports, (journal, failed) = wanted.reports, wanted.folders
    bar = LiveProgress(reports.to, len(scenarios))
    with history_files(journal, wanted.histories, failed) as kept, live() as lab, bar:
        lab.say(f"scenarios {len(scenarios)}")

        def done(checked: Checked) -> None:
            if checked.verdict.status is Status.SKIPPED:
                bar.advance()
                lab.skip(checked.scenario)
            reports.reporter.done(checked)

        def begin(scenario: Scenario) -> None:
            lab.begin(scenario)
            bar.begin(scenario.name)

        orders = Orders(scenarios, host, begin, patience=wanted.patience, jobs=wanted.jobs)
        differing = wanted.max_differences
        return execute(orders, done, kept, differing, with_steps=reports.show_steps)
