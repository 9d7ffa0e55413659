"""``vmm lab matrix``: the curated scenarios on several kernels, with each of their MMUs."""

import json
import os
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import click

from vmm.cli.command import Command
from vmm.cli.input.results import result_from
from vmm.cli.lab.cells import Watched, say_what_runs
from vmm.cli.lab.machines import in_one_line, kernel_of, say, worst
from vmm.cli.lab.timeout_option import timeout_option
from vmm.cli.options.paths import FilePath
from vmm.cli.options.selection import curated, select, selecting
from vmm.cli.output.console import console, print_lines
from vmm.cli.output.errors import Unusable
from vmm.cli.output.unfinished import never_stale, remove
from vmm.cli.output.writing import folder_made, written
from vmm.lab.cells import MMUS, Task, cells_of, run_all, usual_number
from vmm.lab.debian import RELEASES
from vmm.lab.machine import Backend
from vmm.report.cells import Statuses, markdown, table
from vmm.report.matrix import SavedResult, matrix_text
from vmm.scenario.endings import INTERRUPTED
from vmm.scenario.selection import Selection
from vmm.verdict.statuses import INCONCLUSIVE

_PAGES = ("matrix.md", "matrix.html")


class _Matrix(Command):
    """The command: without a new table there is no old one."""

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Remove the pages of an earlier run if the command fails before it has written its own."""
        out = ctx.params.get("out") or Path()
        return never_stale([str(out / name) for name in _PAGES], remove)


@click.command(cls=_Matrix)
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    metavar="KERNEL",
    help="As for `vmm lab run`, may be repeated; by default all of Debian's.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice([backend.value for backend in MMUS]),
    help="Only the MMUs of one vendor.",
)
@click.option("--at-once", type=click.IntRange(1, 64), metavar="N", help="Run N at a time.")
@timeout_option
@click.option(
    "--out",
    type=FilePath(path_type=Path, file_okay=False),
    default=Path("lab-matrix"),
    show_default=True,
    metavar="DIR",
    help="A folder for results: one inside for each cell, and the table.",
)
@selecting
@click.pass_context
def matrix(
    ctx: click.Context,
    kernels: tuple[str, ...],
    backends: tuple[str, ...],
    at_once: int | None,
    timeout: float,
    out: Path,
    selection: Selection,
) -> None:
    """Run the curated scenarios on several kernels, with each of their MMUs.

    The table shows what did not pass, or is known, in any cell; a star marks a row in which cells
    differ. The status is the worst of the cells'.
    """
    chosen = [Backend(name) for name in backends] or list(MMUS)
    absolute = [name if name in RELEASES else os.path.realpath(name) for name in kernels]
    cells = cells_of(absolute or list(RELEASES), chosen)
    number = min(at_once or usual_number(), len(cells))
    scenarios = len(select(curated(), selection))
    watched = Watched(f"{len(cells)} cells")
    with in_one_line():
        for name in absolute:
            kernel_of(name, None)
        ctx.with_resource(folder_made(out))
        say_what_runs(cells, scenarios, number, out)
        for name in [] if absolute else RELEASES:
            kernel_of(name, None)
        tasks = []
        for cell in cells:
            words = ["run", *cell.options(), "--timeout", str(timeout)]
            words += ["--", "check", "--json", f"{cell.name}.json"]
            words += ["--histories", "histories.jsonl", *words_of(selection)]
            tasks.append(lab_task(cell.name, words, out.resolve() / cell.name))
        try:
            run_all(tasks, number, watched.ended, watched.look)
        except KeyboardInterrupt:
            watched.end()
            say(f"{INTERRUPTED}: {len(watched.statuses)} of {len(cells)} cells have ended")
    statuses = [watched.statuses.get(cell.name, INCONCLUSIVE) for cell in cells]
    files = {cell.name: out / cell.name / f"{cell.name}.json" for cell in cells}
    results = {name: statuses_in(path) for name, path in files.items()}
    print_lines(console(), table(results))
    with written(out / _PAGES[0]) as page:
        page.write(markdown(results))
    every = [SavedResult(result_from(path), name) for name, path in files.items() if results[name]]
    if every:
        with written(out / _PAGES[1]) as page:
            page.write(matrix_text(every))
        say(f"as a page: {out / 'matrix.html'}")
    ctx.exit(worst(statuses))


def words_of(selection: Selection) -> list[str]:
    """Return a selection as command-line arguments."""
    words = [*selection.patterns]
    for option, values in (("--tag", selection.tags), ("--exclude", selection.exclude)):
        for value in values:
            words += [option, value]
    return words + ["--all"] * selection.everything


def lab_task(label: str, words: list[str], folder: Path) -> Task:
    """Return a `vmm lab` command as a task; its old results are removed."""
    for old in (*folder.glob("*.json"), *folder.glob("*.jsonl")):
        old.unlink()
    shutil.rmtree(folder / "findings", ignore_errors=True)
    return Task(label, (sys.executable, "-P", "-m", "vmm.cli", "lab", *words), folder)


def statuses_in(path: Path) -> Statuses:
    """Return a result's statuses by scenario; none if there is no result."""
    try:
        result = json.loads(path.read_text() or "{}")
        found = {each["name"]: each["status"] for each in result.get("scenarios", ())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"{path}: {error}") from None
    return found
