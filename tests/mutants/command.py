"""``scripts/mutants``: builds a kernel with many bugs, looks for each, and writes the table."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import click
import msgspec

from tests.mutants import results
from tests.mutants.build import Built, built
from tests.mutants.edits import EditError
from tests.mutants.found import Found
from tests.mutants.machines import Lookout, Waiting, look
from tests.mutants.results import Costs
from tests.mutants.rows import Mutant, mutants, versions
from tests.mutants.table import write
from tests.mutants.words import Task
from vmm.catalogue import catalogue
from vmm.lab.errors import LabError
from vmm.lab.run import side_by_side
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import SLOW

_LIMIT_S = 600
_WHITE_PATTERNS = ("create-*", "move-*", "delete-*", "flags-*", "slot-id*", "spaces-*")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96})
@click.argument("patterns", nargs=-1, metavar="[MUTANT-PATTERN]...")
@click.option("--kernel", "version", type=click.Choice(versions()), default="6.12")
@click.option("--list", "only_list", is_flag=True, help="List the bugs.")
@click.option("--build", "only_build", is_flag=True, help="Build, and look for nothing.")
@click.option("--again", is_flag=True, help="Look again where there is a result already.")
@click.option("--survivors", is_flag=True, help="Look again for those that survived.")
@click.option("--white-box", is_flag=True, help="Look at the kernel's own structures, too.")
@click.option("--good", is_flag=True, help="Run all scenarios without a bug, and fuzz.")
@click.option("--check", "check_s", type=float, default=900, show_default=True, metavar="S",
              help="Begin no scenario after so long.")  # fmt: skip
@click.option("--fuzz", "fuzz_s", type=float, default=60, show_default=True, metavar="S",
              help="Fuzz for so long where the scenarios notice nothing.")  # fmt: skip
@click.option("--default", "only_default", is_flag=True,
              help="Run the default tier alone, as `vmm check` does.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 16), default=len(os.sched_getaffinity(0)),
              show_default=True, help="Machines, and compilers, at a time.")  # fmt: skip
@click.option("--table", is_flag=True, help="Only write the results into docs/mutants.md.")
def main(
    patterns: tuple[str, ...],
    version: str,
    only_list: bool,
    only_build: bool,
    again: bool,
    survivors: bool,
    white_box: bool,
    good: bool,
    check_s: float,
    fuzz_s: float,
    only_default: bool,
    jobs: int,
    table: bool,
) -> None:
    """Put known bugs into a kernel's KVM, and see which of them are noticed, and by what.

    All bugs are in one build, and a parameter of the module puts one at a time to work. Takes
    the tree that scripts/lab-kernel builds, which stays as it is. Root is needed, for an overlay.
    """
    rows = mutants(version)
    chosen = [row for row in rows if not patterns or any(fnmatch(row.name, p) for p in patterns)]
    if not chosen:
        raise click.UsageError(f"no bug is called {' or '.join(patterns)}")
    if only_list:
        for row in chosen:
            click.echo(f"{row.name:28} {row.subject}")
        return
    if table:
        write()
        return
    try:
        kernel = built(version, rows, jobs)
        if only_build:
            click.echo(kernel.modules)
            return
        if good:
            for npt in sorted({row.npt for row in rows}, reverse=True):
                _good(kernel, rows, npt, fuzz_s, again)
            return
        known = {} if again else results.read(version)
        wanted = [
            row
            for row in chosen
            if _is_open(known.get(results.key(row, white_box)), survivors)
            and (patterns or not row.equivalent)
        ]
        effort = _Effort(white_box, check_s, fuzz_s, jobs, only_default)
        for machine in sorted({_machine(row) for row in wanted}, reverse=True):
            some = [row for row in wanted if _machine(row) == machine]
            _look_for(kernel, rows, some, effort)
    except (LabError, EditError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted: what is done is kept") from None


def _machine(row: Mutant) -> tuple[int, int, tuple[str, ...]]:
    return row.npt, row.cpus, row.params


def _is_open(found: Found | None, survivors: bool) -> bool:
    return found is None or found.how == "error" or (survivors and not found.is_noticed)


@dataclass(frozen=True, slots=True)
class _Effort:
    """How bugs are looked for: for how long each, and in how many machines."""

    white_box: bool
    check_s: float
    fuzz_s: float
    jobs: int
    only_default: bool


def _look_for(
    kernel: Built, rows: Sequence[Mutant], wanted: Sequence[Mutant], effort: _Effort
) -> None:
    white_box = effort.white_box
    description = _description(kernel) if white_box else b""
    npt = wanted[0].npt
    lookout = Lookout(
        kernel, npt, _LIMIT_S, description, cpus=wanted[0].cpus, params=wanted[0].params
    )
    scenarios = catalogue(Features(nr_memslots=509))
    if effort.only_default:
        scenarios = tuple(each for each in scenarios if SLOW not in each.tags)
    costs = results.costs(kernel.version, npt)
    tasks = [
        Task(
            rows.index(row) + 1,
            tuple(_order(row, scenarios, costs, white_box)),
            0 if white_box else effort.fuzz_s,
            effort.check_s,
        )
        for row in wanted
    ]
    _in_machines(lookout, rows, tasks, min(effort.jobs, len(tasks)))


def _good(kernel: Built, rows: Sequence[Mutant], npt: int, fuzz_s: float, again: bool) -> None:
    """Run all scenarios without a bug; what each took decides later which comes first.

    Those that have passed are not run again but with ``again``.
    """

    def ran(name: str, seconds: float | None) -> None:
        costs[name] = seconds
        results.keep_costs(kernel.version, npt, costs)

    costs = {} if again else results.costs(kernel.version, npt)
    scenarios = sorted(catalogue(Features(nr_memslots=509)), key=lambda each: _cost(each, costs))
    names = tuple(each.name for each in scenarios if costs.get(each.name) is None)
    lookout = Lookout(kernel, npt, _LIMIT_S, ran=ran)
    _in_machines(lookout, rows, [Task(0, names, fuzz_s, 1e6)], 1)


def _cost(scenario: Scenario, costs: Costs) -> tuple[bool, float]:
    seconds = costs.get(scenario.name)
    return SLOW in scenario.tags, len(scenario.operations) / 100 if seconds is None else seconds


def _in_machines(
    lookout: Lookout, rows: Sequence[Mutant], tasks: Sequence[Task], jobs: int
) -> None:
    """Look for bugs in some machines side by side, and keep each result as it comes."""
    white = bool(lookout.description)
    keys = {row.name: results.key(row, white) for row in rows}

    def keep(found: Found) -> None:
        name = keys.get(found.name, f"{found.name} npt={lookout.npt}")
        results.keep(lookout.built.version, name, found)

    waiting = Waiting(tasks)
    with tempfile.TemporaryDirectory(prefix="mutants-") as top:
        folders = [Path(top, str(number)) for number in range(jobs)]
        for folder in folders:
            folder.mkdir()
        side_by_side([look(lookout, rows, waiting, folder, keep) for folder in folders])


def _order(
    row: Mutant, scenarios: Sequence[Scenario], costs: Costs, white_box: bool
) -> Iterator[str]:
    """Yield scenarios: the likeliest to notice a bug, then the cheapest, slow ones last.

    What does not pass without a bug, on this kernel, says nothing of one.
    """
    cheapest = sorted(scenarios, key=lambda each: _cost(each, costs))
    usable = [each.name for each in cheapest if costs.get(each.name, 0) is not None]
    patterns = (*row.first, *_WHITE_PATTERNS) if white_box else (*row.first, "*")
    names = [each for pattern in patterns for each in usable if fnmatch(each, pattern)]
    yield from dict.fromkeys(names)


def _description(kernel: Built) -> bytes:
    """Return where what lies in the kernel's structures; the machine would take long for that."""
    from vmm.whitebox.description import from_debug_info
    from vmm.whitebox.errors import CannotLookError

    try:
        return msgspec.json.encode(from_debug_info(kernel.modules / "kvm.ko"))
    except CannotLookError as error:
        raise LabError(str(error)) from None


if __name__ == "__main__":
    start = time.monotonic()
    try:
        main()
    finally:
        print(f"mutants: {time.monotonic() - start:.0f} s", file=sys.stderr)
