"""``vmm coverage``: which rules and historic bugs are checked on this kernel, and by what."""

from pathlib import Path

import click

from vmm.catalogue.history import BUGS
from vmm.cli.command import Printing
from vmm.cli.input.results import result_from
from vmm.cli.options.paths import FilePath
from vmm.cli.options.selection import curated
from vmm.cli.output.console import LiveProgress, console, print_lines
from vmm.cli.output.printing import put, say
from vmm.cli.output.unfinished import note_printed
from vmm.cli.running.host import look_at_host, remarks_on, require_usable
from vmm.model.rules import rules_of_outcomes
from vmm.report.coverage import coverage_json, coverage_lines, coverage_markdown
from vmm.report.resultfile import ResultFile, result_file
from vmm.verdict.coverage import RanCheck, RanScenario, cover
from vmm.verdict.ideal import EVERYTHING, PLAIN, rules_met


@click.command(cls=Printing)
@click.argument("result", metavar="[RESULT.json]", required=False, type=FilePath(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it all as JSON.")
@click.option("--markdown", is_flag=True, help="Print it as a page of Markdown.")
@click.pass_context
def coverage(ctx: click.Context, result: Path | None, as_json: bool, markdown: bool) -> None:
    """Say which rules and historic bugs a run checks, and by what.

    RESULT.json is what `vmm check --json RESULT.json` wrote; without it, every scenario runs.

    A rule is checked if it decided something that happened. Rules of other kernels are not listed,
    nor are those about the kernel's own structures (`--white-box`).
    Status 3: a rule that this kernel has is not checked; 1, 3 and 4 also as `vmm check` has them.
    """
    if as_json and markdown:
        raise click.UsageError("--json and --markdown are two forms of one page: choose one")
    found = cover(
        _taken(_run() if result is None else result_from(result)),
        rules_of_outcomes(),
        BUGS,
        _elsewhere,
    )
    if as_json:
        put(coverage_json(found))
        note_printed()
    elif markdown:
        put(coverage_markdown(found))
    else:
        print_lines(console(), coverage_lines(found))
    ctx.exit(found.exit_status)


def _taken(result: ResultFile) -> RanCheck:
    """Return the parts of a result that coverage uses."""
    scenarios = (
        RanScenario(each.name, each.status, each.reason, each.rules, each.difference)
        for each in result.scenarios
    )
    return RanCheck(result.status, tuple(scenarios), result.features, result.host)


def _run() -> ResultFile:
    host = look_at_host()
    require_usable(host)

    from vmm.cli.running.carrying import Orders
    from vmm.cli.running.execution import execute

    scenarios = curated(host.features)
    with LiveProgress(console(stderr=True), len(scenarios)) as progress:
        run = execute(Orders(scenarios, host, lambda scenario: progress.begin(scenario.name)))
    for line in remarks_on(run):
        say(line)
    return result_file(run)


def _elsewhere() -> dict[str, set[str]]:
    """Return the rules that each scenario meets on a kernel with all features, or the fewest.

    The large ones are left out: they repeat what others do, and take a third of the time.
    """
    met: dict[str, set[str]] = {}
    for features in (EVERYTHING, PLAIN):
        for scenario in curated(features, with_large=False):
            met.setdefault(scenario.name, set()).update(rules_met(scenario, features))
    return met
