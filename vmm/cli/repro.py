"""``vmm repro``: a scenario, or a history, as a C program."""

from pathlib import Path

import click

from vmm.cli.command import Writing
from vmm.cli.input.files import allow_large, history_from, holds_history, scenario_from
from vmm.cli.options.paths import FilePath
from vmm.cli.options.selection import complete_names_or_files
from vmm.cli.output.errors import Unusable
from vmm.cli.output.printing import put
from vmm.cli.output.unfinished import STDOUT
from vmm.cli.output.writing import spare, written
from vmm.cli.running.host import look_at_host
from vmm.repro.emit import InexpressibleError, program, program_of
from vmm.scenario.demand import Limits


@click.command(cls=Writing, documents=("output",))
@click.argument(
    "scenario",
    metavar="SCENARIO.json|NAME|HISTORY.jsonl",
    shell_complete=complete_names_or_files,
)
@click.option(
    "-o",
    "output",
    metavar="FILE.c",
    type=FilePath(path_type=Path, dir_okay=False),
    help="Where to write the program; by default to standard output.",
)
@allow_large
def repro(scenario: str, output: Path | None, limits: Limits) -> None:
    """Turn a scenario into a C program that needs nothing else.

    It is one file, for a compiler and <linux/kvm.h>. Its exit status is 0 if the kernel is right,
    1 if it is wrong, 3 if the model does not know what is right from some step on, 4 if it cannot
    run. A program of a history also says what each step gave.
    """
    if output is not None:
        spare([Path(scenario)], [str(output)])
    try:
        if holds_history(scenario):
            text = program(history_from(Path(scenario), limits))
        else:
            chosen = scenario_from(scenario, limits)
            text = program_of(chosen, look_at_host().features)
    except InexpressibleError as error:
        raise Unusable(f"{scenario}: has no form in C: {error}; `vmm run` runs it") from None
    if output is None or str(output) == STDOUT:
        put(text)
        return
    with written(output) as stream:
        stream.write(text)
