"""``vmm matrix``: several results side by side."""

from pathlib import Path

import click

from vmm.cli.command import Writing
from vmm.cli.input.files import files_under
from vmm.cli.input.results import result_from
from vmm.cli.options.paths import FilePath
from vmm.cli.options.required import FILE
from vmm.cli.output.writing import document, spare


@click.command(cls=Writing, documents=("file",))
@click.argument(
    "results",
    metavar="RESULT.json...",
    nargs=-1,
    required=True,
    type=FilePath(path_type=Path),
)
@click.option(
    "--html",
    "file",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Write the page to this file (-: stdout).",
)
def matrix(results: tuple[Path, ...], file: str) -> None:
    """Compare the results of kernels on one page of HTML.

    Each is a file that `vmm check --json` wrote, or a folder of such files.
    """
    from vmm.report.matrix import SavedResult, matrix_text

    paths = [path for each in results for path in files_under(each, "*.json", "result")]
    spare(paths, [file])
    every = [SavedResult(result_from(path), path.name) for path in paths]
    with document(file) as stream:
        stream.write(matrix_text(every))
