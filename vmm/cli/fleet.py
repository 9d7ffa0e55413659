"""`check` and `fuzz` on the hosts of a Dask cluster (``--dask``)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click
import msgspec

from vmm.cli.output.errors import NothingRan, Unusable
from vmm.cli.output.formats import Wanted
from vmm.cli.output.printing import tell
from vmm.cli.output.writing import document, temporary_folder
from vmm.report import json
from vmm.report.resultfile import ResultError, ResultFile, parse_result
from vmm.scenario.endings import INTERRUPTED
from vmm.scenario.shown import shown
from vmm.verdict import statuses
from vmm.verdict.judge import Status

if TYPE_CHECKING:
    from vmm.fleet.engine import Callbacks, Fleet, Task
    from vmm.fleet.work import Report

_WHOLE = ("json", "html")
"""Formats that are made from a whole result."""

_AT_ONCE = 24
"""Scenarios a task: a host that dies loses no more than these."""

_SHARDS = 8
"""Tasks a search: independent of the number of workers, so that any number finds the same."""

_CONNECT_S = 20
_CHECK_S = 1800
_WORST_FIRST = (
    statuses.DIFFERS,
    statuses.INTERNAL_ERROR,
    statuses.INCONCLUSIVE,
    statuses.USAGE,
)


def check_on(
    address: str, names: Sequence[str], formats: Sequence[Wanted], options: Sequence[str] = ()
) -> int:
    """Check scenarios on a cluster; print what the hosts print, and return the exit status.

    ``options`` are those of the command on each host.

    The merged result goes to the files in ``formats``, which are opened before the first task is
    sent.
    """
    for each in formats:
        if each.name not in _WHOLE and each != Wanted("text"):
            raise click.UsageError(f"--dask does not go with --format {each.name}")
    _require_engine()
    tasks = _checks(names, options)
    results: list[ResultFile] = []
    found: list[int] = []

    def done(task: "Task", host: str, report: "Report") -> None:
        found.append(report.status)
        try:
            results.append(parse_result(report.files["result"], f"the result of {host}"))
        except (KeyError, ResultError) as error:
            found.append(statuses.INCONCLUSIVE)
            why = "it left none" if isinstance(error, KeyError) else shown(str(error))
            tell(f"vmm: {host}: no result of {task.name}: {why}", err=True)
        _print(host, report)

    with ExitStack() as files:
        documents = [each for each in formats if each.name in _WHOLE]
        streams = [files.enter_context(document(each.file)) for each in documents]
        fleet = files.enter_context(_fleet(address, _CHECK_S))
        left, early = _all_run(fleet, tasks, done)
        if early == INTERRUPTED:
            if not results:
                raise KeyboardInterrupt
            tell(f"vmm: {INTERRUPTED}", err=True)
        if documents and not results:
            raise NothingRan("no host has returned a result")
        for each, stream in zip(documents, streams, strict=True):
            result = _merged(results, names, _status(found, left), early)
            stream.write(_text(each.name, result))
    return _status(found, left)


def _checks(names: Sequence[str], options: Sequence[str]) -> list["Task"]:
    from vmm.fleet.engine import Task

    command = ("check", *options, "--json", "{out}/result")
    chunks = [tuple(names[at : at + _AT_ONCE]) for at in range(0, len(names), _AT_ONCE)]
    return [Task(f"{chunk[0]} and {len(chunk) - 1} more", (*command, *chunk)) for chunk in chunks]


def _text(name: str, result: ResultFile) -> str:
    if name == "json":
        return json.text(result)
    from vmm.report.html import html_text

    return html_text(result)


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends; None is no limit."""

    seconds: float | None
    operations: int | None
    scenarios: int | None

    def part(self, parts: int) -> tuple[str, ...]:
        """Return the options that end one part: the whole time, but a share of the work."""
        options: tuple[str, ...] = ()
        if self.seconds is not None:
            options += ("--seconds", str(self.seconds))
        if self.operations is not None:
            options += ("--operations", str(-(-self.operations // parts)))
        if self.scenarios is not None:
            options += ("--scenarios", str(-(-self.scenarios // parts)))
        return options


def fuzz_on(address: str, seed: int, budget: Budget, out: Path, options: Sequence[str] = ()) -> int:
    """Search on a cluster; gather findings as they arrive, and return the exit status."""
    _require_engine()
    from vmm.cli.fuzzing import merge_folders, writable_folder
    from vmm.fleet.engine import Task

    if not budget.part(1):
        raise click.UsageError(
            "--dask needs --seconds, --scenarios or --operations: when is a task over?"
        )
    found: list[int] = []

    def done(task: "Task", host: str, report: "Report") -> None:
        found.append(report.status)
        _print(host, report, out)
        if not report.files:
            return
        with temporary_folder() as folder:
            _unpack(report, Path(folder))
            merge_folders((Path(folder),), out)

    limit_s = _CHECK_S if budget.seconds is None else budget.seconds * 2 + 120
    with writable_folder(out), _fleet(address, limit_s) as fleet:
        parts = _SHARDS if budget.seconds is None else max(len(fleet.hosts()), 1)
        search = ("fuzz", *options, "--seed", str(seed), "--out", "{out}", *budget.part(parts))
        tasks = [
            Task(f"shard {part} of {parts}", (*search, "--shard", f"{part}/{parts}"))
            for part in range(1, parts + 1)
        ]
        left, early = _all_run(fleet, tasks, done)
    if early == INTERRUPTED:
        raise KeyboardInterrupt
    return _status(found, left)


def _all_run(
    fleet: "Fleet", tasks: Sequence["Task"], done: Callable[["Task", str, "Report"], None]
) -> tuple[tuple["Task", ...], str]:
    """Run tasks; name and return those that did not run, and why the run ended early."""
    ended: set[Task] = set()

    def ends(task: "Task", host: str, report: "Report") -> None:
        ended.add(task)
        done(task, host, report)

    try:
        left = fleet.run(tasks, _callbacks(ends))
    except KeyboardInterrupt:
        return tuple(task for task in tasks if task not in ended), INTERRUPTED
    why, early = "", ""
    if fleet.scheduler_is_gone:
        early = "the scheduler does not answer any more"
        tell(f"vmm: {early}", err=True)
    elif left:
        early = "no host was left that could run all"
        why = ": no host was left that could"
    for task in left:
        tell(f"vmm: {task.name}: not run{why}", err=True)
    return left, early


def _require_engine() -> None:
    if find_spec("distributed") is None:
        raise Unusable("--dask needs dask.distributed: pip install 'memslot-vmm[fleet]'")


@contextmanager
def _fleet(address: str, timeout_s: float) -> Iterator["Fleet"]:
    """Connect to a scheduler. Raises Unusable."""
    from distributed import Client

    from vmm.fleet.engine import Fleet, quiet

    with quiet():
        try:
            client = Client(address, timeout=_CONNECT_S)
        except (OSError, ValueError) as error:
            raise Unusable(f"--dask {shown(address)}: {shown(str(error))}") from None
        with client:
            yield Fleet(client, timeout_s)


def _callbacks(done: Callable[["Task", str, "Report"], None]) -> "Callbacks":
    from vmm.fleet.engine import Callbacks

    def lost(task: "Task", host: str, why: str) -> None:
        tell(f"vmm: {host} lost {task.name} ({shown(why)}): tried elsewhere", err=True)

    return Callbacks(done, lost)


def _print(host: str, report: "Report", out: Path | None = None) -> None:
    """Print a command's output, with our folder in place of the worker's."""
    from vmm.fleet.work import OUT

    for text, err in ((report.printed, False), (report.complained, True)):
        for line in text.replace(OUT, str(out or OUT)).splitlines():
            tell(f"{host}: {shown(line, 1000)}", err=err)
    for name in report.left_out:
        tell(f"vmm: {host}: {shown(name)}: too large to be sent", err=True)


def _status(found: Sequence[int], left: Sequence["Task"]) -> int:
    for status in _WORST_FIRST:
        if status in found:
            return status
    if left:
        return statuses.INCONCLUSIVE
    return statuses.PASSED if statuses.PASSED in found else statuses.NOTHING_RAN


def _unpack(report: "Report", folder: Path) -> None:
    """Write a report's files below a folder; names that lead out of it are refused."""
    for name, data in report.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            tell(f"vmm: passed over: a worker named a file {shown(name)}", err=True)
            continue
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def _merged(
    results: Sequence[ResultFile], names: Sequence[str], exit_status: int, early: str
) -> ResultFile:
    """Merge results into one, with scenarios in the order of the catalogue.

    Host and features are those of the first; other kernels among them are reported as a weakness.
    """
    first = results[0]
    order = {name: place for place, name in enumerate(names)}
    scenarios = sorted((s for r in results for s in r.scenarios), key=lambda s: order[s.name])
    ran = {scenario.name for scenario in scenarios}
    kernels = sorted({f"Linux {r.host.kernel}, {r.host.vendor}" for r in results})
    mixed = (f"scenarios ran on different kernels: {'; '.join(kernels)}",)
    weaknesses = dict.fromkeys(each for result in results for each in result.weaknesses)
    alike = (status for status in Status if status.exit_status == exit_status)
    counts: dict[str, int] = {}
    for result in results:
        for status, number in result.counts.items():
            counts[status] = counts.get(status, 0) + number
    return msgspec.structs.replace(
        first,
        status=next(alike, Status.INCONCLUSIVE),
        exit_status=exit_status,
        early=early or next((result.early for result in results if result.early), ""),
        counts=counts,
        seconds=round(sum(result.seconds for result in results), 3),
        scenarios=tuple(scenarios),
        not_run=tuple(name for name in names if name not in ran),
        kernel_healthy=all(result.kernel_healthy for result in results),
        weaknesses=(*weaknesses, *(mixed if len(kernels) > 1 else ())),
        rules={name: text for result in results for name, text in result.rules.items()},
    )
