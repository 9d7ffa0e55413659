"""``vmm judge``: judge recorded histories again."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import msgspec

from vmm.cli.input.files import allow_large, histories_from
from vmm.cli.options.paths import FilePath
from vmm.cli.output.errors import Unusable
from vmm.cli.output.formats import (
    Reporting,
    Requested,
    outputs,
    reporting,
)
from vmm.cli.output.printing import say
from vmm.cli.output.writing import spare
from vmm.host.hostinfo import host_in_brief
from vmm.report.text import single_report
from vmm.scenario.codec import FileError, HistoryText
from vmm.scenario.demand import Limits
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.verdict import statuses
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, Run, broken_off, judged

_NO_HOST: dict[str, str] = {}


@click.command(cls=Reporting)
@click.argument("history", metavar="FILE.jsonl|FOLDER", type=FilePath(path_type=Path))
@reporting
@allow_large
@click.pass_context
def judge(
    ctx: click.Context,
    history: Path,
    requested: Requested,
    limits: Limits,
) -> None:
    """Judge recorded histories again, without a kernel.

    All of a file are judged, such as `vmm check --histories` writes, or all in a folder. A history
    that was cut off is judged as far as it goes, and is inconclusive.

    Exit status 1 if one of them differs, else 2 if a file cannot be used, else 3 if one is
    inconclusive.
    """
    wanted = requested.everything()
    spare([history], (each.file for each in wanted))
    again = f"vmm judge {shlex.quote(str(history))}"
    headers: list[Header] = []
    every: list[Checked] = []
    problem = ""
    with outputs(wanted, partial(single_report, detail=requested.detail), runs=False) as reports:
        try:
            for text in histories_from(history, limits):
                headers.append(text.header)
                every.append(replace(_judged(text), again=again))
        except FileError as error:
            problem = str(error)
        run = _run(headers, tuple(_uniquely_named(every)), problem)
        reports.reporter.begin([each.scenario for each in run.checked], run.host)
        for each in run.checked:
            reports.reporter.done(each)
        if problem and run.status is not Status.DIFFERS:
            raise Unusable(problem)
        reports.reporter.end(run)
    if problem:
        say(problem)
    ctx.exit(statuses.PASSED if run.status is Status.SKIPPED else run.exit_status)


def _judged(text: HistoryText) -> Checked:
    """Judge a history; an error of this program affects this one alone. Raises FileError."""
    try:
        return judged(text.history())
    except FileError:
        raise
    except Exception as error:
        return broken_off(text.header.scenario, error)


def _run(headers: list[Header], every: tuple[Checked, ...], problem: str) -> Run:
    """Return histories as one run, on the host of the first; other kernels are a weakness."""
    hosts = [header.host for header in headers] or [_NO_HOST]
    kernels = sorted({host.get("kernel", "unknown") for host in hosts})
    mixed = (f"histories of several kernels: {', '.join(kernels)}",) if len(kernels) > 1 else ()
    features = headers[0].features if headers else Features()
    return Run(every, features, host_in_brief(hosts[0]), mixed, early=problem)


def _uniquely_named(every: list[Checked]) -> Iterator[Checked]:
    """Yield results with unique names: a scenario that comes again gets a number."""
    seen: Counter[str] = Counter()
    for each in every:
        name = each.scenario.name
        seen[name] += 1
        if seen[name] == 1:
            yield each
            continue
        name = f"{name} ({seen[name]})"
        scenario = msgspec.structs.replace(each.scenario, name=name)
        yield replace(
            each, scenario=scenario, verdict=msgspec.structs.replace(each.verdict, scenario=name)
        )
