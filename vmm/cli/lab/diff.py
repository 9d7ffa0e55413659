"""``vmm lab diff``: the same scenarios, curated and random, on two kernels."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from vmm.cli.command import Command
from vmm.cli.lab.cells import Watched
from vmm.cli.lab.machines import in_one_line, kernel_of, say, worst
from vmm.cli.lab.matrix import lab_task, statuses_in
from vmm.cli.lab.timeout_option import timeout_option
from vmm.cli.options.paths import FilePath
from vmm.cli.options.selection import curated, select
from vmm.cli.output.console import console, print_lines
from vmm.cli.output.printing import tell
from vmm.cli.output.writing import folder_made
from vmm.fuzz.endings import ended_badly
from vmm.lab.cells import Cell, Task, run_all, usual_number
from vmm.lab.debian import RELEASES
from vmm.lab.machine import Backend, chosen_backend
from vmm.report.cells import table
from vmm.scenario.endings import INTERRUPTED
from vmm.scenario.selection import Selection
from vmm.verdict.statuses import INCONCLUSIVE

HISTORIES = "histories.jsonl"


@click.command(cls=Command)
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    required=True,
    metavar="KERNEL",
    help="As for `vmm lab run`; give it twice.",
)
@click.option(
    "--backend",
    type=click.Choice([each.value for each in Backend]),
    help="Whose virtualisation, as for `vmm lab run`.",
)
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="As for `vmm lab run`, may be repeated.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Generate the same random scenarios again.",
)
@click.option(
    "--operations",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    metavar="N",
    help="Operations of random scenarios to run, too.",
)
@timeout_option
@click.option(
    "--out",
    type=FilePath(path_type=Path, file_okay=False),
    default=Path("lab-diff"),
    show_default=True,
    metavar="DIR",
    help="A folder for histories and results, one inside for each kernel.",
)
@click.argument("patterns", nargs=-1, metavar="[NAME-PATTERN]...")
@click.pass_context
def diff(
    ctx: click.Context,
    kernels: tuple[str, ...],
    backend: str | None,
    parameters: tuple[str, ...],
    seed: int,
    operations: int,
    timeout: float,
    out: Path,
    patterns: tuple[str, ...],
) -> None:
    """Run the same scenarios, curated and random, on two kernels; say where they differ.

    Status 1 if they differ anywhere, from each other or from the model.
    """
    if len(kernels) != 2:
        raise click.UsageError("give --kernel twice")
    select(curated(), Selection(patterns))
    with in_one_line():
        chosen = chosen_backend(backend)
        names = [name if name in RELEASES else os.path.realpath(name) for name in kernels]
        cells = [Cell(name, chosen, parameters) for name in names]
        for name in names:
            if name not in RELEASES:
                kernel_of(name, None)
        ctx.with_resource(folder_made(out))
        for name in names:
            kernel_of(name, None)
        tasks = []
        for letter, cell in zip("AB", cells, strict=True):
            options = ["run", *cell.options(), "--timeout", str(timeout), "--"]
            check = ["check", "--json", "result.json", "--histories", HISTORIES, *patterns]
            tasks.append(lab_task(f"{letter} check", [*options, *check], out.resolve() / letter))
            fuzz = ["fuzz", "--jobs", "1", "--seed", str(seed), "--operations", str(operations)]
            if operations:
                folder = out.resolve() / f"{letter}-fuzz"
                tasks.append(lab_task(f"{letter} fuzz", [*options, *fuzz], folder))
        statuses = _run(tasks)
    results = {
        f"{letter} {cell.name}": statuses_in(out / letter / "result.json")
        for letter, cell in zip("AB", cells, strict=True)
    }
    print_lines(console(), table(results))
    found = [findings(out / f"{letter}-fuzz") for letter in "AB"]
    for letter, only in zip("AB", (found[0] - found[1], found[1] - found[0]), strict=True):
        for name in sorted(only):
            tell(f"fuzz, only {letter}: {name}")
    files = [str(out / letter / HISTORIES) for letter in "AB"]
    compared = INCONCLUSIVE
    if all(map(os.path.exists, files)):
        command = [sys.executable, "-P", "-m", "vmm.cli", "compare", *files]
        compared = subprocess.run(command, check=False).returncode
    ctx.exit(worst([*statuses, compared, int(found[0] != found[1])]))


def _run(tasks: Sequence[Task]) -> list[int]:
    """Run tasks and return their statuses; an interruption ends those that have not ended."""
    watched = Watched(f"{len(tasks)} runs")
    try:
        run_all(tasks, usual_number(), watched.ended, watched.look)
    except KeyboardInterrupt:
        watched.end()
        say(f"{INTERRUPTED}: {len(watched.statuses)} of {len(tasks)} runs have ended")
    return [watched.statuses.get(task.label, INCONCLUSIVE) for task in tasks]


def findings(folder: Path) -> set[str]:
    """Return the names of a search's differences; what only hung or died differs in nothing."""
    names = {path.parent.name for path in folder.glob("findings/*/scenario.json")}
    return {name for name in names if not ended_badly(name)}
