"""``vmm report``: draw a saved result as a page."""

from pathlib import Path

import click

from vmm.cli.command import Writing
from vmm.cli.input.results import result_from
from vmm.cli.options.paths import FilePath
from vmm.cli.options.required import FILE
from vmm.cli.output.writing import document, spare


@click.command(cls=Writing, documents=("file",))
@click.argument("result", metavar="RESULT.json", type=FilePath(path_type=Path))
@click.option(
    "--html",
    "file",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Write the page to this file (-: stdout).",
)
def report(result: Path, file: str) -> None:
    """Draw a saved result as a page of HTML.

    RESULT.json is what `vmm check --json RESULT.json` wrote. The page is one file that loads
    nothing: every scenario step by step, its slots and what the guest met.
    """
    spare([result], [file])
    found = result_from(result)

    from vmm.report.html import html_text

    with document(file) as stream:
        stream.write(html_text(found))
